/* Quantizes a model, opens the result, shows its worst tensors, decodes and multiplies one, and
 * quantizes a matrix in memory.
 *
 *   cc quantize.c -larrowquant -o quantize && ./quantize model.safetensors model.parquet
 *
 * Settings may follow, with the keys of docs/configuration.md: bit_width=8 method=minmax.
 */
#include <arrowquant.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the program where a call failed. */
static void must(aq_status status, const aq_error *err) {
  if (status != AQ_OK) {
    fprintf(stderr, "error %d: %s\n", (int)status, err->message);
    exit(1);
  }
}

static bool show_progress(void *user_data, const aq_progress *progress) {
  (void)user_data;
  fprintf(stderr, "\r%3.0f%%", 100.0 * (double)progress->done / (double)progress->total);
  return true; /* false would cancel */
}

static int by_cosine(const void *a, const void *b) {
  double x = ((const aq_tensor_report *)a)->cosine, y = ((const aq_tensor_report *)b)->cosine;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: quantize IN.safetensors OUT.parquet [KEY=VALUE]...\n");
    return 2;
  }
  aq_error err = AQ_INIT(aq_error);

  /* From file to file, to 4 bits unless settings say otherwise. */
  aq_config *config;
  must(aq_config_new(NULL, &config, &err), &err);
  must(aq_config_set(config, "bit_width", "4", &err), &err);
  for (int i = 3; i < argc; i++) {
    char *value = strchr(argv[i], '=');
    if (value) *value++ = '\0';
    must(aq_config_set(config, argv[i], value ? value : "", &err), &err);
  }
  aq_run_options options = AQ_INIT(aq_run_options);
  options.progress = show_progress;
  aq_report *report;
  must(aq_quantize_file(argv[1], argv[2], config, &options, &report, &err), &err);
  fprintf(stderr, "\n");

  aq_report_total total = AQ_INIT(aq_report_total);
  must(aq_report_totals(report, &total, &err), &err);
  printf("%zu tensors quantized, %zu kept: %.3f bits a weight, cosine %.5f\n", total.quantized,
         total.kept, total.bits_per_weight, total.cosine);

  /* The worst three; kept tensors have no cosine. */
  aq_tensor_report *worst = calloc(total.quantized, sizeof *worst);
  size_t found = 0;
  for (size_t i = 0; i < aq_report_count(report); i++) {
    aq_tensor_report entry = AQ_INIT(aq_tensor_report);
    must(aq_report_tensor(report, i, &entry, &err), &err);
    if (entry.format != AQ_FORMAT_KEPT) worst[found++] = entry;
  }
  qsort(worst, found, sizeof *worst, by_cosine);
  for (size_t i = 0; i < 3 && i < found; i++) printf("%.5f %s\n", worst[i].cosine, worst[i].name);

  /* The worst one's first row, as it is now. */
  aq_model *model;
  must(aq_model_open(argv[2], &model, &err), &err);
  size_t index;
  must(aq_model_find(model, worst[0].name, &index, &err), &err);
  aq_tensor_info info = AQ_INIT(aq_tensor_info);
  must(aq_model_tensor(model, index, &info, &err), &err);
  float *row = malloc(info.cols * sizeof *row);
  must(aq_model_dequantize_rows(model, index, 0, 1, AQ_DTYPE_F32, row, info.cols * sizeof *row, &err),
       &err);
  printf("%zu x %zu: %.6f %.6f %.6f\n", info.rows, info.cols, row[0], row[1], row[2]);

  /* The products of its weights with a vector, without decoding them: that row. */
  float *y = malloc(info.rows * sizeof *y);
  aq_tensor_view view = AQ_INIT(aq_tensor_view);
  must(aq_model_view(model, index, 0, &view, &err), &err);
  must(aq_matvec(&view.matrix, row, info.cols, 1, y, view.matrix.rows, &err), &err);
  printf("products: %.4f %.4f %.4f\n", y[0], y[1], y[2]);
  free(y);
  free(row);
  aq_model_free(model);
  free(worst);
  aq_report_free(report);
  aq_config_free(config);

  /* From memory to memory. */
  enum { ROWS = 4, COLS = 64 };
  float weights[ROWS * COLS];
  for (int i = 0; i < ROWS * COLS; i++) weights[i] = (float)(i * 37 % 101 / 50.0 - 1.0);
  const aq_recipe recipe = {.struct_size = sizeof recipe, .format = AQ_FORMAT_INT4, .group_size = 32};
  aq_planes planes = AQ_INIT(aq_planes);
  must(aq_plane_sizes(&recipe, ROWS, COLS, &planes, &err), &err);
  planes.codes = malloc(planes.codes_len);
  planes.scales = malloc(planes.scales_len);
  aq_quality quality = AQ_INIT(aq_quality);
  must(aq_quantize_rows(&recipe, weights, sizeof weights, AQ_DTYPE_F32, ROWS, COLS, NULL, &planes, NULL,
                        &quality, &err),
       &err);
  printf("%zu bytes to %zu: cosine %.5f, %.2f dB\n", sizeof weights, planes.codes_len + planes.scales_len,
         quality.cosine, quality.sqnr_db);
  free(planes.codes);
  free(planes.scales);
  return 0;
}
