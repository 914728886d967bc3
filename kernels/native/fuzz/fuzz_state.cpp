// Any bytes as a saved state: refused without a trace, or loaded to the bit and stepped from.
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "testing.h"

using namespace lram_testing;

namespace {

// A model, and a state that has made a few steps.
struct Subject {
  Subject(const Shape& shape, lram_state_format format)
      : lazy(format == LRAM_STATE_LAZY_HALF),
        file(make_artifact(shape)),
        model(open_model(file, "", 1, format)),
        driver(model, 1) {
    for (unsigned step = 0; step < 3; ++step) driver.step(step);
  }
  bool lazy;
  TemporaryFile file;
  ModelPointer model;
  Driver driver;
};

Shape small(std::vector<int> slstm_at) {
  Shape shape;
  shape.heads = 1;
  shape.blocks = 2;
  shape.inner = 16;
  shape.slstm_at = std::move(slstm_at);
  return shape;
}

constexpr lram::Layout kLayout = lram::Layout::tiled_int8;

// With a state that an input is long enough for.
Shape shortened(Shape shape) {
  shape.blocks = shape.heads = 1;
  shape.hidden = shape.inner = 20;
  if (shape.steps != 0) shape.steps = 3;
  return shape;
}

void expect(bool holds) {
  if (!holds) std::abort();
}

void try_load(Subject& subject, const std::vector<float>& values) {
  lram_state* copied = nullptr;
  expect(lram_state_clone(subject.driver.state.get(), &copied) == LRAM_OK);
  const StatePointer state(copied, lram_state_free);
  const std::vector<std::uint8_t> before = bytes_of(state.get());
  if (lram_state_load(state.get(), values.data(), values.size()) != LRAM_OK) {
    expect(bytes_of(state.get()) == before);
    return;
  }
  std::vector<float> saved(values.size());
  expect(lram_state_save(state.get(), saved.data(), saved.size()) == LRAM_OK);
  if (!subject.lazy) expect(std::memcmp(saved.data(), values.data(), saved.size() * sizeof(float)) == 0);
  const std::vector<float> observation(subject.driver.about.observation_size, 0.5F);
  std::vector<float> action(subject.driver.about.action_size);
  const float scalar = 0.25F;
  const float no = 0;
  const lram_inputs inputs = {observation.data(), &scalar, &scalar, &no};
  const lram_outputs outputs = {action.data(), nullptr};
  lram_status status = LRAM_OK;
  for (int step = 0; step < 20 && status == LRAM_OK; ++step) {
    status = lram_step(state.get(), &inputs, &outputs);
    expect(status == LRAM_OK || status == LRAM_ERROR_OVERFLOW);
  }
  // a step that overflows loses the row
  expect((lram_state_save(state.get(), saved.data(), saved.size()) == LRAM_OK) == (status == LRAM_OK));
}

}  // namespace

// The first byte chooses the model, the rest are floats; a last byte that is none is left out.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Subject subjects[] = {{small({}), LRAM_STATE_FLOAT32},
                               {small({1}), LRAM_STATE_FLOAT32},
                               {small({0, 1}), LRAM_STATE_FLOAT32},
                               {small({1}), LRAM_STATE_LAZY_HALF},
                               {shortened(mamba(kLayout)), LRAM_STATE_FLOAT32},
                               {shortened(transformer(true, kLayout)), LRAM_STATE_FLOAT32},
                               {shortened(transformer(false, kLayout)), LRAM_STATE_FLOAT32}};
  constexpr std::size_t kSubjects = std::extent<decltype(subjects)>::value;
  if (size < 1) return 0;
  std::vector<float> values((size - 1) / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), data + 1, values.size() * sizeof(float));
  Subject& subject = subjects[data[0] % kSubjects];
  if (data[0] / kSubjects % 4 != 0) values.resize(subject.driver.about.state_size, 1.0F);  // mostly of the right length
  try_load(subject, values);
  return 0;
}
