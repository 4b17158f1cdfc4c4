/* What the header promises, held against a library: every call with wrong arguments, structs of
 * other sizes, many threads, cancelled runs, a failure inside. Prints what it checked.
 *
 * Usage: contract FOLDER (empty, is written into)
 */
#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "arrowquant.h"

static int checks = 0;

static void fail(int line, const char *what, const aq_error *err) {
  fprintf(stderr, "contract.c:%d: %s (code %d, \"%s\")\n", line, what, (int)err->code, err->message);
  exit(1);
}

/* A call must succeed, and say so. */
#define OK(call)                                                                   \
  do {                                                                             \
    aq_error err = {sizeof err, 77, "left over"};                                  \
    aq_status status = call;                                                       \
    if (status != AQ_OK || err.code != AQ_OK || err.message[0])                    \
      fail(__LINE__, #call, &err);                                                 \
    checks++;                                                                      \
  } while (0)

/* A call must fail with this code, whose message says this, and also without an aq_error. */
#define REFUSED_AS(expected, text, call)                                           \
  do {                                                                             \
    aq_error refusal = AQ_INIT(aq_error), *err = &refusal;                             \
    aq_status status = call;                                                       \
    if (status != (expected) || refusal.code != status || !strstr(refusal.message, text)) \
      fail(__LINE__, #call, &refusal);                                             \
    err = NULL;                                                                    \
    if (call != status) fail(__LINE__, #call " without an error", &refusal);       \
    checks++;                                                                      \
  } while (0)

#define REFUSED(text, call) REFUSED_AS(AQ_ERROR_ARGUMENT, text, call)

#define CHECK(condition)                                                           \
  do {                                                                             \
    aq_error none = AQ_INIT(aq_error);                                                 \
    if (!(condition)) fail(__LINE__, #condition, &none);                           \
    checks++;                                                                      \
  } while (0)

static const char *const BAD_UTF8 = "caf\xe9.parquet";

/* A file of tensors that were scaled and rotated before they were quantized. */
static const char *transformed;
static char input[4200], folder[4200], output[4300], scratch[4300];

/* A safetensors file of eight blocks, each of a matrix and a bias. */
static void write_input(void) {
  enum { BLOCKS = 8, ROWS = 40, COLS = 96 };
  char header[4096] = "{";
  size_t end = 0;
  for (int block = 0; block < BLOCKS; block++) {
    for (int bias = 0; bias < 2; bias++) {
      size_t start = end, len = strlen(header);
      end += (bias ? ROWS : ROWS * COLS) * sizeof(float);
      snprintf(header + len, sizeof header - len,
               "%s\"blocks.%d.attn.%s\":{\"dtype\":\"F32\",\"shape\":[%s],"
               "\"data_offsets\":[%zu,%zu]}",
               len > 1 ? "," : "", block, bias ? "bias" : "weight", bias ? "40" : "40,96", start, end);
    }
  }
  strcat(header, "}");
  uint64_t len = strlen(header);
  FILE *file = fopen(input, "wb");
  CHECK(file && fwrite(&len, 8, 1, file) && fwrite(header, len, 1, file));
  for (size_t i = 0; i < end / sizeof(float); i++) {
    float value = sinf((float)i) * sinf((float)(i * i % 1000));
    fwrite(&value, sizeof value, 1, file);
  }
  CHECK(fclose(file) == 0);
}

/* Names in the folder. */
static int count_files(void) {
  DIR *dir = opendir(folder);
  int count = 0;
  for (struct dirent *entry; dir && (entry = readdir(dir));)
    count += strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..");
  closedir(dir);
  return count;
}

/* ---- configurations ---- */

static void configs(void) {
  aq_config *config = NULL;
  const char *value = NULL;
  REFUSED("config is NULL", aq_config_new(NULL, NULL, err));
  REFUSED("not UTF-8 from byte 3", aq_config_new(BAD_UTF8, &config, err));
  REFUSED_AS(AQ_ERROR_CONFIG, "deployment_profile", aq_config_new("moon", &config, err));
  CHECK(config == NULL); /* outputs are written only on success */
  OK(aq_config_new("edge", &config, &err));
  OK(aq_config_get(config, "bit_width", &value, &err));
  CHECK(!strcmp(value, "2"));
  OK(aq_config_set(config, "bit_width", "4", &err));
  OK(aq_config_get(config, "bit_width", &value, &err));
  CHECK(!strcmp(value, "4"));

  REFUSED("aq_config is NULL", aq_config_set(NULL, "bit_width", "4", err));
  REFUSED("key is NULL", aq_config_set(config, NULL, "4", err));
  REFUSED("value is NULL", aq_config_set(config, "bit_width", NULL, err));
  REFUSED("key is not UTF-8", aq_config_set(config, BAD_UTF8, "4", err));
  REFUSED("value is not UTF-8", aq_config_set(config, "bit_width", BAD_UTF8, err));
  REFUSED_AS(AQ_ERROR_CONFIG, "'5'", aq_config_set(config, "bit_width", "5", err));
  REFUSED_AS(AQ_ERROR_CONFIG, "bits", aq_config_set(config, "bits", "4", err));
  REFUSED("aq_config is NULL", aq_config_add_rule(NULL, "a=keep", err));
  REFUSED("rule is NULL", aq_config_add_rule(config, NULL, err));
  REFUSED("rule is not UTF-8", aq_config_add_rule(config, BAD_UTF8, err));
  REFUSED_AS(AQ_ERROR_CONFIG, "rule 'a'", aq_config_add_rule(config, "a", err));
  REFUSED("aq_config is NULL", aq_config_clone(NULL, &config, err));
  REFUSED("copy is NULL", aq_config_clone(config, NULL, err));
  REFUSED("aq_config is NULL", aq_config_get(NULL, "bit_width", &value, err));
  REFUSED("key is NULL", aq_config_get(config, NULL, &value, err));
  REFUSED("value is NULL", aq_config_get(config, "bit_width", NULL, err));
  REFUSED("key is not UTF-8", aq_config_get(config, BAD_UTF8, &value, err));
  REFUSED("aq_config is NULL", aq_config_merge_yaml(NULL, "", err));
  REFUSED("yaml is NULL", aq_config_merge_yaml(config, NULL, err));
  REFUSED("yaml is not UTF-8", aq_config_merge_yaml(config, BAD_UTF8, err));
  REFUSED("aq_config is NULL", aq_config_merge_yaml_file(NULL, "x.yaml", err));
  REFUSED("path is NULL", aq_config_merge_yaml_file(config, NULL, err));
  REFUSED("path is not UTF-8", aq_config_merge_yaml_file(config, BAD_UTF8, err));
  REFUSED_AS(AQ_ERROR_IO, "/nowhere/x.yaml",
             aq_config_merge_yaml_file(config, "/nowhere/x.yaml", err));
  REFUSED("aq_config is NULL", aq_config_merge_env(NULL, err));
  REFUSED("aq_config is NULL", aq_config_to_yaml(NULL, &value, err));
  REFUSED("yaml is NULL", aq_config_to_yaml(config, NULL, err));

  /* A document is taken in whole or not at all. */
  REFUSED_AS(AQ_ERROR_CONFIG, "scheme",
             aq_config_merge_yaml(config, "group_size: 64\nscheme: round\n", err));
  OK(aq_config_get(config, "group_size", &value, &err));
  CHECK(!strcmp(value, "256"));

  OK(aq_config_merge_yaml(config, "group_size: 64\nrules: ['*.bias=keep']\n", &err));
  OK(aq_config_to_yaml(config, &value, &err));
  aq_config *copy = NULL;
  OK(aq_config_clone(config, &copy, &err));
  OK(aq_config_add_rule(copy, "re:a;b=keep", &err)); /* one rule, whatever is in it */
  OK(aq_config_get(copy, "rules", &value, &err));
  CHECK(!strcmp(value, "*.bias=keep;re:a;b=keep"));
  aq_config_free(copy);
  OK(aq_config_to_yaml(config, &value, &err));
  OK(aq_config_new(NULL, &copy, &err));
  OK(aq_config_merge_yaml(copy, value, &err));
  OK(aq_config_get(copy, "rules", &value, &err));
  CHECK(!strcmp(value, "*.bias=keep"));
  OK(aq_config_get(copy, "group_size", &value, &err));
  CHECK(!strcmp(value, "64"));
  aq_config_free(copy);

  /* Freed once: the second time is refused, and so is what is no config at all. */
  aq_config_free(config);
  aq_config_free(config);
  aq_config_free(NULL);
  REFUSED("freed already", aq_config_set(config, "bit_width", "4", err));
}

/* ---- calibrations ---- */

/* Rows of small whole numbers, whose sums are exact in any order. */
static void fill(float *x, size_t count, unsigned seed) {
  for (size_t i = 0; i < count; i++) x[i] = (float)((i * 7 + seed * 13) % 11) - 5;
}

enum { CAL_ROWS = 20, CAL_COLS = 24, CAL_CALLS = 30, CAL_THREADS = 8 };

struct observer {
  const aq_calibration *calibration;
  unsigned seed;
};

/* Each looks at a layer of its own and at one of all. */
static void *observe(void *argument) {
  struct observer *observer = argument;
  float x[CAL_ROWS * CAL_COLS];
  char own[32];
  snprintf(own, sizeof own, "own.%u", observer->seed);
  for (unsigned i = 0; i < CAL_CALLS; i++) {
    fill(x, CAL_ROWS * CAL_COLS, observer->seed + i);
    const char *layers[2] = {own, "shared"};
    for (int j = 0; j < 2; j++) {
      if (aq_calibration_observe(observer->calibration, layers[j], i * 33, x, sizeof x, AQ_DTYPE_F32,
                                 CAL_ROWS, CAL_COLS, NULL))
        abort();
    }
    if (aq_calibration_count(observer->calibration) < 2) abort();
  }
  return NULL;
}

static long read_file(const char *path, char **bytes) {
  FILE *file = fopen(path, "rb");
  CHECK(file && !fseek(file, 0, SEEK_END));
  long size = ftell(file);
  *bytes = malloc((size_t)size);
  CHECK(*bytes && !fseek(file, 0, SEEK_SET) && fread(*bytes, 1, (size_t)size, file) == (size_t)size);
  fclose(file);
  return size;
}

static int same_files(const char *a, const char *b) {
  char *one, *two;
  long size = read_file(a, &one), other = read_file(b, &two);
  int same = size == other && !memcmp(one, two, (size_t)size);
  free(one);
  free(two);
  return same;
}

static void calibrations(void) {
  aq_calibration *calibration = NULL, *other = NULL;
  aq_calibration_options options = AQ_INIT(aq_calibration_options);
  CHECK(options.struct_size == sizeof options && options.timesteps == 0 && !options.spill_folder);
  REFUSED("calibration is NULL", aq_calibration_new(NULL, NULL, err));
  options.bins = 7;
  REFUSED_AS(AQ_ERROR_CONFIG, "hessian_groups: 10", aq_calibration_new(&options, &calibration, err));
  options.bins = 2000;
  REFUSED_AS(AQ_ERROR_CONFIG, "bins: 2000", aq_calibration_new(&options, &calibration, err));
  options.bins = 0;
  options.timesteps = (1 << 20) + 1;
  REFUSED_AS(AQ_ERROR_CONFIG, "timesteps: ", aq_calibration_new(&options, &calibration, err));
  options.timesteps = 0;
  options.spill_folder = BAD_UTF8;
  REFUSED("spill_folder is not UTF-8", aq_calibration_new(&options, &calibration, err));
  options.spill_folder = "/nowhere";
  options.memory_limit = 1;
  options.struct_size = 0;
  REFUSED("options.struct_size is 0", aq_calibration_new(&options, &calibration, err));
  CHECK(calibration == NULL);
  float x[CAL_ROWS * CAL_COLS];
  fill(x, CAL_ROWS * CAL_COLS, 1);
#define OBSERVE(c, layer, t, x, len, dtype, rows, cols) \
  aq_calibration_observe(c, layer, t, x, len, dtype, rows, cols, err)
  /* Options that a caller does not know have their defaults: there is no limit then. */
  options.struct_size = offsetof(aq_calibration_options, memory_limit);
  OK(aq_calibration_new(&options, &calibration, &err));
  OK(aq_calibration_observe(calibration, "a", 0, x, sizeof x, AQ_DTYPE_F32, CAL_ROWS, CAL_COLS, &err));
  OK(aq_calibration_save(calibration, scratch, &err));
  aq_calibration_free(calibration);
  options.struct_size = sizeof options;
  OK(aq_calibration_new(&options, &calibration, &err));
  OK(aq_calibration_observe(calibration, "a", 0, x, sizeof x, AQ_DTYPE_F32, CAL_ROWS, CAL_COLS, &err));
  REFUSED_AS(AQ_ERROR_IO, "/nowhere", aq_calibration_save(calibration, scratch, err));
  aq_calibration_free(calibration);
  unlink(scratch);

  OK(aq_calibration_new(NULL, &calibration, &err));
  REFUSED("aq_calibration is NULL", OBSERVE(NULL, "a", 0, x, 8, AQ_DTYPE_F32, 1, 2));
  REFUSED("layer is NULL", OBSERVE(calibration, NULL, 0, x, 8, AQ_DTYPE_F32, 1, 2));
  REFUSED("layer is not UTF-8", OBSERVE(calibration, BAD_UTF8, 0, x, 8, AQ_DTYPE_F32, 1, 2));
  REFUSED("x is NULL", OBSERVE(calibration, "a", 0, NULL, 8, AQ_DTYPE_F32, 1, 2));
  REFUSED("any memory", OBSERVE(calibration, "a", 0, x, SIZE_MAX, AQ_DTYPE_F32, 1, 2));
  REFUSED("dtype is 0", OBSERVE(calibration, "a", 0, x, 8, 0, 1, 2));
  REFUSED("dtype is 4", OBSERVE(calibration, "a", 0, x, 16, AQ_DTYPE_F64, 1, 2));
  REFUSED_AS(AQ_ERROR_CONFIG, "layer 'a': 7 bytes", OBSERVE(calibration, "a", 0, x, 7, AQ_DTYPE_F32, 1, 2));
  REFUSED_AS(AQ_ERROR_CONFIG, "layer 'a': 8 bytes",
             OBSERVE(calibration, "a", 0, x, 8, AQ_DTYPE_F32, SIZE_MAX, 2));
  REFUSED_AS(AQ_ERROR_CONFIG, "layer 'a': 0 bytes", OBSERVE(calibration, "a", 0, x, 0, AQ_DTYPE_F32, 0, 0));
  REFUSED_AS(AQ_ERROR_CONFIG, "must have 1 to 4096 bytes", OBSERVE(calibration, "", 0, x, 8, AQ_DTYPE_F32, 1, 2));
  REFUSED_AS(AQ_ERROR_CONFIG, "timestep 1000 is not from 0 to 999",
             OBSERVE(calibration, "a", 1000, x, 8, AQ_DTYPE_F32, 1, 2));
  x[5] = NAN;
  REFUSED_AS(AQ_ERROR_CONFIG, "layer 'a': row 1, channel 2 is NaN",
             OBSERVE(calibration, "a", 0, x, 24, AQ_DTYPE_F32, 2, 3));
  fill(x, CAL_ROWS * CAL_COLS, 1);
  OK(aq_calibration_observe(calibration, "b.weight", 0, x, 0, AQ_DTYPE_F32, 0, 3, &err));
  /* At an odd address, as bytes. */
  char bytes[25];
  memcpy(bytes + 1, x, 24);
  OK(aq_calibration_observe(calibration, "a.weight", 999, bytes + 1, 24, AQ_DTYPE_F32, 2, 3, &err));
  REFUSED_AS(AQ_ERROR_CONFIG, "layer 'a': 2 channels, but 3",
             OBSERVE(calibration, "a", 0, x, 8, AQ_DTYPE_F32, 1, 2));

  aq_layer_info info = AQ_INIT(aq_layer_info);
  REFUSED("aq_calibration is NULL", aq_calibration_layer(NULL, 0, &info, err));
  REFUSED("info is NULL", aq_calibration_layer(calibration, 0, NULL, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there is no layer", aq_calibration_layer(calibration, 1, &info, err));
  CHECK(aq_calibration_count(calibration) == 1 && aq_calibration_count(NULL) == 0);
  OK(aq_calibration_layer(calibration, 0, &info, &err));
  CHECK(!strcmp(info.name, "a") && info.name_len == 1 && info.cols == 3 && info.rows == 2);

  double alphas[1000] = {0};
  REFUSED("aq_calibration is NULL", aq_calibration_set_schedule(NULL, alphas, 1000, err));
  REFUSED("alphas is NULL", aq_calibration_set_schedule(calibration, NULL, 1000, err));
  REFUSED_AS(AQ_ERROR_CONFIG, "999 numbers", aq_calibration_set_schedule(calibration, alphas, 999, err));
  OK(aq_calibration_set_schedule(calibration, alphas, 1000, &err));
  alphas[7] = 1.5;
  REFUSED_AS(AQ_ERROR_CONFIG, "1.5 at timestep 7",
             aq_calibration_set_schedule(calibration, alphas, 1000, err));

  REFUSED("aq_calibration is NULL", aq_calibration_save(NULL, scratch, err));
  REFUSED("path is NULL", aq_calibration_save(calibration, NULL, err));
  REFUSED("path is not UTF-8", aq_calibration_save(calibration, BAD_UTF8, err));
  REFUSED_AS(AQ_ERROR_IO, "/nowhere/x", aq_calibration_save(calibration, "/nowhere/x", err));
  REFUSED("path is NULL", aq_calibration_load(NULL, 0, &other, err));
  REFUSED("calibration is NULL", aq_calibration_load(scratch, 0, NULL, err));
  REFUSED("path is not UTF-8", aq_calibration_load(BAD_UTF8, 0, &other, err));
  REFUSED_AS(AQ_ERROR_IO, "/nowhere/x", aq_calibration_load("/nowhere/x", 0, &other, err));
  REFUSED_AS(AQ_ERROR_FILE, "not a calibration", aq_calibration_load(folder, 0, &other, err));
  REFUSED_AS(AQ_ERROR_FILE, input, aq_calibration_load(input, 0, &other, err));
  REFUSED("aq_calibration is NULL", aq_calibration_merge(NULL, calibration, err));
  REFUSED("aq_calibration is NULL", aq_calibration_merge(calibration, NULL, err));
  REFUSED_AS(AQ_ERROR_CONFIG, "itself", aq_calibration_merge(calibration, calibration, err));
  CHECK(other == NULL);
  options = (aq_calibration_options)AQ_INIT(aq_calibration_options);
  options.no_hessian = 1;
  OK(aq_calibration_new(&options, &other, &err));
  REFUSED_AS(AQ_ERROR_CONFIG, "differ in Hessians", aq_calibration_merge(calibration, other, err));
  aq_calibration_free(other);

  /* Held by a config, it may be freed. */
  aq_config *config = NULL, *clone = NULL;
  OK(aq_config_new(NULL, &config, &err));
  REFUSED("aq_config is NULL", aq_config_set_calibration(NULL, calibration, err));
  REFUSED("not an aq_calibration",
          aq_config_set_calibration(config, (aq_calibration *)(void *)config, err));
  OK(aq_config_set_calibration(config, calibration, &err));
  aq_calibration_free(calibration);
  aq_calibration_free(calibration);
  aq_calibration_free(NULL);
  REFUSED("freed already", aq_config_set_calibration(config, calibration, err));
  OK(aq_config_clone(config, &clone, &err));
  OK(aq_config_set_calibration(config, NULL, &err));
  aq_config_free(config);
  aq_config_free(clone);

  /* Eight threads at once see what one sees after the other, and what each of eight sees that are
   * merged afterwards, one of them through a file and with all but nothing in memory. */
  aq_calibration *at_once = NULL, *in_turn = NULL, *merged = NULL;
  OK(aq_calibration_new(NULL, &at_once, &err));
  OK(aq_calibration_new(NULL, &in_turn, &err));
  OK(aq_calibration_new(NULL, &merged, &err));
  pthread_t threads[CAL_THREADS];
  struct observer observers[CAL_THREADS];
  for (unsigned i = 0; i < CAL_THREADS; i++) {
    observers[i] = (struct observer){at_once, i};
    CHECK(pthread_create(&threads[i], NULL, observe, &observers[i]) == 0);
  }
  char paths[3][4400];
  const char *names[3] = {"at_once", "in_turn", "merged"};
  for (int i = 0; i < 3; i++) snprintf(paths[i], sizeof paths[i], "%s/%s", folder, names[i]);
  for (unsigned i = 0; i < CAL_THREADS; i++) {
    observe(&(struct observer){in_turn, i});
    aq_calibration *part = NULL;
    OK(aq_calibration_new(NULL, &part, &err));
    observe(&(struct observer){part, i});
    if (i == 3) {
      OK(aq_calibration_save(part, scratch, &err));
      aq_calibration_free(part);
      OK(aq_calibration_load(scratch, 1, &part, &err));
      unlink(scratch);
    }
    OK(aq_calibration_merge(merged, part, &err));
    aq_calibration_free(part);
  }
  for (int i = 0; i < CAL_THREADS; i++) pthread_join(threads[i], NULL);
  const aq_calibration *all[3] = {at_once, in_turn, merged};
  for (int i = 0; i < 3; i++) {
    CHECK(aq_calibration_count(all[i]) == CAL_THREADS + 1);
    OK(aq_calibration_layer(all[i], CAL_THREADS, &info, &err));
    CHECK(!strcmp(info.name, "shared") && info.cols == CAL_COLS);
    CHECK(info.rows == (uint64_t)CAL_THREADS * CAL_CALLS * CAL_ROWS);
    OK(aq_calibration_save(all[i], paths[i], &err));
  }
  CHECK(same_files(paths[0], paths[1]) && same_files(paths[1], paths[2]));
  for (int i = 0; i < 3; i++) unlink(paths[i]);
  aq_calibration_free(at_once);
  aq_calibration_free(in_turn);
  aq_calibration_free(merged);
}

/* ---- folding ---- */

/* A norm of two channels and the layers around it, all of ones. */
static void write_block(const char *path) {
  static const char *const tensors[] = {
      "input_layernorm",  "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
      "self_attn.o_proj", "mlp.gate_proj",            "mlp.up_proj",      "mlp.down_proj"};
  char header[2048] = "{";
  size_t end = 0;
  for (int i = 0; i < 9; i++) {
    size_t start = end, len = strlen(header);
    end += (i < 2 ? 2 : 4) * sizeof(float);
    snprintf(header + len, sizeof header - len,
             "%s\"layers.0.%s.weight\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
             i ? "," : "", tensors[i], i < 2 ? "2" : "2,2", start, end);
  }
  strcat(header, "}");
  unsigned long long len = strlen(header);
  FILE *file = fopen(path, "wb");
  CHECK(file && fwrite(&len, 8, 1, file) == 1 && fwrite(header, len, 1, file) == 1);
  for (size_t i = 0; i < end / sizeof(float); i++) {
    const float one = 1;
    CHECK(fwrite(&one, sizeof one, 1, file) == 1);
  }
  CHECK(fclose(file) == 0);
}

static void folding(void) {
  char model[4300], folded[4300];
  snprintf(model, sizeof model, "%s/block.safetensors", folder);
  snprintf(folded, sizeof folded, "%s/folded.safetensors", folder);
  write_block(model);
  aq_calibration *calibration = NULL;
  aq_fold_report *report = NULL;
  const char *json = NULL;
  OK(aq_calibration_new(NULL, &calibration, &err));
  REFUSED_AS(AQ_ERROR_FILE, "has not seen the inputs",
             aq_fold_file(model, folded, calibration, NULL, NULL, &report, err));
  const float x[2] = {16, 1};
  OK(aq_calibration_observe(calibration, "layers.0.self_attn.q_proj", 0, x, sizeof x, AQ_DTYPE_F32, 1, 2, &err));
  aq_fold_options options = AQ_INIT(aq_fold_options);
#define FOLD(input, output, calibration, options) \
  aq_fold_file(input, output, calibration, options, NULL, &report, err)
  REFUSED("input is NULL", FOLD(NULL, folded, calibration, &options));
  REFUSED("input is not UTF-8", FOLD(BAD_UTF8, folded, calibration, &options));
  REFUSED("output is NULL", FOLD(model, NULL, calibration, &options));
  REFUSED("output is not UTF-8", FOLD(model, BAD_UTF8, calibration, &options));
  REFUSED("aq_calibration is NULL", FOLD(model, folded, NULL, &options));
  REFUSED_AS(AQ_ERROR_IO, "/nowhere", FOLD("/nowhere", folded, calibration, &options));
  REFUSED_AS(AQ_ERROR_FILE, "overwritten", FOLD(model, model, calibration, &options));
  REFUSED_AS(AQ_ERROR_FILE, "LLaMA", FOLD(input, folded, calibration, &options));
  options.alpha = 2;
  REFUSED_AS(AQ_ERROR_CONFIG, "alpha: 2", FOLD(model, folded, calibration, &options));
  options.alpha = 0;
  options.dtype = AQ_DTYPE_F64;
  REFUSED("dtype is 4", FOLD(model, folded, calibration, &options));
  options.dtype = 0;
  options.struct_size = 0;
  REFUSED("fold_options.struct_size is 0", FOLD(model, folded, calibration, &options));
  CHECK(report == NULL && access(folded, F_OK) != 0);

  /* By 0.5: 4 and 1, around 1. What a caller does not know of has its default. */
  options.struct_size = offsetof(aq_fold_options, alpha);
  options.alpha = 1;
  OK(aq_fold_file(model, folded, calibration, &options, NULL, &report, &err));
  REFUSED("aq_fold_report is NULL", aq_fold_report_to_json(NULL, &json, err));
  REFUSED("json is NULL", aq_fold_report_to_json(report, NULL, err));
  REFUSED("not an aq_fold_report", aq_fold_report_to_json((aq_fold_report *)(void *)calibration, &json, err));
  OK(aq_fold_report_to_json(report, &json, &err));
  CHECK(strstr(json, "\"alpha\":0.5,") && strstr(json, "\"smallest_scale\":0.5,\"largest_scale\":2.0"));
  aq_fold_report *by_zero = NULL;
  options.struct_size = sizeof options;
  options.alpha = -1;
  OK(aq_fold_file(model, folded, calibration, &options, NULL, &by_zero, &err));
  OK(aq_fold_report_to_json(by_zero, &json, &err));
  CHECK(strstr(json, "\"alpha\":0.0,"));
  aq_fold_report_free(by_zero);
  OK(aq_fold_file(model, folded, calibration, NULL, NULL, NULL, &err));
  aq_fold_report_free(report);
  aq_fold_report_free(report);
  aq_fold_report_free(NULL);
  REFUSED("freed already", aq_fold_report_to_json(report, &json, err));
  char *bytes;
  long size = read_file(folded, &bytes);
  float norm[2];
  unsigned long long header;
  memcpy(&header, bytes, 8);
  memcpy(norm, bytes + 8 + header, sizeof norm);
  CHECK(size > 0 && norm[0] == 0.5f && norm[1] == 2);
  free(bytes);
  OK(aq_fold_file(model, folded, calibration, NULL, NULL, NULL, &err));
  aq_calibration_free(calibration);
  unlink(model);
  unlink(folded);
}

/* ---- sources and plans ---- */

static aq_source *open_source(void) {
  aq_source *source = NULL;
  OK(aq_source_open(input, NULL, &source, &err));
  return source;
}

static aq_plan *plan_for(const aq_source *source) {
  aq_plan *plan = NULL;
  OK(aq_plan_new(source, NULL, NULL, &plan, &err));
  return plan;
}

static void sources(void) {
  aq_source *source = NULL;
  aq_tensor_info info = AQ_INIT(aq_tensor_info);
  static const float values[6] = {1, 2, 3, 4, 5, 6};
  const size_t dims[2] = {2, 3};
  REFUSED("path is NULL", aq_source_open(NULL, NULL, &source, err));
  REFUSED("source is NULL", aq_source_open(input, NULL, NULL, err));
  REFUSED("path is not UTF-8", aq_source_open(BAD_UTF8, NULL, &source, err));
  REFUSED_AS(AQ_ERROR_IO, "/nowhere.safetensors",
             aq_source_open("/nowhere.safetensors", NULL, &source, err));
  REFUSED("source is NULL", aq_source_new(NULL, err));
  CHECK(source == NULL);

  const char *without[2] = {"vae", NULL};
  aq_open_options wanted = AQ_INIT(aq_open_options);
  OK(aq_source_open(input, NULL, &source, &err));
  aq_source_free(source);
  source = NULL;
  OK(aq_source_open(input, &wanted, &source, &err));
  aq_source_free(source);
  source = NULL;
  wanted.without_count = 1;
  REFUSED("options.without is NULL", aq_source_open(input, &wanted, &source, err));
  wanted.without = without;
  REFUSED_AS(AQ_ERROR_CONFIG, "not a pipeline", aq_source_open(input, &wanted, &source, err));
  wanted.without_count = 2;
  REFUSED("a name in options.without is NULL", aq_source_open(input, &wanted, &source, err));
  without[1] = BAD_UTF8;
  REFUSED("is not UTF-8", aq_source_open(input, &wanted, &source, err));
  wanted.struct_size = 0;
  REFUSED("options.struct_size", aq_source_open(input, &wanted, &source, err));
  REFUSED("path is NULL", aq_source_open(NULL, NULL, &source, err));
  REFUSED("source is NULL", aq_source_open(input, NULL, NULL, err));
  CHECK(source == NULL);

  source = open_source();
  size_t count = aq_source_count(source);
  CHECK(count > 10);
  CHECK(aq_source_count(NULL) == 0);
  REFUSED("opened file", aq_source_add_tensor(source, "w", AQ_DTYPE_F32, dims, 2, values, 24, err));
  REFUSED("aq_source is NULL", aq_source_tensor(NULL, 0, &info, err));
  REFUSED("info is NULL", aq_source_tensor(source, 0, NULL, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there is no tensor", aq_source_tensor(source, count, &info, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there is no tensor", aq_source_tensor(source, SIZE_MAX, &info, err));
  for (size_t i = 0; i < count; i++) {
    OK(aq_source_tensor(source, i, &info, &err));
    CHECK(strlen(info.name) == info.name_len && info.tiles == 0);
    size_t elements = 1;
    for (size_t d = 0; d < info.dims_count; d++) elements *= info.dims[d];
    CHECK(elements == info.rows * info.cols);
  }

  /* A handle of another kind is refused, not taken for one. */
  REFUSED("not an aq_plan", aq_plan_set((aq_plan *)(void *)source, "w", "keep", err));
  aq_config_free((aq_config *)(void *)source);
  OK(aq_source_tensor(source, 0, &info, &err));
  aq_source_free(source);
  aq_source_free(source);
  REFUSED("freed already", aq_source_tensor(source, 0, &info, err));

  OK(aq_source_new(&source, &err));
  REFUSED("aq_source is NULL", aq_source_add_tensor(NULL, "w", AQ_DTYPE_F32, dims, 2, values, 24, err));
  REFUSED("name is NULL", aq_source_add_tensor(source, NULL, AQ_DTYPE_F32, dims, 2, values, 24, err));
  REFUSED("name is not UTF-8",
          aq_source_add_tensor(source, BAD_UTF8, AQ_DTYPE_F32, dims, 2, values, 24, err));
  REFUSED("dims is NULL", aq_source_add_tensor(source, "w", AQ_DTYPE_F32, NULL, 2, values, 24, err));
  REFUSED("data is NULL", aq_source_add_tensor(source, "w", AQ_DTYPE_F32, dims, 2, NULL, 24, err));
  REFUSED("dtype is 0", aq_source_add_tensor(source, "w", 0, dims, 2, values, 24, err));
  REFUSED("dtype is 23", aq_source_add_tensor(source, "w", 23, dims, 2, values, 24, err));
  REFUSED("any memory",
          aq_source_add_tensor(source, "w", AQ_DTYPE_F32, dims, 2, values, SIZE_MAX, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "'w': 23 bytes",
             aq_source_add_tensor(source, "w", AQ_DTYPE_F32, dims, 2, values, 23, err));
  const size_t huge[2] = {SIZE_MAX, 2};
  REFUSED_AS(AQ_ERROR_TENSOR, "too large",
             aq_source_add_tensor(source, "w", AQ_DTYPE_F32, huge, 2, values, 24, err));
  OK(aq_source_add_tensor(source, "w", AQ_DTYPE_F32, dims, 2, values, 24, &err));
  REFUSED_AS(AQ_ERROR_TENSOR, "added twice",
             aq_source_add_tensor(source, "w", AQ_DTYPE_F32, dims, 2, values, 24, err));
  OK(aq_source_add_tensor(source, "scalar", AQ_DTYPE_F32, NULL, 0, values, 4, &err));
  CHECK(aq_source_count(source) == 2);
  aq_source_free(source);

  REFUSED("stream is NULL", aq_source_from_arrow(NULL, &source, err));
  struct ArrowArrayStream released;
  memset(&released, 0, sizeof released);
  REFUSED("released already", aq_source_from_arrow(&released, &source, err));
}

static void plans(void) {
  aq_source *source = open_source();
  aq_config *config = NULL;
  aq_plan *plan = NULL, *copy = NULL;
  aq_tensor_plan entry = AQ_INIT(aq_tensor_plan);
  const char *json = NULL;
  OK(aq_config_new(NULL, &config, &err));
  REFUSED("aq_source is NULL", aq_plan_new(NULL, config, NULL, &plan, err));
  REFUSED("plan is NULL", aq_plan_new(source, config, NULL, NULL, err));
  REFUSED("not an aq_config", aq_plan_new(source, (aq_config *)(void *)source, NULL, &plan, err));
  OK(aq_config_add_rule(config, "typo=keep", &err));
  OK(aq_config_set(config, "modality", "audio", &err));
  OK(aq_plan_new(source, config, NULL, &plan, &err));
  aq_config_free(config);
  size_t count = aq_plan_count(plan);
  CHECK(count == aq_source_count(source));
  CHECK(aq_plan_count(NULL) == 0);
  REFUSED("aq_plan is NULL", aq_plan_tensor(NULL, 0, &entry, err));
  REFUSED("entry is NULL", aq_plan_tensor(plan, 0, NULL, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there is no tensor", aq_plan_tensor(plan, count, &entry, err));
  REFUSED("aq_plan is NULL", aq_plan_set(NULL, "w", "keep", err));
  REFUSED("tensor is NULL", aq_plan_set(plan, NULL, "keep", err));
  REFUSED("settings is NULL", aq_plan_set(plan, "w", NULL, err));
  REFUSED("tensor is not UTF-8", aq_plan_set(plan, BAD_UTF8, "keep", err));
  REFUSED("settings is not UTF-8", aq_plan_set(plan, "w", BAD_UTF8, err));
  REFUSED_AS(AQ_ERROR_PLAN, "no tensor 'w'", aq_plan_set(plan, "w", "keep", err));
  REFUSED("aq_plan is NULL", aq_plan_to_json(NULL, &json, err));
  REFUSED("json is NULL", aq_plan_to_json(plan, NULL, err));
  REFUSED("json is NULL", aq_plan_from_json(NULL, &copy, err));
  REFUSED("plan is NULL", aq_plan_from_json("{}", NULL, err));
  REFUSED("json is not UTF-8", aq_plan_from_json(BAD_UTF8, &copy, err));
  REFUSED_AS(AQ_ERROR_PLAN, "plan", aq_plan_from_json("{}", &copy, err));

  /* What the model generates, and what is wrong with the plan. */
  OK(aq_plan_to_json(plan, &json, &err));
  CHECK(strstr(json, "\"modality\":\"audio\"") && strstr(json, "\"evidence\":["));
  CHECK(strstr(json, "rule typo=keep matches no tensor"));

  /* What is set is what the copy has. */
  size_t target = count;
  for (size_t i = 0; i < count && target == count; i++) {
    OK(aq_plan_tensor(plan, i, &entry, &err));
    if (entry.format == AQ_FORMAT_INT4) target = i;
  }
  CHECK(target < count);
  char name[512];
  snprintf(name, sizeof name, "%s", entry.name);
  REFUSED_AS(AQ_ERROR_CONFIG, name, aq_plan_set(plan, name, "bits:3", err));
  OK(aq_plan_set(plan, name, "bits:8,group:64,scheme:affine", &err));
  OK(aq_plan_to_json(plan, &json, &err));
  OK(aq_plan_from_json(json, &copy, &err));
  OK(aq_plan_tensor(copy, target, &entry, &err));
  CHECK(entry.format == AQ_FORMAT_INT8 && entry.group_size == 64);
  CHECK(entry.scheme == AQ_SCHEME_AFFINE && !strcmp(entry.name, name));
  aq_plan_free(copy);
  aq_plan_free(plan);
  aq_plan_free(plan);
  aq_plan_free(NULL);
  aq_source_free(source);
}

/* ---- runs ---- */

struct steps {
  int calls, stop_at, logged;
  pthread_t thread;
};

static bool tell(void *user_data, const aq_progress *progress) {
  struct steps *steps = user_data;
  steps->calls++;
  if (!pthread_equal(steps->thread, pthread_self()) || progress->done > progress->total) abort();
  return steps->calls != steps->stop_at;
}

static bool hear(void *user_data, aq_log_level level, const char *message) {
  struct steps *steps = user_data;
  if (!pthread_equal(steps->thread, pthread_self()) || !*message || level < AQ_LOG_INFO) abort();
  steps->logged++;
  steps->calls++;
  return steps->calls != steps->stop_at;
}

/* ---- budgets, analyses and searches ---- */

/* A config of one key. */
static aq_config *config_with(const char *key, const char *value) {
  aq_config *config = NULL;
  OK(aq_config_new(NULL, &config, &err));
  OK(aq_config_set(config, key, value, &err));
  return config;
}

static void budgets(void) {
  aq_source *source = open_source(), *other = NULL;
  aq_config *config = config_with("avg_bits", "4.5");
  aq_plan *plan = NULL, *same = NULL;
  uint64_t bytes = 0;
  struct steps steps = {0, 0, 0, pthread_self()};
  aq_run_options options = AQ_INIT(aq_run_options);
  options.progress = tell;
  options.user_data = &steps;
  REFUSED("aq_source is NULL", aq_plan_new(NULL, config, &options, &plan, err));
  REFUSED("plan is NULL", aq_plan_new(source, config, &options, NULL, err));
  REFUSED("not an aq_config",
          aq_plan_new(source, (aq_config *)(void *)source, &options, &plan, err));
  options.threads = 5000;
  REFUSED_AS(AQ_ERROR_CONFIG, "5000", aq_plan_new(source, config, &options, &plan, err));
  options.threads = 2;
  options.struct_size = 0;
  REFUSED("options.struct_size is 0", aq_plan_new(source, config, &options, &plan, err));
  options.struct_size = sizeof options;
  steps.stop_at = 1;
  steps.calls = 0;
  aq_error err = AQ_INIT(aq_error);
  CHECK(aq_plan_new(source, config, &options, &plan, &err) == AQ_ERROR_CANCELLED);
  CHECK(plan == NULL && steps.calls == 1);
  steps.stop_at = 0;
  OK(aq_plan_new(source, config, &options, &plan, &err));
  CHECK(steps.calls > 1);
  OK(aq_plan_new(source, config, NULL, &same, &err));
  size_t planes = 0, weights = 0;
  for (size_t i = 0; i < aq_plan_count(plan); i++) {
    aq_tensor_plan entry = AQ_INIT(aq_tensor_plan), twin = entry;
    OK(aq_plan_tensor(plan, i, &entry, &err));
    OK(aq_plan_tensor(same, i, &twin, &err));
    CHECK(entry.bytes == twin.bytes && entry.format == twin.format);
    CHECK(strncmp(entry.reason, "budget: ", 8) || entry.format == AQ_FORMAT_KEPT ||
          entry.min_cosine == 0.85);
    if (strncmp(entry.reason, "budget: ", 8)) continue;
    planes += entry.bytes;
    weights += 40 * 96;
  }
  CHECK(weights == 8 * 40 * 96 && 8.0 * planes <= 4.5 * weights && 8.0 * planes > 4.3 * weights);
  aq_plan_free(same);

  REFUSED("aq_source is NULL", aq_plan_file_bytes(plan, NULL, &bytes, err));
  REFUSED("aq_plan is NULL", aq_plan_file_bytes(NULL, source, &bytes, err));
  REFUSED("bytes is NULL", aq_plan_file_bytes(plan, source, NULL, err));
  OK(aq_source_new(&other, &err));
  REFUSED_AS(AQ_ERROR_PLAN, "16 tensors", aq_plan_file_bytes(plan, other, &bytes, err));
  aq_source_free(other);
  OK(aq_plan_file_bytes(plan, source, &bytes, &err));
  OK(aq_plan_run(plan, source, output, NULL, NULL, &err));
  struct stat file;
  CHECK(!stat(output, &file));
  CHECK(llabs((long long)bytes - (long long)file.st_size) < 16 * 400);
  aq_plan_free(plan);
  aq_config_free(config);
  plan = NULL;
  config = config_with("max_size", "9kB");
  REFUSED_AS(AQ_ERROR_CONFIG, "max_size: 9.0 kB is too small",
             aq_plan_new(source, config, NULL, &plan, err));
  aq_config_free(config);

  /* Progress is told of the measuring as of the run: cancelled there, no run begins. */
  config = config_with("avg_bits", "4.5");
  steps = (struct steps){0, 1, 0, pthread_self()};
  CHECK(aq_quantize_file(input, scratch, config, &options, NULL, &err) == AQ_ERROR_CANCELLED);
  CHECK(steps.calls == 1 && count_files() == 1);
  aq_config_free(config);

  /* The ladder: two bits are not enough, four are. */
  config = config_with("bit_width", "2");
  OK(aq_config_set(config, "min_cosine", "0.98", &err));
  aq_report *report = NULL;
  OK(aq_quantize_file(input, output, config, NULL, &report, &err));
  for (size_t i = 0; i < aq_report_count(report); i++) {
    aq_tensor_report entry = AQ_INIT(aq_tensor_report);
    OK(aq_report_tensor(report, i, &entry, &err));
    if (strstr(entry.name, "bias")) {
      CHECK(isnan(entry.min_cosine) && !entry.ladder_steps && !entry.below_min_cosine);
    } else {
      CHECK(entry.format == AQ_FORMAT_INT4 && entry.ladder_steps == 1);
      CHECK(entry.min_cosine == 0.98 && entry.cosine >= 0.98 && !entry.below_min_cosine);
    }
  }
  aq_report_free(report);
  /* And no room for more. */
  OK(aq_config_set(config, "candidates", "int2:32", &err));
  OK(aq_config_set(config, "mixed_precision", "true", &err));
  OK(aq_plan_new(source, config, NULL, &plan, &err));
  OK(aq_plan_file_bytes(plan, source, &bytes, &err));
  aq_plan_free(plan);
  char size[40];
  /* The smallest that is possible: a little more than predicted. */
  aq_status planned;
  do {
    bytes += 100;
    snprintf(size, sizeof size, "%lluB", (unsigned long long)bytes);
    OK(aq_config_set(config, "max_size", size, &err));
    plan = NULL;
    planned = aq_plan_new(source, config, NULL, &plan, &err);
    aq_plan_free(plan);
  } while (planned == AQ_ERROR_CONFIG);
  CHECK(planned == AQ_OK);
  OK(aq_quantize_file(input, output, config, NULL, &report, &err));
  for (size_t i = 0; i < aq_report_count(report); i++) {
    aq_tensor_report entry = AQ_INIT(aq_tensor_report);
    OK(aq_report_tensor(report, i, &entry, &err));
    if (strstr(entry.name, "bias")) continue;
    CHECK(entry.format == AQ_FORMAT_INT2 && entry.below_min_cosine == 1 && entry.cosine < 0.98);
  }
  aq_report_free(report);
  aq_config_free(config);
  aq_source_free(source);
}

static void analyses(void) {
  aq_source *source = open_source();
  aq_config *config = config_with("candidates", "int2:32,int8:64:affine");
  aq_analysis *analysis = NULL;
  const char *json = NULL;
  struct steps steps = {0, 0, 0, pthread_self()};
  aq_run_options options = AQ_INIT(aq_run_options);
  options.progress = tell;
  options.user_data = &steps;
  REFUSED("aq_source is NULL", aq_analyze(NULL, config, NULL, &analysis, err));
  REFUSED("analysis is NULL", aq_analyze(source, config, NULL, NULL, err));
  REFUSED("not an aq_config", aq_analyze(source, (aq_config *)(void *)source, NULL, &analysis, err));
  options.struct_size = 0;
  REFUSED("options.struct_size is 0", aq_analyze(source, config, &options, &analysis, err));
  options.struct_size = sizeof options;
  steps.stop_at = 1;
  aq_error err = AQ_INIT(aq_error);
  CHECK(aq_analyze(source, config, &options, &analysis, &err) == AQ_ERROR_CANCELLED);
  CHECK(analysis == NULL);
  steps.stop_at = 0;
  OK(aq_analyze(source, config, &options, &analysis, &err));
  CHECK(steps.calls > 1);
  REFUSED("aq_analysis is NULL", aq_analysis_to_json(NULL, &json, err));
  REFUSED("json is NULL", aq_analysis_to_json(analysis, NULL, err));
  OK(aq_analysis_to_json(analysis, &json, &err));
  CHECK(json[0] == '{' && strstr(json, "blocks.7.attn.weight") && strstr(json, "\"affine\""));
  aq_analysis_free(analysis);
  aq_analysis_free(analysis);
  aq_analysis_free(NULL);
  REFUSED("freed already", aq_analysis_to_json(analysis, &json, err));
  OK(aq_analyze(source, NULL, NULL, &analysis, &err));
  aq_analysis_free(analysis);
  aq_config_free(config);
  aq_source_free(source);
}

/* A search as its callbacks see it. */
struct search {
  pthread_t thread;
  pthread_mutex_t mutex;
  pthread_cond_t another;
  int calls, inside, most_inside, parallel, end_at, end_after;
  double answer; /* what call `end_at` gives */
  const aq_plan *last;
  unsigned generations;
  uint64_t evaluations;
};

/* Bits of later tensors are worth more, and those of two neighbours less. */
static double worth(void *user_data, const aq_plan *candidate) {
  struct search *search = user_data;
  pthread_mutex_lock(&search->mutex);
  if (!search->parallel && !pthread_equal(search->thread, pthread_self())) abort();
  int call = ++search->calls;
  search->last = candidate;
  if (++search->inside > search->most_inside) search->most_inside = search->inside;
  pthread_cond_broadcast(&search->another);
  /* The first waits for a second, where there is to be one. */
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 20;
  while (search->parallel > 1 && search->most_inside < 2)
    if (pthread_cond_timedwait(&search->another, &search->mutex, &until)) break;
  pthread_mutex_unlock(&search->mutex);
  double sum = 0;
  int before = 0;
  for (size_t i = 0; i < aq_plan_count(candidate); i++) {
    aq_tensor_plan entry = AQ_INIT(aq_tensor_plan);
    aq_error err = AQ_INIT(aq_error);
    if (aq_plan_tensor(candidate, i, &entry, &err)) abort();
    if (strncmp(entry.reason, "search: ", 8)) continue;
    sum += (double)(i + 1) * entry.format - (before == entry.format ? 3.5 : 0);
    before = entry.format;
  }
  pthread_mutex_lock(&search->mutex);
  search->inside--;
  pthread_mutex_unlock(&search->mutex);
  return call == search->end_at ? search->answer : sum;
}

static bool generation(void *user_data, const aq_generation *told) {
  struct search *search = user_data;
  if (!pthread_equal(search->thread, pthread_self())) abort();
  CHECK(told->struct_size == sizeof *told && told->generation == search->generations);
  CHECK(told->evaluations >= search->evaluations && told->best >= told->mean && told->bytes > 0);
  /* A candidate is of no use after its call. */
  CHECK(search->inside == 0 && aq_plan_count(search->last) == 0);
  search->evaluations = told->evaluations;
  return (int)search->generations++ != search->end_after;
}

static struct search new_search(void) {
  return (struct search){.thread = pthread_self(),
                         .mutex = PTHREAD_MUTEX_INITIALIZER,
                         .another = PTHREAD_COND_INITIALIZER,
                         .end_after = -1};
}

/* A search's JSON, in memory of the caller's; its plan is given on. */
static char *searched(const aq_source *source, const aq_config *config, aq_evolve_options *evolve,
                      const aq_run_options *options, aq_plan **plan) {
  aq_evolution *evolution = NULL;
  const char *json = NULL;
  OK(aq_evolve(source, config, evolve, options, plan, &evolution, &err));
  OK(aq_evolution_to_json(evolution, &json, &err));
  char *copy = strdup(json);
  aq_evolution_free(evolution);
  return copy;
}

static void searches(void) {
  aq_source *source = open_source();
  aq_config *config = config_with("candidates", "int2:32,int4:64,int4:32,int8:32");
  OK(aq_config_set(config, "seed", "7", &err));
  OK(aq_config_set(config, "min_cosine", "none", &err));
  aq_plan *plan = NULL;
  aq_evolution *evolution = NULL;
  char *json = NULL, *another = NULL;
  const char *borrowed = NULL;
  struct search search = new_search();
  aq_run_options options = AQ_INIT(aq_run_options);
  aq_evolve_options evolve;
  evolve = (aq_evolve_options)AQ_INIT(aq_evolve_options);
  CHECK(evolve.struct_size == sizeof evolve && !evolve.population && !evolve.fitness);
  CHECK(!evolve.checkpoint && !evolve.generation && !evolve.user_data && !evolve.resume);
  evolve.population = 8;
  evolve.generations = 4;
  evolve.fitness = worth;
  evolve.generation = generation;
  evolve.user_data = &search;

#define EVOLVE(source, config, plan) aq_evolve(source, config, &evolve, &options, plan, &evolution, err)
  REFUSED("aq_source is NULL", EVOLVE(NULL, config, &plan));
  REFUSED("plan is NULL", EVOLVE(source, config, NULL));
  REFUSED("not an aq_config", EVOLVE(source, (aq_config *)(void *)source, &plan));
  evolve.struct_size = 0;
  REFUSED("evolve.struct_size is 0", EVOLVE(source, config, &plan));
  evolve.struct_size = sizeof evolve;
  options.struct_size = 0;
  REFUSED("options.struct_size is 0", EVOLVE(source, config, &plan));
  options.struct_size = sizeof options;
  evolve.resume = 1;
  REFUSED("evolve.resume without a checkpoint", EVOLVE(source, config, &plan));
  evolve.resume = 0;
  evolve.checkpoint = BAD_UTF8;
  REFUSED("evolve.checkpoint is not UTF-8", EVOLVE(source, config, &plan));
  evolve.checkpoint = NULL;
  evolve.population = 1;
  REFUSED_AS(AQ_ERROR_CONFIG, "population: 1 is less than 2", EVOLVE(source, config, &plan));
  evolve.population = 8;
  CHECK(search.calls == 0 && !plan && !evolution);
  evolve.generation = NULL;
  evolve.checkpoint = "/nowhere/search.json";
  REFUSED_AS(AQ_ERROR_FILE, "/nowhere", EVOLVE(source, config, &plan));
  evolve.checkpoint = NULL;
  for (int i = 0; i < 3; i++) {
    const double answers[3] = {NAN, INFINITY, -INFINITY};
    const char *const messages[3] = {"fitness: a candidate's is NaN", "a candidate's is inf", "cancelled"};
    for (evolve.parallel = 0; evolve.parallel < 2; evolve.parallel++) {
      search = new_search();
      search.parallel = (int)evolve.parallel;
      search.end_at = 1;
      search.answer = answers[i];
      options.threads = 1;
      const aq_status expected = i < 2 ? AQ_ERROR_CONFIG : AQ_ERROR_CANCELLED;
      aq_error refusal = AQ_INIT(aq_error), *err = &refusal;
      CHECK(EVOLVE(source, config, &plan) == expected && !plan && !evolution);
      if (!strstr(refusal.message, messages[i])) fail(__LINE__, messages[i], &refusal);
      CHECK(search.calls == 1);
    }
  }
  evolve.parallel = 0;
#undef EVOLVE

  /* The same seed, the same history: on one thread, and on several at once. */
  evolve.generation = generation;
  search = new_search();
  json = searched(source, config, &evolve, &options, &plan);
  CHECK(search.generations == 5 && search.most_inside == 1 && search.calls > 20);
  CHECK((uint64_t)search.calls == search.evaluations && strstr(json, "\"stopped\":false"));
  CHECK(worth(&search, plan) == atof(strstr(json, "\"fitness\":") + 10));
  aq_plan_free(plan);
  evolve.parallel = 1;
  for (options.threads = 1; options.threads <= 2; options.threads++) {
    search = new_search();
    search.parallel = (int)options.threads;
    another = searched(source, config, &evolve, &options, &plan);
    CHECK(!strcmp(json, another) && search.most_inside == (int)options.threads);
    free(another);
    aq_plan_free(plan);
  }
  evolve.parallel = 0;
  options.threads = 1;

  /* Another seed, another history. */
  OK(aq_config_set(config, "seed", "8", &err));
  search = new_search();
  another = searched(source, config, &evolve, &options, &plan);
  CHECK(strcmp(json, another));
  free(another);
  aq_plan_free(plan);

  /* Ended by either function, it gives the best so far; resumed, it goes on as if it had not been. */
  OK(aq_config_set(config, "seed", "7", &err));
  evolve.checkpoint = scratch;
  search = new_search();
  search.end_after = 1;
  another = searched(source, config, &evolve, &options, &plan);
  CHECK(search.generations == 2 && strstr(another, "\"stopped\":true") && strlen(another) < strlen(json));
  free(another);
  aq_plan_free(plan);
  evolve.resume = 1;
  int before = search.calls;
  search.end_after = -1;
  another = searched(source, config, &evolve, &options, &plan);
  CHECK(!strcmp(json, another) && search.generations == 5 && before > 8);
  free(another);
  aq_plan_free(plan);
  evolve.population = 9;
  aq_plan *no_plan = NULL;
  REFUSED_AS(AQ_ERROR_FILE, "of another search",
             aq_evolve(source, config, &evolve, NULL, &no_plan, NULL, err));
  evolve.population = 8;
  CHECK(!unlink(scratch) && !no_plan);
  evolve.checkpoint = NULL;
  evolve.resume = 0;
  search = new_search();
  search.end_at = 12;
  search.answer = -INFINITY;
  another = searched(source, config, &evolve, &options, &plan);
  CHECK(search.calls == 12 && strstr(another, "\"stopped\":true"));
  free(another);
  free(json);
  aq_plan_free(plan);

  /* No generation after the first, for which 0 cannot stand. */
  search = new_search();
  evolve.generations = AQ_NONE;
  another = searched(source, config, &evolve, &options, &plan);
  CHECK(search.generations == 1 && strstr(another, "\"stopped\":false"));
  free(another);

  OK(aq_plan_run(plan, source, output, NULL, NULL, &err)); /* what it found can be done */
  aq_plan_free(plan);

  /* Without options: the errors of tensors, of which the budget's plan is the best already. */
  OK(aq_evolve(source, config, NULL, NULL, &plan, &evolution, &err));
  REFUSED("aq_evolution is NULL", aq_evolution_to_json(NULL, &borrowed, err));
  REFUSED("json is NULL", aq_evolution_to_json(evolution, NULL, err));
  OK(aq_evolution_to_json(evolution, &borrowed, &err));
  CHECK(strstr(borrowed, "\"additive\":true") && strstr(borrowed, "\"generation\":10"));
  CHECK(atof(strstr(borrowed, "\"start\":") + 8) == atof(strstr(borrowed, "\"fitness\":") + 10));
  aq_evolution_free(evolution);
  aq_evolution_free(evolution);
  aq_evolution_free(NULL);
  REFUSED("freed already", aq_evolution_to_json(evolution, &borrowed, err));
  aq_plan_free(plan);

  /* Options that a caller does not know have their defaults. */
  search = new_search();
  evolve.struct_size = offsetof(aq_evolve_options, fitness);
  OK(aq_evolve(source, config, &evolve, &options, &plan, NULL, &err));
  CHECK(search.calls == 0);
  aq_plan_free(plan);
  aq_config_free(config);
  aq_source_free(source);
}

static void runs(void) {
  aq_source *source = open_source();
  aq_plan *plan = plan_for(source);
  aq_report *report = NULL;
  size_t size = 0, written = 0;
  REFUSED("input is NULL", aq_quantize_file(NULL, output, NULL, NULL, NULL, err));
  REFUSED("output is NULL", aq_quantize_file(input, NULL, NULL, NULL, NULL, err));
  REFUSED("input is not UTF-8", aq_quantize_file(BAD_UTF8, output, NULL, NULL, NULL, err));
  REFUSED("output is not UTF-8", aq_quantize_file(input, BAD_UTF8, NULL, NULL, NULL, err));
  REFUSED_AS(AQ_ERROR_IO, "/nowhere", aq_quantize_file("/nowhere", output, NULL, NULL, NULL, err));
  REFUSED_AS(AQ_ERROR_FILE, "no folder",
             aq_quantize_file(input, "/nowhere/x.parquet", NULL, NULL, NULL, err));
  REFUSED("aq_source is NULL", aq_plan_run(plan, NULL, output, NULL, NULL, err));
  REFUSED("aq_plan is NULL", aq_plan_run(NULL, source, output, NULL, NULL, err));
  REFUSED("output is NULL", aq_plan_run(plan, source, NULL, NULL, NULL, err));
  REFUSED("output is not UTF-8", aq_plan_run(plan, source, BAD_UTF8, NULL, NULL, err));
  REFUSED("aq_source is NULL", aq_plan_size_bound(plan, NULL, &size, err));
  REFUSED("aq_plan is NULL", aq_plan_size_bound(NULL, source, &size, err));
  REFUSED("size is NULL", aq_plan_size_bound(plan, source, NULL, err));
  OK(aq_plan_size_bound(plan, source, &size, &err));
  char *memory = malloc(size);
  REFUSED("aq_source is NULL",
          aq_plan_run_into(plan, NULL, NULL, memory, size, &written, NULL, err));
  REFUSED("aq_plan is NULL", aq_plan_run_into(NULL, source, NULL, memory, size, &written, NULL, err));
  REFUSED("output is NULL", aq_plan_run_into(plan, source, NULL, NULL, size, &written, NULL, err));
  REFUSED("written is NULL", aq_plan_run_into(plan, source, NULL, memory, size, NULL, NULL, err));
  CHECK(written == 0 && count_files() == 0);

  /* Memory of another size than what was asked for. */
  REFUSED_AS(AQ_ERROR_IO, "too small",
             aq_plan_run_into(plan, source, NULL, memory, 1000, &written, NULL, err));
  REFUSED_AS(AQ_ERROR_IO, "too small", aq_plan_run_into(plan, source, NULL, NULL, 0, &written, NULL, err));
  OK(aq_plan_run_into(plan, source, NULL, memory, size, &written, &report, &err));
  CHECK(written > 8 * 40 * 96 / 2 && written <= size);
  aq_report_total total = AQ_INIT(aq_report_total);
  OK(aq_report_totals(report, &total, &err));
  CHECK(total.output_bytes == written && total.cosine > 0.99 && total.sqnr_db > 20);
  aq_report_free(report);

  /* A file made of the same plan holds the same bytes. */
  OK(aq_plan_run(plan, source, output, NULL, NULL, &err));
  FILE *file = fopen(output, "rb");
  char *bytes = malloc(written + 1);
  CHECK(file && fread(bytes, 1, written + 1, file) == written);
  CHECK(!memcmp(bytes, memory, written));
  fclose(file);
  free(bytes);

  /* Cancelled at every step, on one thread and on several: nothing new in the folder, and what
   * was there is as it was. A rule that matches nothing gives the log something to say. */
  aq_config *config = NULL;
  OK(aq_config_new(NULL, &config, &err));
  OK(aq_config_set(config, "rules", "no.such.tensor=keep", &err));
  for (uint32_t threads = 1; threads <= 3; threads += 2) {
    struct steps steps = {0, 0, 0, pthread_self()};
    aq_run_options options = AQ_INIT(aq_run_options);
    options.threads = threads;
    options.progress = tell;
    options.log = hear;
    options.user_data = &steps;
    OK(aq_quantize_file(input, output, config, &options, NULL, &err));
    CHECK(steps.calls > 2 && steps.logged == 1);
    int last = threads == 1 ? steps.calls : 2;
    for (int step = 1; step <= last; step++) {
      steps = (struct steps){0, step, 0, pthread_self()};
      aq_error err = AQ_INIT(aq_error);
      aq_status status = aq_quantize_file(input, scratch, config, &options, &report, &err);
      if (status != AQ_ERROR_CANCELLED || strcmp(err.message, "cancelled"))
        fail(__LINE__, "cancel", &err);
      CHECK(steps.calls == step && count_files() == 1);
    }
    options.threads = 5000;
    REFUSED_AS(AQ_ERROR_CONFIG, "5000",
               aq_quantize_file(input, scratch, config, &options, NULL, err));
  }
  aq_config_free(config);
  free(memory);
  aq_plan_free(plan);
  aq_source_free(source);
}

/* Into a folder: shares of two runs, merged; and resumed. */
static void folders(void) {
  static char parts[4400], part[4500];
  snprintf(parts, sizeof parts, "%s.parts", output);
  aq_run_options options = AQ_INIT(aq_run_options);
  CHECK(!options.resume && !options.part && !options.parts && !options.part_bytes);
  CHECK(!options.restart);
  options.parts = 2;
  REFUSED_AS(AQ_ERROR_CONFIG, "'0/2' is not", aq_quantize_file(input, parts, NULL, &options, NULL, err));
  options.part = 3;
  REFUSED_AS(AQ_ERROR_CONFIG, "'3/2' is not", aq_quantize_file(input, parts, NULL, &options, NULL, err));
  options.part = 1;
  REFUSED_AS(AQ_ERROR_CONFIG, "name a folder",
             aq_quantize_file(input, output, NULL, &options, NULL, err));
  REFUSED("folder is NULL", aq_merge(NULL, err));
  REFUSED("folder is not UTF-8", aq_merge(BAD_UTF8, err));
  REFUSED_AS(AQ_ERROR_FILE, "not a folder of parts", aq_merge(parts, err));
  OK(aq_quantize_file(input, parts, NULL, &options, NULL, &err));
  aq_model *model = NULL;
  REFUSED_AS(AQ_ERROR_FILE, "not complete", aq_model_open(parts, &model, err));
  REFUSED_AS(AQ_ERROR_FILE, "is missing", aq_merge(parts, err));
  options.part = 2;
  OK(aq_quantize_file(input, parts, NULL, &options, NULL, &err));
  OK(aq_merge(parts, &err));
  OK(aq_model_open(parts, &model, &err));
  CHECK(aq_model_count(model) > 2);
  aq_model_free(model);

  /* What another run began is refused; with the same settings it is gone on with. */
  options = (aq_run_options)AQ_INIT(aq_run_options);
  options.resume = 1;
  REFUSED_AS(AQ_ERROR_FILE, "shares is 2 there and 1 here",
             aq_quantize_file(input, parts, NULL, &options, NULL, err));
  options.part = 2, options.parts = 2;
  aq_report *report = NULL;
  OK(aq_quantize_file(input, parts, NULL, &options, &report, &err));
  const char *json = NULL;
  OK(aq_report_to_json(report, &json, &err));
  CHECK(strstr(json, "\"resumed\":1") || strstr(json, "\"resumed\": 1"));
  aq_report_free(report);
  report = NULL;
  options.restart = 1;
  REFUSED_AS(AQ_ERROR_CONFIG, "either resume or restart",
             aq_quantize_file(input, parts, NULL, &options, NULL, err));
  options.resume = 0;
  OK(aq_quantize_file(input, parts, NULL, &options, &report, &err));
  OK(aq_report_to_json(report, &json, &err));
  CHECK(strstr(json, "\"resumed\":0") || strstr(json, "\"resumed\": 0"));
  aq_report_free(report);

  for (int i = 0; i < 2; i++) {
    snprintf(part, sizeof part, "%s/part-%05d.parquet", parts, i);
    CHECK(!remove(part));
  }
  snprintf(part, sizeof part, "%s/manifest.json", parts);
  CHECK(!remove(part) && !rmdir(parts));
}

static void reports(void) {
  aq_report *report = NULL;
  aq_tensor_report entry = AQ_INIT(aq_tensor_report);
  aq_report_total total = AQ_INIT(aq_report_total);
  const char *json = NULL;
  OK(aq_quantize_file(input, output, NULL, NULL, &report, &err));
  size_t count = aq_report_count(report);
  CHECK(count > 10 && aq_report_count(NULL) == 0);
  REFUSED("aq_report is NULL", aq_report_tensor(NULL, 0, &entry, err));
  REFUSED("entry is NULL", aq_report_tensor(report, 0, NULL, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there is no tensor", aq_report_tensor(report, count, &entry, err));
  REFUSED("aq_report is NULL", aq_report_totals(NULL, &total, err));
  REFUSED("total is NULL", aq_report_totals(report, NULL, err));
  REFUSED("aq_report is NULL", aq_report_to_json(NULL, &json, err));
  REFUSED("json is NULL", aq_report_to_json(report, NULL, err));
  const char *html = NULL;
  REFUSED("aq_report is NULL", aq_report_to_html(NULL, &html, err));
  REFUSED("html is NULL", aq_report_to_html(report, NULL, err));
  OK(aq_report_totals(report, &total, &err));
  size_t quantized = 0, bytes = 0;
  for (size_t i = 0; i < count; i++) {
    OK(aq_report_tensor(report, i, &entry, &err));
    CHECK(isnan(entry.cosine) == (entry.format == AQ_FORMAT_KEPT));
    quantized += entry.format != AQ_FORMAT_KEPT;
    bytes += entry.format != AQ_FORMAT_KEPT ? entry.bytes : 0;
  }
  CHECK(quantized == total.quantized && bytes == total.bytes);
  OK(aq_report_to_json(report, &json, &err));
  CHECK(json[0] == '{' && strstr(json, "\"cosine\""));
  OK(aq_report_to_html(report, &html, &err));
  CHECK(!strncmp(html, "<!doctype html>", 15) && strstr(html, "\"output_bytes\":"));
  CHECK(json[0] == '{');  /* lent until the report is freed */
  aq_report_free(report);
  aq_report_free(report);
  aq_report_free(NULL);
}

/* ---- models ---- */

static void let_go(void *user_data) { ++*(int *)user_data; }

static void models(void) {
  aq_model *model = NULL;
  size_t index = 0, failures = 99;
  aq_tensor_info info = AQ_INIT(aq_tensor_info);
  aq_tensor_view view = AQ_INIT(aq_tensor_view);
  const char *value = NULL;
  REFUSED("path is NULL", aq_model_open(NULL, &model, err));
  REFUSED("model is NULL", aq_model_open(output, NULL, err));
  REFUSED("path is not UTF-8", aq_model_open(BAD_UTF8, &model, err));
  REFUSED_AS(AQ_ERROR_FILE, "not a Parquet file", aq_model_open(input, &model, err));
  /* Memory is let go once, however a call ends. */
  int released = 0;
  REFUSED("data is NULL", aq_model_open_memory(NULL, 100, let_go, &released, &model, err));
  REFUSED("model is NULL", aq_model_open_memory("PAR1", 4, let_go, &released, NULL, err));
  REFUSED_AS(AQ_ERROR_FILE, "too short",
             aq_model_open_memory("PAR1", 4, let_go, &released, &model, err));
  REFUSED_AS(AQ_ERROR_FILE, "too short", aq_model_open_memory(NULL, 0, NULL, NULL, &model, err));
  CHECK(released == 6); /* each was called twice */
  OK(aq_model_open(output, &model, &err));
  size_t count = aq_model_count(model);
  CHECK(count > 10 && aq_model_count(NULL) == 0);
  REFUSED("aq_model is NULL", aq_model_tensor(NULL, 0, &info, err));
  REFUSED("info is NULL", aq_model_tensor(model, 0, NULL, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there is no tensor", aq_model_tensor(model, count, &info, err));
  REFUSED("aq_model is NULL", aq_model_find(NULL, "x", &index, err));
  REFUSED("name is NULL", aq_model_find(model, NULL, &index, err));
  REFUSED("index is NULL", aq_model_find(model, "x", NULL, err));
  REFUSED("name is not UTF-8", aq_model_find(model, BAD_UTF8, &index, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "'x': there is no such", aq_model_find(model, "x", &index, err));
  REFUSED("aq_model is NULL", aq_model_view(NULL, 0, 0, &view, err));
  REFUSED("view is NULL", aq_model_view(model, 0, 0, NULL, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there is no tensor", aq_model_view(model, count, 0, &view, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there is no tile 1", aq_model_view(model, 0, 1, &view, err));
  REFUSED("aq_model is NULL", aq_model_metadata(NULL, "arrowquant.config", &value, err));
  REFUSED("key is NULL", aq_model_metadata(model, NULL, &value, err));
  REFUSED("value is NULL", aq_model_metadata(model, "arrowquant.config", NULL, err));
  REFUSED("key is not UTF-8", aq_model_metadata(model, BAD_UTF8, &value, err));
  OK(aq_model_metadata(model, "arrowquant.format_version", &value, &err));
  CHECK(!strcmp(value, "2"));
  REFUSED_AS(AQ_ERROR_TENSOR, "there is no key 'no such key'",
             aq_model_metadata(model, "no such key", &value, err));
  REFUSED("aq_model is NULL", aq_model_metadata_to_json(NULL, &value, err));
  REFUSED("json is NULL", aq_model_metadata_to_json(model, NULL, err));
  OK(aq_model_metadata_to_json(model, &value, &err));
  CHECK(!strncmp(value, "{\"arrowquant.config\":\"", 22) && strstr(value, "\"arrowquant.format_version\":\"2\""));

  /* The first quantized tensor, as a view and decoded by both ways. */
  for (index = 0; index < count; index++) {
    OK(aq_model_view(model, index, 0, &view, &err));
    if (view.matrix.format != AQ_FORMAT_KEPT) break;
  }
  OK(aq_model_tensor(model, index, &info, &err));
  size_t found = count;
  OK(aq_model_find(model, info.name, &found, &err));
  CHECK(found == index && view.matrix.rows == info.rows && view.matrix.cols == info.cols && info.tiles == 1);
  size_t len = info.rows * info.cols * sizeof(float);
  float *a = malloc(len), *b = malloc(len);
  OK(aq_model_dequantize_rows(model, index, 0, info.rows, AQ_DTYPE_F32, a, len, &err));
  OK(aq_dequantize_rows(&view.matrix, AQ_DTYPE_F32, b, len, &err));
  CHECK(!memcmp(a, b, len));
  CHECK(view.matrix.codes_stride * view.matrix.rows == view.matrix.codes_len);
  CHECK(view.matrix.struct_size == sizeof(aq_matrix));

  REFUSED("aq_model is NULL",
          aq_model_dequantize_rows(NULL, index, 0, 1, AQ_DTYPE_F32, a, info.cols * 4, err));
  REFUSED("weights is NULL",
          aq_model_dequantize_rows(model, index, 0, 1, AQ_DTYPE_F32, NULL, info.cols * 4, err));
  REFUSED("weights has length",
          aq_model_dequantize_rows(model, index, 0, 1, AQ_DTYPE_F32, a, info.cols * 4 - 1, err));
  REFUSED("weights has length",
          aq_model_dequantize_rows(model, index, 0, 1, AQ_DTYPE_F32, a, info.cols * 4 + 1, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there are no",
          aq_model_dequantize_rows(model, index, info.rows, 1, AQ_DTYPE_F32, a, len, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there are no",
          aq_model_dequantize_rows(model, index, 1, SIZE_MAX, AQ_DTYPE_F32, a, len, err));
  REFUSED("dtype is 4", aq_model_dequantize_rows(model, index, 0, 1, AQ_DTYPE_F64, a, len, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there is no tensor",
          aq_model_dequantize_rows(model, count, 0, 1, AQ_DTYPE_F32, a, len, err));

  /* x = 1 gives the sums of the rows. */
  float *x = malloc(2 * info.cols * sizeof *x), *y = malloc(2 * info.rows * sizeof *y);
  for (size_t i = 0; i < 2 * info.cols; i++) x[i] = i < info.cols ? 1 : 2;
  OK(aq_model_matvec(model, index, x, 2 * info.cols, 2, y, 2 * info.rows, &err));
  for (size_t r = 0; r < info.rows; r++) {
    double sum = 0, magnitude = 0;
    for (size_t c = 0; c < info.cols; c++) {
      sum += a[r * info.cols + c];
      magnitude += fabs(a[r * info.cols + c]);
    }
    CHECK(fabs(y[r] - sum) <= magnitude / 131072);
    CHECK(fabs(y[info.rows + r] - 2 * sum) <= 2 * magnitude / 131072);
  }
  REFUSED("aq_model is NULL", aq_model_matvec(NULL, index, x, info.cols, 1, y, info.rows, err));
  REFUSED("x is NULL", aq_model_matvec(model, index, NULL, info.cols, 1, y, info.rows, err));
  REFUSED("y is NULL", aq_model_matvec(model, index, x, info.cols, 1, NULL, info.rows, err));
  REFUSED("x has length", aq_model_matvec(model, index, x, info.cols - 1, 1, y, info.rows, err));
  REFUSED("y has length", aq_model_matvec(model, index, x, info.cols, 1, y, info.rows + 1, err));
  REFUSED("x has length", aq_model_matvec(model, index, x, info.cols, 2, y, info.rows, err));
  REFUSED("x is not aligned",
          aq_model_matvec(model, index, (float *)(void *)((char *)x + 1), info.cols, 1, y, info.rows, err));

  /* A view goes into every kernel as it is; a kept tensor decodes, but is not multiplied. */
  aq_matrix part = AQ_INIT(aq_matrix);
  float *z = malloc(2 * info.rows * sizeof *z);
  OK(aq_matvec(&view.matrix, x, 2 * info.cols, 2, z, 2 * info.rows, &err));
  CHECK(!memcmp(y, z, 2 * info.rows * sizeof *z));
  OK(aq_matrix_rows(&view.matrix, 7, 5, &part, &err));
  CHECK(part.rows == 5 && part.cols == info.cols && part.codes_stride == view.matrix.codes_stride);
  OK(aq_dequantize_rows(&part, AQ_DTYPE_F32, b, 5 * info.cols * sizeof *b, &err));
  CHECK(!memcmp(a + 7 * info.cols, b, 5 * info.cols * sizeof *b));
  OK(aq_matrix_rows(&part, 4, 1, &part, &err)); /* in place */
  OK(aq_dequantize_rows(&part, AQ_DTYPE_F32, b, info.cols * sizeof *b, &err));
  CHECK(!memcmp(a + 11 * info.cols, b, info.cols * sizeof *b));
  OK(aq_matrix_rows(&part, 1, 0, &part, &err));
  OK(aq_dequantize_rows(&part, AQ_DTYPE_F32, NULL, 0, &err));
  aq_tensor_view kept = AQ_INIT(aq_tensor_view);
  for (size_t i = 0; i < count && (!kept.matrix.codes || kept.matrix.format != AQ_FORMAT_KEPT); i++)
    OK(aq_model_view(model, i, 0, &kept, &err));
  CHECK(kept.matrix.format == AQ_FORMAT_KEPT && kept.matrix.dtype == AQ_DTYPE_F32);
  const size_t kept_count = kept.matrix.rows * kept.matrix.cols;
  OK(aq_dequantize_rows(&kept.matrix, AQ_DTYPE_F32, b, kept_count * sizeof *b, &err));
  CHECK(!memcmp(b, kept.matrix.codes, kept_count * sizeof *b));
  REFUSED_AS(AQ_ERROR_TENSOR, "kept, not quantized",
             aq_matvec(&kept.matrix, x, kept.matrix.cols, 1, z, kept.matrix.rows, err));
  free(z);

  /* Files back from a model. */
  REFUSED("aq_model is NULL", aq_model_dequantize(NULL, scratch, 0, NULL, err));
  REFUSED("output is NULL", aq_model_dequantize(model, NULL, 0, NULL, err));
  REFUSED("output is not UTF-8", aq_model_dequantize(model, BAD_UTF8, 0, NULL, err));
  REFUSED("dtype is 99", aq_model_dequantize(model, scratch, 99, NULL, err));
  REFUSED_AS(AQ_ERROR_CONFIG, "does not end in .safetensors",
             aq_model_dequantize(model, scratch, 0, NULL, err));

  /* Verification. */
  aq_source *source = open_source();
  aq_verification *verification = NULL;
  REFUSED("aq_model is NULL", aq_model_verify(NULL, NULL, -1, NULL, &failures, NULL, err));
  REFUSED("failures is NULL", aq_model_verify(model, NULL, -1, NULL, NULL, NULL, err));
  OK(aq_model_verify(model, source, 0.9, NULL, &failures, &verification, &err));
  CHECK(failures == 0);
  REFUSED("aq_verification is NULL", aq_verification_to_json(NULL, &value, err));
  REFUSED("json is NULL", aq_verification_to_json(verification, NULL, err));
  OK(aq_verification_to_json(verification, &value, &err));
  CHECK(value[0] == '{' && strstr(value, info.name));
  aq_verification_free(verification);
  aq_verification_free(verification);
  OK(aq_model_verify(model, source, 0.99999, NULL, &failures, NULL, &err));
  CHECK(failures > 0);
  aq_source_free(source);

  /* A stream outlives its model. */
  struct ArrowArrayStream stream;
  REFUSED("aq_model is NULL", aq_model_to_arrow(NULL, &stream, err));
  REFUSED("stream is NULL", aq_model_to_arrow(model, NULL, err));
  OK(aq_model_to_arrow(model, &stream, &err));
  aq_model_free(model);
  aq_model_free(model);
  aq_model_free(NULL);
  struct ArrowSchema schema;
  CHECK(stream.get_schema(&stream, &schema) == 0 && schema.n_children == 20);
  schema.release(&schema);
  size_t batches = 0;
  for (;;) {
    struct ArrowArray batch;
    CHECK(stream.get_next(&stream, &batch) == 0);
    if (!batch.release) break;
    CHECK(batch.length == 1 && batch.n_children == 20);
    batch.release(&batch);
    batches++;
  }
  CHECK(batches >= count);

  /* So does memory that a model was opened in, until the last array is gone. */
  FILE *file = fopen(output, "rb");
  char *bytes = malloc(1 << 20);
  len = file ? fread(bytes, 1, 1 << 20, file) : 0;
  fclose(file);
  struct ArrowArray batch;
  stream.release(&stream);
  released = 0;
  OK(aq_model_open_memory(bytes, len, let_go, &released, &model, &err));
  OK(aq_model_to_arrow(model, &stream, &err));
  aq_model_free(model);
  CHECK(stream.get_next(&stream, &batch) == 0 && released == 0);
  stream.release(&stream);
  CHECK(released == 0);
  batch.release(&batch);
  CHECK(released == 1);
  free(bytes);

  /* What is exported holds no weights to quantize: refused, and released all the same. */
  aq_source *refused = NULL;
  OK(aq_model_open(output, &model, &err));
  OK(aq_model_to_arrow(model, &stream, &err));
  aq_error refusal = AQ_INIT(aq_error);
  CHECK(aq_source_from_arrow(&stream, &refused, &refusal) == AQ_ERROR_FILE);
  CHECK(strstr(refusal.message, "no column 'data'") && stream.release == NULL && refused == NULL);
  aq_model_free(model);
  free(a), free(b), free(x), free(y);
}

/* ---- kernels ---- */

enum { ROWS = 3, COLS = 70 };

/* What is left of weights, and products with vectors of bytes. */
static void products(const float *weights, const float *decoded) {
  const size_t w = ROWS * COLS * sizeof(float);
  const aq_dtype f32 = AQ_DTYPE_F32;
  double cosine = 77, sqnr_db = 77;
  REFUSED("a is NULL", aq_compare(NULL, w, f32, decoded, w, f32, &cosine, &sqnr_db, err));
  REFUSED("b is NULL", aq_compare(weights, w, f32, NULL, w, f32, &cosine, &sqnr_db, err));
  REFUSED("cosine is NULL", aq_compare(weights, w, f32, decoded, w, f32, NULL, &sqnr_db, err));
  REFUSED("sqnr_db is NULL", aq_compare(weights, w, f32, decoded, w, f32, &cosine, NULL, err));
  REFUSED("dtype is 14", aq_compare(weights, w, AQ_DTYPE_I64, decoded, w, f32, &cosine, &sqnr_db, err));
  REFUSED("dtype is 0", aq_compare(weights, w, f32, decoded, w, 0, &cosine, &sqnr_db, err));
  REFUSED("a has length 839", aq_compare(weights, w - 1, f32, decoded, w, f32, &cosine, &sqnr_db, err));
  REFUSED("b has length 839", aq_compare(weights, w, f32, decoded, w - 1, f32, &cosine, &sqnr_db, err));
  REFUSED("b has length 840, expected 420",
          aq_compare(weights, w, f32, decoded, w, AQ_DTYPE_BF16, &cosine, &sqnr_db, err));
  const float bad[2][2] = {{0, NAN}, {-INFINITY, 0}};
  for (int i = 0; i < 2; i++) {
    REFUSED("infinity", aq_compare(weights, 8, f32, bad[i], 8, f32, &cosine, &sqnr_db, err));
    REFUSED("infinity", aq_compare(bad[i], 8, f32, weights, 8, f32, &cosine, &sqnr_db, err));
  }
  CHECK(cosine == 77 && sqnr_db == 77);
  const float a[2] = {3, 4};
  const uint16_t halves[2] = {0x4200, 0}; /* 3 and 0 in f16 */
  OK(aq_compare(a, 8, f32, halves, 4, AQ_DTYPE_F16, &cosine, &sqnr_db, &err));
  CHECK(fabs(cosine - 0.6) < 1e-12 && fabs(sqnr_db - 10 * log10(25.0 / 16)) < 1e-12);
  OK(aq_compare(a, 8, f32, a, 8, f32, &cosine, &sqnr_db, &err));
  CHECK(cosine == 1 && isinf(sqnr_db) && sqnr_db > 0);
  OK(aq_compare(NULL, 0, f32, NULL, 0, AQ_DTYPE_BF16, &cosine, &sqnr_db, &err));
  CHECK(cosine == 1 && isinf(sqnr_db));

  /* One row of twenty: a group of 16, and one of 4. */
  enum { N = 20, BATCH = 2 };
  float x[BATCH * N] = {0}, scales[BATCH * 2], sums[BATCH * 2];
  int8_t values[BATCH * N];
  unsigned char codes[N];
  float w_scales[2] = {0.5f, 0.25f}, y[BATCH] = {77, 77};
  memset(codes, 128, sizeof codes);
  codes[0] = 130, codes[2] = 0, codes[17] = 132; /* 1, -64 and 1 */
  aq_matrix matrix = AQ_INIT(aq_matrix);
  matrix.format = AQ_FORMAT_INT8;
  matrix.group_size = 16;
  matrix.scale_dtype = AQ_DTYPE_F32;
  matrix.rows = 1, matrix.cols = N;
  matrix.codes = codes, matrix.codes_len = N;
  matrix.scales = w_scales, matrix.scales_len = sizeof w_scales;
  const aq_vectors room = {.struct_size = sizeof room,
                           .values = values, .values_count = 2 * N,
                           .scales = scales, .scales_count = 4,
                           .sums = sums, .sums_count = 4};
  aq_vectors v = room;
#define VECTORS(x, xn, batch) aq_quantize_vectors(&matrix, x, xn, batch, &v, err)
/* The call with one field of the vectors, or of the matrix, changed. */
#define WITH(field, value, text, call) \
  do {                                 \
    const aq_vectors was = v;          \
    const aq_matrix had = matrix;      \
    field = value;                     \
    REFUSED(text, call);               \
    v = was;                           \
    matrix = had;                      \
  } while (0)
  REFUSED("matrix is NULL", aq_quantize_vectors(NULL, x, 2 * N, BATCH, &v, err));
  REFUSED("vectors is NULL", aq_quantize_vectors(&matrix, x, 2 * N, BATCH, NULL, err));
  WITH(v.struct_size, 0, "vectors.struct_size is 0", VECTORS(x, 2 * N, BATCH));
  REFUSED("x is NULL", VECTORS(NULL, 2 * N, BATCH));
  WITH(v.values, NULL, "vectors.values is NULL", VECTORS(x, 2 * N, BATCH));
  WITH(v.scales, NULL, "vectors.scales is NULL", VECTORS(x, 2 * N, BATCH));
  WITH(v.sums, NULL, "vectors.sums is NULL", VECTORS(x, 2 * N, BATCH));
  REFUSED("x has length 39, expected 40", VECTORS(x, 2 * N - 1, BATCH));
  WITH(v.values_count, N, "vectors.values has length 20", VECTORS(x, 2 * N, BATCH));
  WITH(v.scales_count, 2, "vectors.scales has length 2", VECTORS(x, 2 * N, BATCH));
  WITH(v.sums_count, 3, "vectors.sums has length 3", VECTORS(x, 2 * N, BATCH));
  REFUSED("any memory", VECTORS(x, 2 * N, SIZE_MAX));
  for (int i = 0; i < 2; i++) {
    x[N + 17] = bad[i][!i];
    REFUSED("infinity", VECTORS(x, 2 * N, BATCH));
  }
  x[N + 17] = 0;
  CHECK(v.cols == 0 && v.format == 0); /* outputs are written only on success */
  /* Largest magnitudes of 127 and 254, so that scales are 1 and 2; the second vector is zeros. */
  x[0] = -127, x[1] = 2.5f, x[2] = 3.5f, x[16] = 254, x[17] = -10;
  OK(aq_quantize_vectors(&matrix, x, 2 * N, BATCH, &v, &err));
  CHECK(values[0] == -127 && values[1] == 2 && values[2] == 4 && values[3] == 0);
  CHECK(values[16] == 127 && values[17] == -5 && values[18] == 0);
  CHECK(scales[0] == 1 && scales[1] == 2 && scales[2] == 0 && scales[3] == 0);
  CHECK(sums[0] == -121 && sums[1] == 244 && sums[2] == 0 && sums[3] == 0);
  CHECK(v.format == AQ_FORMAT_INT8 && v.group_size == 16 && v.cols == N && v.batch == BATCH && !v.transform);

#define MATVEC_INT8(y, yn) aq_matvec_int8(&matrix, &v, y, yn, err)
  REFUSED("matrix is NULL", aq_matvec_int8(NULL, &v, y, BATCH, err));
  REFUSED("vectors is NULL", aq_matvec_int8(&matrix, NULL, y, BATCH, err));
  REFUSED("y is NULL", MATVEC_INT8(NULL, BATCH));
  REFUSED("y has length 1", MATVEC_INT8(y, 1));
  WITH(matrix.codes, NULL, "matrix.codes is NULL", MATVEC_INT8(y, BATCH));
  WITH(matrix.scales, NULL, "matrix.scales is NULL", MATVEC_INT8(y, BATCH));
  WITH(matrix.codes_len, N - 1, "matrix.codes has length 19, expected 20", MATVEC_INT8(y, BATCH));
  WITH(matrix.scales_len, 4, "matrix.scales has length 4, expected 8", MATVEC_INT8(y, BATCH));
  WITH(v.values, NULL, "vectors.values is NULL", MATVEC_INT8(y, BATCH));
  WITH(v.scales, NULL, "vectors.scales is NULL", MATVEC_INT8(y, BATCH));
  WITH(v.sums, NULL, "vectors.sums is NULL", MATVEC_INT8(y, BATCH));
  WITH(v.values_count, N, "vectors.values has", MATVEC_INT8(y, BATCH));
  WITH(v.scales_count, 1, "vectors.scales has", MATVEC_INT8(y, BATCH));
  WITH(v.sums_count, 1, "vectors.sums has", MATVEC_INT8(y, BATCH));
  WITH(v.batch, SIZE_MAX, "any memory", MATVEC_INT8(y, BATCH));
  /* Vectors of another kind of matrix may be as long, and mean something else. */
  WITH(v.format, AQ_FORMAT_INT4, "another format", MATVEC_INT8(y, BATCH));
  WITH(v.group_size, 32, "another format", MATVEC_INT8(y, BATCH));
  WITH(v.cols, N - 1, "another format", MATVEC_INT8(y, BATCH));
  WITH(v.transform, 1, "another input scale", MATVEC_INT8(y, BATCH));
  WITH(matrix.rotation_block, 4, "another input scale", MATVEC_INT8(y, BATCH));
  CHECK(y[0] == 77);
  /* -127 * 1 + 4 * -64 + -10 * 1; all of it without rounding. */
  OK(aq_matvec_int8(&matrix, &v, y, BATCH, &err));
  CHECK(y[0] == -393 && y[1] == 0);
  aq_matrix none = matrix;
  none.rows = none.codes_len = none.scales_len = 0;
  OK(aq_matvec_int8(&none, &v, NULL, 0, &err));
  none.rows = 1, none.cols = 0;
  v = room;
  v.values_count = v.scales_count = v.sums_count = 0;
  OK(aq_quantize_vectors(&none, NULL, 0, 1, &v, &err));
  y[0] = 77;
  OK(aq_matvec_int8(&none, &v, y, 1, &err));
  CHECK(y[0] == 0);
}

static void activations(void) {
  enum { ROWS = 2, COLS = 20, N = ROWS * COLS };
  float x[N] = {0}, scales[ROWS * 2], divisors[COLS];
  int8_t values[N];
  const aq_dtype f32 = AQ_DTYPE_F32;
  for (int i = 0; i < COLS; i++) divisors[i] = 1;
  aq_activation_options options = {.struct_size = sizeof options, .group_size = 16};
#define ACTIVATIONS(x, xn, dtype, rows, options, values, n, scales, s) \
  aq_quantize_activations(x, xn, dtype, rows, COLS, options, values, n, scales, s, err)
  REFUSED("x is NULL", ACTIVATIONS(NULL, 4 * N, f32, ROWS, &options, values, N, scales, 4));
  REFUSED("values is NULL", ACTIVATIONS(x, 4 * N, f32, ROWS, &options, NULL, N, scales, 4));
  REFUSED("scales is NULL", ACTIVATIONS(x, 4 * N, f32, ROWS, &options, values, N, NULL, 4));
  REFUSED("x has length 159", ACTIVATIONS(x, 4 * N - 1, f32, ROWS, &options, values, N, scales, 4));
  REFUSED("x has length 160", ACTIVATIONS(x, 4 * N, AQ_DTYPE_BF16, ROWS, &options, values, N, scales, 4));
  REFUSED("values has length 39", ACTIVATIONS(x, 4 * N, f32, ROWS, &options, values, N - 1, scales, 4));
  REFUSED("scales has length 3", ACTIVATIONS(x, 4 * N, f32, ROWS, &options, values, N, scales, 3));
  REFUSED("scales has length 4", ACTIVATIONS(x, 4 * N, f32, ROWS, NULL, values, N, scales, 4));
  REFUSED("dtype is 4", ACTIVATIONS(x, 4 * N, AQ_DTYPE_F64, ROWS, &options, values, N, scales, 4));
  REFUSED("any memory", ACTIVATIONS(x, 4 * N, f32, SIZE_MAX, &options, values, N, scales, 4));

  const uint32_t size = sizeof options;
  const struct { const char *text; aq_activation_options options; } wrong[] = {
      {"options.struct_size is 0", {0, 8, 16, 0, 0, NULL, 0}},
      {"bits is 5", {size, 5, 16, 0, 0, NULL, 0}},
      {"group_size is 17", {size, 8, 17, 0, 0, NULL, 0}},
      {"scale is", {size, 8, 0, -1, 0, NULL, 0}},
      {"scale is", {size, 8, 0, NAN, 0, NULL, 0}},
      {"scale is", {size, 8, 0, 1e-40f, 0, NULL, 0}},
      {"zero_point is", {size, 8, 0, 1, INFINITY, NULL, 0}},
      {"static scale", {size, 8, 16, 1, 0, NULL, 0}},
      {"scales has length 4", {size, 8, 0, 1, 0, NULL, 0}},
      {"input_scale is NULL", {size, 8, 16, 0, 0, NULL, COLS}},
      {"input_scale has length 19", {size, 8, 16, 0, 0, divisors, COLS - 1}},
      {"input_scale has length 0", {size, 8, 16, 0, 0, divisors, 0}},
      {"input_scale has", {size, 8, 16, 0, 0, x, COLS}},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
    REFUSED(wrong[i].text,
            ACTIVATIONS(x, 4 * N, f32, ROWS, &wrong[i].options, values, N, scales, 4));
  x[COLS + 17] = NAN;
  REFUSED_AS(AQ_ERROR_TENSOR, "row 1, column 17 is NaN",
             ACTIVATIONS(x, 4 * N, f32, ROWS, &options, values, N, scales, 4));
  x[COLS + 17] = 0;

  x[0] = -127, x[1] = 2.5f, x[2] = 3.5f, x[16] = 254, x[17] = -10;
  OK(aq_quantize_activations(x, 4 * N, f32, ROWS, COLS, &options, values, N, scales, 4, &err));
  CHECK(values[0] == -127 && values[1] == 2 && values[2] == 4 && values[16] == 127 && values[17] == -5);
  CHECK(values[COLS] == 0 && scales[0] == 1 && scales[1] == 2 && scales[2] == 0 && scales[3] == 0);
  OK(aq_quantize_activations(x, 4 * N, f32, ROWS, COLS, NULL, values, N, scales, 2, &err));
  CHECK(values[16] == 127 && values[0] == -64 && scales[0] == 2 && scales[1] == 0); /* -63.5 */
  divisors[0] = 2, divisors[16] = 254.0f / 7;
  options = (aq_activation_options){size, 4, 16, 0, 0, divisors, COLS};
  OK(aq_quantize_activations(x, 4 * N, f32, ROWS, COLS, &options, values, N, scales, 4, &err));
  CHECK(values[0] == -7 && values[16] == 5 && values[17] == -7); /* 7 of 10 */
  options = (aq_activation_options){size, 8, 0, 0.5f, 20, NULL, 0};
  OK(aq_quantize_activations(x, 4 * N, f32, ROWS, COLS, &options, values, N, NULL, 0, &err));
  const uint8_t *codes = (const uint8_t *)values;
  CHECK(codes[0] == 0 && codes[1] == 25 && codes[2] == 27 && codes[16] == 255 && codes[17] == 0);
  CHECK(codes[COLS] == 20);
  OK(aq_quantize_activations(NULL, 0, f32, 0, COLS, NULL, NULL, 0, NULL, 0, &err));
  OK(aq_quantize_activations(NULL, 0, f32, 0, 0, NULL, NULL, 0, NULL, 0, &err));
}

static void kernels(void) {
  float weights[ROWS * COLS], decoded[ROWS * COLS], y[ROWS], x[COLS] = {0};
  unsigned char codes[ROWS * COLS], scales[ROWS * 5 * 4], biases[ROWS * 5 * 4];
  for (int i = 0; i < ROWS * COLS; i++) weights[i] = sinf((float)i);
  const aq_recipe recipe = {.struct_size = sizeof recipe,
                            .format = AQ_FORMAT_INT4,
                            .group_size = 16,
                            .scheme = AQ_SCHEME_AFFINE};
  aq_planes planes = AQ_INIT(aq_planes);
  aq_matrix matrix = AQ_INIT(aq_matrix);
  aq_quality quality = AQ_INIT(aq_quality);

  REFUSED("recipe is NULL", aq_plane_sizes(NULL, ROWS, COLS, &planes, err));
  REFUSED("planes is NULL", aq_plane_sizes(&recipe, ROWS, COLS, NULL, err));
  REFUSED("any memory", aq_plane_sizes(&recipe, SIZE_MAX, 2, &planes, err));
  REFUSED("any memory", aq_plane_sizes(&recipe, 1, SIZE_MAX, &planes, err));
  CHECK(planes.codes_len == 0 && planes.scales_len == 0 && planes.biases_len == 0);
  planes.codes = codes, planes.scales = scales, planes.biases = biases;
  OK(aq_plane_sizes(&recipe, ROWS, COLS, &planes, &err));
  CHECK(planes.codes_len == ROWS * 35 && planes.scales_len == ROWS * 5 * 2);
  CHECK(planes.biases_len == planes.scales_len && planes.codes == codes && planes.biases == biases);

  const struct { const char *text; aq_recipe recipe; } wrong[] = {
      {"recipe.struct_size is 0", {0, AQ_FORMAT_INT4, 16, 0, 0, 0, 0}},
      {"format is 0", {sizeof recipe, AQ_FORMAT_KEPT, 16, 0, 0, 0, 0}},
      {"format is 3", {sizeof recipe, 3, 16, 0, 0, 0, 0}},
      {"group_size is 17", {sizeof recipe, AQ_FORMAT_INT4, 17, 0, 0, 0, 0}},
      {"scheme is 3", {sizeof recipe, AQ_FORMAT_INT4, 16, 3, 0, 0, 0}},
      {"scale_dtype is 3", {sizeof recipe, AQ_FORMAT_INT4, 16, 0, AQ_DTYPE_BF16, 0, 0}},
      {"method is -1", {sizeof recipe, AQ_FORMAT_INT4, 16, 0, 0, -1, 0}},
      {"gain is 9", {sizeof recipe, AQ_FORMAT_INT4, 16, 0, 0, 0, 9}},
      /* A struct that ends before its format has none. */
      {"format is 0", {4, AQ_FORMAT_INT4, 16, 0, 0, 0, 0}},
      {"format is 0", {7, AQ_FORMAT_INT4, 16, 0, 0, 0, 0}},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
    REFUSED(wrong[i].text, aq_plane_sizes(&wrong[i].recipe, ROWS, COLS, &planes, err));

#define QUANTIZE(weights, weights_len, dtype, h) \
  aq_quantize_rows(&recipe, weights, weights_len, dtype, ROWS, COLS, h, &planes, &matrix, &quality, err)
/* The call with one field of a struct changed. */
#define CHANGED(type, field_of, field, value, text, call) \
  do {                                                    \
    const type was = field_of;                            \
    field_of.field = value;                               \
    REFUSED(text, call);                                  \
    field_of = was;                                       \
  } while (0)
#define PLANES(field, value, text) CHANGED(aq_planes, planes, field, value, text, QUANTIZE(weights, w, f32, NULL))
  const size_t w = sizeof weights;
  const aq_dtype f32 = AQ_DTYPE_F32;
  REFUSED("recipe is NULL", aq_quantize_rows(NULL, weights, w, f32, ROWS, COLS, NULL, &planes, NULL, NULL, err));
  REFUSED("planes is NULL", aq_quantize_rows(&recipe, weights, w, f32, ROWS, COLS, NULL, NULL, NULL, NULL, err));
  REFUSED("weights is NULL", QUANTIZE(NULL, w, f32, NULL));
  PLANES(struct_size, 0, "planes.struct_size is 0");
  PLANES(codes, NULL, "planes.codes is NULL");
  PLANES(scales, NULL, "planes.scales is NULL");
  PLANES(biases, NULL, "planes.biases is NULL");
  PLANES(codes_len, planes.codes_len + 1, "planes.codes has length 106, expected 105");
  PLANES(scales_len, planes.scales_len - 1, "planes.scales has");
  PLANES(biases_len, 0, "planes.biases has");
  REFUSED("weights has length 839, expected 840", QUANTIZE(weights, w - 1, f32, NULL));
  REFUSED("weights has length 840, expected 420", QUANTIZE(weights, w, AQ_DTYPE_F16, NULL));
  REFUSED("dtype is 14", QUANTIZE(weights, w, AQ_DTYPE_I64, NULL));
  CHANGED(aq_quality, quality, struct_size, 0, "quality.struct_size is 0", QUANTIZE(weights, w, f32, NULL));
  CHANGED(aq_matrix, matrix, struct_size, 0, "matrix.struct_size is 0", QUANTIZE(weights, w, f32, NULL));
  float importance[COLS] = {0};
  importance[7] = -1;
  REFUSED("importance", QUANTIZE(weights, w, f32, importance));
  importance[7] = NAN;
  REFUSED("importance", QUANTIZE(weights, w, f32, importance));
  weights[COLS + 5] = INFINITY;
  REFUSED_AS(AQ_ERROR_TENSOR, "row 1, column 5 is inf", QUANTIZE(weights, w, f32, NULL));
  /* A scale that f16 does not hold is the caller's to decide. */
  weights[COLS + 5] = 1e30f;
  REFUSED_AS(AQ_ERROR_TENSOR, "row 1 has weights so large", QUANTIZE(weights, w, f32, NULL));
  CHECK(matrix.rows == 0 && quality.cosine == 0); /* outputs are written only on success */
  aq_recipe wide = recipe;
  wide.scale_dtype = AQ_DTYPE_F32;
  OK(aq_plane_sizes(&wide, ROWS, COLS, &planes, &err));
  CHECK(planes.scales_len == ROWS * 5 * 4);
  OK(aq_quantize_rows(&wide, weights, w, f32, ROWS, COLS, NULL, &planes, &matrix, NULL, &err));
  CHECK(matrix.scale_dtype == AQ_DTYPE_F32);
  weights[COLS + 5] = 0;
  OK(aq_plane_sizes(&recipe, ROWS, COLS, &planes, &err));
  OK(aq_quantize_rows(&recipe, weights, w, f32, ROWS, COLS, NULL, &planes, NULL, NULL, &err));
  OK(aq_quantize_rows(&recipe, weights, w, f32, ROWS, COLS, NULL, &planes, &matrix, &quality, &err));
  CHECK(quality.cosine > 0.99 && quality.sqnr_db > 20);
  CHECK(quality.bits_per_weight ==
        (double)(planes.codes_len + planes.scales_len + planes.biases_len) * 8 / (ROWS * COLS));
  CHECK(matrix.format == AQ_FORMAT_INT4 && matrix.group_size == 16 && matrix.scheme == AQ_SCHEME_AFFINE);
  CHECK(matrix.scale_dtype == AQ_DTYPE_F16 && matrix.rows == ROWS && matrix.cols == COLS);
  CHECK(matrix.codes == codes && matrix.codes_len == planes.codes_len && matrix.codes_stride == 35);

#define DEQUANTIZE(dtype, weights, len) aq_dequantize_rows(&matrix, dtype, weights, len, err)
#define MATRIX(field, value, text) \
  CHANGED(aq_matrix, matrix, field, value, text, DEQUANTIZE(f32, decoded, w))
  REFUSED("matrix is NULL", aq_dequantize_rows(NULL, f32, decoded, w, err));
  MATRIX(struct_size, 0, "matrix.struct_size is 0");
  MATRIX(format, 3, "format is 3");
  MATRIX(group_size, 17, "group_size is 17");
  MATRIX(scheme, 3, "scheme is 3");
  MATRIX(scale_dtype, AQ_DTYPE_BF16, "scale_dtype is 3");
  MATRIX(codes, NULL, "matrix.codes is NULL");
  MATRIX(scales, NULL, "matrix.scales is NULL");
  MATRIX(biases, NULL, "matrix.biases is NULL");
  MATRIX(codes_len, 104, "matrix.codes has length 104, expected 105");
  MATRIX(codes_len, 106, "matrix.codes has length 106, expected 105");
  MATRIX(scales_len, 0, "matrix.scales has length 0");
  MATRIX(biases_len, 31, "matrix.biases has length 31");
  MATRIX(codes_stride, 34, "matrix.codes has a stride of 34 bytes, less than the 35 bytes of a row");
  MATRIX(scales_stride, 9, "matrix.scales has a stride");
  MATRIX(biases_stride, 11, "matrix.biases has length 30, expected 32");
  MATRIX(rows, SIZE_MAX, "any memory");
  MATRIX(cols, SIZE_MAX, "any memory");
  MATRIX(rows, ROWS + 1, "matrix.codes has length 105, expected 140");
  /* A field that this library does not know. */
  MATRIX(reserved[3], 1, "matrix.reserved is not 0");
  MATRIX(rotation_block, 4, "does not fit");
  MATRIX(rotation_block, 3, "does not fit");
  MATRIX(rotation_block, SIZE_MAX, "does not fit");
  MATRIX(input_scale, importance, "does not fit");
  MATRIX(input_scale_len, 2 * COLS, "matrix.input_scale is NULL");
  REFUSED("weights is NULL", DEQUANTIZE(f32, NULL, w));
  REFUSED("dtype is 0", DEQUANTIZE(0, decoded, w));
  REFUSED("weights has", DEQUANTIZE(AQ_DTYPE_BF16, decoded, w));
  OK(aq_dequantize_rows(&matrix, f32, decoded, w, &err));
  for (int i = 0; i < ROWS * COLS; i++) CHECK(fabsf(decoded[i] - weights[i]) < 0.1f);

#define MATVEC(x, xn, batch, y, yn) aq_matvec(&matrix, x, xn, batch, y, yn, err)
  REFUSED("matrix is NULL", aq_matvec(NULL, x, COLS, 1, y, ROWS, err));
  CHANGED(aq_matrix, matrix, scales, NULL, "matrix.scales is NULL", MATVEC(x, COLS, 1, y, ROWS));
  REFUSED("x is NULL", MATVEC(NULL, COLS, 1, y, ROWS));
  REFUSED("y is NULL", MATVEC(x, COLS, 1, NULL, ROWS));
  REFUSED("x has", MATVEC(x, COLS - 1, 1, y, ROWS));
  REFUSED("y has", MATVEC(x, COLS, 1, y, ROWS - 1));
  REFUSED("any memory", MATVEC(x, COLS, SIZE_MAX, y, ROWS));
  x[9] = 1; /* picks a column */
  OK(aq_matvec(&matrix, x, COLS, 1, y, ROWS, &err));
  for (int r = 0; r < ROWS; r++) CHECK(y[r] == decoded[r * COLS + 9]);
  OK(aq_matvec(&matrix, NULL, 0, 0, NULL, 0, &err));

  /* Rows may lie apart, with or without something behind the last. */
  enum { CODES = 40, SCALES = 16, BIASES = 11 };
  unsigned char far[3][ROWS * CODES], byte = 0;
  float again[ROWS * COLS];
  memset(far, 0x55, sizeof far);
  aq_matrix apart = matrix;
  const unsigned char *from[3] = {codes, scales, biases};
  const size_t row[3] = {35, 10, 10}, stride[3] = {CODES, SCALES, BIASES};
  for (int plane = 0; plane < 3; plane++)
    for (int r = 0; r < ROWS; r++) memcpy(far[plane] + r * stride[plane], from[plane] + r * row[plane], row[plane]);
  apart.codes = far[0], apart.codes_stride = CODES, apart.codes_len = ROWS * CODES;
  apart.scales = far[1], apart.scales_stride = SCALES, apart.scales_len = (ROWS - 1) * SCALES + 10;
  apart.biases = far[2], apart.biases_stride = BIASES, apart.biases_len = ROWS * BIASES;
  OK(aq_dequantize_rows(&apart, f32, again, w, &err));
  CHECK(!memcmp(decoded, again, w));
  float both[2 * ROWS], two[2 * COLS];
  for (int i = 0; i < 2 * COLS; i++) two[i] = i == 9 || i == COLS + 30;
  OK(aq_matvec(&apart, two, 2 * COLS, 2, both, 2 * ROWS, &err));
  for (int r = 0; r < ROWS; r++)
    CHECK(both[r] == decoded[r * COLS + 9] && both[ROWS + r] == decoded[r * COLS + 30]);
  aq_matrix last = AQ_INIT(aq_matrix);
  OK(aq_matrix_rows(&apart, ROWS - 1, 1, &last, &err));
  OK(aq_matvec(&last, x, COLS, 1, y, 1, &err));
  CHECK(y[0] == decoded[(ROWS - 1) * COLS + 9]);
  /* Bytes are multiplied as well as in rows without gaps. */
  int8_t bytes[2 * COLS];
  float byte_scales[2 * 5], byte_sums[2 * 5], near[2 * ROWS];
  aq_vectors vectors = {.struct_size = sizeof vectors,
                        .values = bytes, .values_count = 2 * COLS,
                        .scales = byte_scales, .scales_count = 2 * 5,
                        .sums = byte_sums, .sums_count = 2 * 5};
  OK(aq_quantize_vectors(&apart, two, 2 * COLS, 2, &vectors, &err));
  OK(aq_matvec_int8(&apart, &vectors, both, 2 * ROWS, &err));
  OK(aq_matvec_int8(&matrix, &vectors, near, 2 * ROWS, &err));
  for (int i = 0; i < 2 * ROWS; i++) CHECK(fabsf(both[i] - near[i]) < 1e-5f);

  REFUSED("matrix is NULL", aq_matrix_rows(NULL, 0, 1, &last, err));
  REFUSED("part is NULL", aq_matrix_rows(&matrix, 0, 1, NULL, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there are no 1 rows from row 3 on: the matrix has 3",
             aq_matrix_rows(&matrix, ROWS, 1, &last, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there are no", aq_matrix_rows(&matrix, 1, SIZE_MAX, &last, err));
  CHANGED(aq_matrix, matrix, codes_len, 104, "matrix.codes has", aq_matrix_rows(&matrix, 0, 1, &last, err));
  CHANGED(aq_matrix, matrix, codes, NULL, "matrix.codes is NULL", aq_matrix_rows(&matrix, 0, 1, &last, err));

  /* Kept weights are converted; what kernels cannot read is refused. */
  aq_matrix kept = AQ_INIT(aq_matrix);
  kept.dtype = AQ_DTYPE_F32;
  kept.rows = ROWS, kept.cols = COLS;
  kept.codes = weights, kept.codes_len = w;
  OK(aq_dequantize_rows(&kept, f32, again, w, &err));
  CHECK(!memcmp(weights, again, w));
  uint16_t halves[ROWS * COLS];
  OK(aq_dequantize_rows(&kept, AQ_DTYPE_F16, halves, w / 2, &err));
  kept.dtype = AQ_DTYPE_F16, kept.codes = halves, kept.codes_len = w / 2;
  OK(aq_dequantize_rows(&kept, f32, again, w, &err));
  for (int i = 0; i < ROWS * COLS; i++) CHECK(fabsf(again[i] - weights[i]) <= fabsf(weights[i]) / 2048);
  OK(aq_matrix_rows(&kept, 2, 1, &last, &err));
  OK(aq_dequantize_rows(&last, f32, decoded, w / ROWS, &err));
  CHECK(!memcmp(again + 2 * COLS, decoded, w / ROWS));
  REFUSED_AS(AQ_ERROR_TENSOR, "kept, not quantized", aq_matvec(&kept, x, COLS, 1, y, ROWS, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "kept, not quantized", aq_quantize_vectors(&kept, x, COLS, 1, &vectors, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "kept, not quantized", aq_matvec_int8(&kept, &vectors, both, 2 * ROWS, err));
  kept.dtype = AQ_DTYPE_I64;
  REFUSED_AS(AQ_ERROR_TENSOR, "f32, f16 and bf16 only", aq_dequantize_rows(&kept, f32, again, w, err));
  OK(aq_matrix_rows(&kept, 1, 2, &last, &err)); /* rows are bytes, whatever they hold */
  CHECK(last.codes == (const char *)kept.codes + w / 2 / ROWS);
  kept.codes = &byte, kept.codes_len = 1;
  REFUSED_AS(AQ_ERROR_TENSOR, "not whole bytes", aq_matrix_rows(&kept, 1, 1, &last, err));

  /* Nothing at all. */
  aq_planes nothing = AQ_INIT(aq_planes);
  aq_matrix none = AQ_INIT(aq_matrix);
  OK(aq_quantize_rows(&recipe, NULL, 0, f32, SIZE_MAX, 0, NULL, &nothing, NULL, NULL, &err));
  OK(aq_quantize_rows(&recipe, NULL, 0, f32, ROWS, 0, NULL, &nothing, &none, NULL, &err));
  OK(aq_matvec(&none, NULL, 0, 1, y, ROWS, &err));
  for (int r = 0; r < ROWS; r++) CHECK(y[r] == 0);
  OK(aq_quantize_rows(&recipe, NULL, 0, f32, 0, COLS, NULL, &nothing, &none, NULL, &err));
  OK(aq_matvec(&none, x, COLS, 1, NULL, 0, &err));
  OK(aq_dequantize_rows(&none, f32, NULL, 0, &err));

  products(weights, weights);
}

/* ---- structs of other sizes ---- */

static void sizes(void) {
  /* An error one field shorter has no message; a longer one is written no further than ours. */
  struct { aq_error known; char more[8]; } error;
  memset(&error, 'x', sizeof error);
  error.known.struct_size = 8;
  aq_model *never = NULL;
#define FAIL(path) aq_model_open(path, &never, &error.known)
  CHECK(FAIL("inside") == AQ_ERROR_IO);
  CHECK(error.known.code == AQ_ERROR_IO && error.known.message[0] == 'x');
  error.known.struct_size = 8 + 5;
  FAIL("inside");
  CHECK(!strcmp(error.known.message, "insi") && error.known.message[5] == 'x');
  error.known.struct_size = 4;
  error.known.code = -7;
  FAIL("inside");
  CHECK(error.known.code == -7);
  error.known.struct_size = sizeof error;
  FAIL("inside");
  CHECK(strstr(error.known.message, "inside") && error.more[0] == 'x');
  CHECK(error.known.struct_size == sizeof error);
  error.known.struct_size = 0;
  FAIL("again");
  CHECK(strstr(error.known.message, "again") && error.more[0] == 'x');

  /* A message longer than its room keeps both ends, in whole characters. */
  char longer[3010];
  for (int i = 0; i < 2997; i += 3) memcpy(longer + i, "\xe2\x82\xac", 4);
  strcat(longer, "!");
  FAIL(longer);
  const char *gap = strstr(error.known.message, " ... ");
  size_t len = strlen(error.known.message);
  CHECK(len > 500 && len < 512 && !memcmp(error.known.message, "\xe2\x82\xac", 3));
  CHECK(gap && !memcmp(gap - 3, "\xe2\x82\xac", 3) && !memcmp(gap + 5, "\xe2\x82\xac", 3));
  CHECK(strstr(error.known.message, "!: cannot open"));

  /* Options one field shorter and longer than today's. */
  struct { aq_run_options known; void *more; } options;
  struct steps steps = {0, 0, 0, pthread_self()};
  options.known = (aq_run_options)AQ_INIT(aq_run_options);
  options.known.struct_size = sizeof options;
  options.known.progress = tell;
  options.known.user_data = &steps;
  options.more = &steps;
  OK(aq_quantize_file(input, output, NULL, &options.known, NULL, &err));
  CHECK(steps.calls > 0);
  /* What follows is not the caller's to give. */
  memset(&options, 'x', sizeof options);
  memset(&options, 0, offsetof(aq_run_options, user_data));
  options.known.struct_size = offsetof(aq_run_options, user_data);
  OK(aq_quantize_file(input, output, NULL, &options.known, NULL, &err));
  /* Ends inside `threads`: as if it had none. */
  options.known.struct_size = 6;
  options.known.threads = 5000;
  OK(aq_quantize_file(input, output, NULL, &options.known, NULL, &err));
  options.known.struct_size = 0;
  REFUSED("options.struct_size is 0",
          aq_quantize_file(input, scratch, NULL, &options.known, NULL, err));

  /* Outputs one field shorter and longer than today's. */
  aq_source *source = open_source();
  struct { aq_tensor_info known; char more[8]; } info;
  memset(&info, 'x', sizeof info);
  info.known.struct_size = sizeof info;
  OK(aq_source_tensor(source, 0, &info.known, &err));
  CHECK(info.known.tiles == 0 && info.more[0] == 'x' && info.known.struct_size == sizeof info);
  memset(&info, 'x', sizeof info);
  info.known.struct_size = offsetof(aq_tensor_info, tiles);
  OK(aq_source_tensor(source, 0, &info.known, &err));
  CHECK(info.known.tiles != 0 && info.known.bytes > 0);
  info.known.struct_size = 4;
  OK(aq_source_tensor(source, 0, &info.known, &err));
  info.known.struct_size = 0;
  REFUSED("info.struct_size is 0", aq_source_tensor(source, 0, &info.known, err));

  aq_plan *plan = plan_for(source);
  aq_tensor_plan entry = {0};
  REFUSED("entry.struct_size is 0", aq_plan_tensor(plan, 0, &entry, err));
  entry.struct_size = offsetof(aq_tensor_plan, name);
  OK(aq_plan_tensor(plan, 0, &entry, &err));
  CHECK(entry.name == NULL);
  aq_plan_free(plan);
  aq_source_free(source);

  /* As programs built before some fields came know these. */
  CHECK(offsetof(aq_tensor_plan, min_cosine) ==
        offsetof(aq_tensor_plan, bits_per_weight) + sizeof(double));
  CHECK(offsetof(aq_tensor_report, min_cosine) ==
        offsetof(aq_tensor_report, output_cosine) + sizeof(double));
  if (sizeof(void *) == 8) {
    CHECK(sizeof(aq_tensor_plan) == 88 && sizeof(aq_tensor_report) == 112);
    CHECK(sizeof(aq_generation) == 40 && sizeof(aq_evolve_options) == 56);
  }
  aq_report *report = NULL;
  OK(aq_quantize_file(input, output, NULL, NULL, &report, &err));
  aq_tensor_report measured;
  memset(&measured, 'x', sizeof measured);
  measured.struct_size = offsetof(aq_tensor_report, min_cosine);
  OK(aq_report_tensor(report, 0, &measured, &err));
  CHECK(!memcmp(&measured.min_cosine, "xxxxxxxx", 8) && !memcmp(&measured.below_min_cosine, "xxxx", 4));
  measured.struct_size = sizeof measured;
  OK(aq_report_tensor(report, 0, &measured, &err));
  CHECK(measured.ladder_steps == 0 && measured.below_min_cosine == 0);
  aq_report_free(report);

  aq_model *model = NULL;
  aq_tensor_view view = {0};
  OK(aq_model_open(output, &model, &err));
  REFUSED("view.struct_size is 0", aq_model_view(model, 0, 0, &view, err));
  view.struct_size = offsetof(aq_tensor_view, bits_per_weight);
  OK(aq_model_view(model, 0, 0, &view, &err));
  CHECK(view.matrix.codes != NULL && view.bits_per_weight == 0);
  /* One that ends within the matrix has none. */
  memset(&view, 0, sizeof view);
  view.struct_size = offsetof(aq_tensor_view, matrix) + offsetof(aq_matrix, scales);
  OK(aq_model_view(model, 0, 0, &view, &err));
  CHECK(view.matrix.codes == NULL && view.matrix.struct_size == 0);
  aq_model_free(model);

  /* A recipe one field shorter takes that field's default. */
  aq_recipe recipe = {.struct_size = offsetof(aq_recipe, scale_dtype),
                      .format = AQ_FORMAT_INT8,
                      .group_size = 32,
                      .scale_dtype = 99};
  aq_planes planes = AQ_INIT(aq_planes);
  OK(aq_plane_sizes(&recipe, 1, 64, &planes, &err));
  CHECK(planes.codes_len == 64 && planes.scales_len == 4 && planes.biases_len == 0);
  struct { aq_recipe known; int more; } grown = {{sizeof grown, AQ_FORMAT_INT8, 32, 0, 0, 0, 0}, 99};
  OK(aq_plane_sizes(&grown.known, 1, 64, &planes, &err));
  CHECK(planes.codes_len == 64 && planes.scales_len == 4 && planes.biases_len == 0);
  if (sizeof(void *) == 8) CHECK(sizeof(aq_matrix) == 176 && sizeof(aq_tensor_view) == 224);
}

/* ---- threads ---- */

struct shared {
  const aq_model *model;
  const aq_config *config;
  const aq_source *source;
  const aq_plan *plan;
  uint64_t sum;
};

/* Everything that takes const handles, and a run of its own. */
static void *use_everything(void *argument) {
  struct shared *shared = argument;
  for (int round = 0; round < 3; round++) {
    for (size_t i = 0; i < aq_model_count(shared->model); i++) {
      aq_tensor_view view = AQ_INIT(aq_tensor_view);
      aq_tensor_info info = AQ_INIT(aq_tensor_info);
      aq_error err = AQ_INIT(aq_error);
      if (aq_model_tensor(shared->model, i, &info, &err)) abort();
      if (aq_model_view(shared->model, i, 0, &view, &err)) abort();
      for (size_t j = 0; j < view.matrix.codes_len; j += 97)
        shared->sum += ((const uint8_t *)view.matrix.codes)[j];
      float *row = malloc((info.cols + 1) * sizeof *row);
      if (info.rows && aq_model_dequantize_rows(shared->model, i, 0, 1, AQ_DTYPE_F32, row,
                                                info.cols * sizeof *row, &err))
        abort();
      free(row);
      size_t found;
      if (aq_model_find(shared->model, info.name, &found, &err) || found != i) abort();
      if (aq_model_find(shared->model, "missing", &found, &err) != AQ_ERROR_TENSOR) abort();
    }
    const char *text;
    if (aq_config_to_yaml(shared->config, &text, NULL) || !strstr(text, "bit_width")) abort();
    if (aq_plan_to_json(shared->plan, &text, NULL) || text[0] != '{') abort();
    aq_source *mine;
    if (aq_source_open(input, NULL, &mine, NULL)) abort();
    aq_source_free(mine);
  }
  size_t size, written;
  if (aq_plan_size_bound(shared->plan, shared->source, &size, NULL)) abort();
  char *memory = malloc(size);
  aq_run_options options = AQ_INIT(aq_run_options);
  options.threads = 2;
  if (aq_plan_run_into(shared->plan, shared->source, &options, memory, size, &written, NULL, NULL)) abort();
  for (size_t i = 0; i < written; i += 31) shared->sum += (unsigned char)memory[i];
  free(memory);
  return NULL;
}

static void threads(void) {
  enum { THREADS = 8 };
  aq_source *source = open_source();
  aq_plan *plan = plan_for(source);
  aq_config *config = NULL;
  aq_model *model = NULL;
  OK(aq_config_new(NULL, &config, &err));
  /* A compressed file, so that views are unpacked by whoever comes first. */
  OK(aq_config_set(config, "compression", "zstd", &err));
  OK(aq_quantize_file(input, output, config, NULL, NULL, &err));
  OK(aq_model_open(output, &model, &err));
  pthread_t handles[THREADS];
  struct shared shared[THREADS];
  for (int i = 0; i < THREADS; i++) {
    shared[i] = (struct shared){model, config, source, plan, 0};
    CHECK(pthread_create(&handles[i], NULL, use_everything, &shared[i]) == 0);
  }
  for (int i = 0; i < THREADS; i++) {
    pthread_join(handles[i], NULL);
    CHECK(shared[i].sum == shared[0].sum && shared[i].sum > 0);
  }
  aq_model_free(model);
  aq_config_free(config);
  aq_plan_free(plan);
  aq_source_free(source);
}

/* Handles may be freed when the library's thread-local variables are gone. */
static aq_config *kept_to_the_end;
static void at_the_end(void) { aq_config_free(kept_to_the_end); }

/* ---- inputs of transformed tensors ---- */

static void transforms(void) {
  aq_model *model = NULL;
  aq_tensor_view view = AQ_INIT(aq_tensor_view);
  aq_activation_params params = AQ_INIT(aq_activation_params);
  size_t both = 99, plain = 99;
  OK(aq_model_open(transformed, &model, &err));
  OK(aq_model_find(model, "both", &both, &err));
  OK(aq_model_find(model, "plain", &plain, &err));
  REFUSED("aq_model is NULL", aq_model_activation_params(NULL, both, 0, &params, err));
  REFUSED("params is NULL", aq_model_activation_params(model, both, 0, NULL, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "there is no tensor 99", aq_model_activation_params(model, 99, 0, &params, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "'both': it has no activation parameters for timestep 999",
             aq_model_activation_params(model, both, 999, &params, err));
  REFUSED_AS(AQ_ERROR_TENSOR, "'plain': it has no activation parameters for timestep 0",
             aq_model_activation_params(model, plain, 0, &params, err));
  CHECK(params.t_end == 0); /* outputs are written only on success */
  OK(aq_model_activation_params(model, both, 299, &params, &err));
  CHECK(params.t_begin == 0 && params.t_end == 300 && params.scale == 0.25f);
  OK(aq_model_activation_params(model, both, 300, &params, &err));
  CHECK(params.t_begin == 300 && params.t_end == 999 && params.zero_point == -1.5f);

  /* The second tensor has neither, the first both. */
  aq_matrix *const matrix = &view.matrix;
  OK(aq_model_view(model, plain, 0, &view, &err));
  CHECK(!matrix->input_scale && !matrix->input_scale_len && !matrix->rotation_block && !matrix->rotation_seed);
  OK(aq_model_view(model, both, 0, &view, &err));
  CHECK(matrix->input_scale_len == 2 * matrix->cols && matrix->cols == 40);
  CHECK(!memcmp(matrix->input_scale, "\x00\x38\x00\x3a", 4)); /* 0.5, 0.75 */
  CHECK(matrix->rotation_block == 8 && matrix->rotation_seed == 77);

  /* The kernels undo it, as the model does. */
  enum { ROWS = 6, COLS = 40 };
  float x[2 * COLS], there[2 * COLS], weights[ROWS * COLS], stored[ROWS * COLS], y[2 * ROWS], z[2 * ROWS];
  for (int i = 0; i < 2 * COLS; i++) x[i] = there[i] = (float)(i % 7) - 3;
  OK(aq_model_dequantize_rows(model, both, 0, ROWS, AQ_DTYPE_F32, weights, sizeof weights, &err));
  OK(aq_dequantize_rows(matrix, AQ_DTYPE_F32, stored, sizeof stored, &err));
  CHECK(!memcmp(weights, stored, sizeof weights));
  uint16_t halves[2][ROWS * COLS];
  for (int i = 0; i < 2; i++) {
    const aq_dtype dtype = i ? AQ_DTYPE_BF16 : AQ_DTYPE_F16;
    OK(aq_model_dequantize_rows(model, both, 0, ROWS, dtype, halves[0], sizeof halves[0], &err));
    OK(aq_dequantize_rows(matrix, dtype, halves[1], sizeof halves[1], &err));
    CHECK(!memcmp(halves[0], halves[1], sizeof halves[0]));
  }
  OK(aq_model_matvec(model, both, x, 2 * COLS, 2, y, 2 * ROWS, &err));
  OK(aq_matvec(matrix, x, 2 * COLS, 2, z, 2 * ROWS, &err));
  CHECK(!memcmp(y, z, sizeof y));

  /* Vectors of bytes carry it, too: they fit no matrix that was treated otherwise. */
  int8_t values[COLS];
  float scales[COLS / 16 + 1], sums[COLS / 16 + 1], exact = 0;
  const size_t groups = matrix->group_size ? (COLS + matrix->group_size - 1) / matrix->group_size : 1;
  aq_vectors vectors = {.struct_size = sizeof vectors,
                        .values = values, .values_count = COLS,
                        .scales = scales, .scales_count = groups,
                        .sums = sums, .sums_count = groups};
  OK(aq_quantize_vectors(matrix, x, COLS, 1, &vectors, &err));
  CHECK(vectors.transform != 0);
  OK(aq_matvec_int8(matrix, &vectors, z, ROWS, &err));
  for (int r = 0; r < ROWS; r++) exact += fabsf(y[r]);
  for (int r = 0; r < ROWS; r++) CHECK(fabsf(z[r] - y[r]) < exact / 50);
  aq_matrix other = *matrix;
  other.rotation_seed++;
  REFUSED("another input scale or rotation", aq_matvec_int8(&other, &vectors, z, ROWS, err));
  other = *matrix;
  other.input_scale = NULL, other.input_scale_len = 0;
  REFUSED("another input scale or rotation", aq_matvec_int8(&other, &vectors, z, ROWS, err));

  /* Transformed vectors are multiplied with the planes as they are. */
  REFUSED("matrix is NULL", aq_transform_vectors(NULL, there, COLS, 1, err));
  REFUSED("x is NULL", aq_transform_vectors(matrix, NULL, COLS, 1, err));
  REFUSED("x has length 40, expected 80", aq_transform_vectors(matrix, there, COLS, 2, err));
  REFUSED("any memory", aq_transform_vectors(matrix, there, COLS, SIZE_MAX / 2, err));
  OK(aq_transform_vectors(matrix, NULL, 0, 0, &err));
  CHECK(!memcmp(x, there, sizeof x));
  OK(aq_transform_vectors(matrix, there, 2 * COLS, 2, &err));
  CHECK(memcmp(x, there, sizeof x));
  other.rotation_block = 0;
  OK(aq_matvec(&other, there, 2 * COLS, 2, z, 2 * ROWS, &err));
  CHECK(!memcmp(y, z, sizeof y));
  OK(aq_dequantize_rows(&other, AQ_DTYPE_F32, stored, sizeof stored, &err));
  OK(aq_transform_vectors(&other, x, COLS, 1, &err)); /* nothing to do */
  for (int r = 0; r < ROWS; r++) {
    double by_original = 0, by_stored = 0;
    for (int c = 0; c < COLS; c++) {
      by_original += (double)weights[r * COLS + c] * x[c];
      by_stored += (double)stored[r * COLS + c] * there[c];
    }
    CHECK(fabs(by_original - by_stored) < 1e-4 && fabs(by_original - y[r]) < 1e-4);
  }
  size_t failures = 99;
  OK(aq_model_verify(model, NULL, NAN, NULL, &failures, NULL, &err));
  CHECK(failures == 0);
  aq_model_free(model);
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: contract FOLDER TRANSFORMED.parquet\n");
    return 2;
  }
  transformed = argv[2];
  snprintf(input, sizeof input, "%.4000s/in.safetensors", argv[1]);
  snprintf(folder, sizeof folder, "%.4000s/out", argv[1]);
  snprintf(output, sizeof output, "%s/out.parquet", folder);
  snprintf(scratch, sizeof scratch, "%s/never.parquet", folder);
  CHECK(mkdir(folder, 0777) == 0);
  write_input();

  CHECK(aq_abi_version() == AQ_ABI_VERSION && strchr(aq_version(), '.') && *aq_isa_name());
  CHECK(atexit(at_the_end) == 0);
  OK(aq_config_new(NULL, &kept_to_the_end, &err));
  configs();
  calibrations();
  folding();
  sources();
  plans();
  runs();
  budgets();
  analyses();
  searches();
  folders();
  reports();
  models();
  transforms();
  kernels();
  activations();
  sizes();
  threads();
  printf("%d checks\n", checks);
  return 0;
}
