/* A program with another Rust library, which has its own standard library and unwinds, too. */
#include "check.h"

#include <stdint.h>
#include <stdio.h>

int32_t other_catches_a_panic(int32_t);

int main(void) {
  if (other_catches_a_panic(20) != 21 || check_library() != 0) return 1;
  printf("the other one: %d\n", (int)other_catches_a_panic(21));
  return other_catches_a_panic(21) == 22 ? 0 : 1;
}
