#include "check.h"

#include <arrowquant.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 24, COLS = 200, GROUP = 64 };

static float weights[ROWS * COLS], decoded[ROWS * COLS];

static int failed(const char *what, const aq_error *err) {
  fprintf(stderr, "%s: code %d, \"%s\"\n", what, (int)err->code, err->message);
  return 1;
}

/* With scales from the range of each group no weight is off by more than a step, which is at most a
 * seventh of the largest weight, 1. */
static int close_enough(const char *what) {
  for (size_t i = 0; i < ROWS * COLS; i++) {
    float error = weights[i] - decoded[i];
    if (!(-1.0f / 7 < error && error < 1.0f / 7)) {
      fprintf(stderr, "%s: weight %zu is %g and was %g\n", what, i, decoded[i], weights[i]);
      return 0;
    }
  }
  return 1;
}

/* Planes in memory of this program's. */
static int rows(void) {
  aq_error err = AQ_INIT(aq_error);
  const aq_recipe recipe = {.struct_size = sizeof recipe,
                            .format = AQ_FORMAT_INT4,
                            .group_size = GROUP,
                            .method = AQ_METHOD_MINMAX,
                            .gain = AQ_GAIN_LSQ};
  aq_planes planes = AQ_INIT(aq_planes);
  if (aq_plane_sizes(&recipe, ROWS, COLS, &planes, &err)) return failed("aq_plane_sizes", &err);
  unsigned char *memory = malloc(planes.codes_len + planes.scales_len);
  if (!memory) return 1;
  planes.codes = memory;
  planes.scales = memory + planes.codes_len;
  aq_matrix matrix = AQ_INIT(aq_matrix);
  aq_quality quality = AQ_INIT(aq_quality);
  if (aq_quantize_rows(&recipe, weights, sizeof weights, AQ_DTYPE_F32, ROWS, COLS, NULL, &planes, &matrix,
                       &quality, &err))
    return failed("aq_quantize_rows", &err);
  if (aq_dequantize_rows(&matrix, AQ_DTYPE_F32, decoded, sizeof decoded, &err))
    return failed("aq_dequantize_rows", &err);
  free(memory);
  printf("%zu bytes to %zu, cosine %.4f\n", sizeof weights, planes.codes_len + planes.scales_len,
         quality.cosine);
  return !close_enough("aq_dequantize_rows");
}

/* A file in memory, by threads and with zstd. */
static int file(void) {
  aq_error err = AQ_INIT(aq_error);
  aq_config *config = NULL;
  aq_source *source = NULL;
  aq_plan *plan = NULL;
  aq_model *model = NULL;
  aq_run_options options = {.struct_size = sizeof options, .threads = 2};
  const size_t dims[] = {ROWS, COLS};
  size_t len = 0;
  if (aq_config_new(NULL, &config, &err) || aq_config_merge_yaml(config, "{compression: zstd, method: minmax, gain: lsq}", &err))
    return failed("aq_config", &err);
  if (aq_source_new(&source, &err) ||
      aq_source_add_tensor(source, "w.weight", AQ_DTYPE_F32, dims, 2, weights, sizeof weights, &err))
    return failed("aq_source", &err);
  if (aq_plan_new(source, config, NULL, &plan, &err) || aq_plan_size_bound(plan, source, &len, &err))
    return failed("aq_plan", &err);
  void *bytes = malloc(len);
  if (!bytes) return 1;
  if (aq_plan_run_into(plan, source, &options, bytes, len, &len, NULL, &err))
    return failed("aq_plan_run_into", &err);
  memset(decoded, 0, sizeof decoded);
  if (aq_model_open_memory(bytes, len, NULL, NULL, &model, &err) ||
      aq_model_dequantize_rows(model, 0, 0, ROWS, AQ_DTYPE_F32, decoded, sizeof decoded, &err))
    return failed("aq_model", &err);
  aq_model_free(model);
  aq_plan_free(plan);
  aq_source_free(source);
  aq_config_free(config);
  free(bytes);
  printf("a file of %zu bytes\n", len);
  return !close_enough("aq_model_dequantize_rows");
}

#ifdef AQ_FAIL
/* Only in the library that tests build from tests/c/fail.rs. */
aq_status aq_fail(const char *message, aq_error *err);

/* A panic inside becomes an error: the tables for unwinding are there. */
static int failure(void) {
  aq_error err = AQ_INIT(aq_error);
  if (aq_fail("on purpose", &err) != AQ_ERROR_INTERNAL || err.code != AQ_ERROR_INTERNAL ||
      !strstr(err.message, "on purpose"))
    return failed("aq_fail", &err);
  printf("%s\n", err.message);
  return 0;
}
#else
/* An error of the operating system's. */
static int failure(void) {
  aq_error err = AQ_INIT(aq_error);
  aq_model *model = NULL;
  if (aq_model_open("/nowhere/on purpose", &model, &err) != AQ_ERROR_IO || !strstr(err.message, "on purpose"))
    return failed("aq_model_open", &err);
  printf("%s\n", err.message);
  return 0;
}
#endif

int check_library(void) {
  if (aq_abi_version() != AQ_ABI_VERSION) return 1;
  printf("ArrowQuant %s\n", aq_version());
  for (size_t i = 0; i < ROWS * COLS; i++) weights[i] = (float)(i * 37 % 101) / 50 - 1;
  return rows() || file() || failure();
}
