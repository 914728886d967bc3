// Proves a kit: steps the model through what was recorded at its export, and compares.
//
//     check reach.lram/native/model.lrn reference.lrs
//
// It prints a line for each figure, and ends with 0 where all are within the bounds of `lram-export verify`, else 1.
#include <lram.h>

#include "comparison.h"
#include "recording.h"

namespace {

using ModelPointer = std::unique_ptr<lram_model, void (*)(lram_model*)>;
using StatePointer = std::unique_ptr<lram_state, void (*)(lram_state*)>;

void require(lram_status status) {
  if (status != LRAM_OK) throw Problem(lram_last_error());
}

ModelPointer open_model(const char* path) {
  lram_options options;
  lram_options_init(&options);
  options.safety = 0;  // what was recorded is the model's own
  lram_model* model = nullptr;
  require(lram_open(path, &options, &model));
  return {model, lram_close};
}

StatePointer make_state(lram_model* model, std::size_t rows) {
  lram_state* state = nullptr;
  require(lram_state_create(model, static_cast<int>(rows), &state));
  return {state, lram_state_free};
}

// Whether a field of the model is the recorded one.
bool same(const lram_field& own, const Field& recorded) {
  return own.name == recorded.name && own.element == recorded.element && own.size == recorded.size;
}

// A model and the steps that were recorded of it; throws Problem where they are another's.
class Replay {
 public:
  Replay(const char* model, const char* recording)
      : reader_(recording),
        recording_(reader_),
        path_(model),
        model_(open_model(model)),
        state_(make_state(model_.get(), recording_.rows)) {
    require(lram_describe(model_.get(), &about_));
    Digest source, unknown = {};
    std::copy(std::begin(about_.source_sha256), std::end(about_.source_sha256), source.begin());
    if (source != recording_.source && source != unknown && recording_.source != unknown)
      another("is '" + std::string(about_.name) + "' of another checkpoint");
    match_fields();
    match_state();
  }

  bool run() {
    Comparison comparison(recording_);
    for (std::size_t step = 0; step < recording_.steps; ++step) this->step(step, comparison);
    compare_state(comparison);
    if (!reader_.is_over()) reader_.damaged();
    std::printf("model    %s, %s, kernels %s\n", recording_.name.c_str(), recording_.precision.c_str(), about_.isa);
    comparison.print();
    return comparison.passed();
  }

 private:
  [[noreturn]] void another(const std::string& what) const {
    throw Problem(path_ + ": expected the model that was recorded, '" + recording_.name + "', but it " + what);
  }

  // A model lists its inputs in an order of its own.
  void match_fields() {
    if (about_.inputs != recording_.inputs.size() || about_.outputs != recording_.outputs.size())
      another("has another number of inputs or outputs");
    for (std::size_t i = 0; i < about_.inputs; ++i) {
      lram_field own;
      require(lram_input(model_.get(), i, &own));
      const auto found = std::find_if(recording_.inputs.begin(), recording_.inputs.end(),
                                      [&own](const Field& each) { return same(own, each); });
      if (found == recording_.inputs.end()) another("has another input '" + std::string(own.name) + "'");
      order_.push_back(static_cast<std::size_t>(found - recording_.inputs.begin()));
    }
    for (std::size_t i = 0; i < about_.outputs; ++i) {
      lram_field own;
      require(lram_output(model_.get(), i, &own));
      const Output& recorded = recording_.outputs[i];
      if (!same(own, recorded)) another("has another output '" + std::string(own.name) + "'");
      outputs_.emplace_back(recording_.rows * recorded.bytes());
    }
  }

  void match_state() const {
    if (about_.state_tensors != recording_.states.size()) another("has another state");
    for (std::size_t i = 0; i < about_.state_tensors; ++i) {
      lram_tensor own;
      require(lram_state_tensor(model_.get(), i, &own));
      std::size_t size = 1;
      for (int extent = 0; extent < own.rank; ++extent) size *= own.extents[extent];
      if (own.name != recording_.states[i].name || size != recording_.states[i].size)
        another("has another '" + std::string(own.name) + "' in its state");
    }
  }

  void step(std::size_t number, Comparison& comparison) {
    std::vector<Bytes> given, recorded;
    for (const Field& each : recording_.inputs) given.push_back(take(each));
    for (const Output& each : recording_.outputs) recorded.push_back(take(each));
    std::vector<const void*> inputs, expected, actual;
    std::vector<void*> outputs;
    for (const std::size_t i : order_) inputs.push_back(given[i].data());
    for (const Bytes& each : recorded) expected.push_back(each.data());
    for (Bytes& each : outputs_) {
      outputs.push_back(each.data());
      actual.push_back(each.data());
    }
    if (lram_step_fields(state_.get(), inputs.data(), inputs.size(), outputs.data(), outputs.size()) != LRAM_OK)
      throw Problem("step " + std::to_string(number) + ": " + lram_last_error());
    comparison.add_step(expected, actual);
  }

  void compare_state(Comparison& comparison) {
    if (recording_.states.empty()) return;  // a policy without memory: there is nothing to save
    std::vector<float> values(recording_.rows * about_.state_size);
    require(lram_state_save(state_.get(), values.data(), values.size()));
    const float* tensor = values.data();
    for (const State& each : recording_.states) {
      const std::size_t size = recording_.rows * each.size;
      std::vector<float> actual;
      for (std::size_t i = 0; i < size; i += each.stride) actual.push_back(tensor[i]);
      std::vector<float> expected(actual.size());
      std::memcpy(expected.data(), reader_.bytes(actual.size() * sizeof(float)), actual.size() * sizeof(float));
      comparison.add_state(each, expected, actual);
      tensor += size;
    }
  }

  // All rows of a field, in memory of their own, aligned for any element.
  using Bytes = std::vector<unsigned char>;
  Bytes take(const Field& of) {
    const std::size_t size = recording_.rows * of.bytes();
    const unsigned char* begin = reader_.bytes(size);
    return {begin, begin + size};
  }

  Reader reader_;
  Recording recording_;
  std::string path_;
  ModelPointer model_;
  StatePointer state_;
  lram_description about_ = {};
  std::vector<std::size_t> order_;  // which recorded input is the model's first, second, ...
  std::vector<Bytes> outputs_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "error: usage: check MODEL.lrn REFERENCE.lrs\n");
    return 1;
  }
  try {
    return Replay(arguments[1], arguments[2]).run() ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
