// Inputs and outputs by name: what a model says of them, and steps that take an array for each.
#include <cstring>

#include "testing.h"

using namespace lram_testing;
using lram::Element;
using lram::Layout;

namespace {

bool told(const std::string& text) { return lram_last_error() == text; }

lram_field input(const ModelPointer& model, std::size_t index) {
  lram_field field;
  CHECK_OK(lram_input(model.get(), index, &field));
  return field;
}

lram_field output(const ModelPointer& model, std::size_t index) {
  lram_field field;
  CHECK_OK(lram_output(model.get(), index, &field));
  return field;
}

bool is(const lram_field& field, const char* name, lram_element element, std::vector<std::size_t> extents,
        bool read = true) {
  std::size_t size = 1;
  for (const std::size_t extent : extents) size *= extent;
  const bool ranked = field.rank == static_cast<int>(extents.size());
  extents.resize(lram::kMostExtents);
  return field.name == std::string(name) && field.element == element && ranked && field.size == size &&
         std::equal(extents.begin(), extents.end(), field.extents) && (field.read != 0) == read;
}

lram_status step(const StatePointer& state, FieldArrays& arrays) {
  return lram_step_fields(state.get(), arrays.inputs.data(), arrays.inputs.size(), arrays.outputs.data(),
                          arrays.outputs.size());
}

// A model of another kind: it adds its numbers up, which no lram_inputs could give it.
class Sum : public lram::Engine {
 public:
  explicit Sum(const lram_options& options) : Engine(options) {
    inputs_ = {{"proprio", Element::float32, {3}}, {"mode", Element::int64, {}, false}};
    outputs_ = {{"sum", Element::float32, {}}};
    state_fields_ = {{"state.0.total", {1, 1, 1, 1, 1, 1, 1}, 0.5F, nullptr}};
    start_threads(1);
  }
  void describe(lram_description& description) const override { description.batch = 1; }
  std::unique_ptr<lram::Episodes> start(int batch) override;
};

class Sums : public lram::Episodes {
 public:
  Sums(Sum& engine, int batch) : Episodes(engine, batch), totals_(static_cast<std::size_t>(batch), 0.5F) {}
  std::unique_ptr<Episodes> clone() const override {
    auto copy = std::make_unique<Sums>(static_cast<Sum&>(engine()), batch());
    copy->totals_ = totals_;
    return copy;
  }
  void reset(int row) override { totals_[static_cast<std::size_t>(row)] = 0.5F; }
  void save(const lram::ChosenRows& rows, float* values) const override {
    for (int row = 0; row < rows.count; ++row) values[row] = totals_[static_cast<std::size_t>(rows.place(row))];
  }
  void load(const lram::ChosenRows& rows, const float* values) override {
    for (int row = 0; row < rows.count; ++row) totals_[static_cast<std::size_t>(rows.place(row))] = values[row];
  }
  void check(const lram::ChosenRows& /*rows*/, const void* const* inputs, void* const* /*outputs*/) const override {
    CHECK(inputs[0] != nullptr);
  }
  void step(const lram::ChosenRows& rows, const void* const* inputs, void* const* outputs) override {
    const auto* proprio = static_cast<const float*>(inputs[0]);
    for (int row = 0; row < rows.count; ++row) {
      float& total = totals_[static_cast<std::size_t>(rows.place(row))];
      for (int i = 0; i < 3; ++i) total += proprio[3 * row + i];
      if (outputs[0] != nullptr) static_cast<float*>(outputs[0])[row] = total;
    }
  }
  float* memory() const override { return const_cast<float*>(totals_.data()); }
  std::size_t memory_floats() const override { return totals_.size(); }

 private:
  std::vector<float> totals_;
};

std::unique_ptr<lram::Episodes> Sum::start(int batch) { return std::make_unique<Sums>(*this, batch); }

ModelPointer open_sum() {
  setenv("LRAM_ISA", "", 1);
  lram_options options;
  lram_options_init(&options);
  return {new lram_model(std::make_unique<Sum>(options)), lram_close};
}

}  // namespace

TEST(a_model_lists_what_it_reads_and_gives) {
  const TemporaryFile vectors(make_artifact({}));
  ModelPointer model = open_model(vectors, "");
  lram_description about;
  CHECK_OK(lram_describe(model.get(), &about));
  CHECK(about.inputs == 4 && about.outputs == 2);
  CHECK(is(input(model, 0), "observation", LRAM_FLOAT32, {20}));
  CHECK(is(input(model, 1), "return_to_go", LRAM_FLOAT32, {}));
  CHECK(is(input(model, 2), "reward", LRAM_FLOAT32, {}));
  CHECK(is(input(model, 3), "is_first", LRAM_FLOAT32, {}));
  CHECK(is(output(model, 0), "action", LRAM_FLOAT32, {3}, false));
  CHECK(is(output(model, 1), "action_logits", LRAM_FLOAT32, {3, 50}, false));

  Shape shape;
  shape.images = shape.discrete = true;
  const TemporaryFile images(make_artifact(shape));
  model = open_model(images, "");
  CHECK(is(input(model, 0), "observation", LRAM_UINT8, {3, 12, 12}));
  CHECK(is(output(model, 0), "action", LRAM_INT64, {1}, false));
  CHECK(is(output(model, 1), "action_logits", LRAM_FLOAT32, {18}, false));

  const TemporaryFile without_reward(make_artifact(transformer(true, Layout::tiled_float32)));
  model = open_model(without_reward, "");
  CHECK_OK(lram_describe(model.get(), &about));
  CHECK(about.inputs == 3);
  CHECK(is(input(model, 1), "return_to_go", LRAM_FLOAT32, {}));
  CHECK(is(input(model, 2), "is_first", LRAM_FLOAT32, {}));
}

TEST(a_field_that_is_not_there_is_refused) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "");
  lram_field field;
  CHECK(lram_input(model.get(), 4, &field) == LRAM_ERROR_ARGUMENT);
  CHECK(told("index: expected less than 4, got 4"));
  CHECK(lram_output(model.get(), 2, &field) == LRAM_ERROR_ARGUMENT);
  CHECK(told("index: expected less than 2, got 2"));
  for (auto* describe : {lram_input, lram_output}) {
    CHECK(describe(nullptr, 0, &field) == LRAM_ERROR_ARGUMENT);
    CHECK(told("model, field: expected both, got NULL"));
    CHECK(describe(model.get(), 0, nullptr) == LRAM_ERROR_ARGUMENT);
  }
}

TEST(a_step_by_fields_is_the_step_bit_by_bit) {
  Shape image;
  image.images = image.discrete = true;
  for (const Shape& shape : {Shape(), image, mamba(Layout::tiled_int8), transformer(true, Layout::tiled_int8)})
    for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF}) {
      const TemporaryFile file(make_artifact(shape));
      const ModelPointer model = open_model(file, "", 2, format);
      constexpr std::size_t kRows = 2;
      const StatePointer one = create_state(model, kRows);
      const StatePointer two = create_state(model, kRows);
      FieldArrays arrays(*model->engine, kRows);
      lram_description about;
      CHECK_OK(lram_describe(model.get(), &about));
      std::vector<std::int64_t> action(kRows * about.action_size);
      std::vector<float> logits(kRows * about.logits_size);
      for (int number = 0; number < 40; ++number) {
        const double value = std::sin(number);
        const float return_to_go[kRows] = {static_cast<float>(value), static_cast<float>(value)};
        const float reward[kRows] = {static_cast<float>(-value), static_cast<float>(-value)};
        const float first = number % 17 == 0 ? 1.0F : 0.0F;
        const float is_first[kRows] = {first, first};
        arrays.fill("observation", shape.images ? 100 + 100 * value : value);
        arrays.fill("return_to_go", value);
        arrays.fill("reward", -value);
        arrays.fill("is_first", static_cast<double>(first));
        const lram_inputs inputs = {arrays.inputs[0], return_to_go, reward, is_first};
        const lram_outputs outputs = {action.data(), logits.data()};
        CHECK_OK(lram_step(one.get(), &inputs, &outputs));
        CHECK_OK(step(two, arrays));
        const std::size_t bytes = shape.discrete ? sizeof(std::int64_t) : sizeof(float);
        CHECK(std::memcmp(arrays.outputs[0], action.data(), kRows * about.action_size * bytes) == 0);
        CHECK(std::memcmp(arrays.outputs[1], logits.data(), logits.size() * sizeof(float)) == 0);
        CHECK(bytes_of(one.get()) == bytes_of(two.get()));
      }
    }
}

TEST(arrays_that_are_missing_are_named_and_change_nothing) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "");
  const StatePointer state = create_state(model, 1);
  FieldArrays arrays(*model->engine, 1);
  CHECK_OK(step(state, arrays));
  const std::vector<std::uint8_t> before = bytes_of(state.get());
  const auto refused = [&](lram_status status, const std::string& text) {
    CHECK(status == LRAM_ERROR_ARGUMENT && told(text));
    CHECK(bytes_of(state.get()) == before);
  };
  const void* const* inputs = arrays.inputs.data();
  void* const* outputs = arrays.outputs.data();
  const char* nothing = "state, inputs, outputs: expected all, got NULL";
  refused(lram_step_fields(nullptr, inputs, 4, outputs, 2), nothing);
  refused(lram_step_fields(state.get(), nullptr, 4, outputs, 2), nothing);
  refused(lram_step_fields(state.get(), inputs, 4, nullptr, 2), nothing);
  refused(lram_step_fields(state.get(), inputs, 3, outputs, 2), "input_count: this model has 4, got 3");
  refused(lram_step_fields(state.get(), inputs, 5, outputs, 2), "input_count: this model has 4, got 5");
  refused(lram_step_fields(state.get(), inputs, 4, outputs, 0), "output_count: this model has 2, got 0");
  const char* names[] = {"observation", "return_to_go", "reward", "is_first"};
  for (std::size_t i = 0; i < 4; ++i) {
    std::vector<const void*> some = arrays.inputs;
    some[i] = nullptr;
    refused(lram_step_fields(state.get(), some.data(), 4, outputs, 2),
            std::string(names[i]) + ": expected an array, got NULL");
  }
  arrays.fill("is_first", 0.5);
  CHECK(step(state, arrays) == LRAM_ERROR_INPUT && told("is_first: expected 0 or 1, got 0.5 at element 0"));
  CHECK(bytes_of(state.get()) == before);
}

TEST(an_output_that_is_not_wanted_is_not_written) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "");
  const StatePointer state = create_state(model, 1);
  const StatePointer other = create_state(model, 1);
  FieldArrays arrays(*model->engine, 1);
  CHECK_OK(step(other, arrays));
  void* const none[2] = {};
  CHECK_OK(lram_step_fields(state.get(), arrays.inputs.data(), 4, none, 2));
  CHECK(bytes_of(state.get()) == bytes_of(other.get()));
  // lram_step wants an action
  const float zero = 0;
  const lram_inputs inputs = {arrays.inputs[0], &zero, &zero, &zero};
  const lram_outputs outputs = {nullptr, nullptr};
  CHECK(lram_step(state.get(), &inputs, &outputs) == LRAM_ERROR_ARGUMENT);
  CHECK(told("action: expected an array, got NULL"));
  CHECK(bytes_of(state.get()) == bytes_of(other.get()));
}

TEST(what_is_not_read_may_be_null) {
  const TemporaryFile file(make_artifact(transformer(true, Layout::tiled_float32)));
  const ModelPointer model = open_model(file, "");
  const StatePointer one = create_state(model, 1);
  const StatePointer two = create_state(model, 1);
  FieldArrays arrays(*model->engine, 1);
  arrays.fill("observation", 0.5);
  const float zero = 0;
  std::vector<float> action(3);
  const lram_inputs inputs = {arrays.inputs[0], &zero, nullptr, &zero};  // the model lists no reward
  const lram_outputs outputs = {action.data(), nullptr};
  CHECK_OK(lram_step(one.get(), &inputs, &outputs));
  CHECK_OK(step(two, arrays));
  CHECK(bytes_of(one.get()) == bytes_of(two.get()));

  const ModelPointer sum = open_sum();
  const StatePointer total = create_state(sum, 1);
  const float proprio[3] = {1, 2, 3};
  const void* const some[] = {proprio, nullptr};
  float found = 0;
  void* const wanted[] = {&found};
  CHECK_OK(lram_step_fields(total.get(), some, 2, wanted, 1));
  CHECK(found == 6.5F);
}

TEST(a_model_of_another_kind_has_names_of_its_own) {
  const ModelPointer model = open_sum();
  lram_description about;
  CHECK_OK(lram_describe(model.get(), &about));
  CHECK(about.inputs == 2 && about.outputs == 1 && about.state_size == 1 && about.state_tensors == 1);
  CHECK(about.observation_size == 0 && about.action_size == 0 && about.threads == 1);
  CHECK(is(input(model, 0), "proprio", LRAM_FLOAT32, {3}));
  CHECK(is(input(model, 1), "mode", LRAM_INT64, {}, false));
  CHECK(is(output(model, 0), "sum", LRAM_FLOAT32, {}, false));
  lram_tensor tensor;
  CHECK_OK(lram_state_tensor(model.get(), 0, &tensor));
  CHECK(std::string(tensor.name) == "state.0.total" && tensor.rank == 7 && tensor.extents[6] == 1);
  CHECK(tensor.initial == 0.5F && tensor.initial_values == nullptr);

  const StatePointer state = create_state(model, 2);
  const float zeros[6] = {};
  float action[2] = {};
  const lram_inputs inputs = {zeros, zeros, zeros, zeros};
  const lram_outputs outputs = {action, nullptr};
  CHECK(lram_step(state.get(), &inputs, &outputs) == LRAM_ERROR_ARGUMENT);
  CHECK(told("model: its inputs and outputs have names of their own (proprio, mode, sum); use lram_step_fields"));
  lram_state* other = nullptr;
  CHECK(lram_state_create(model.get(), 4097, &other) == LRAM_ERROR_ARGUMENT && other == nullptr);

  const float ones[6] = {1, 1, 1, 2, 2, 2};
  const void* const given[] = {ones, nullptr};
  void* const wanted[] = {action};
  CHECK_OK(lram_step_fields(state.get(), given, 2, wanted, 1));
  CHECK(action[0] == 3.5F && action[1] == 6.5F);
  CHECK_OK(lram_state_clone(state.get(), &other));
  const StatePointer clone(other, lram_state_free);
  const int row = 1;
  CHECK_OK(lram_state_reset(state.get(), &row, 1));
  float saved[2] = {};
  CHECK_OK(lram_state_save(state.get(), saved, 2));
  CHECK(saved[0] == 3.5F && saved[1] == 0.5F);
  CHECK_OK(lram_state_save(clone.get(), saved, 2));
  CHECK(saved[0] == 3.5F && saved[1] == 6.5F);
}

int main() { return run_all(); }
