/* Decodes matrices with the library for firmware. Reads cases from standard input, each of ten
 * numbers of 8 bytes (format, group size, scheme, scale dtype, dtype, rows, cols, and the bytes of
 * codes, scales and biases), then the planes. Writes of each what it decodes to, its product with
 * (1, 2, 3, ...), and the codes of its first row.
 *
 * There is no allocator here, as in firmware. */
#define AQ_NO_STD
#include <stdint.h>
#include <stdio.h>

#include "arrowquant.h"

static uint8_t planes[3][1 << 16], weights[1 << 18], codes[1 << 12];
static float x[1 << 12], y[1 << 12];

static int complain(const aq_error *err) {
  fprintf(stderr, "%d: %s\n", (int)err->code, err->message);
  return 1;
}

int main(void) {
  uint64_t n[10];
  for (int i = 0; i < 1 << 12; i++) x[i] = (float)(i + 1);
  while (fread(n, sizeof *n, 10, stdin) == 10) {
    aq_recipe recipe = {.struct_size = sizeof recipe,
                        .format = (aq_format)n[0],
                        .group_size = (uint32_t)n[1],
                        .scheme = (aq_scheme)n[2],
                        .scale_dtype = (aq_dtype)n[3]};
    const aq_dtype dtype = (aq_dtype)n[4];
    const size_t rows = n[5], cols = n[6], size = dtype == AQ_DTYPE_F32 ? 4 : 2;
    size_t sizes[3];
    aq_error err = AQ_ERROR_INIT;
    if (aq_plane_sizes(&recipe, rows, cols, &sizes[0], &sizes[1], &sizes[2], &err)) return complain(&err);
    for (int i = 0; i < 3; i++) {
      if (sizes[i] != n[7 + i] || fread(planes[i], 1, sizes[i], stdin) != sizes[i]) return 2;
    }
    if (aq_dequantize_rows(&recipe, planes[0], sizes[0], planes[1], sizes[1], planes[2], sizes[2], rows,
                           cols, dtype, weights, rows * cols * size, &err))
      return complain(&err);
    if (aq_matvec(&recipe, planes[0], sizes[0], planes[1], sizes[1], planes[2], sizes[2], rows, cols, x,
                  cols, 1, y, rows, &err))
      return complain(&err);
    if (aq_unpack(recipe.format, planes[0], sizes[0] / rows, codes, cols, &err)) return complain(&err);
    fwrite(weights, size, rows * cols, stdout);
    fwrite(y, sizeof *y, rows, stdout);
    fwrite(codes, 1, cols, stdout);
  }

  /* Wrong arguments have a message here, too. */
  aq_error err = AQ_ERROR_INIT;
  if (aq_unpack(AQ_FORMAT_INT4, planes[0], 3, codes, 9, &err) != AQ_ERROR_ARGUMENT) return 3;
  fprintf(stderr, "%s\n", err.message);
  return 0;
}
