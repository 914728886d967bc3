// Steps of some rows of a batch: every row is what it is alone, to the bit, whoever makes the step with it.
#include <cmath>
#include <cstring>
#include <random>

#include "interface_writer.h"
#include "program_writer.h"
#include "testing.h"

using namespace lram_testing;
using lram::Element;
using lram::Layout;

namespace {

constexpr int kBatch = 5;
constexpr unsigned kSteps = 40;  // of all rows together; a lazy state flushes meanwhile

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (const Layout layout : {Layout::tiled_float32, Layout::tiled_int8}) {
    Shape usual;
    usual.layout = layout;
    all.push_back(usual);
    all.push_back(mamba(layout));
    for (const bool cached : {true, false}) all.push_back(transformer(cached, layout));
  }
  Shape narrow;  // heads that are computed in copies
  narrow.hidden = 80;
  narrow.slstm_heads = 8;
  narrow.slstm_at = {0, 2};
  all.push_back(narrow);
  Shape odd;  // no width is a multiple of 16
  odd.layout = Layout::tiled_int8;
  odd.hidden = 5 * 17;
  odd.heads = 3;
  odd.inner = 3 * 33;
  odd.slstm_heads = 5;
  all.push_back(odd);
  odd.inner = 3 * 6;
  odd.block = 9;  // across heads
  all.push_back(odd);
  Shape image;
  image.images = image.discrete = true;
  all.push_back(image);
  image.layout = Layout::tiled_int8;
  all.push_back(image);
  return all;
}

// Who makes a step, and how often who has.
std::vector<int> rows_of(unsigned step) {
  std::mt19937 random(step);
  std::vector<int> rows;
  for (int row = 0; row < kBatch; ++row)
    if (random() % 2 == 0) rows.push_back(row);
  if (rows.empty()) rows.push_back(static_cast<int>(step % kBatch));
  return rows;
}

void give(const lram::Engine& engine, FieldArrays& arrays, std::size_t at, int row, unsigned step) {
  std::mt19937 random(step * 1000 + static_cast<unsigned>(row));
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < engine.inputs().size(); ++i) {
    const lram::Field& field = engine.inputs()[i];
    for (std::size_t k = 0; k < field.size(); ++k) {
      double value = field.element == Element::float32 ? static_cast<double>(normal(random)) : random() % 5;
      if (field.name == "is_first") value = step == 0 || step == 7 + static_cast<unsigned>(row) ? 1 : 0;
      arrays.set(i, at * field.size() + k, value);
    }
  }
}

std::vector<double> got(const lram::Engine& engine, const FieldArrays& arrays, std::size_t at) {
  std::vector<double> values;
  for (std::size_t i = 0; i < engine.outputs().size(); ++i)
    for (std::size_t k = 0; k < engine.outputs()[i].size(); ++k)
      values.push_back(arrays.get(i, at * engine.outputs()[i].size() + k));
  return values;
}

std::vector<float> saved(const lram_model& model, const StatePointer& state, const std::vector<int>& rows) {
  std::vector<float> values(rows.size() * model.engine->state_size());
  CHECK_OK(lram_state_save_rows(state.get(), rows.data(), rows.size(), values.data(), values.size()));
  return values;
}

void check_that_rows_are_what_they_are_alone(const ModelPointer& model) {
  const lram::Engine& engine = *model->engine;
  const StatePointer together = create_state(model, kBatch);
  std::vector<StatePointer> alone;
  for (int row = 0; row < kBatch; ++row) alone.push_back(create_state(model, 1));
  std::vector<unsigned> taken(kBatch, 0);
  for (unsigned step = 0; step < kSteps; ++step) {
    const std::vector<int> rows = rows_of(step);
    FieldArrays arrays(engine, rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i)
      give(engine, arrays, i, rows[i], taken[static_cast<std::size_t>(rows[i])]);
    CHECK_OK(lram_step_rows(together.get(), rows.data(), rows.size(), arrays.inputs.data(), arrays.inputs.size(),
                            arrays.outputs.data(), arrays.outputs.size()));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto row = static_cast<std::size_t>(rows[i]);
      FieldArrays own(engine, 1);
      give(engine, own, 0, rows[i], taken[row]++);
      CHECK_OK(lram_step_fields(alone[row].get(), own.inputs.data(), own.inputs.size(), own.outputs.data(),
                                own.outputs.size()));
      CHECK(got(engine, own, 0) == got(engine, arrays, i));
    }
    if (step % 3 == 0) CHECK_OK(lram_settle(together.get()));
  }
  for (int row = 0; row < kBatch; ++row) {
    const std::vector<float> values = saved(*model, together, {row});
    CHECK(values == saved(*model, alone[static_cast<std::size_t>(row)], {0}));
  }
}

}  // namespace

TEST(rows_of_a_network_are_what_they_are_alone) {
  for (const Shape& shape : shapes()) {
    const TemporaryFile file(make_artifact(shape));
    for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF})
      for (const int threads : {1, 3}) check_that_rows_are_what_they_are_alone(open_model(file, "", threads, format));
  }
}

TEST(rows_of_a_module_are_what_they_are_alone) {
  const TemporaryFile file(
      limited_program(interface_of(50, {{"action", true, {element("", "", -1, 1, 0.5F, 0.25F)}, 3}})));
  for (const int threads : {1, 3}) check_that_rows_are_what_they_are_alone(open_model(file, "", threads));
}

TEST(a_row_that_is_loaded_leaves_the_others_alone) {
  for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF}) {
    const TemporaryFile file(make_artifact({}));
    const ModelPointer model = open_model(file, "", 1, format);
    Driver driver(model, 3);
    for (unsigned step = 0; step < 21; ++step) driver.step(step);
    const std::vector<float> before = driver.save();
    const std::vector<float> two = saved(*model, driver.state, {0, 2});
    driver.step(21);
    const std::vector<float> middle = saved(*model, driver.state, {1});
    const std::vector<int> rows = {0, 2};
    CHECK_OK(lram_state_load_rows(driver.state.get(), rows.data(), 2, two.data(), two.size()));
    CHECK(saved(*model, driver.state, {1}) == middle);
    CHECK(relative_error(saved(*model, driver.state, {0, 2}), two) < 1e-3);
    if (format != LRAM_STATE_FLOAT32) continue;
    CHECK(saved(*model, driver.state, {0, 2}) == two);
    CHECK_OK(lram_state_load(driver.state.get(), before.data(), before.size()));
    CHECK(driver.save() == before);
  }
}

TEST(rows_that_make_no_sense_are_refused_and_nothing_changes) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "");
  Driver driver(model, 3);
  driver.step(0);
  const std::vector<float> before = driver.save();
  FieldArrays arrays(*model->engine, 3);
  const auto step = [&](const std::vector<int>& rows, std::size_t count) {
    return lram_step_rows(driver.state.get(), rows.data(), count, arrays.inputs.data(), arrays.inputs.size(),
                          arrays.outputs.data(), arrays.outputs.size());
  };
  const auto told = [](const std::string& text) { return lram_last_error() == text; };
  CHECK(step({0}, 0) == LRAM_ERROR_ARGUMENT && told("row_count: expected 1 to 3, got 0"));
  CHECK(step({0, 1, 2, 3}, 4) == LRAM_ERROR_ARGUMENT && told("row_count: expected 1 to 3, got 4"));
  CHECK(step({1, 3}, 2) == LRAM_ERROR_ARGUMENT && told("rows: expected 0 to 2, got 3"));
  CHECK(step({-1}, 1) == LRAM_ERROR_ARGUMENT && told("rows: expected 0 to 2, got -1"));
  CHECK(step({1, 1}, 2) == LRAM_ERROR_ARGUMENT && told("rows: expected ascending numbers, got 1 after 1"));
  CHECK(step({2, 0}, 2) == LRAM_ERROR_ARGUMENT && told("rows: expected ascending numbers, got 0 after 2"));
  std::vector<float> values(2 * model->engine->state_size());
  const std::vector<int> rows = {0, 1};
  CHECK(lram_state_save_rows(driver.state.get(), rows.data(), 2, values.data(), 1) == LRAM_ERROR_STATE);
  CHECK(lram_state_load_rows(driver.state.get(), rows.data(), 1, values.data(), values.size()) == LRAM_ERROR_STATE);
  values[0] = NAN;
  CHECK(lram_state_load_rows(driver.state.get(), rows.data(), 2, values.data(), values.size()) == LRAM_ERROR_STATE);
  CHECK(driver.save() == before);
}

TEST(a_row_that_is_lost_stops_only_steps_that_it_is_part_of) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "");
  Driver driver(model, 2);
  driver.step(0);
  float* memory = driver.state->episodes->memory();
  // the first part of the memory has both rows, one after the other: only the first of them is spoiled
  memory[0] = NAN;
  const auto step = [&](int row) {
    FieldArrays arrays(*model->engine, 1);
    return lram_step_rows(driver.state.get(), &row, 1, arrays.inputs.data(), arrays.inputs.size(),
                          arrays.outputs.data(), arrays.outputs.size());
  };
  CHECK(step(1) == LRAM_OK);
  CHECK(step(0) == LRAM_ERROR_OVERFLOW);  // is lost in this step,
  CHECK(step(0) == LRAM_ERROR_OVERFLOW);  // and stays so
  CHECK(step(1) == LRAM_OK);
  const int first = 0;
  CHECK_OK(lram_state_reset(driver.state.get(), &first, 1));
  CHECK(step(0) == LRAM_OK);
}

int main() { return run_all(); }
