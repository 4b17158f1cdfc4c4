/* A program with functions of its own that are called as zstd's are: the library uses what it has
 * inside, and leaves these alone. */
#include "check.h"

#include <stdio.h>
#include <stdlib.h>

#define MINE(name)                                \
  void name(void) {                               \
    fprintf(stderr, #name " of the program\n");   \
    abort();                                      \
  }

MINE(ZSTD_compress)
MINE(ZSTD_decompress)
MINE(ZSTD_compress2)
MINE(ZSTD_compressCCtx)
MINE(ZSTD_compressStream)
MINE(ZSTD_compressStream2)
MINE(ZSTD_createCCtx)
MINE(ZSTD_createDCtx)
MINE(ZSTD_decompressDCtx)
MINE(ZSTD_decompressStream)
MINE(ZSTD_getErrorName)
MINE(ZSTD_isError)
MINE(ZSTD_trace_compress_begin)
MINE(ZSTD_trace_compress_end)
MINE(ZSTD_trace_decompress_begin)
MINE(ZSTD_trace_decompress_end)
MINE(rust_eh_personality)

int main(void) { return check_library(); }
