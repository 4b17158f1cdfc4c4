// The same from C++, with exceptions that cross the wrapper.
#include "check.h"

#include <arrowquant.hpp>
#include <cstdio>
#include <stdexcept>
#include <vector>

struct Stop : std::runtime_error {
  Stop() : std::runtime_error("stopped") {}
};

int main() {
  if (check_library() != 0) return 1;
  int caught = 0;

  // What the library refuses, as an exception.
  try {
    arrowquant::Config().set("bit_width", "5");
  } catch (const arrowquant::Error& error) {
    caught += error.code() == AQ_ERROR_CONFIG;
  }

  // What a callback throws comes out of the call.
  const std::vector<float> weights(64 * 64, 1.0f);
  const std::vector<std::size_t> dims = {64, 64};
  arrowquant::Source source;
  source.add("w.weight", dims, weights);
  arrowquant::Options options;
  options.progress = [](std::uint64_t, std::uint64_t) -> bool { throw Stop(); };
  try {
    arrowquant::Plan(source).run_to_memory(source, options);
  } catch (const Stop&) {
    caught += 1;
  }

  std::printf("%d exceptions\n", caught);
  return caught == 2 ? 0 : 1;
}
