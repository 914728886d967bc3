// Replays the recorded steps of bundles on every instruction set of this processor, and on two threads: the same
// inputs, expected outputs and bounds as `lram-export verify` (lram_export/spec/parity.py).
//   test_replay FOLDER     with NAME.lrn and NAME.steps, as tests/native_replay.py writes them
// NAME.steps, little endian:
//   int32 steps, int32 relative, float logit bound, float state bound
//   per step: observation (float, uint8 for images), return_to_go, reward, is_first, action (float, int64 for
//     discrete), logits
//   per state tensor after the last step: every n-th element, n the smallest that leaves at most 4096
#include <dirent.h>

#include <algorithm>
#include <cstring>

#include "testing.h"

using namespace lram_testing;

namespace {

constexpr std::size_t kSample = 4096;

class Recording {
 public:
  explicit Recording(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rb"), std::fclose) {
    if (file_ == nullptr) stop("cannot be opened");
  }

  template <class T>
  void read(std::vector<T>& values) {
    if (std::fread(values.data(), sizeof(T), values.size(), file_.get()) != values.size()) stop("ends too early");
  }
  template <class T>
  T read() {
    std::vector<T> value(1);
    read(value);
    return value[0];
  }
  void expect_end() {
    if (std::fgetc(file_.get()) != EOF) stop("goes on after its end");
  }

 private:
  [[noreturn]] void stop(const char* problem) const {
    std::fprintf(stderr, "%s: %s\n", path_.c_str(), problem);
    std::exit(2);
  }

  std::string path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

double norm_of(const float* values, std::size_t count) {
  double squares = 0;
  for (std::size_t i = 0; i < count; ++i) squares += static_cast<double>(values[i]) * values[i];
  return std::sqrt(squares);
}

std::size_t arg_max(const float* values, std::size_t count) {
  return static_cast<std::size_t>(std::max_element(values, values + count) - values);
}

class Replay {
 public:
  Replay(const std::string& name, const ModelPointer& model) : recording_(name + ".steps") {
    CHECK_OK(lram_describe(model.get(), &about_));
    rows_ = static_cast<std::size_t>(about_.batch);
    state_ = create_state(model, about_.batch);
    steps_ = recording_.read<std::int32_t>();
    relative_ = recording_.read<std::int32_t>() != 0;
    logit_bound_ = static_cast<double>(recording_.read<float>());
    state_bound_ = static_cast<double>(recording_.read<float>());
  }

  // All logits, and the state at the end.
  const std::vector<float>& run() {
    for (int step = 0; step < steps_; ++step) this->step();
    compare_state();
    recording_.expect_end();
    return results_;
  }

  // Whether all was within the bounds; prints the largest errors.
  bool passed(const std::string& name) const {
    const bool passed =
        steps_ > 0 && logit_error_ <= logit_bound_ && state_error_ <= state_bound_ && tie_ <= 2 * logit_bound_;
    std::printf("%s %s on %s, %d threads: %d steps, logit error %.2e of %.0e, state error %.2e of %.0e, tie %.2e\n",
                passed ? "ok    " : "FAILED", name.c_str(), about_.isa, about_.threads, steps_, logit_error_,
                logit_bound_, state_error_, state_bound_, tie_);
    return passed;
  }

 private:
  void step() {
    std::vector<std::uint8_t> observation(rows_ * about_.observation_size * (about_.observation == LRAM_IMAGE ? 1 : 4));
    std::vector<float> scalars(3 * rows_);
    const bool discrete = about_.action == LRAM_DISCRETE;
    std::vector<std::uint8_t> expected_action(rows_ * about_.action_size * (discrete ? 8 : 4));
    std::vector<float> expected(rows_ * about_.logits_size);
    recording_.read(observation);
    recording_.read(scalars);
    recording_.read(expected_action);
    recording_.read(expected);
    std::vector<std::uint8_t> action(expected_action.size());
    std::vector<float> logits(expected.size());
    const lram_inputs inputs = {observation.data(), scalars.data(), scalars.data() + rows_, scalars.data() + 2 * rows_};
    const lram_outputs outputs = {action.data(), logits.data()};
    CHECK_OK(lram_step(state_.get(), &inputs, &outputs));
    results_.insert(results_.end(), logits.begin(), logits.end());

    const std::size_t of_action = about_.logits_size / about_.action_size;
    const std::size_t size = expected_action.size() / (rows_ * about_.action_size);
    for (std::size_t row = 0; row < rows_; ++row) {
      const float* reference = expected.data() + row * about_.logits_size;
      const float* actual = logits.data() + row * about_.logits_size;
      const double unit = relative_ ? norm_of(reference, about_.logits_size) : 1;
      logit_error_ =
          larger(logit_error_, (relative_ ? distance(reference, actual) : largest(reference, actual)) / unit);
      for (std::size_t i = 0; i < about_.action_size; ++i) {
        const std::size_t at = (row * about_.action_size + i) * size;
        if (std::memcmp(action.data() + at, expected_action.data() + at, size) == 0) continue;
        const float* choices = reference + i * of_action;
        const std::size_t best = arg_max(choices, of_action);
        const std::size_t chosen = arg_max(actual + i * of_action, of_action);
        // a different action from the same choice is a wrong decoding
        tie_ = larger(tie_, chosen == best ? INFINITY : static_cast<double>(choices[best] - choices[chosen]) / unit);
      }
    }
  }

  void compare_state() {
    std::vector<float> values(rows_ * about_.state_size);
    CHECK_OK(lram_state_save(state_.get(), values.data(), values.size()));
    results_.insert(results_.end(), values.begin(), values.end());
    const float* tensor = values.data();
    for (const lram::StateField& field : state_->model.engine->state_fields()) {
      const std::size_t size = rows_ * field.size();
      const std::size_t stride = (size + kSample - 1) / kSample;
      std::vector<float> expected((size + stride - 1) / stride);
      recording_.read(expected);
      std::vector<float> actual;
      for (std::size_t i = 0; i < size; i += stride) actual.push_back(tensor[i]);
      state_error_ = larger(state_error_, relative_error(expected, actual));
      tensor += size;
    }
  }

  double distance(const float* expected, const float* actual) const {
    double squares = 0;
    for (std::size_t i = 0; i < about_.logits_size; ++i)
      squares += std::pow(static_cast<double>(actual[i]) - expected[i], 2);
    return std::sqrt(squares);
  }
  double largest(const float* expected, const float* actual) const {
    double found = 0;
    for (std::size_t i = 0; i < about_.logits_size; ++i)
      found = larger(found, std::fabs(static_cast<double>(actual[i]) - expected[i]));
    return found;
  }
  static double larger(double a, double b) { return b <= a ? a : std::isnan(b) ? INFINITY : b; }

  Recording recording_;
  lram_description about_ = {};
  std::size_t rows_ = 0;
  StatePointer state_ = {nullptr, lram_state_free};
  int steps_ = 0;
  bool relative_ = false;
  double logit_bound_ = 0;
  double state_bound_ = 0;
  double logit_error_ = 0;
  double state_error_ = 0;
  double tie_ = 0;
  std::vector<float> results_;
};

std::vector<std::string> recordings(const std::string& folder) {
  const std::unique_ptr<DIR, int (*)(DIR*)> opened(opendir(folder.c_str()), closedir);
  std::vector<std::string> names;
  while (const dirent* entry = opened == nullptr ? nullptr : readdir(opened.get())) {
    const std::string file = entry->d_name;
    const std::size_t end = file.size() < 4 ? 0 : file.size() - 4;
    if (file.compare(end, 4, ".lrn") == 0) names.push_back(file.substr(0, end));
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool replay(const std::string& folder, const std::string& name, const std::string& isa) {
  const ModelPointer model = open_model(folder + "/" + name + ".lrn", isa.c_str());
  Replay replay(folder + "/" + name, model);
  replay.run();
  return replay.passed(name);
}

// The bits of a run with so many threads; how large the errors of lazy states may be is not recorded.
std::vector<float> results(const std::string& folder, const std::string& name, int threads, lram_state_format format) {
  const ModelPointer model = open_model(folder + "/" + name + ".lrn", "", threads, format);
  return Replay(folder + "/" + name, model).run();
}

bool same_for_any_threads(const std::string& folder, const std::string& name) {
  bool same = true;
  for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF}) {
    const std::vector<float> expected = results(folder, name, 1, format);
    for (const int threads : {2, 3, emulated() ? 4 : 12})
      if (results(folder, name, threads, format) != expected) {
        std::printf("FAILED %s: other results with %d threads\n", name.c_str(), threads);
        same = false;
      }
  }
  return same;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string folder = count == 2 ? arguments[1] : "";
  const std::vector<std::string> names = recordings(folder);
  if (names.empty()) {
    std::fprintf(stderr, "expected a folder with recordings, got '%s'\n", folder.c_str());
    return 2;
  }
  bool passed = true;
  for (const std::string& name : names) {
    for (const std::string& isa : supported_isas()) passed = replay(folder, name, isa) && passed;
    passed = same_for_any_threads(folder, name) && passed;
  }
  return passed && failures == 0 ? 0 : 1;
}
