// The little that tests need: checks that say where and what, and a main that runs every test.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "artifact_writer.h"
#include "handles.h"
#include "kernels/kernels.h"
#include "lram.h"

namespace lram_testing {

// Models of tests are small, and threads are to be seen at work in them all the same.
inline const std::size_t small_step_bytes_before = std::exchange(lram::small_step_bytes, 0);

inline int failures = 0;
inline std::vector<std::pair<std::string, std::function<void()>>>& tests() {
  static std::vector<std::pair<std::string, std::function<void()>>> all;
  return all;
}
struct Registered {
  Registered(const char* name, std::function<void()> run) { tests().emplace_back(name, std::move(run)); }
};

#define TEST(name)                                                      \
  static void name();                                                   \
  static const lram_testing::Registered registered_##name(#name, name); \
  static void name()

#define CHECK(condition)                                          \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ++lram_testing::failures;                                   \
    }                                                             \
  } while (false)

#define CHECK_OK(call)                                                              \
  do {                                                                              \
    if ((call) != LRAM_OK) {                                                        \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, lram_last_error()); \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (false)

// Leaves a test that this build or this machine cannot run.
#define SKIP(reason)                            \
  do {                                          \
    std::printf("  not checked: %s\n", reason); \
    return;                                     \
  } while (false)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LRAM_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define LRAM_SANITIZED 1
#endif
#endif
#ifdef LRAM_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// Under an emulator, system calls and page faults are the emulator's, too (see `make test-arm`).
inline bool emulated() { return std::getenv("LRAM_EMULATED") != nullptr; }

// The recurrent memory of a state as it lies, to the byte.
inline std::vector<std::uint8_t> bytes_of(const lram_state* state) {
  const auto* begin = reinterpret_cast<const std::uint8_t*>(state->episodes->memory());
  return {begin, begin + state->episodes->memory_floats() * sizeof(float)};
}

inline int run_all() {
  for (const auto& test : tests()) {
    const int before = failures;
    test.second();
    std::printf("%s %s\n", failures == before ? "ok    " : "FAILED", test.first.c_str());
  }
  return failures == 0 ? 0 : 1;
}

using ModelPointer = std::unique_ptr<lram_model, decltype(&lram_close)>;
using StatePointer = std::unique_ptr<lram_state, decltype(&lram_state_free)>;

inline ModelPointer open_model(const std::string& path, const char* isa, int threads = 1,
                               lram_state_format format = LRAM_STATE_FLOAT32) {
  setenv("LRAM_ISA", isa, 1);
  lram_options options;
  lram_options_init(&options);
  options.threads = threads;
  options.state_format = format;
  lram_model* model = nullptr;
  CHECK_OK(lram_open(path.c_str(), &options, &model));
  return {model, lram_close};
}

inline ModelPointer open_model(const TemporaryFile& file, const char* isa, int threads = 1,
                               lram_state_format format = LRAM_STATE_FLOAT32) {
  return open_model(file.path(), isa, threads, format);
}

inline StatePointer create_state(const ModelPointer& model, int batch) {
  lram_state* state = nullptr;
  CHECK_OK(lram_state_create(model.get(), batch, &state));
  return {state, lram_state_free};
}

// Steps a state with random inputs that depend on seed and step alone.
class Driver {
 public:
  Driver(const ModelPointer& model, int batch) : batch_(batch), state(create_state(model, batch)) {
    CHECK_OK(lram_describe(model.get(), &about));
  }

  // Logits of all rows; rows of `first` start an episode.
  std::vector<float> step(unsigned seed, const std::vector<int>& first = {}, int only_row = -1) const {
    std::vector<float> observation;
    std::vector<std::uint8_t> image;
    std::vector<float> scalars[3];
    for (int i = 0; i < batch_; ++i) {
      const int row = only_row < 0 ? i : only_row;
      std::mt19937 random(seed * 1000 + static_cast<unsigned>(row));
      std::normal_distribution<float> normal;
      for (std::size_t k = 0; k < about.observation_size; ++k) {
        observation.push_back(normal(random));
        image.push_back(static_cast<std::uint8_t>(random()));
      }
      for (int k = 0; k < 2; ++k) scalars[k].push_back(normal(random));
      scalars[2].push_back(0);
    }
    for (const int row : first) scalars[2][static_cast<std::size_t>(row)] = 1;
    std::vector<float> logits(static_cast<std::size_t>(batch_) * about.logits_size);
    std::vector<std::int64_t> action(static_cast<std::size_t>(batch_) * about.action_size);
    const void* observed =
        about.observation == LRAM_IMAGE ? static_cast<const void*>(image.data()) : observation.data();
    const lram_inputs inputs = {observed, scalars[0].data(), scalars[1].data(), scalars[2].data()};
    const lram_outputs outputs = {action.data(), logits.data()};
    CHECK_OK(lram_step(state.get(), &inputs, &outputs));
    return logits;
  }

  std::vector<float> save() const {
    std::vector<float> values(static_cast<std::size_t>(batch_) * about.state_size);
    CHECK_OK(lram_state_save(state.get(), values.data(), values.size()));
    return values;
  }

 private:
  int batch_;

 public:
  lram_description about = {};
  StatePointer state;
};

// An array per input and output of a model, of zeros at first, as lram_step_fields takes them.
class FieldArrays {
 public:
  FieldArrays(const lram::Engine& engine, std::size_t rows) : engine_(engine), rows_(rows) {
    for (const lram::Field& field : engine.inputs()) inputs.push_back(room(field));
    for (const lram::Field& field : engine.outputs()) outputs.push_back(room(field));
  }

  // All elements of an input; nothing if the model has none of that name.
  void fill(const std::string& name, double value) {
    for (std::size_t i = 0; i < engine_.inputs().size(); ++i)
      if (engine_.inputs()[i].name == name) fill(i, value);
  }
  void fill(std::size_t input, double value) {
    for (std::size_t i = 0; i < rows_ * engine_.inputs()[input].size(); ++i) set(input, i, value);
  }
  // An element of an input, counted through all rows.
  void set(std::size_t input, std::size_t element, double value) {
    void* values = memory_[input].data();
    switch (engine_.inputs()[input].element) {
      case lram::Element::float32:
        static_cast<float*>(values)[element] = static_cast<float>(value);
        break;
      case lram::Element::int64:
        static_cast<std::int64_t*>(values)[element] = static_cast<std::int64_t>(value);
        break;
      case lram::Element::uint8:
        static_cast<std::uint8_t*>(values)[element] = static_cast<std::uint8_t>(value);
        break;
    }
  }
  double get(std::size_t output, std::size_t element) const {
    const void* values = outputs[output];
    switch (engine_.outputs()[output].element) {
      case lram::Element::int64:
        return static_cast<double>(static_cast<const std::int64_t*>(values)[element]);
      case lram::Element::uint8:
        return static_cast<const std::uint8_t*>(values)[element];
      default:
        return static_cast<const float*>(values)[element];
    }
  }

  std::vector<const void*> inputs;
  std::vector<void*> outputs;

 private:
  void* room(const lram::Field& field) {
    constexpr std::size_t unit = sizeof(std::int64_t);
    memory_.emplace_back((rows_ * field.size() * lram::element_bytes(field.element) + unit - 1) / unit);
    return memory_.back().data();
  }

  const lram::Engine& engine_;
  std::size_t rows_;
  std::vector<std::vector<std::int64_t>> memory_;
};

inline double relative_error(const std::vector<float>& expected, const std::vector<float>& actual) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(static_cast<double>(expected[i]) - actual[i], 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(difference / norm);
}

inline std::vector<std::string> supported_isas() {
  int count = 0;
  const lram::Candidate* candidates = lram::candidates(&count);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i)
    if (candidates[i].supported()) names.emplace_back(candidates[i].kernels->name);
  return names;
}

}  // namespace lram_testing
