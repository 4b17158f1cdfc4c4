// What arrowquant.hpp adds to the C functions: handles, exceptions, views.
//
// Usage: wrapper MODEL.safetensors FOLDER TRANSFORMED.parquet
#include <arrowquant.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <type_traits>

namespace aq = arrowquant;

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      std::fprintf(stderr, "wrapper.cpp:%d: %s\n", __LINE__, #condition);     \
      std::exit(1);                                                           \
    }                                                                         \
    checks++;                                                                 \
  } while (0)

static int checks = 0;

// Freed when the program ends, after the library's own thread-local variables.
static std::optional<aq::Config> kept_to_the_end;

template <class T>
constexpr bool moves_only = std::is_move_constructible_v<T> && std::is_move_assignable_v<T> &&
                            !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T>;
static_assert(moves_only<aq::Config> && moves_only<aq::Source> && moves_only<aq::Plan> &&
              moves_only<aq::Report> && moves_only<aq::Model> && moves_only<aq::Verification> &&
              moves_only<aq::Calibration> && moves_only<aq::Analysis> && moves_only<aq::Evolution>);

// The Error that a call throws.
template <class F>
static aq::Error refused(F call) {
  try {
    call();
  } catch (const aq::Error& error) {
    return error;
  }
  return {AQ_OK, "nothing was thrown"};
}

static std::vector<std::byte> bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::vector<std::byte> bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

int main(int argc, char** argv) {
  CHECK(argc == 4);
  const std::string input = argv[1], folder = argv[2], output = folder + "/caf\xc3\xa9 out.parquet";

  // Settings, and errors with their kind.
  aq::Config config("edge");
  CHECK(config.get("bit_width") == "2");
  config.set("bit_width", "8").merge_yaml("scheme: affine\n");
  CHECK(aq::Config().merge_yaml(config.to_yaml()).get("scheme") == "affine");
  const auto error = refused([&] { config.set("bit_width", "9"); });
  CHECK(error.code() == AQ_ERROR_CONFIG && std::strstr(error.what(), "'9'"));
  CHECK(config.clone().add_rule("re:a;b=keep").get("rules") == "re:a;b=keep");
  const auto warned = aq::Plan(aq::Source(), config.clone().add_rule("x=keep")).to_json();
  CHECK(warned.find("\"warnings\":[\"rule x=keep matches no tensor\"]") != std::string::npos);
  CHECK(refused([] { aq::Source::open("/nowhere"); }).code() == AQ_ERROR_IO);

  kept_to_the_end.emplace("cloud");

  // Text is taken whole or not at all, and what was moved away is not the default.
  using namespace std::string_view_literals;
  CHECK(refused([&] { config.set("rules", "a=keep\0b"sv); }).code() == AQ_ERROR_ARGUMENT);
  aq::Config moved = config.clone();
  const aq::Config there = std::move(moved);
  CHECK(refused([&] { aq::Plan(aq::Source(), moved); }).code() == AQ_ERROR_ARGUMENT);

  // One call, three ways, the same bytes.
  int told = 0;
  aq::Options options;
  options.threads = 2;
  options.progress = [&](std::uint64_t done, std::uint64_t total) {
    told++;
    return done <= total;
  };
  const aq::Report report = aq::quantize_file(input, output, config, options);
  CHECK(told > 0 && report.totals().cosine > 0.9999 && report.to_json()[0] == '{');
  CHECK(report.to_html().find("</html>") != std::string::npos);
  const aq::Source source = aq::Source::open(input);
  const aq::Plan plan(source, config);
  CHECK(plan.size() == source.size() && report.size() == plan.size());
  const auto file = plan.run_to_memory(source);
  CHECK(file == bytes_of(output));
  const aq::Plan copy = aq::Plan::from_json(plan.to_json());
  copy.run(source, folder + "/copy.parquet");
  CHECK(bytes_of(folder + "/copy.parquet") == file);

  // Exceptions of callbacks come out as they are, and nothing is left behind.
  options.progress = [](std::uint64_t, std::uint64_t) -> bool { throw std::string("mine"); };
  bool caught = false;
  try {
    aq::quantize_file(input, folder + "/never.parquet", config, options);
  } catch (const std::string& mine) {
    caught = mine == "mine";
  }
  CHECK(caught && bytes_of(folder + "/never.parquet").empty());
  options.progress = [](std::uint64_t, std::uint64_t) { return false; };
  CHECK(refused([&] { plan.run_to_memory(source, options); }).code() == AQ_ERROR_CANCELLED);
  std::string heard;
  options.progress = nullptr;
  options.log = [&](aq_log_level, std::string_view message) { return heard += message, true; };
  aq::quantize_file(input, folder + "/copy.parquet", aq::Config().set("rules", "typo=keep"), options);
  CHECK(heard == "rule typo=keep matches no tensor");

  // A folder that two runs made is the same model; a third finds all of its share there.
  aq::Options share;
  share.parts = 2;
  for (share.part = 1; share.part <= 2; share.part++)
    aq::quantize_file(input, folder + "/parts", config, share);
  CHECK(refused([&] { aq::Model::open(folder + "/parts"); }).code() == AQ_ERROR_FILE);
  aq::merge(folder + "/parts");
  CHECK(aq::Model::open(folder + "/parts").size() == source.size());
  share.part = 1;
  share.resume = true;
  const auto resumed = aq::quantize_file(input, folder + "/parts", config, share).to_json();
  CHECK(resumed.find("\"resumed\":1") != std::string::npos);
  share.resume = false;
  share.restart = true;
  const auto anew = aq::quantize_file(input, folder + "/parts", config, share).to_json();
  CHECK(anew.find("\"resumed\":0") != std::string::npos);
  const std::vector<std::string> without = {"vae"};
  CHECK(refused([&] { aq::Source::open(input, without); }).code() == AQ_ERROR_CONFIG);
  CHECK(aq::Source::open(input, std::vector<std::string>()).size() == source.size());

  // A model in memory, moved about; its views stay where they are.
  aq::Model first = aq::Model::open(aq::Bytes(file));
  const std::size_t index = first.find("blocks.0.attn.qkv.weight");
  const aq::TensorView view = first.view(index);
  aq::Model model = std::move(first);
  CHECK(view.code_bytes().data() >= file.data() &&
        view.code_bytes().end() <= file.data() + file.size());
  const auto info = model[index];
  CHECK(info.name == "blocks.0.attn.qkv.weight" && info.dims.size() == 2);
  CHECK(info.dims[0] == info.rows && info.dims[1] == info.cols && view.matrix.format == AQ_FORMAT_INT8);
  CHECK(view.matrix.scheme == AQ_SCHEME_AFFINE && view.bias_bytes().size() == view.scale_bytes().size());

  // Decoded whole, by rows, by the kernel, and as a product with a unit vector.
  const auto weights = model.dequantize(index);
  CHECK(weights.size() == info.rows * info.cols);
  const auto row = model.dequantize(index, 5, 1);
  CHECK(std::equal(row.begin(), row.end(), weights.begin() + std::ptrdiff_t(5 * info.cols)));
  CHECK(aq::dequantize_rows(view) == weights);
  CHECK(aq::dequantize_rows(aq::Matrix(view).rows_from(5, 1)) == row);
  CHECK(aq::Matrix(view).is_quantized() && aq::Matrix(view).rows == view.matrix.rows);
  CHECK(refused([&] { aq::Matrix(view).rows_from(info.rows, 1); }).code() == AQ_ERROR_TENSOR);
  std::vector<float> unit(info.cols);
  unit[3] = 1;
  const auto y = model.matvec(index, unit);
  for (std::size_t r = 0; r < info.rows; r++) CHECK(y[r] == weights[r * info.cols + 3]);
  CHECK(aq::matvec(view, unit) == y);
  CHECK(refused([&] { model.matvec(index, std::vector<float>(3)); }).code() == AQ_ERROR_ARGUMENT);

  // Verified against the original, and against what is not.
  CHECK(model.verify().failures() == 0);
  const auto verification = model.verify(source, 0.999);
  CHECK(verification.failures() == 0 && verification.to_json().find(info.name) != std::string::npos);
  CHECK(model.verify(source, 0.99999999).failures() > 0);
  CHECK(model.metadata("arrowquant.format_version") == "2");
  CHECK(refused([&] { model.metadata("nothing"); }).code() == AQ_ERROR_TENSOR);
  CHECK(model.metadata_to_json().find("\"arrowquant.format_version\":\"2\"") != std::string::npos);
  model.dequantize_to_path(folder + "/back.safetensors", AQ_DTYPE_F32);
  CHECK(aq::Source::open(folder + "/back.safetensors").size() == source.size());

  // Tensors from memory; a kernel from vector to vector.
  std::vector<float> values(12 * 40);
  for (std::size_t i = 0; i < values.size(); i++) values[i] = std::sin(float(i));
  const std::vector<std::size_t> dims = {12, 40};
  aq::Source made;
  made.add("made.weight", dims, values);
  CHECK(made.size() == 1 && made[0].cols == 40 && made[0].bytes == values.size() * sizeof(float));
  const auto made_file = aq::Plan(made).set("made.weight", "bits:8").run_to_memory(made);
  const auto int8 = aq::quantize_rows(aq::recipe(AQ_FORMAT_INT8), values, 12, 40);
  CHECK(int8.quality.cosine > 0.9999 && int8.codes.size() == values.size() && int8.biases.empty());
  const auto decoded = aq::dequantize_rows(int8);
  const auto compared = aq::compare(values, decoded);
  CHECK(std::abs(compared.sqnr_db - int8.quality.sqnr_db) < 1e-6);
  const auto product = aq::matvec(int8, values);
  const auto fast = aq::matvec_int8(int8, aq::quantize_vectors(int8, values));
  CHECK(product.size() == 12 * 12 && aq::compare(product, fast).cosine > 0.9999);
  const auto int4 = aq::quantize_rows(aq::recipe(AQ_FORMAT_INT4), values, 12, 40);
  CHECK(refused([&] { aq::matvec_int8(int4, aq::quantize_vectors(int8, values)); }).code() ==
        AQ_ERROR_ARGUMENT);
  aq_activation_options four = {};
  four.bits = 4;
  four.group_size = 16;
  const auto tokens = aq::quantize_activations(values, 40, four);
  CHECK(tokens.values.size() == values.size() && tokens.scales.size() == 12 * 3);
  const auto top = [](std::byte v) { return std::abs(int(std::int8_t(v))); };
  CHECK(std::any_of(tokens.values.begin(), tokens.values.begin() + 16,
                    [&](std::byte v) { return top(v) == 7; }));
  aq_activation_options fixed = {};
  fixed.scale = 1.0f / 128;
  fixed.zero_point = 128;
  const auto timestep = aq::quantize_activations(values, 40, fixed);
  CHECK(timestep.scales.empty() && timestep.values[0] == std::byte{128});
  const aq::Model made_model = aq::Model::open(std::vector<std::byte>(made_file));
  const auto codes = made_model.view(0).code_bytes();
  CHECK(std::equal(codes.begin(), codes.end(), int8.codes.begin(), int8.codes.end()));

  // Budgets, analyses and searches.
  aq::Source alike;
  for (const char* name : {"a.weight", "b.weight", "c.weight"}) alike.add(name, dims, values);
  aq::Config frugal;
  frugal.set("avg_bits", "5.5").set("candidates", "int2:16,int4:16,int8:16").set("min_cosine", "none");
  int measured = 0;
  aq::Options measuring;
  measuring.threads = 2;
  measuring.progress = [&](std::uint64_t, std::uint64_t) { return ++measured > 0; };
  const aq::Plan budget(alike, frugal, measuring);
  CHECK(measured > 0 && budget.size() == 3 && std::isnan(budget[0].min_cosine));
  const auto budget_file = budget.run_to_memory(alike);
  CHECK(std::abs(double(budget.file_bytes(alike)) - double(budget_file.size())) < 3 * 400);
  CHECK(budget.size_bound(alike) >= budget_file.size());
  const auto audio = aq::Plan(alike, frugal.clone().set("modality", "audio")).to_json();
  CHECK(audio.find("\"modality\":\"audio\"") != std::string::npos);
  measuring.progress = [](std::uint64_t, std::uint64_t) { return false; };
  CHECK(refused([&] { aq::Plan(alike, frugal, measuring); }).code() == AQ_ERROR_CANCELLED);
  CHECK(refused([&] { aq::Analysis(alike, frugal, measuring); }).code() == AQ_ERROR_CANCELLED);
  const aq::Analysis analysis(alike, frugal);
  CHECK(analysis.to_json().find("\"int2\"") != std::string::npos);

  // The last tensor counts most: it gets 8 bits, which leave the others 2.
  aq::EvolveOptions evolve;
  evolve.population = 20;
  evolve.generations = 4;
  int scored = 0, generations = 0;
  evolve.fitness = [&](const aq::Plan& candidate) {
    scored++;
    CHECK(candidate.run_to_memory(alike).size() > 0);
    return double(candidate[2].format) + 0.1 * candidate[1].format;
  };
  evolve.generation = [&](const aq_generation& told) {
    CHECK(int(told.generation) == generations++ && told.evaluations == std::uint64_t(scored));
    return true;
  };
  const aq::Evolution found(alike, frugal, evolve);
  CHECK(generations == 5 && scored > 3 && found.plan()[2].format == AQ_FORMAT_INT8);
  CHECK(found.plan()[0].format == AQ_FORMAT_INT2 && found.plan()[1].format == AQ_FORMAT_INT2);
  CHECK(found.to_json().find("\"stopped\":false") != std::string::npos);
  CHECK(aq::Plan(aq::Evolution(alike, frugal, {}).plan()).size() == 3);
  generations = scored = 0;
  evolve.generation = [](const aq_generation&) { return false; };
  CHECK(aq::Evolution(alike, frugal, evolve).to_json().find("\"stopped\":true") != std::string::npos);

  // Exceptions end it, on whatever thread, and come out as they are.
  aq::Options on_two;
  on_two.threads = 2;
  for (const bool parallel : {false, true}) {
    evolve.parallel = parallel;
    evolve.fitness = [](const aq::Plan&) -> double { throw std::string("mine"); };
    caught = false;
    try {
      aq::Evolution(alike, frugal, evolve, on_two);
    } catch (const std::string& mine) {
      caught = mine == "mine";
    }
    CHECK(caught);
    evolve.fitness = [](const aq::Plan&) { return 1.0; };
    evolve.generation = [](const aq_generation&) -> bool { throw std::string("told"); };
    caught = false;
    try {
      aq::Evolution(alike, frugal, evolve, on_two);
    } catch (const std::string& mine) {
      caught = mine == "told";
    }
    CHECK(caught);
  }
  evolve = {};
  evolve.resume = true;
  CHECK(refused([&] { aq::Evolution(alike, frugal, evolve); }).code() == AQ_ERROR_ARGUMENT);
  evolve.checkpoint = folder + "/search.json";
  CHECK(aq::Evolution(alike, frugal, evolve).to_json() == aq::Evolution(alike, frugal, evolve).to_json());

  // What the inputs of transformed tensors go through.
  const aq::Model transformed = aq::Model::open(argv[3]);
  CHECK(transformed.activation_params(transformed.find("both"), 300).zero_point == -1.5f);
  CHECK(refused([&] { transformed.activation_params(0, -1); }).code() == AQ_ERROR_TENSOR);
  CHECK(transformed.view(0).input_scale_bytes().size() == 80);
  CHECK(transformed.view(1).input_scale_bytes().size() == 0);
  std::vector<float> inputs(2 * 40);
  inputs[0] = inputs[40] = 1;
  aq::transform_vectors(transformed.view(0), inputs);
  // (1 / 0.5) / sqrt(8) in all of the first block, with the sign of its column.
  for (int i = 0; i < 8; i++) {
    CHECK(std::fabs(std::fabs(inputs[i]) - std::sqrt(0.5f)) < 1e-6f && inputs[i] == inputs[40 + i]);
  }
  CHECK(inputs[8] == 0);
  CHECK(aq::dequantize_rows(transformed.view(0)) == transformed.dequantize(0));
  // A calibration, by two of them, through a file.
  const aq::Calibration one(100), two(100);
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  one.observe("layer.weight", 0, x, 3);
  two.observe("layer", 99, x, 2);
  CHECK(refused([&] { one.merge(two); }).code() == AQ_ERROR_CONFIG);
  const aq::Calibration three(100);
  three.observe("layer", 99, x, 3);
  one.merge(three);
  one.set_schedule(std::vector<double>(100, 0.5));
  one.save(folder + "/calibration.parquet");
  const aq::Calibration back = aq::Calibration::load(folder + "/calibration.parquet", 1);
  CHECK(back.size() == 1 && back[0].name == "layer" && back[0].cols == 3 && back[0].rows == 4);
  CHECK(refused([&] { back.observe("layer", 100, x, 3); }).code() == AQ_ERROR_CONFIG);
  CHECK(refused([&] { back.observe("layer", 0, x, 4); }).code() == AQ_ERROR_CONFIG);
  aq::Calibration gone = aq::Calibration::load(folder + "/calibration.parquet");
  aq::Config("edge").set_calibration(gone);
  const aq::Calibration taken = std::move(gone);
  const auto folded = folder + "/folded.safetensors";
  CHECK(refused([&] { aq::fold_file(input, folded, gone); }).code() == AQ_ERROR_ARGUMENT);
  CHECK(refused([&] { aq::fold_file(input, folded, taken, 2); }).code() == AQ_ERROR_CONFIG);
  CHECK(refused([&] { aq::fold_file(input, folded, taken, -1); }).code() == AQ_ERROR_CONFIG);
  taken.observe("blocks.0.mlp.fc1", 99, std::vector<float>(256, 2), 256);
  CHECK(aq::fold_file(input, folded, taken, 0, AQ_DTYPE_F32).find("blocks.0.adaLN_modulation.1") != std::string::npos);
  CHECK(refused([&] { aq::Config("edge").set_calibration(gone); }).code() == AQ_ERROR_ARGUMENT);

  // A stream goes out and, holding no weights, is refused on its way in.
  ArrowArrayStream stream;
  made_model.to_arrow(&stream);
  CHECK(refused([&] { aq::Source::from_arrow(&stream); }).code() == AQ_ERROR_FILE);
  CHECK(stream.release == nullptr);

  std::printf("%d checks, %s\n", checks, std::string(aq::version()).c_str());
  return 0;
}
