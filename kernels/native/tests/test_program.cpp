// Traced steps of modules: what they compute, on every instruction set, for any batch and number of threads.
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "program_writer.h"
#include "testing.h"

using namespace lram_testing;
using lram::Element;
using lram::Layout;

namespace {

constexpr int kRows = 100;  // the most that are stepped at once

bool told(const std::string& text) { return lram_last_error() == text; }

lram_status step(const StatePointer& state, FieldArrays& arrays) {
  return lram_step_fields(state.get(), arrays.inputs.data(), arrays.inputs.size(), arrays.outputs.data(),
                          arrays.outputs.size());
}

// The values of an input of a row in a step, by the row's number.
using Numbers = std::vector<double>;
using Source = std::function<Numbers(const lram::Field& field, int row, unsigned step)>;

Numbers any_numbers(const lram::Field& field, int row, unsigned step) {
  unsigned seed = step * 1000 + static_cast<unsigned>(row);
  for (const char letter : field.name) seed = 31 * seed + static_cast<unsigned char>(letter);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Numbers values(field.size());
  for (double& value : values)
    value = field.element == Element::float32
                ? static_cast<double>(normal(random))
                : static_cast<double>(random() % (field.element == Element::uint8 ? 256 : 5));
  if (field.name == "is_first") values[0] = step == 2 && row % 3 == 1 ? 1 : 0;
  return values;
}

// Steps rows of some numbers.
class Stepper {
 public:
  Stepper(const ModelPointer& model, std::vector<int> rows, Source source = any_numbers)
      : engine_(*model->engine),
        rows_(std::move(rows)),
        source_(std::move(source)),
        arrays(engine_, rows_.size()),
        state(create_state(model, static_cast<int>(rows_.size()))) {}

  void give(unsigned number) {
    for (std::size_t i = 0; i < engine_.inputs().size(); ++i) {
      const lram::Field& field = engine_.inputs()[i];
      if (!field.read) arrays.inputs[i] = nullptr;
      for (std::size_t row = 0; row < rows_.size(); ++row) {
        const Numbers values = source_(field, rows_[row], number);
        for (std::size_t k = 0; k < values.size(); ++k) arrays.set(i, row * field.size() + k, values[k]);
      }
    }
  }
  void step(unsigned number) {
    give(number);
    CHECK_OK(::step(state, arrays));
  }

  // Of a row: an output, or all of them; a state.
  Numbers output(std::size_t index, std::size_t row) const {
    const std::size_t size = engine_.outputs()[index].size();
    Numbers values(size);
    for (std::size_t i = 0; i < size; ++i) values[i] = arrays.get(index, row * size + i);
    return values;
  }
  Numbers outputs(std::size_t row) const {
    Numbers all;
    for (std::size_t i = 0; i < engine_.outputs().size(); ++i) {
      const Numbers one = output(i, row);
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  }
  std::vector<float> save() const {
    std::vector<float> values(rows_.size() * engine_.state_size());
    values.reserve(1);  // not NULL where there is no state
    CHECK_OK(lram_state_save(state.get(), values.data(), values.size()));
    return values;
  }
  Numbers saved(std::size_t row) const {
    const std::vector<float> values = save();
    Numbers all;
    std::size_t at = 0;
    for (const lram::StateField& field : engine_.state_fields()) {
      const auto begin = values.begin() + static_cast<std::ptrdiff_t>(at + row * field.size());
      all.insert(all.end(), begin, begin + static_cast<std::ptrdiff_t>(field.size()));
      at += rows_.size() * field.size();
    }
    return all;
  }

 private:
  const lram::Engine& engine_;
  std::vector<int> rows_;
  Source source_;

 public:
  FieldArrays arrays;
  StatePointer state;
};

std::vector<int> rows_up_to(int count) {
  std::vector<int> rows(static_cast<std::size_t>(count));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

// Steps a program on every instruction set, for some batches, by one to three threads, and with the rows in another
// order: a row's bits are the same. `check` is given what one thread computed, after each step.
void step_in_all_ways(const std::vector<std::uint8_t>& content, const std::vector<int>& batches, unsigned steps,
                      const Source& source,
                      const std::function<void(const Stepper&, int batch, unsigned step)>& check) {
  const TemporaryFile file(content);
  for (const std::string& isa : supported_isas())
    for (const int batch : batches) {
      const ModelPointer model = open_model(file, isa.c_str());
      Stepper expected(model, rows_up_to(batch), source);
      std::vector<Numbers> outputs;
      for (unsigned number = 0; number < steps; ++number) {
        expected.step(number);
        check(expected, batch, number);
        for (int row = 0; row < batch; ++row) outputs.push_back(expected.outputs(static_cast<std::size_t>(row)));
      }
      for (const int threads : {1, 2, 3}) {
        const ModelPointer other = open_model(file, isa.c_str(), threads);
        std::vector<int> rows = rows_up_to(batch);
        if (threads != 2) std::reverse(rows.begin(), rows.end());
        Stepper actual(other, rows, source);
        bool same = true;
        for (unsigned number = 0; number < steps; ++number) {
          actual.step(number);
          for (std::size_t row = 0; row < rows.size(); ++row)
            same = same && actual.outputs(row) == outputs[number * rows.size() + static_cast<std::size_t>(rows[row])];
        }
        for (std::size_t row = 0; row < rows.size(); ++row)
          same = same && actual.saved(row) == expected.saved(static_cast<std::size_t>(rows[row]));
        CHECK(same);
      }
    }
}

double error_of(const Numbers& expected, const Numbers& actual) {
  return relative_error({expected.begin(), expected.end()}, {actual.begin(), actual.end()});
}

// How far products with matrices may be off: where there are many tokens, codes meet floats.
double tolerance(Layout layout, int planes, int tokens) {
  if (layout == Layout::tiled_float32 || tokens >= 16) return 1e-5;
  return planes == 2 ? 1e-3 : 5e-2;
}

constexpr Layout kLayouts[] = {Layout::tiled_float32, Layout::tiled_int8, Layout::tiled_int8g, Layout::tiled_int4};
const std::vector<int> kBatches = {1, 3, 20, kRows};

Numbers given(const char* name, std::size_t size, int row, unsigned step, Element element = Element::float32) {
  return any_numbers({name, element, {size}}, row, step);
}

std::vector<float> floats_of(const Numbers& numbers) { return {numbers.begin(), numbers.end()}; }

// ---- functions ---------------------------------------------------------------------------------------------------

double truth(bool holds) { return holds ? 1 : 0; }

double reference(Function function, double a, double b, double c) {
  switch (function) {
    case Function::add:
      return a + b;
    case Function::subtract:
      return a - b;
    case Function::multiply:
      return a * b;
    case Function::divide:
      return a / b;
    case Function::minimum:
      return std::min(a, b);
    case Function::maximum:
      return std::max(a, b);
    case Function::power:
      return std::pow(a, b);
    case Function::remainder:
      return std::fmod(std::fmod(a, b) + b, b);
    case Function::equal:
      return truth(a == b);
    case Function::not_equal:
      return truth(a != b);
    case Function::less:
      return truth(a < b);
    case Function::less_equal:
      return truth(a <= b);
    case Function::greater:
      return truth(a > b);
    case Function::greater_equal:
      return truth(a >= b);
    case Function::both:
      return truth(a != 0 && b != 0);
    case Function::either:
      return truth(a != 0 || b != 0);
    case Function::arctangent_of_two:
      return std::atan2(a, b);
    case Function::negative:
      return -a;
    case Function::absolute:
      return std::fabs(a);
    case Function::sign:
      return truth(a > 0) - truth(a < 0);
    case Function::floor:
      return std::floor(a);
    case Function::ceiling:
      return std::ceil(a);
    case Function::round:
      return std::nearbyint(a);
    case Function::truncate:
      return std::trunc(a);
    case Function::square_root:
      return std::sqrt(a);
    case Function::reciprocal_square_root:
      return 1 / std::sqrt(a);
    case Function::reciprocal:
      return 1 / a;
    case Function::exponential:
      return std::exp(a);
    case Function::exponential_less_one:
      return std::expm1(a);
    case Function::logarithm:
      return std::log(a);
    case Function::logarithm_of_one_more:
      return std::log1p(a);
    case Function::sine:
      return std::sin(a);
    case Function::cosine:
      return std::cos(a);
    case Function::arctangent:
      return std::atan(a);
    case Function::error_function:
      return std::erf(a);
    case Function::hyperbolic_tangent:
      return std::tanh(a);
    case Function::sigmoid:
      return 1 / (1 + std::exp(-a));
    case Function::rectify:
      return std::max(a, 0.0);
    case Function::silu:
      return a / (1 + std::exp(-a));
    case Function::gelu:
      return a * (1 + std::erf(a / std::sqrt(2.0))) / 2;
    case Function::opposite:
      return truth(a == 0);
    case Function::choose:
      return a != 0 ? b : c;
    case Function::clamp:
      return std::min(std::max(a, b), c);
    case Function::multiply_add:
      return a * b + c;
  }
  return 0;
}

// Halves, among them 0 and ties, then others; "b" is never 0, "positive" what it says.
Numbers operands_of_functions(const lram::Field& field, int row, unsigned step) {
  Numbers values = any_numbers(field, row, step);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i % 2 == 0) values[i] = std::round(2 * values[i]) / 2;
    if (field.name == "positive") values[i] = 0.125 + std::fabs(values[i]);
    if (field.name == "b" && std::fabs(values[i]) < 0.125) values[i] = 0.5;
  }
  return values;
}

bool of_positive_numbers(Function function) {
  switch (function) {
    case Function::power:
    case Function::square_root:
    case Function::reciprocal_square_root:
    case Function::reciprocal:
    case Function::logarithm:
    case Function::logarithm_of_one_more:
      return true;
    default:
      return false;
  }
}

// How an operand is gone through: one of the inputs, or a number that all rows share.
struct Operand {
  const char* name;
  std::uint32_t outer;
  std::uint32_t inner;
  double number = 0;
};
struct Form {
  std::uint32_t times;
  std::uint32_t count;
  Operand operands[3];
};
constexpr std::uint32_t kOperand = 48;  // elements
const Form kForms[] = {{3, 7, {{"a", 7, 1}, {"b", 0, 1}, {"c", 1, 0}}},
                       {1, kOperand, {{"a", 0, 1}, {"b", 0, 1}, {"c", 0, 1}}},
                       {1, kOperand, {{"a", 0, 0}, {"b", 0, 1}, {"c", 0, 0}}},
                       {1, kOperand, {{"a", 0, 1}, {nullptr, 0, 0, 1.5}, {nullptr, 0, 0, 2.25}}},
                       {2, 5, {{"a", 3, 0}, {"b", 2, 0}, {"c", 0, 0}}}};

}  // namespace

TEST(functions_are_those_of_plain_cpp) {
  ProgramWriter w;
  std::vector<std::pair<std::string, Place>> places;
  for (const char* name : {"a", "b", "c", "positive"}) places.emplace_back(name, w.input(name, {kOperand}));
  const auto place_of = [&](const Operand& operand, Function function) {
    if (operand.name == nullptr) return w.floats({static_cast<float>(operand.number)});
    const bool positive = operand.name == places[0].first && of_positive_numbers(function);
    const auto found = std::find_if(places.begin(), places.end(), [&](const auto& place) {
      return place.first == (positive ? "positive" : operand.name);
    });
    return found->second;
  };
  struct Case {
    Function function;
    const Form* form;
  };
  std::vector<Case> cases;
  for (std::uint32_t number = 0; number < lram::kFunctions; ++number)
    for (const Form& form : kForms) {
      const auto function = static_cast<Function>(number);
      const int arguments = lram::arguments_of(function);
      std::vector<Place> operands = {w.room(form.times * form.count)};
      std::vector<std::uint32_t> sizes = {form.times, form.count, 0, 0, 0, 0};
      for (int i = 0; i < arguments; ++i) {
        operands.push_back(place_of(form.operands[i], function));
        sizes[2 + static_cast<std::size_t>(i)] = form.operands[i].outer;
        sizes[5] |= form.operands[i].inner << i;
      }
      w.emit(Operation::pointwise, sizes, operands, number);
      w.output("result." + std::to_string(cases.size()), {form.times, form.count}, operands[0]);
      cases.push_back({function, &form});
    }
  step_in_all_ways(w.finish(), kBatches, 1, operands_of_functions, [&](const Stepper& stepper, int batch, unsigned) {
    for (int row = 0; row < batch; ++row) {
      const auto values_of = [&](const std::string& name) {
        return operands_of_functions({name, Element::float32, {kOperand}}, row, 0);
      };
      const Numbers inputs[] = {values_of("a"), values_of("b"), values_of("c"), values_of("positive")};
      for (std::size_t i = 0; i < cases.size(); ++i) {
        const auto [function, form] = cases[i];
        const Numbers found = stepper.output(i, static_cast<std::size_t>(row));
        double furthest = 0;
        for (std::uint32_t time = 0; time < form->times; ++time)
          for (std::uint32_t k = 0; k < form->count; ++k) {
            double x[3] = {};
            for (std::size_t o = 0; o < 3; ++o) {
              const Operand& operand = form->operands[o];
              const Numbers& values = inputs[o == 0 && of_positive_numbers(function) ? 3 : o];
              x[o] = operand.name == nullptr ? operand.number
                                             : static_cast<float>(values[time * operand.outer + k * operand.inner]);
            }
            const double expected = reference(function, x[0], x[1], x[2]);
            const double actual = found[time * form->count + k];
            furthest = std::max(furthest, std::fabs(actual - expected) / (1 + std::fabs(expected)));
          }
        if (furthest > 1e-6) std::printf("  function %u: %g\n", static_cast<unsigned>(function), furthest);
        CHECK(furthest <= 1e-6);
      }
    }
  });
}

TEST(elements_are_moved_reduced_and_multiplied) {
  constexpr int kCount = 5;
  constexpr int kLength = 19;
  constexpr int kCols = 4;
  ProgramWriter w;
  const Place x = w.input("x", {kCount, kLength});
  const Place y = w.input("longer", {kLength, kCols});
  for (std::uint32_t i = 0; i < lram::kReductions; ++i)
    w.output("reduced." + std::to_string(i), {kCount}, w.reduce(static_cast<Reduction>(i), x, kCount, kLength));
  const Place one = w.room(kCount * kCols);
  w.emit(Operation::product, {1, kCount, kLength, kCols}, {one, x, y});
  w.output("one product", {kCount, kCols}, one);
  const Place three = w.room(3 * 2 * kCols);
  w.emit(Operation::product, {3, 2, 5, kCols}, {three, x, behind(y, 8)});
  w.output("three products", {3, 2, kCols}, three);
  const Place pieces = w.room(20);
  w.emit(Operation::copy, {7}, {behind(pieces, 13), behind(x, 30)});
  w.emit(Operation::copy, {13}, {pieces, y});
  w.output("pieces", {20}, pieces);
  const std::vector<std::int32_t> places = {94, -1, 0, 0, 17, -1, 3};
  const Place gathered = w.room(places.size());
  w.emit(Operation::gather, {7, kCount * kLength}, {gathered, x, w.numbers(places), behind(y, 2)});
  w.output("gathered", {7}, gathered);

  const Source halves = [](const lram::Field& field, int row, unsigned step) {  // some are equal
    Numbers values = any_numbers(field, row, step);
    for (double& value : values) value = std::round(2 * value) / 2;
    return values;
  };
  step_in_all_ways(w.finish(), kBatches, 1, halves, [&](const Stepper& stepper, int batch, unsigned) {
    for (int row = 0; row < batch; ++row) {
      const auto found = [&](std::size_t index) { return stepper.output(index, static_cast<std::size_t>(row)); };
      const Numbers a = halves({"x", Element::float32, {kCount * kLength}}, row, 0);
      const Numbers b = halves({"longer", Element::float32, {kLength * kCols}}, row, 0);
      for (int i = 0; i < kCount; ++i) {
        const auto begin = a.begin() + static_cast<std::ptrdiff_t>(i) * kLength;
        const auto end = begin + kLength;
        const auto at = static_cast<std::size_t>(i);
        CHECK(found(0)[at] == std::accumulate(begin, end, 0.0));
        CHECK(std::fabs(found(1)[at] - std::accumulate(begin, end, 1.0, std::multiplies<>())) <= 1e-4);
        CHECK(found(2)[at] == *std::max_element(begin, end));
        CHECK(found(3)[at] == *std::min_element(begin, end));
        CHECK(found(4)[at] == static_cast<double>(std::max_element(begin, end) - begin));
        CHECK(found(5)[at] == static_cast<double>(std::min_element(begin, end) - begin));
      }
      const auto product = [&](const double* left, const double* right, int rows, int inner) {
        Numbers result(static_cast<std::size_t>(rows * kCols));
        for (int i = 0; i < rows; ++i)
          for (int k = 0; k < inner; ++k)
            for (int j = 0; j < kCols; ++j)
              result[static_cast<std::size_t>(i * kCols + j)] += left[i * inner + k] * right[k * kCols + j];
        return result;
      };
      CHECK(found(6) == product(a.data(), b.data(), kCount, kLength));  // of halves, without any error
      Numbers expected;
      for (std::ptrdiff_t i = 0; i < 3; ++i) {
        const Numbers part = product(a.data() + i * 10, b.data() + 8 + i * 20, 2, 5);
        expected.insert(expected.end(), part.begin(), part.end());
      }
      CHECK(found(7) == expected);
      expected.assign(b.begin(), b.begin() + 13);
      expected.insert(expected.end(), a.begin() + 30, a.begin() + 37);
      CHECK(found(8) == expected);
      expected.clear();
      for (const std::int32_t place : places) expected.push_back(place < 0 ? b[2] : a[static_cast<std::size_t>(place)]);
      CHECK(found(9) == expected);
    }
  });
}

// ---- products with matrices --------------------------------------------------------------------------------------

namespace {

void check_perceptron(Layout layout, int planes, int hidden, const std::vector<int>& batches) {
  const Perceptron perceptron(layout, planes, hidden);
  std::vector<Numbers> expected;
  for (int row = 0; row < *std::max_element(batches.begin(), batches.end()); ++row)
    expected.push_back(perceptron.action(floats_of(given("observation", 20, row, 0)).data()));
  step_in_all_ways(perceptron.file, batches, 1, any_numbers, [&](const Stepper& stepper, int batch, unsigned) {
    for (int row = 0; row < batch; ++row) {
      const auto at = static_cast<std::size_t>(row);
      CHECK(error_of(expected[at], stepper.output(0, at)) < tolerance(layout, planes, batch));
    }
  });
}

}  // namespace

TEST(layers_are_those_of_plain_cpp) {
  for (const Layout layout : kLayouts)
    for (const int planes : {1, 2}) check_perceptron(layout, planes, 70, kBatches);
}

TEST(wide_layers_of_one_row_are_shared_by_threads) {
  for (const Layout layout : kLayouts) check_perceptron(layout, 2, 1030, {1, 3});
}

TEST(a_layer_of_several_tokens_is_that_of_each) {
  for (const Layout layout : kLayouts)
    for (const int count : {3, 10, 90}) {
      if (count == 90 && layout != Layout::tiled_int8) continue;
      const Tokenwise tokenwise(layout, count);
      const std::vector<int> batches = count == 90 ? std::vector<int>{1, 3, 20} : kBatches;
      step_in_all_ways(tokenwise.file, batches, 1, any_numbers, [&](const Stepper& stepper, int batch, unsigned) {
        for (int row = 0; row < batch; ++row) {
          const Numbers signal = given("signal", static_cast<std::size_t>(count * Tokenwise::kInputs), row, 0);
          Numbers expected;
          for (int token = 0; token < count; ++token) {
            const auto begin = signal.begin() + static_cast<std::ptrdiff_t>(token) * Tokenwise::kInputs;
            Numbers x(begin, begin + Tokenwise::kInputs);
            x.resize(static_cast<std::size_t>(tokenwise.layer.cols));
            const Numbers y = tokenwise.layer.times(x.data());
            expected.insert(expected.end(), y.begin(), y.end());
          }
          CHECK(error_of(expected, stepper.output(0, static_cast<std::size_t>(row))) <
                tolerance(layout, 2, batch * count));
        }
      });
    }
}

// ---- states ------------------------------------------------------------------------------------------------------

TEST(a_recurrent_module_is_that_of_plain_cpp) {
  for (const Layout layout : kLayouts) {
    const Recurrent module(layout, 99);
    constexpr unsigned kSteps = 4;
    std::vector<Numbers> logits[kSteps];
    std::vector<Recurrent::Memory> memories[kSteps];
    for (int row = 0; row < kRows; ++row) {
      Recurrent::Memory memory = module.start();
      for (unsigned number = 0; number < kSteps; ++number) {
        const Numbers image = given("image", Recurrent::kImage, row, number, Element::uint8);
        const Numbers proprio = given("proprio", Recurrent::kProprio, row, number);
        const auto mode = static_cast<std::int64_t>(given("mode", 1, row, number, Element::int64)[0]);
        if (given("is_first", 1, row, number)[0] != 0) memory = module.start();
        const std::vector<std::uint8_t> pixels(image.begin(), image.end());
        logits[number].push_back(module.step(memory, pixels.data(), floats_of(proprio).data(), mode));
        memories[number].push_back(memory);
      }
    }
    step_in_all_ways(module.file, kBatches, kSteps, any_numbers,
                     [&](const Stepper& stepper, int batch, unsigned number) {
                       for (int row = 0; row < batch; ++row) {
                         const auto at = static_cast<std::size_t>(row);
                         const Numbers found = stepper.output(1, at);
                         CHECK(error_of(logits[number][at], found) < 2 * tolerance(layout, 2, batch));
                         CHECK(stepper.output(0, at)[0] ==
                               static_cast<double>(std::max_element(found.begin(), found.end()) - found.begin()));
                         const Numbers image = given("image", Recurrent::kImage, row, number, Element::uint8);
                         CHECK((stepper.output(2, at) == Numbers{image[5], image[0]}));
                         Numbers saved = stepper.saved(at);
                         CHECK(saved.back() == memories[number][at].steps);
                         saved.pop_back();
                         CHECK(error_of(memories[number][at].h, saved) < 2 * tolerance(layout, 2, batch));
                       }
                     });
  }
}

namespace {

ModelPointer open_recurrent(int threads = 1) {
  const Recurrent module(Layout::tiled_int8, 99);
  const TemporaryFile file(module.file);
  return open_model(file, "", threads);
}

}  // namespace

TEST(a_module_describes_itself) {
  const ModelPointer model = open_recurrent(3);
  lram_description about;
  CHECK_OK(lram_describe(model.get(), &about));
  CHECK(about.threads == 3 && about.batch == 100 && about.inputs == 5 && about.outputs == 3);
  CHECK(about.state_tensors == 2 && about.state_size == 100);
  CHECK(about.observation_size == 0 && about.action == LRAM_DISCRETE && about.action_size == 1 &&
        about.logits_size == 7);
  CHECK(std::string(about.name) == "module" && about.source_sha256[31] == 0xcd && about.weight_bytes > 99 * 144);
  lram_field field;
  CHECK_OK(lram_input(model.get(), 0, &field));
  CHECK(std::string(field.name) == "image" && field.element == LRAM_UINT8 && field.rank == 3 && field.size == 24);
  CHECK(field.read == 1 && field.extents[0] == 2 && field.extents[2] == 4 && field.extents[3] == 0);
  CHECK_OK(lram_input(model.get(), 1, &field));
  CHECK(std::string(field.name) == "unread" && field.read == 0);
  CHECK_OK(lram_output(model.get(), 0, &field));
  CHECK(std::string(field.name) == "action" && field.element == LRAM_INT64 && field.rank == 0 && field.size == 1);
  lram_tensor tensor;
  CHECK_OK(lram_state_tensor(model.get(), 0, &tensor));
  CHECK(std::string(tensor.name) == "state.0.h" && tensor.initial == 0);
  const std::vector<float> initial = Recurrent(Layout::tiled_int8, 99).initial;
  CHECK(tensor.initial_values != nullptr && std::equal(initial.begin(), initial.end(), tensor.initial_values));
  CHECK_OK(lram_state_tensor(model.get(), 1, &tensor));
  CHECK(tensor.rank == 2 && tensor.initial == 2.5F && tensor.initial_values == nullptr);
}

TEST(states_are_saved_loaded_copied_and_reset) {
  for (const int threads : {1, 3}) {
    const ModelPointer model = open_recurrent(threads);
    constexpr int kBatch = 7;
    Stepper stepper(model, rows_up_to(kBatch));
    const std::vector<float> start = stepper.save();
    for (unsigned number = 3; number < 6; ++number) stepper.step(number);
    const std::vector<float> later = stepper.save();
    CHECK(start != later);

    Stepper loaded(model, rows_up_to(kBatch));
    CHECK_OK(lram_state_load(loaded.state.get(), later.data(), later.size()));
    CHECK(loaded.save() == later);
    lram_state* copy = nullptr;
    CHECK_OK(lram_state_clone(stepper.state.get(), &copy));
    const StatePointer clone(copy, lram_state_free);
    stepper.step(6);
    loaded.step(6);
    const Numbers expected = stepper.outputs(4);
    CHECK(loaded.outputs(4) == expected && loaded.save() == stepper.save());
    std::vector<float> cloned(later.size());
    CHECK_OK(lram_state_save(clone.get(), cloned.data(), cloned.size()));
    CHECK(cloned == later);
    CHECK_OK(step(clone, loaded.arrays));
    CHECK(loaded.outputs(4) == expected);

    const std::vector<float> before = stepper.save();
    const int rows[] = {5, 2};
    CHECK_OK(lram_state_reset(stepper.state.get(), rows, 2));
    const Stepper fresh(model, rows_up_to(kBatch));
    for (std::size_t row = 0; row < kBatch; ++row)
      CHECK(stepper.saved(row) == (row == 2 || row == 5 ? fresh : loaded).saved(row));
    CHECK_OK(lram_state_reset(stepper.state.get(), nullptr, 0));
    CHECK(stepper.save() == start && loaded.save() == before);
  }
}

TEST(a_state_that_is_not_finite_is_not_loaded) {
  const ModelPointer model = open_recurrent();
  Stepper stepper(model, rows_up_to(2));
  stepper.step(0);
  const std::vector<float> before = stepper.save();
  for (const float odd : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> values = before;
    values.back() = odd;
    CHECK(lram_state_load(stepper.state.get(), values.data(), values.size()) == LRAM_ERROR_STATE);
    CHECK(std::string(lram_last_error()).find("state.1.steps: expected finite values, got ") == 0);
    CHECK(stepper.save() == before);
  }
  CHECK(lram_state_load(stepper.state.get(), before.data(), before.size() - 1) == LRAM_ERROR_STATE);
  CHECK(stepper.save() == before);
}

// ---- what is refused ---------------------------------------------------------------------------------------------

TEST(inputs_that_are_not_allowed_change_nothing) {
  const ModelPointer model = open_recurrent();
  constexpr std::size_t kBatch = 3;
  Stepper stepper(model, rows_up_to(kBatch));
  stepper.step(0);
  const std::vector<float> before = stepper.save();
  const Numbers outputs = stepper.outputs(1);
  const auto refused = [&](lram_status status, const std::string& text) {
    CHECK(step(stepper.state, stepper.arrays) == status && told(text));
    CHECK(stepper.save() == before && stepper.outputs(1) == outputs);
  };
  for (const double odd : {0.5, -1.0, 2.0}) {
    stepper.give(1);
    stepper.arrays.set(4, 2, odd);
    char text[80];
    std::snprintf(text, sizeof text, "is_first: expected 0 or 1, got %g at element 2", odd);
    refused(LRAM_ERROR_INPUT, text);
  }
  stepper.give(1);
  stepper.arrays.set(2, 2 * Recurrent::kProprio + 7, std::nan(""));
  refused(LRAM_ERROR_INPUT, "proprio: expected finite values, got nan at element 47");
  stepper.arrays.set(2, 2 * Recurrent::kProprio + 7, -HUGE_VAL);
  refused(LRAM_ERROR_INPUT, "proprio: expected finite values, got -inf at element 47");
  stepper.give(1);
  const std::vector<const void*> inputs = stepper.arrays.inputs;
  const char* const names[] = {"image", nullptr, "proprio", "mode", "is_first"};
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    stepper.arrays.inputs = inputs;
    stepper.arrays.inputs[i] = nullptr;
    if (names[i] != nullptr) refused(LRAM_ERROR_ARGUMENT, std::string(names[i]) + ": expected an array, got NULL");
  }
  stepper.arrays.inputs = inputs;
  CHECK_OK(step(stepper.state, stepper.arrays));
}

TEST(outputs_that_are_not_wanted_change_nothing_else) {
  const ModelPointer model = open_recurrent();
  Stepper all(model, rows_up_to(3));
  Stepper some(model, rows_up_to(3));
  const std::vector<void*> outputs = some.arrays.outputs;
  for (unsigned number = 0; number < 3; ++number) {
    some.arrays.outputs[number] = nullptr;
    all.step(number);
    some.step(number);
    CHECK(some.save() == all.save());
  }
  some.arrays.outputs = outputs;
  CHECK(some.output(0, 0)[0] == 0);  // it was never written
}

namespace {

// quotient = 1 / x[0], and a sum of all x so far.
std::vector<std::uint8_t> quotient() {
  ProgramWriter w;
  const Place x = w.input("x", {2});
  const Place sum = w.state("state.sum", {2}, 0);
  w.output("quotient", {}, w.apply(Function::reciprocal, 1, {x}, 0));
  w.output("copy", {2}, x);
  w.next(w.apply(Function::add, 2, {sum, x}, 3));
  return w.finish();
}

}  // namespace

TEST(results_that_are_not_finite_change_nothing) {
  const TemporaryFile file(quotient());
  for (const std::string& isa : supported_isas())
    for (const int batch : {1, 5, 90}) {
      const ModelPointer model = open_model(file, isa.c_str());
      const auto rows = static_cast<std::size_t>(batch);
      const Source ones = [](const lram::Field& field, int, unsigned) { return Numbers(field.size(), 1.0); };
      Stepper stepper(model, rows_up_to(batch), ones);
      stepper.step(0);
      const std::string last = std::to_string(batch - 1);
      for (int again = 0; again < 3; ++again) {  // whichever of its memories a state is in
        const std::vector<float> before = stepper.save();
        const auto refused = [&](const char* text, const std::vector<float>& values) {
          CHECK(step(stepper.state, stepper.arrays) == LRAM_ERROR_OVERFLOW);
          CHECK(told(std::string(text).append(last).append("; nothing has changed")));
          CHECK(stepper.save() == values);
          CHECK((stepper.outputs(rows - 1) == Numbers{1, 1, 1}));
        };
        stepper.give(1);
        stepper.arrays.set(0, 2 * rows - 2, 0);
        refused("quotient: expected finite values, got others in row ", before);
        std::vector<float> large = before;
        large.back() = 3e38F;
        CHECK_OK(lram_state_load(stepper.state.get(), large.data(), large.size()));
        stepper.give(1);
        stepper.arrays.set(0, 2 * rows - 1, 3e38);
        refused("state.sum: expected finite values, got others in row ", large);
        CHECK_OK(lram_state_load(stepper.state.get(), before.data(), before.size()));
        stepper.step(1);
        std::vector<float> expected = before;
        for (float& value : expected) value += 1;
        CHECK(stepper.save() == expected);
      }
    }
}

TEST(results_that_their_type_does_not_hold_change_nothing) {
  ProgramWriter w;
  const Place x = w.input("x", {2});
  const Place y = w.input("y", {});
  w.output("bytes", {2}, x, kUint8);
  w.output("whole", {}, y, kInt64);
  const Place last = w.state("state.last", {}, 0);
  static_cast<void>(last);
  w.next(y);
  const TemporaryFile file(w.finish());
  for (const std::string& isa : supported_isas()) {
    const ModelPointer model = open_model(file, isa.c_str());
    Stepper stepper(model, rows_up_to(3), [](const lram::Field&, int, unsigned) { return Numbers{}; });
    stepper.arrays.set(0, 3, 255.75);
    stepper.arrays.set(0, 4, -0.75);
    stepper.arrays.set(1, 2, -0x1p63);
    CHECK_OK(step(stepper.state, stepper.arrays));
    CHECK((stepper.outputs(1) == Numbers{0, 255, 0} && stepper.outputs(2) == Numbers{0, 0, -0x1p63}));
    const std::vector<float> before = stepper.save();
    const auto refused = [&](std::size_t input, std::size_t element, double value, const std::string& text) {
      stepper.arrays.set(input, element, value);
      CHECK(step(stepper.state, stepper.arrays) == LRAM_ERROR_OVERFLOW && told(text + "; nothing has changed"));
      CHECK(stepper.save() == before && (stepper.outputs(1) == Numbers{0, 255, 0}));
      stepper.arrays.set(input, element, 1);
    };
    refused(0, 5, 256, "bytes: expected numbers that uint8 holds, got 256 at element 5");
    refused(0, 0, -1, "bytes: expected numbers that uint8 holds, got -1 at element 0");
    refused(1, 1, 0x1p63, "whole: expected numbers that int64 holds, got 9.22337e+18 at element 1");
    refused(1, 0, -1e30, "whole: expected numbers that int64 holds, got -1e+30 at element 0");
    CHECK_OK(step(stepper.state, stepper.arrays));
  }
}

TEST(batches_are_any_that_states_may_have) {
  const TemporaryFile file(Perceptron(Layout::tiled_float32, 2, 20).file);
  const ModelPointer model = open_model(file, "", 2);
  for (const int batch : {1, 2, 63, 64, 65, 129, 4096}) {
    Stepper stepper(model, rows_up_to(batch));
    stepper.step(0);
    const ModelPointer single = open_model(file, "");
    const auto last = static_cast<std::size_t>(batch) - 1;
    if (batch < 16) continue;
    Stepper other(single, std::vector<int>(16, batch - 1));
    other.step(0);
    CHECK(other.outputs(7) == stepper.outputs(last));
  }
  lram_state* state = nullptr;
  for (const int batch : {0, -1, 4097})
    CHECK(lram_state_create(model.get(), batch, &state) == LRAM_ERROR_ARGUMENT && state == nullptr);
}

int main() { return run_all(); }
