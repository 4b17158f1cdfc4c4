// arrowquant.h for C++17: handles that free themselves, exceptions, views.
//
// A header-only layer over the C functions, whose comments explain them; it adds no behaviour of its
// own. Handles can be moved, not copied. Views and names obtained from a handle are valid until the
// handle is freed, or changed by a function that is not const. Threads: several threads may call
// const member functions of an object at once.

#ifndef ARROWQUANT_HPP
#define ARROWQUANT_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "arrowquant.h"

namespace arrowquant {

// Thrown by a call that failed; what() names the file, the tensor and the reason.
class Error : public std::runtime_error {
 public:
  Error(aq_status code, const char* message) : std::runtime_error(message), code_(code) {}
  // One of the AQ_ERROR constants.
  aq_status code() const noexcept { return code_; }

 private:
  aq_status code_;
};

// A view of values that belong to something else.
template <class T>
class Span {
 public:
  Span() = default;
  Span(T* data, std::size_t size) : data_(data), size_(size) {}
  // Makes a view of anything with data() and size(), such as a vector.
  template <class C, class = decltype(static_cast<T*>(std::declval<C&>().data()))>
  Span(C&& values) : data_(values.data()), size_(values.size()) {}

  T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }
  bool empty() const noexcept { return size_ == 0; }
  T* begin() const noexcept { return data_; }
  T* end() const noexcept { return data_ + size_; }
  T& operator[](std::size_t i) const noexcept { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

using Bytes = Span<const std::byte>;

namespace detail {

// Calls a C function with an aq_error after its arguments; throws if it fails.
template <class F, class... Args>
void call(F function, Args... args) {
  aq_error error = AQ_INIT(aq_error);
  const aq_status status = function(args..., &error);
  if (status != AQ_OK) throw Error(status, error.message);
}

template <class T, void (*Free)(T*)>
struct Deleter {
  void operator()(T* handle) const noexcept { Free(handle); }
};

template <class T, void (*Free)(T*)>
using Handle = std::unique_ptr<T, Deleter<T, Free>>;

// Copies text into a string that ends in NUL.
inline std::string terminated(std::string_view text) {
  if (text.find('\0') != text.npos) throw Error(AQ_ERROR_ARGUMENT, "text with a NUL in it");
  return std::string(text);
}

class Lent;

// Throws if a handle was moved away, for parameters that may be NULL in C.
template <class T>
const T* there(const T* handle) {
  if (!handle) throw Error(AQ_ERROR_ARGUMENT, "an object that was moved away");
  return handle;
}

}  // namespace detail

inline std::string_view version() { return aq_version(); }
inline std::string_view isa_name() { return aq_isa_name(); }

// Description of an observed layer; the name belongs to the calibration.
struct LayerInfo {
  std::string_view name;
  std::size_t cols = 0;
  std::uint64_t rows = 0;
};

// Activation statistics of a model's layers, by timestep. Several threads may use an object at once,
// except to move or free it.
class Calibration {
 public:
  // Takes the options of C; those that are 0 have their defaults.
  explicit Calibration(const aq_calibration_options& options) {
    aq_calibration* made = nullptr;
    detail::call(aq_calibration_new, &options, &made);
    handle_.reset(made);
  }
  explicit Calibration(std::uint32_t timesteps = 1000) : Calibration(with(timesteps)) {}
  // Reads a saved calibration. Hessians beyond memory_limit bytes (0: no limit) go to a temporary file.
  static Calibration load(std::string_view path, std::uint64_t memory_limit = 0) {
    aq_calibration* made = nullptr;
    detail::call(aq_calibration_load, detail::terminated(path).c_str(), memory_limit, &made);
    return Calibration(made);
  }

  // Observes rows of `cols` values, one after another.
  void observe(std::string_view layer, std::uint32_t timestep, const void* x, std::size_t bytes,
               aq_dtype dtype, std::size_t rows, std::size_t cols) const {
    detail::call(aq_calibration_observe, handle(), detail::terminated(layer).c_str(), timestep, x,
                 bytes, dtype, rows, cols);
  }
  void observe(std::string_view layer, std::uint32_t timestep, Span<const float> x,
               std::size_t cols) const {
    observe(layer, timestep, x.data(), x.size_bytes(), AQ_DTYPE_F32, cols ? x.size() / cols : 0,
            cols);
  }
  // Sets the noise schedule: one number from 0 to 1 per timestep, see aq_calibration_set_schedule.
  void set_schedule(Span<const double> alphas) const {
    detail::call(aq_calibration_set_schedule, handle(), alphas.data(), alphas.size());
  }
  void merge(const Calibration& other) const {
    detail::call(aq_calibration_merge, handle(), other.handle());
  }
  void save(std::string_view path) const {
    detail::call(aq_calibration_save, handle(), detail::terminated(path).c_str());
  }

  std::size_t size() const noexcept { return aq_calibration_count(handle()); }
  LayerInfo operator[](std::size_t index) const&& = delete;  // its name would be gone
  LayerInfo operator[](std::size_t index) const& {
    aq_layer_info info = AQ_INIT(aq_layer_info);
    detail::call(aq_calibration_layer, handle(), index, &info);
    return {{info.name, info.name_len}, info.cols, info.rows};
  }

  const aq_calibration* handle() const noexcept { return handle_.get(); }

 private:
  explicit Calibration(aq_calibration* made) : handle_(made) {}
  static aq_calibration_options with(std::uint32_t timesteps) {
    aq_calibration_options options = AQ_INIT(aq_calibration_options);
    options.timesteps = timesteps;
    return options;
  }
  detail::Handle<aq_calibration, aq_calibration_free> handle_;
};

// Settings of a run.
class Config {
 public:
  // Starts with the defaults of a profile: "edge", "local" or "cloud".
  explicit Config(std::string_view profile = "local") {
    aq_config* made = nullptr;
    detail::call(aq_config_new, detail::terminated(profile).c_str(), &made);
    handle_.reset(made);
  }

  Config& set(std::string_view key, std::string_view value) {
    detail::call(aq_config_set, handle_.get(), detail::terminated(key).c_str(),
                 detail::terminated(value).c_str());
    return *this;
  }
  Config& merge_yaml(std::string_view yaml) {
    detail::call(aq_config_merge_yaml, handle_.get(), detail::terminated(yaml).c_str());
    return *this;
  }
  Config& merge_yaml_file(std::string_view path) {
    detail::call(aq_config_merge_yaml_file, handle_.get(), detail::terminated(path).c_str());
    return *this;
  }
  Config& merge_env() {
    detail::call(aq_config_merge_env, handle_.get());
    return *this;
  }
  std::string get(std::string_view key) const {
    const char* value = nullptr;
    detail::call(aq_config_get, handle(), detail::terminated(key).c_str(), &value);
    return value;
  }
  Config& add_rule(std::string_view rule) {
    detail::call(aq_config_add_rule, handle_.get(), detail::terminated(rule).c_str());
    return *this;
  }
  // Sets the calibration, which may be freed before the config.
  Config& set_calibration(const Calibration& calibration) {
    detail::call(aq_config_set_calibration, handle_.get(), detail::there(calibration.handle()));
    return *this;
  }
  Config clone() const {
    aq_config* made = nullptr;
    detail::call(aq_config_clone, handle(), &made);
    return Config(made);
  }
  std::string to_yaml() const {
    const char* yaml = nullptr;
    detail::call(aq_config_to_yaml, handle(), &yaml);
    return yaml;
  }

  const aq_config* handle() const noexcept { return handle_.get(); }

 private:
  explicit Config(aq_config* made) : handle_(made) {}
  detail::Handle<aq_config, aq_config_free> handle_;
};

// Description of a tensor; name and dimensions belong to the handle that described it.
struct TensorInfo {
  std::string_view name;
  aq_dtype dtype = AQ_DTYPE_DEFAULT;
  Span<const std::size_t> dims;
  std::size_t rows = 0, cols = 0, bytes = 0, tiles = 0;

  explicit TensorInfo(const aq_tensor_info& info)
      : name(info.name, info.name_len),
        dtype(info.dtype),
        dims(info.dims, info.dims_count),
        rows(info.rows),
        cols(info.cols),
        bytes(info.bytes),
        tiles(info.tiles) {}
};

// Tensors to quantize.
class Source {
 public:
  // Creates an empty source, for add().
  Source() {
    aq_source* made = nullptr;
    detail::call(aq_source_new, &made);
    handle_.reset(made);
  }
  static Source open(std::string_view path) {
    aq_source* made = nullptr;
    detail::call(aq_source_open, detail::terminated(path).c_str(),
                 static_cast<const aq_open_options*>(nullptr), &made);
    return Source(made);
  }
  // Opens a pipeline without some components, whose folders may be missing.
  static Source open(std::string_view path, Span<const std::string> without) {
    std::vector<const char*> names;
    for (const std::string& name : without) names.push_back(name.c_str());
    aq_open_options options = AQ_INIT(aq_open_options);
    options.without = names.data();
    options.without_count = names.size();
    aq_source* made = nullptr;
    detail::call(aq_source_open, detail::terminated(path).c_str(),
                 static_cast<const aq_open_options*>(&options), &made);
    return Source(made);
  }
  // Takes ownership of the stream, even if the call throws.
  static Source from_arrow(ArrowArrayStream* stream) {
    aq_source* made = nullptr;
    detail::call(aq_source_from_arrow, stream, &made);
    return Source(made);
  }

  // Adds a tensor. The values are not copied: they must outlive the source.
  Source& add(std::string_view name, aq_dtype dtype, Span<const std::size_t> dims, const void* data,
              std::size_t bytes) {
    detail::call(aq_source_add_tensor, handle_.get(), detail::terminated(name).c_str(), dtype,
                 dims.data(), dims.size(), data, bytes);
    return *this;
  }
  Source& add(std::string_view name, Span<const std::size_t> dims, Span<const float> values) {
    return add(name, AQ_DTYPE_F32, dims, values.data(), values.size_bytes());
  }
  // Deleted, because the values of a temporary would be gone before the run.
  Source& add(std::string_view, Span<const std::size_t>, std::vector<float>&&) = delete;

  std::size_t size() const noexcept { return aq_source_count(handle()); }
  TensorInfo operator[](std::size_t index) const&& = delete;  // its names would be gone
  TensorInfo operator[](std::size_t index) const& {
    aq_tensor_info info = AQ_INIT(aq_tensor_info);
    detail::call(aq_source_tensor, handle(), index, &info);
    return TensorInfo(info);
  }

  const aq_source* handle() const noexcept { return handle_.get(); }

 private:
  explicit Source(aq_source* made) : handle_(made) {}
  detail::Handle<aq_source, aq_source_free> handle_;
};

// Options of a run. The functions run on the calling thread. Returning false cancels: the call throws
// an Error with AQ_ERROR_CANCELLED. An exception thrown by a function leaves the call.
struct Options {
  std::uint32_t threads = 0;
  std::function<bool(std::uint64_t done, std::uint64_t total)> progress = nullptr;
  std::function<bool(aq_log_level level, std::string_view message)> log = nullptr;
  // For an output folder: `resume` requires one (runs continue with existing parts by default), `part`
  // of `parts` is the share to do, `part_bytes` the size of parts, and `restart` starts over. See
  // aq_run_options.
  bool resume = false;
  std::uint32_t part = 0, parts = 0;
  std::uint64_t part_bytes = 0;
  bool restart = false;
};

namespace detail {

// The options of C for the duration of one call.
class RunOptions {
 public:
  explicit RunOptions(const Options& options) : options_(options) {
    c_.threads = options.threads;
    c_.resume = options.resume;
    c_.part = options.part;
    c_.parts = options.parts;
    c_.part_bytes = options.part_bytes;
    c_.restart = options.restart;
    c_.user_data = this;
    if (options.progress) {
      c_.progress = [](void* self, const aq_progress* progress) {
        auto* run = static_cast<RunOptions*>(self);
        auto& tell = run->options_.progress;
        return run->guarded([&] { return tell(progress->done, progress->total); }, false);
      };
    }
    if (options.log) {
      c_.log = [](void* self, aq_log_level level, const char* message) {
        auto* run = static_cast<RunOptions*>(self);
        auto& tell = run->options_.log;
        return run->guarded([&] { return tell(level, message); }, false);
      };
    }
  }

  // Calls a C function; an exception of a callback takes precedence over the call's own error.
  template <class F, class... Args>
  void call(F function, Args... args) {
    aq_error error = AQ_INIT(aq_error);
    const aq_status status = function(args..., &error);
    if (thrown_) std::rethrow_exception(thrown_);
    if (status != AQ_OK) throw Error(status, error.message);
  }

  const aq_run_options* get() const noexcept { return &c_; }

  // Calls a callback, on any thread, and catches its exceptions, which must not pass through the
  // library: `call` rethrows the first one. The result is then `otherwise`.
  template <class F, class T>
  T guarded(F function, T otherwise) noexcept {
    try {
      return function();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!thrown_) thrown_ = std::current_exception();
      return otherwise;
    }
  }
  // Whether there was an exception.
  bool thrown() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bool(thrown_);
  }

 private:
  const Options& options_;
  aq_run_options c_ = AQ_INIT(aq_run_options);
  std::mutex mutex_;
  std::exception_ptr thrown_;
};

}  // namespace detail

class Report;

// The format that each tensor will get, before any work.
class Plan {
 public:
  explicit Plan(const Source& source) : Plan(create(source.handle(), nullptr)) {}
  Plan(const Source& source, const Config& config)
      : Plan(create(source.handle(), detail::there(config.handle()))) {}
  // Takes threads, progress and log for the measuring that a budget requires.
  Plan(const Source& source, const Config& config, const Options& options)
      : Plan(create(source.handle(), detail::there(config.handle()), options)) {}
  static Plan from_json(std::string_view json) {
    aq_plan* made = nullptr;
    detail::call(aq_plan_from_json, detail::terminated(json).c_str(), &made);
    return Plan(made);
  }

  // Changes the plan for one tensor: "keep", or settings such as "bits:8,group:64".
  Plan& set(std::string_view tensor, std::string_view settings) {
    detail::call(aq_plan_set, handle_.get(), detail::terminated(tensor).c_str(),
                 detail::terminated(settings).c_str());
    return *this;
  }
  std::size_t size() const noexcept { return aq_plan_count(handle()); }
  aq_tensor_plan operator[](std::size_t index) const&& = delete;  // its names would be gone
  aq_tensor_plan operator[](std::size_t index) const& {
    aq_tensor_plan entry = AQ_INIT(aq_tensor_plan);
    detail::call(aq_plan_tensor, handle(), index, &entry);
    return entry;
  }
  // Predicts the bytes of the file that a run writes.
  std::uint64_t file_bytes(const Source& source) const {
    std::uint64_t bytes = 0;
    detail::call(aq_plan_file_bytes, handle(), source.handle(), &bytes);
    return bytes;
  }
  // Returns an upper bound of the file's bytes.
  std::size_t size_bound(const Source& source) const {
    std::size_t bytes = 0;
    detail::call(aq_plan_size_bound, handle(), source.handle(), &bytes);
    return bytes;
  }
  // Quantizes a source into a file or a folder, as quantize_file does.
  Report run(const Source& source, std::string_view output, const Options& options = {}) const;
  // Quantizes a source into memory: returns the bytes of the file.
  std::vector<std::byte> run_to_memory(const Source& source, const Options& options = {}) const;
  // Returns the whole plan as JSON, with "modality", "evidence" and "warnings".
  std::string to_json() const {
    const char* json = nullptr;
    detail::call(aq_plan_to_json, handle(), &json);
    return json;
  }

  const aq_plan* handle() const noexcept { return handle_.get(); }

 private:
  friend class detail::Lent;
  friend class Evolution;
  explicit Plan(aq_plan* made) : handle_(made) {}
  static aq_plan* create(const aq_source* source, const aq_config* config,
                         const Options& options = {}) {
    detail::RunOptions run(options);
    aq_plan* made = nullptr;
    run.call(aq_plan_new, source, config, run.get(), &made);
    return made;
  }
  detail::Handle<aq_plan, aq_plan_free> handle_;
};

namespace detail {

// A plan that belongs to the library, for the duration of a callback.
class Lent {
 public:
  // The plan is const in C, and get() returns it as const, too.
  explicit Lent(const aq_plan* plan) : plan_(const_cast<aq_plan*>(plan)) {}
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  ~Lent() { static_cast<void>(plan_.handle_.release()); }
  const Plan& get() const noexcept { return plan_; }

 private:
  Plan plan_;
};

}  // namespace detail

// Measurements of a run.
class Report {
 public:
  explicit Report(aq_report* made) : handle_(made) {}

  std::size_t size() const noexcept { return aq_report_count(handle()); }
  aq_tensor_report operator[](std::size_t index) const&& = delete;  // its names would be gone
  aq_tensor_report operator[](std::size_t index) const& {
    aq_tensor_report entry = AQ_INIT(aq_tensor_report);
    detail::call(aq_report_tensor, handle(), index, &entry);
    return entry;
  }
  aq_report_total totals() const {
    aq_report_total total = AQ_INIT(aq_report_total);
    detail::call(aq_report_totals, handle(), &total);
    return total;
  }
  std::string to_json() const {
    const char* json = nullptr;
    detail::call(aq_report_to_json, handle(), &json);
    return json;
  }
  std::string to_html() const {
    const char* html = nullptr;
    detail::call(aq_report_to_html, handle(), &html);
    return html;
  }

  const aq_report* handle() const noexcept { return handle_.get(); }

 private:
  detail::Handle<aq_report, aq_report_free> handle_;
};

inline Report quantize_file(std::string_view input, std::string_view output,
                            const Config& config = Config(), const Options& options = {}) {
  detail::RunOptions run(options);
  aq_report* report = nullptr;
  run.call(aq_quantize_file, detail::terminated(input).c_str(), detail::terminated(output).c_str(),
           detail::there(config.handle()), run.get(), &report);
  return Report(report);
}

inline Report Plan::run(const Source& source, std::string_view output,
                        const Options& options) const {
  detail::RunOptions run(options);
  aq_report* report = nullptr;
  run.call(aq_plan_run, handle(), source.handle(), detail::terminated(output).c_str(), run.get(),
           &report);
  return Report(report);
}

inline std::vector<std::byte> Plan::run_to_memory(const Source& source,
                                                  const Options& options) const {
  detail::RunOptions run(options);
  std::vector<std::byte> output(size_bound(source));
  std::size_t size = 0;
  run.call(aq_plan_run_into, handle(), source.handle(), run.get(),
           static_cast<void*>(output.data()), output.size(), &size,
           static_cast<aq_report**>(nullptr));
  output.resize(size);
  return output;
}

// Measured losses of tensors in each format, on a sample of their rows.
class Analysis {
 public:
  explicit Analysis(const Source& source, const Config& config = Config(),
                    const Options& options = {}) {
    detail::RunOptions run(options);
    aq_analysis* made = nullptr;
    run.call(aq_analyze, source.handle(), detail::there(config.handle()), run.get(), &made);
    handle_.reset(made);
  }

  std::string to_json() const {
    const char* json = nullptr;
    detail::call(aq_analysis_to_json, handle(), &json);
    return json;
  }

  const aq_analysis* handle() const noexcept { return handle_.get(); }

 private:
  detail::Handle<aq_analysis, aq_analysis_free> handle_;
};

// Options of a search. An exception thrown by a function ends the search and leaves the call.
struct EvolveOptions {
  // Scores a candidate: higher is better; minus infinity ends the search with the best so far. Without
  // a function, the fitness is minus the sum of the errors of tensors.
  std::function<double(const Plan& candidate)> fitness = nullptr;
  // Called after each generation; returning false ends the search with the best so far.
  std::function<bool(const aq_generation& generation)> generation = nullptr;
  // 0 means the defaults of C; `generations` of AQ_NONE means none after the first.
  std::uint32_t population = 0, generations = 0;
  // Whether several threads may call `fitness` at once.
  bool parallel = false;
  // File that the search is saved to; empty for none.
  std::string checkpoint = {};
  bool resume = false;
};

// The result of a search for the plan with the highest fitness.
class Evolution {
 public:
  Evolution(const Source& source, const Config& config, const EvolveOptions& evolve = {},
            const Options& options = {})
      : Evolution(search(source, config, evolve, options)) {}

  const Plan& plan() const& noexcept { return plan_; }
  Plan plan() && { return std::move(plan_); }
  // Returns the history of the search as JSON.
  std::string to_json() const {
    const char* json = nullptr;
    detail::call(aq_evolution_to_json, handle(), &json);
    return json;
  }

  const aq_evolution* handle() const noexcept { return handle_.get(); }

 private:
  using Found = std::pair<aq_plan*, aq_evolution*>;
  struct Callbacks {
    const EvolveOptions& evolve;
    detail::RunOptions& run;
  };

  explicit Evolution(Found found) : plan_(found.first), handle_(found.second) {}
  static Found search(const Source& source, const Config& config, const EvolveOptions& evolve,
                      const Options& options) {
    detail::RunOptions run(options);
    Callbacks callbacks{evolve, run};
    const std::string checkpoint = detail::terminated(evolve.checkpoint);
    aq_evolve_options c = AQ_INIT(aq_evolve_options);
    c.population = evolve.population;
    c.generations = evolve.generations;
    c.parallel = evolve.parallel;
    c.resume = evolve.resume;
    c.checkpoint = checkpoint.empty() ? nullptr : checkpoint.c_str();
    c.user_data = &callbacks;
    if (evolve.fitness) {
      c.fitness = [](void* data, const aq_plan* candidate) {
        auto& [evolve, run] = *static_cast<Callbacks*>(data);
        const double stop = -std::numeric_limits<double>::infinity();
        if (run.thrown()) return stop;
        const auto& worth = evolve.fitness;
        return run.guarded([&] { return worth(detail::Lent(candidate).get()); }, stop);
      };
    }
    if (evolve.generation) {
      c.generation = [](void* data, const aq_generation* generation) {
        auto& [evolve, run] = *static_cast<Callbacks*>(data);
        const auto& tell = evolve.generation;
        return run.guarded([&] { return tell(*generation); }, false);
      };
    }
    Found found{nullptr, nullptr};
    try {
      run.call(aq_evolve, source.handle(), detail::there(config.handle()),
               static_cast<const aq_evolve_options*>(&c), run.get(), &found.first, &found.second);
    } catch (...) {
      // If a callback threw, the call itself may still have succeeded.
      aq_plan_free(found.first);
      aq_evolution_free(found.second);
      throw;
    }
    return found;
  }

  Plan plan_;
  detail::Handle<aq_evolution, aq_evolution_free> handle_;
};

// Writes a smoothed model, see aq_fold_file; returns the report of folding as JSON.
inline std::string fold_file(std::string_view input, std::string_view output,
                             const Calibration& calibration, double alpha = 0.5,
                             aq_dtype dtype = AQ_DTYPE_DEFAULT, const Options& options = {}) {
  detail::RunOptions run(options);
  aq_fold_options fold = AQ_INIT(aq_fold_options);
  // In C, 0 means the default, and a negative number means 0.
  if (alpha < 0) throw Error(AQ_ERROR_CONFIG, "alpha is negative");
  fold.alpha = alpha == 0 ? -1 : alpha;
  fold.dtype = dtype;
  aq_fold_report* made = nullptr;
  run.call(aq_fold_file, detail::terminated(input).c_str(), detail::terminated(output).c_str(),
           detail::there(calibration.handle()), static_cast<const aq_fold_options*>(&fold),
           run.get(), &made);
  const detail::Handle<aq_fold_report, aq_fold_report_free> report(made);
  const char* json = nullptr;
  detail::call(aq_fold_report_to_json, report.get(), &json);
  return json;
}

// Result of checking a file.
class Verification {
 public:
  Verification(std::size_t failures, aq_verification* made) : failures_(failures), handle_(made) {}

  // Returns the number of tensors with a problem.
  std::size_t failures() const noexcept { return failures_; }
  // Returns the result for each tensor as JSON.
  std::string to_json() const {
    const char* json = nullptr;
    detail::call(aq_verification_to_json, handle_.get(), &json);
    return json;
  }
  const aq_verification* handle() const noexcept { return handle_.get(); }

 private:
  std::size_t failures_;
  detail::Handle<aq_verification, aq_verification_free> handle_;
};

// A matrix for products and decoding. It owns no memory: the planes must outlive it.
struct Matrix : aq_matrix {
  Matrix() : aq_matrix(AQ_INIT(aq_matrix)) {}
  Matrix(const aq_matrix& matrix) : aq_matrix(matrix) {}

  Bytes code_bytes() const { return bytes(codes, codes_len); }
  Bytes scale_bytes() const { return bytes(scales, scales_len); }
  Bytes bias_bytes() const { return bytes(biases, biases_len); }
  Bytes input_scale_bytes() const { return bytes(input_scale, input_scale_len); }
  bool is_quantized() const noexcept { return format != AQ_FORMAT_KEPT; }
  // Returns some of the rows, in the same memory.
  Matrix rows_from(std::size_t row_start, std::size_t count) const {
    Matrix part;
    detail::call(aq_matrix_rows, static_cast<const aq_matrix*>(this), row_start, count,
                 static_cast<aq_matrix*>(&part));
    return part;
  }

 private:
  static Bytes bytes(const void* data, std::size_t size) {
    return {static_cast<const std::byte*>(data), size};
  }
};

// Some rows of a tensor, without copying them; lasts as long as the model.
struct TensorView : aq_tensor_view {
  TensorView() : aq_tensor_view(AQ_INIT(aq_tensor_view)) {}
  // Converts a view for functions that take a matrix.
  operator Matrix() const { return matrix; }

  Bytes code_bytes() const { return Matrix(matrix).code_bytes(); }
  Bytes scale_bytes() const { return Matrix(matrix).scale_bytes(); }
  Bytes bias_bytes() const { return Matrix(matrix).bias_bytes(); }
  Bytes input_scale_bytes() const { return Matrix(matrix).input_scale_bytes(); }
};

// Merges the parts that several runs with `part` wrote to a folder into one model.
inline void merge(std::string_view folder) {
  detail::call(aq_merge, detail::terminated(folder).c_str());
}

// An open quantized file.
class Model {
 public:
  static Model open(std::string_view path) {
    aq_model* made = nullptr;
    detail::call(aq_model_open, detail::terminated(path).c_str(), &made);
    return Model(made);
  }
  // Opens a file in memory. The memory must outlive the model and everything exported from it.
  static Model open(Bytes file) {
    aq_model* made = nullptr;
    detail::call(aq_model_open_memory, static_cast<const void*>(file.data()), file.size(),
                 aq_release_fn{}, static_cast<void*>(nullptr), &made);
    return Model(made);
  }
  // Opens a file in memory that the model takes ownership of.
  static Model open(std::vector<std::byte>&& file) {
    auto kept = std::make_unique<std::vector<std::byte>>(std::move(file));
    const Bytes bytes(*kept);
    aq_model* made = nullptr;
    detail::call(aq_model_open_memory, static_cast<const void*>(bytes.data()), bytes.size(),
                 aq_release_fn{[](void* kept) { delete static_cast<std::vector<std::byte>*>(kept); }},
                 static_cast<void*>(kept.release()), &made);
    return Model(made);
  }

  std::size_t size() const noexcept { return aq_model_count(handle()); }
  TensorInfo operator[](std::size_t index) const&& = delete;  // its names would be gone
  TensorInfo operator[](std::size_t index) const& {
    aq_tensor_info info = AQ_INIT(aq_tensor_info);
    detail::call(aq_model_tensor, handle(), index, &info);
    return TensorInfo(info);
  }
  std::size_t find(std::string_view name) const {
    std::size_t index = 0;
    detail::call(aq_model_find, handle(), detail::terminated(name).c_str(), &index);
    return index;
  }
  TensorView view(std::size_t index, std::size_t tile = 0) const&& = delete;
  TensorView view(std::size_t index, std::size_t tile = 0) const& {
    TensorView view;
    detail::call(aq_model_view, handle(), index, tile, static_cast<aq_tensor_view*>(&view));
    return view;
  }

  // Decodes all rows of a tensor to f32.
  std::vector<float> dequantize(std::size_t index) const {
    const TensorInfo info = (*this)[index];
    return dequantize(index, 0, info.rows);
  }
  std::vector<float> dequantize(std::size_t index, std::size_t row, std::size_t rows) const {
    std::vector<float> weights(rows * (*this)[index].cols);
    dequantize_into(index, row, rows, AQ_DTYPE_F32, weights.data(), weights.size() * sizeof(float));
    return weights;
  }
  void dequantize_into(std::size_t index, std::size_t row, std::size_t rows, aq_dtype dtype,
                       void* weights, std::size_t bytes) const {
    detail::call(aq_model_dequantize_rows, handle(), index, row, rows, dtype, weights, bytes);
  }
  // Decodes all tensors into a safetensors file.
  void dequantize_to_path(std::string_view output, aq_dtype dtype = AQ_DTYPE_DEFAULT,
                          const Options& options = {}) const {
    detail::RunOptions run(options);
    run.call(aq_model_dequantize, handle(), detail::terminated(output).c_str(), dtype,
             run.get());
  }
  // Multiplies a tensor with one or more vectors x, one after another.
  std::vector<float> matvec(std::size_t index, Span<const float> x) const {
    const TensorInfo info = (*this)[index];
    const std::size_t batch = info.cols ? x.size() / info.cols : 0;
    std::vector<float> y(batch * info.rows);
    detail::call(aq_model_matvec, handle(), index, x.data(), x.size(), batch, y.data(), y.size());
    return y;
  }

  // Returns the static parameters of activations; throws if the file has none for the timestep.
  aq_activation_params activation_params(std::size_t index, std::int32_t timestep) const {
    aq_activation_params params = AQ_INIT(aq_activation_params);
    detail::call(aq_model_activation_params, handle(), index, timestep, &params);
    return params;
  }

  Verification verify(const Options& options = {}) const { return verify(nullptr, -1, options); }
  Verification verify(const Source& original, double min_cosine = -1,
                      const Options& options = {}) const {
    return verify(detail::there(original.handle()), min_cosine, options);
  }
  // Finds the value of a key in the file's footer; throws if there is no such key.
  std::string metadata(std::string_view key) const {
    const char* value = nullptr;
    detail::call(aq_model_metadata, handle(), detail::terminated(key).c_str(), &value);
    return value;
  }
  // Returns the whole footer as a JSON object of keys and strings.
  std::string metadata_to_json() const {
    const char* json = nullptr;
    detail::call(aq_model_metadata_to_json, handle(), &json);
    return json;
  }
  // Exports the model; the caller releases the stream, which may outlive the model.
  void to_arrow(ArrowArrayStream* stream) const {
    detail::call(aq_model_to_arrow, handle(), stream);
  }

  const aq_model* handle() const noexcept { return handle_.get(); }

 private:
  explicit Model(aq_model* made) : handle_(made) {}
  Verification verify(const aq_source* original, double min_cosine, const Options& options) const {
    detail::RunOptions run(options);
    std::size_t failures = 0;
    aq_verification* made = nullptr;
    run.call(aq_model_verify, handle(), original, min_cosine, run.get(), &failures, &made);
    return {failures, made};
  }
  detail::Handle<aq_model, aq_model_free> handle_;
};

// ---- kernels over the caller's memory ----

// Makes a recipe with symmetric f16 scales, chosen by least squares; change its fields as needed.
inline aq_recipe recipe(aq_format format, std::uint32_t group_size = 128) {
  aq_recipe made = AQ_INIT(aq_recipe);
  made.format = format;
  made.group_size = group_size;
  return made;
}

// A quantized matrix with memory of its own. It can be moved, not copied: the matrix points into it.
struct Quantized {
  std::vector<std::byte> codes, scales, biases;
  Matrix matrix;
  aq_quality quality = AQ_INIT(aq_quality);
  operator Matrix() const { return matrix; }

  Quantized() = default;
  Quantized(Quantized&&) = default;
  Quantized& operator=(Quantized&&) = default;
};

// Quantizes rows * cols values of `dtype`.
inline Quantized quantize_rows(const aq_recipe& recipe, const void* weights, std::size_t bytes,
                               aq_dtype dtype, std::size_t rows, std::size_t cols) {
  aq_planes planes = AQ_INIT(aq_planes);
  detail::call(aq_plane_sizes, &recipe, rows, cols, &planes);
  Quantized made;
  made.codes.resize(planes.codes_len);
  made.scales.resize(planes.scales_len);
  made.biases.resize(planes.biases_len);
  planes.codes = made.codes.data();
  planes.scales = made.scales.data();
  planes.biases = made.biases.data();
  detail::call(aq_quantize_rows, &recipe, weights, bytes, dtype, rows, cols,
               static_cast<const float*>(nullptr), static_cast<const aq_planes*>(&planes),
               static_cast<aq_matrix*>(&made.matrix), &made.quality);
  return made;
}
inline Quantized quantize_rows(const aq_recipe& recipe, Span<const float> weights,
                               std::size_t rows, std::size_t cols) {
  return quantize_rows(recipe, weights.data(), weights.size_bytes(), AQ_DTYPE_F32, rows, cols);
}

// Decodes all rows of a matrix, or of a view, to f32.
inline std::vector<float> dequantize_rows(const Matrix& matrix) {
  std::vector<float> weights(matrix.rows * matrix.cols);
  detail::call(aq_dequantize_rows, static_cast<const aq_matrix*>(&matrix), AQ_DTYPE_F32,
               static_cast<void*>(weights.data()), weights.size() * sizeof(float));
  return weights;
}

// Result of a comparison.
struct Comparison {
  double cosine = 0, sqnr_db = 0;
};

// Compares b with the original a, each of its own dtype.
inline Comparison compare(Bytes a, aq_dtype a_dtype, Bytes b, aq_dtype b_dtype) {
  Comparison found;
  detail::call(aq_compare, static_cast<const void*>(a.data()), a.size(), a_dtype,
               static_cast<const void*>(b.data()), b.size(), b_dtype, &found.cosine,
               &found.sqnr_db);
  return found;
}
inline Comparison compare(Span<const float> a, Span<const float> b) {
  const auto bytes = [](Span<const float> values) {
    return Bytes(reinterpret_cast<const std::byte*>(values.data()), values.size_bytes());
  };
  return compare(bytes(a), AQ_DTYPE_F32, bytes(b), AQ_DTYPE_F32);
}

// Multiplies a matrix, or a view, with one or more vectors x, one after another.
inline std::vector<float> matvec(const Matrix& matrix, Span<const float> x) {
  const std::size_t batch = matrix.cols ? x.size() / matrix.cols : 0;
  std::vector<float> y(batch * matrix.rows);
  detail::call(aq_matvec, static_cast<const aq_matrix*>(&matrix), x.data(), x.size(), batch,
               y.data(), y.size());
  return y;
}

// Transforms vectors x in place, one after another, so that they can be multiplied with the planes as
// stored. The functions here do this by themselves.
inline void transform_vectors(const Matrix& matrix, Span<float> x) {
  const std::size_t batch = matrix.cols ? x.size() / matrix.cols : 0;
  detail::call(aq_transform_vectors, static_cast<const aq_matrix*>(&matrix), x.data(), x.size(),
               batch);
}

// Vectors of signed bytes.
struct Vectors {
  std::vector<std::int8_t> values;
  std::vector<float> scales, sums;
  aq_vectors vectors = AQ_INIT(aq_vectors);

  Vectors() = default;
  Vectors(Vectors&&) = default;
  Vectors& operator=(Vectors&&) = default;
};

// Quantizes one or more vectors x, one after another, for a matrix, or others like it.
inline Vectors quantize_vectors(const Matrix& matrix, Span<const float> x) {
  const std::size_t cols = matrix.cols, batch = cols ? x.size() / cols : 0;
  const std::size_t span = matrix.group_size ? matrix.group_size : cols;
  const std::size_t groups = cols ? batch * ((cols + span - 1) / span) : 0;
  Vectors made;
  made.values.resize(x.size());
  made.scales.resize(groups);
  made.sums.resize(groups);
  made.vectors.values = made.values.data();
  made.vectors.values_count = made.values.size();
  made.vectors.scales = made.scales.data();
  made.vectors.scales_count = groups;
  made.vectors.sums = made.sums.data();
  made.vectors.sums_count = groups;
  detail::call(aq_quantize_vectors, static_cast<const aq_matrix*>(&matrix), x.data(), x.size(),
               batch, &made.vectors);
  return made;
}

// Multiplies a matrix, or a view, with vectors of signed bytes.
inline std::vector<float> matvec_int8(const Matrix& matrix, const Vectors& x) {
  std::vector<float> y(x.vectors.batch * matrix.rows);
  detail::call(aq_matvec_int8, static_cast<const aq_matrix*>(&matrix), &x.vectors, y.data(),
               y.size());
  return y;
}

// Activations as integers: int8 values when dynamic, uint8 and no scales when static.
struct QuantizedActivations {
  std::vector<std::byte> values;
  std::vector<float> scales;
};

// Quantizes rows of `cols` values of `dtype`.
inline QuantizedActivations quantize_activations(Bytes x, aq_dtype dtype, std::size_t cols,
                                                 aq_activation_options options = {}) {
  const std::size_t size = dtype == AQ_DTYPE_F32 ? 4 : 2;
  const std::size_t rows = cols ? x.size() / size / cols : 0;
  const std::size_t span = options.group_size ? options.group_size : cols;
  const std::size_t groups = cols && options.scale == 0 ? rows * ((cols + span - 1) / span) : 0;
  QuantizedActivations made{std::vector<std::byte>(rows * cols), std::vector<float>(groups)};
  options.struct_size = sizeof options;
  detail::call(aq_quantize_activations, static_cast<const void*>(x.data()), x.size(), dtype, rows,
               cols, &options, static_cast<void*>(made.values.data()), made.values.size(),
               made.scales.data(), groups);
  return made;
}
inline QuantizedActivations quantize_activations(Span<const float> x, std::size_t cols,
                                                 const aq_activation_options& options = {}) {
  return quantize_activations(
      Bytes(reinterpret_cast<const std::byte*>(x.data()), x.size_bytes()), AQ_DTYPE_F32, cols,
      options);
}

}  // namespace arrowquant

#endif
