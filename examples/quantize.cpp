// Quantizes a model, opens the result, shows its worst tensors, decodes and multiplies one, and
// quantizes a matrix in memory.
//
//   c++ -std=c++17 quantize.cpp -larrowquant -o quantize && ./quantize model.safetensors model.parquet
//
// Settings may follow, with the keys of docs/configuration.md: bit_width=8 method=minmax.
#include <algorithm>
#include <arrowquant.hpp>
#include <cstdio>
#include <string>
#include <vector>

static int run(const char* input, const char* output, const std::vector<std::string>& settings) {
  // From file to file, to 4 bits unless settings say otherwise.
  arrowquant::Config config;
  config.set("bit_width", "4");
  for (const std::string& setting : settings) {
    const auto equals = setting.find('=');
    const bool has_value = equals != std::string::npos;
    config.set(setting.substr(0, equals), has_value ? setting.substr(equals + 1) : "");
  }
  arrowquant::Options options;
  options.progress = [](std::uint64_t done, std::uint64_t total) {
    std::fprintf(stderr, "\r%3.0f%%", 100.0 * double(done) / double(total));
    return true;  // false would cancel
  };
  const auto report = arrowquant::quantize_file(input, output, config, options);
  std::fprintf(stderr, "\n");

  const aq_report_total total = report.totals();
  std::printf("%zu tensors quantized, %zu kept: %.3f bits a weight, cosine %.5f\n", total.quantized,
              total.kept, total.bits_per_weight, total.cosine);

  // The worst three; kept tensors have no cosine.
  std::vector<aq_tensor_report> worst;
  for (std::size_t i = 0; i < report.size(); i++) {
    if (report[i].format != AQ_FORMAT_KEPT) worst.push_back(report[i]);
  }
  std::sort(worst.begin(), worst.end(),
            [](const auto& a, const auto& b) { return a.cosine < b.cosine; });
  for (std::size_t i = 0; i < 3 && i < worst.size(); i++) {
    std::printf("%.5f %s\n", worst[i].cosine, worst[i].name);
  }

  // The worst one's first row, as it is now.
  const auto model = arrowquant::Model::open(output);
  const std::size_t index = model.find(worst.at(0).name);
  const auto info = model[index];
  const std::vector<float> row = model.dequantize(index, 0, 1);
  std::printf("%zu x %zu: %.6f %.6f %.6f\n", info.rows, info.cols, row.at(0), row.at(1), row.at(2));

  // The products of its weights with a vector, without decoding them: that row.
  const std::vector<float> y = arrowquant::matvec(model.view(index), row);
  std::printf("products: %.4f %.4f %.4f\n", y.at(0), y.at(1), y.at(2));

  // From memory to memory.
  constexpr std::size_t rows = 4, cols = 64;
  std::vector<float> weights(rows * cols);
  for (std::size_t i = 0; i < weights.size(); i++) {
    weights[i] = static_cast<float>(static_cast<double>(i * 37 % 101) / 50.0 - 1.0);
  }
  const auto made =
      arrowquant::quantize_rows(arrowquant::recipe(AQ_FORMAT_INT4, 32), weights, rows, cols);
  std::printf("%zu bytes to %zu: cosine %.5f, %.2f dB\n", weights.size() * sizeof(float),
              made.codes.size() + made.scales.size(), made.quality.cosine, made.quality.sqnr_db);
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: quantize IN.safetensors OUT.parquet [KEY=VALUE]...\n");
    return 2;
  }
  try {
    return run(argv[1], argv[2], {argv + 3, argv + argc});
  } catch (const arrowquant::Error& error) {
    std::fprintf(stderr, "error %d: %s\n", error.code(), error.what());
    return 1;
  }
}
