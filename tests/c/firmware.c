/* Decodes matrices with the library for firmware. Reads cases from standard input, each of ten
 * numbers of 8 bytes (format, group size, scheme, scale dtype, dtype, rows, cols, and the bytes of
 * codes, scales and biases), then the planes. Writes for each what it decodes to and its product with
 * (1, 2, 3, ...).
 *
 * There is no allocator here, as in firmware. */
#define AQ_NO_STD
#include <stdint.h>
#include <stdio.h>

#include "arrowquant.h"

static uint8_t planes[3][1 << 16], weights[1 << 18];
static float x[1 << 12], y[1 << 12];

static int complain(const aq_error *err) {
  fprintf(stderr, "%d: %s\n", (int)err->code, err->message);
  return 1;
}

int main(void) {
  uint64_t n[10];
  for (int i = 0; i < 1 << 12; i++) x[i] = (float)(i + 1);
  while (fread(n, sizeof *n, 10, stdin) == 10) {
    const aq_recipe recipe = {.struct_size = sizeof recipe,
                              .format = (aq_format)n[0],
                              .group_size = (uint32_t)n[1],
                              .scheme = (aq_scheme)n[2],
                              .scale_dtype = (aq_dtype)n[3]};
    const aq_dtype dtype = (aq_dtype)n[4];
    const size_t rows = n[5], cols = n[6], size = dtype == AQ_DTYPE_F32 ? 4 : 2;
    aq_planes sized = AQ_INIT(aq_planes);
    aq_error err = AQ_INIT(aq_error);
    if (aq_plane_sizes(&recipe, rows, cols, &sized, &err)) return complain(&err);
    const size_t sizes[3] = {sized.codes_len, sized.scales_len, sized.biases_len};
    for (int i = 0; i < 3; i++) {
      if (sizes[i] != n[7 + i] || fread(planes[i], 1, sizes[i], stdin) != sizes[i]) return 2;
    }
    const aq_matrix matrix = {.struct_size = sizeof matrix,
                              .format = recipe.format,
                              .group_size = recipe.group_size,
                              .scheme = recipe.scheme,
                              .scale_dtype = recipe.scale_dtype,
                              .rows = rows, .cols = cols,
                              .codes = planes[0], .codes_len = sizes[0],
                              .scales = planes[1], .scales_len = sizes[1],
                              .biases = planes[2], .biases_len = sizes[2]};
    if (aq_dequantize_rows(&matrix, dtype, weights, rows * cols * size, &err)) return complain(&err);
    if (aq_matvec(&matrix, x, cols, 1, y, rows, &err)) return complain(&err);
    /* Row by row it is the same. */
    aq_matrix last = AQ_INIT(aq_matrix);
    if (aq_matrix_rows(&matrix, rows - 1, 1, &last, &err)) return complain(&err);
    if (aq_matvec(&last, x, cols, 1, y + rows, 1, &err)) return complain(&err);
    if (y[rows] != y[rows - 1]) return 3;
    fwrite(weights, size, rows * cols, stdout);
    fwrite(y, sizeof *y, rows, stdout);
  }

  /* Columns that were scaled: rows decode as f32 in place; for all that would take more memory there
   * is an error. Vectors are transformed by the caller. */
  static const uint8_t codes[] = {0x98, 0x6A};
  static const float scales[] = {0.5f};
  static const uint16_t twos[] = {0x4000, 0x4000, 0x4000, 0x4000}; /* f16 */
  aq_error err = AQ_INIT(aq_error);
  aq_matrix matrix = {.struct_size = sizeof matrix,
                      .format = AQ_FORMAT_INT4,
                      .scale_dtype = AQ_DTYPE_F32,
                      .rows = 1, .cols = 4,
                      .codes = codes, .codes_len = sizeof codes,
                      .scales = scales, .scales_len = sizeof scales,
                      .input_scale = twos, .input_scale_len = sizeof twos};
  float row[4], one[4] = {0, 2, 0, 0};
  uint16_t half[4];
  if (aq_dequantize_rows(&matrix, AQ_DTYPE_F32, row, sizeof row, &err)) return complain(&err);
  if (row[0] != 0 || row[1] != 0.25f || row[2] != 0.5f || row[3] != -0.5f) return 4;
  if (aq_dequantize_rows(&matrix, AQ_DTYPE_F16, half, sizeof half, &err) != AQ_ERROR_ARGUMENT) return 5;
  if (aq_matvec(&matrix, one, 4, 1, y, 1, &err) != AQ_ERROR_ARGUMENT) return 6;
  if (aq_transform_vectors(&matrix, one, 4, 1, &err)) return complain(&err);
  matrix.input_scale = NULL, matrix.input_scale_len = 0;
  if (aq_matvec(&matrix, one, 4, 1, y, 1, &err) || y[0] != 0.5f) return 7;

  /* Wrong arguments have a message here, too. */
  if (aq_matvec(&matrix, one, 3, 1, y, 1, &err) != AQ_ERROR_ARGUMENT) return 8;
  fprintf(stderr, "%s\n", err.message);
  return 0;
}
