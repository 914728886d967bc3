// Any bytes as a saved state: refused without a trace, or loaded to the bit and stepped from.
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "program_writer.h"
#include "testing.h"

using namespace lram_testing;

namespace {

// A model, and a state that has made a few steps.
struct Subject {
  Subject(const Shape& shape, lram_state_format format) : Subject(make_artifact(shape), format) {}
  explicit Subject(const std::vector<std::uint8_t>& program) : Subject(program, LRAM_STATE_FLOAT32) { loses = false; }

  lram_status step(const StatePointer& of) {
    return lram_step_fields(of.get(), arrays.inputs.data(), arrays.inputs.size(), arrays.outputs.data(),
                            arrays.outputs.size());
  }

  bool lazy;
  bool loses = true;  // rows, in a step that overflows
  TemporaryFile file;
  ModelPointer model;
  FieldArrays arrays;
  StatePointer state;

 private:
  Subject(const std::vector<std::uint8_t>& content, lram_state_format format)
      : lazy(format == LRAM_STATE_LAZY_HALF),
        file(content),
        model(open_model(file, "", 1, format)),
        arrays(*model->engine, 1),
        state(create_state(model, 1)) {
    for (std::size_t i = 0; i < arrays.inputs.size(); ++i) arrays.fill(i, 0.5 - static_cast<double>(i % 2) / 4);
    arrays.fill("is_first", 0);
    for (int number = 0; number < 3; ++number) CHECK_OK(step(state));
  }
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

std::vector<float> saved(const StatePointer& state, std::size_t count, lram_status* status) {
  std::vector<float> values(count);
  *status = lram_state_save(state.get(), values.data(), count);
  return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void try_load(Subject& subject, const std::vector<float>& values) {
  lram_state* copied = nullptr;
  expect(lram_state_clone(subject.state.get(), &copied) == LRAM_OK);
  const StatePointer state(copied, lram_state_free);
  const std::vector<std::uint8_t> before = bytes_of(state.get());
  if (lram_state_load(state.get(), values.data(), values.size()) != LRAM_OK) {
    expect(bytes_of(state.get()) == before);
    return;
  }
  lram_status found = LRAM_OK;
  std::vector<float> last = saved(state, values.size(), &found);
  expect(found == LRAM_OK && (subject.lazy || same_bits(last, values)));
  for (int step = 0; step < 20; ++step) {
    const lram_status status = subject.step(state);
    expect(status == LRAM_OK || status == LRAM_ERROR_OVERFLOW);
    const std::vector<float> now = saved(state, values.size(), &found);
    // a step that overflows loses the row of a network, and changes nothing in a program
    expect((found == LRAM_OK) == (status == LRAM_OK || !subject.loses));
    if (status != LRAM_OK) {
      expect(subject.loses || same_bits(now, last));
      return;
    }
    last = now;
  }
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
                               {shortened(transformer(false, kLayout)), LRAM_STATE_FLOAT32},
                               Subject(small_program(kLayout)),
                               Subject(Recurrent(kLayout, 9).file)};
  constexpr std::size_t kSubjects = std::extent<decltype(subjects)>::value;
  if (size < 1) return 0;
  std::vector<float> values((size - 1) / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), data + 1, values.size() * sizeof(float));
  Subject& subject = subjects[data[0] % kSubjects];
  if (data[0] / kSubjects % 4 != 0)
    values.resize(subject.model->engine->state_size(), 1.0F);  // mostly of the right length
  try_load(subject, values);
  return 0;
}
