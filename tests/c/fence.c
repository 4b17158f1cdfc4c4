/* A bug inside the library comes out as an error, on any thread, and is not printed. Links with the
 * library of tests/c/fail.rs, which has a bug on purpose. Prints what it checked. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arrowquant.h"

aq_status aq_fail(const char *message, aq_error *err);

static int checks = 0;

#define CHECK(condition)                                             \
  do {                                                               \
    if (!(condition)) {                                              \
      fprintf(stderr, "fence.c:%d: %s\n", __LINE__, #condition);     \
      exit(1);                                                       \
    }                                                                \
    checks++;                                                        \
  } while (0)

static void *on_a_thread(void *unused) {
  (void)unused;
  if (aq_fail("on a thread", NULL) != AQ_ERROR_INTERNAL) abort();
  return NULL;
}

/* A callback may fail inside the library, too; the call that it is made from goes on. */
static bool fail_within(void *user_data, const aq_progress *progress) {
  (void)progress;
  aq_error *err = user_data;
  return aq_fail("within a callback", err) == AQ_ERROR_INTERNAL;
}

int main(int argc, char **argv) {
  aq_error err = AQ_INIT(aq_error);
  CHECK(argc == 3);
  CHECK(aq_fail("on purpose", &err) == AQ_ERROR_INTERNAL && err.code == AQ_ERROR_INTERNAL);
  CHECK(strstr(err.message, "internal error: on purpose at src/capi/guard.rs:"));
  CHECK(aq_fail(NULL, &err) == AQ_ERROR_INTERNAL && strstr(err.message, "asked to fail"));
  CHECK(aq_fail("caf\xe9", &err) == AQ_ERROR_ARGUMENT && strstr(err.message, "message is not UTF-8"));
  CHECK(aq_fail("without an error", NULL) == AQ_ERROR_INTERNAL);
  pthread_t threads[8];
  for (int i = 0; i < 8; i++) CHECK(!pthread_create(&threads[i], NULL, on_a_thread, NULL));
  for (int i = 0; i < 8; i++) CHECK(!pthread_join(threads[i], NULL));

  aq_error within = AQ_INIT(aq_error);
  aq_run_options options = AQ_INIT(aq_run_options);
  options.progress = fail_within;
  options.user_data = &within;
  CHECK(aq_quantize_file(argv[1], argv[2], NULL, &options, NULL, &err) == AQ_OK);
  CHECK(within.code == AQ_ERROR_INTERNAL && strstr(within.message, "within a callback"));
  printf("%d checks\n", checks);
  return 0;
}
