/* A program that uses another zstd. */
#include "check.h"

#include <stdio.h>
#include <string.h>
#include <zstd.h>

int main(void) {
  static const char text[] = "as it was, as it was, as it was, as it was, as it was, as it was";
  char packed[256], back[sizeof text];
  size_t len = ZSTD_compress(packed, sizeof packed, text, sizeof text, 3);
  if (check_library() != 0 || ZSTD_isError(len)) return 1;
  if (ZSTD_decompress(back, sizeof back, packed, len) != sizeof text || strcmp(text, back)) return 1;
  printf("beside zstd %s\n", ZSTD_versionString());
  return 0;
}
