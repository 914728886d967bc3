// The C interface: turns exceptions into statuses. See lram.h.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"
#include "error.h"
#include "handles.h"
#include "lram.h"
#include "machine.h"

namespace {

thread_local char last_error[1024] = "";

lram_status fail(lram_status status, const char* text) {
  std::snprintf(last_error, sizeof last_error, "%s", text);
  return status;
}

template <class Work>
lram_status guarded(Work work) noexcept {
  try {
    work();
    return LRAM_OK;
  } catch (const lram::Error& error) {
    return fail(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(LRAM_ERROR_MEMORY, "memory: none left");
  } catch (const std::exception& error) {  // what is left is the machine's: arguments are checked one by one
    return fail(LRAM_ERROR_MEMORY, error.what());
  }
}

void expect(bool holds, const char* text) {
  if (!holds) throw lram::Error(LRAM_ERROR_ARGUMENT, text);
}

// A child has no threads of its parent's models, and finds a state in the middle of a step.
void expect_own(const lram_model& model) {
  if (model.engine->forked())
    throw lram::Error(LRAM_ERROR_FORKED,
                      "model: it was opened before fork(), whose child has none of its threads; open "
                      "it in the child");
}

void expect_size(const lram_state& state, const lram::ChosenRows& rows, std::size_t count) {
  const std::size_t size = state.model.engine->state_size() * static_cast<std::size_t>(rows.count);
  if (count != size)
    throw lram::Error(LRAM_ERROR_STATE, "count: this state has " + std::to_string(size) + " values, got " +
                                            std::to_string(count) + "; is it the state of another model or batch?");
}

void expect_row(const char* name, const lram_state& state, int row) {
  const int batch = state.episodes->batch();
  if (row < 0 || row >= batch)
    throw lram::Error(LRAM_ERROR_ARGUMENT, std::string(name) + ": expected 0 to " + std::to_string(batch - 1) +
                                               ", got " + std::to_string(row));
}

void expect_count(const char* name, std::size_t expected, std::size_t count) {
  if (count != expected)
    throw lram::Error(LRAM_ERROR_ARGUMENT, std::string(name) + ": this model has " + std::to_string(expected) +
                                               ", got " + std::to_string(count));
}

template <class Fields>
const typename Fields::value_type& at(const Fields& fields, std::size_t index) {
  if (index >= fields.size())
    throw lram::Error(LRAM_ERROR_ARGUMENT,
                      "index: expected less than " + std::to_string(fields.size()) + ", got " + std::to_string(index));
  return fields[index];
}

lram_memory memory_of(const void* begin, std::size_t bytes) { return {bytes, lram::bytes_in_huge_pages(begin, bytes)}; }

// What lram_field and lram_tensor have in common.
template <class From, class To>
void copy_shape(const From& from, To* to) {
  std::snprintf(to->name, sizeof to->name, "%s", from.name.c_str());
  to->rank = static_cast<int>(from.extents.size());
  std::copy(from.extents.begin(), from.extents.end(), std::begin(to->extents));
}

void copy_field(const lram::Field& from, lram_field* to) {
  *to = {};
  copy_shape(from, to);
  to->element = static_cast<lram_element>(from.element);
  to->size = from.size();
  to->choices = from.choices;
  to->most_clamps = from.most_clamps;
}

void copy_element(const lram::Field& from, std::size_t element, lram_element_facts* to) {
  if (element >= from.described())
    throw lram::Error(LRAM_ERROR_ARGUMENT, "element: expected less than " + std::to_string(from.described()) +
                                               ", got " + std::to_string(element));
  *to = {"", "", -HUGE_VALF, HUGE_VALF, HUGE_VALF, std::nanf("")};
  const lram::ElementFacts* facts = from.facts_of(element);
  if (facts == nullptr) return;
  std::copy(std::begin(facts->name), std::end(facts->name), to->name);
  std::copy(std::begin(facts->unit), std::end(facts->unit), to->unit);
  to->low = facts->low;
  to->high = facts->high;
  to->most_change = facts->most_change;
  to->safe = facts->safe;
}

// A member of lram_inputs or lram_outputs: what an input or output is to be of whose array it can be.
struct Member {
  const char* name;
  bool number;              // one float per row
  lram::Element otherwise;  // what its elements may be beside float32
};
constexpr Member kInputMembers[] = {{"observation", false, lram::Element::uint8},
                                    {"return_to_go", true, lram::Element::float32},
                                    {"reward", true, lram::Element::float32},
                                    {"is_first", true, lram::Element::float32}};
constexpr Member kOutputMembers[] = {{"action", false, lram::Element::int64},
                                     {"action_logits", false, lram::Element::float32}};
constexpr std::size_t kMostInputs = std::size(kInputMembers);
constexpr std::size_t kMostOutputs = std::size(kOutputMembers);

// Which member each field is, no two the same; the names of those that are none are added to `others`.
template <std::size_t count>
std::vector<std::size_t> members_of(const std::vector<lram::Field>& fields, const Member (&members)[count],
                                    std::vector<std::string>& others) {
  std::vector<std::size_t> found;
  for (const lram::Field& field : fields) {
    const Member* member = std::find_if(std::begin(members), std::end(members), [&](const Member& known) {
      return field.name == known.name && (!known.number || field.size() == 1) &&
             (field.element == lram::Element::float32 || field.element == known.otherwise);
    });
    const auto number = static_cast<std::size_t>(member - members);
    if (number == count || std::find(found.begin(), found.end(), number) != found.end()) others.push_back(field.name);
    found.push_back(number);
  }
  return found;
}

std::string first_of(const std::vector<std::string>& names) {
  constexpr std::size_t most = 4;
  std::string text;
  for (std::size_t i = 0; i < names.size() && i < most; ++i) text += (i == 0 ? "" : ", ") + names[i];
  return names.size() > most ? text + ", ..." : text;
}

// ChosenRows that may be asked for.
lram::ChosenRows chosen_rows(const lram_state& state, const int* rows, std::size_t count) {
  if (count < 1 || count > static_cast<std::size_t>(state.episodes->batch()))
    throw lram::Error(LRAM_ERROR_ARGUMENT, "row_count: expected 1 to " + std::to_string(state.episodes->batch()) +
                                               ", got " + std::to_string(count));
  for (std::size_t i = 0; i < count; ++i) {
    expect_row("rows", state, rows[i]);
    if (i > 0 && rows[i] <= rows[i - 1])
      throw lram::Error(LRAM_ERROR_ARGUMENT, "rows: expected ascending numbers, got " + std::to_string(rows[i]) +
                                                 " after " + std::to_string(rows[i - 1]));
  }
  return {static_cast<int>(count), rows};
}

void step(lram_state& state, const lram::ChosenRows& rows, const void* const* inputs, void* const* outputs) {
  lram::Engine& engine = *state.model.engine;
  state.episodes->check(rows, inputs, outputs);
  if (!engine.begin_step())
    throw lram::Error(LRAM_ERROR_BUSY, "model: another thread is inside a step; one model runs one step at a time");
  const std::unique_ptr<lram::Engine, void (*)(lram::Engine*)> stepping(
      &engine, [](lram::Engine* entered) { entered->end_step(); });
  state.episodes->step(rows, inputs, outputs);
  state.safety.apply(*state.episodes, rows, inputs, outputs);
}

}  // namespace

lram_model::lram_model(std::unique_ptr<lram::Engine> opened) : engine(std::move(opened)) {
  std::vector<std::string> others;
  input_members = members_of(engine->inputs(), kInputMembers, others);
  output_members = members_of(engine->outputs(), kOutputMembers, others);
  own_names = first_of(others);
}

extern "C" {

const char* lram_version(void) { return LRAM_VERSION; }

const char* lram_status_name(lram_status status) {
  switch (status) {
    case LRAM_OK:
      return "LRAM_OK";
    case LRAM_ERROR_ARGUMENT:
      return "LRAM_ERROR_ARGUMENT";
    case LRAM_ERROR_FILE:
      return "LRAM_ERROR_FILE";
    case LRAM_ERROR_ARTIFACT:
      return "LRAM_ERROR_ARTIFACT";
    case LRAM_ERROR_VERSION:
      return "LRAM_ERROR_VERSION";
    case LRAM_ERROR_MEMORY:
      return "LRAM_ERROR_MEMORY";
    case LRAM_ERROR_STATE:
      return "LRAM_ERROR_STATE";
    case LRAM_ERROR_INPUT:
      return "LRAM_ERROR_INPUT";
    case LRAM_ERROR_BUSY:
      return "LRAM_ERROR_BUSY";
    case LRAM_ERROR_OVERFLOW:
      return "LRAM_ERROR_OVERFLOW";
    case LRAM_ERROR_FORKED:
      return "LRAM_ERROR_FORKED";
  }
  return "unknown status";
}

const char* lram_last_error(void) { return last_error; }

void lram_options_init(lram_options* options) {
  if (options != nullptr) *options = {1, nullptr, 0, 200, 0, LRAM_STATE_AS_EXPORTED, 1, 1, LRAM_HUGE_PAGES_STATE};
}

lram_status lram_open(const char* path, const lram_options* options, lram_model** model) {
  return guarded([&] {
    expect(model != nullptr, "model: expected a place for the result, got NULL");
    *model = nullptr;
    expect(path != nullptr, "path: expected a file, got NULL");
    lram_options chosen;
    lram_options_init(&chosen);
    if (options != nullptr) chosen = *options;
    *model = new lram_model(lram::open_engine(path, chosen));
  });
}

void lram_close(lram_model* model) { delete model; }

lram_status lram_describe(const lram_model* model, lram_description* description) {
  return guarded([&] {
    expect(model != nullptr && description != nullptr, "model, description: expected both, got NULL");
    const lram::Engine& engine = *model->engine;
    *description = {};
    engine.describe(*description);
    description->isa = engine.kernels().name;
    description->threads = engine.threads_for(description->batch);
    description->state_size = engine.state_size();
    description->state_tensors = engine.state_fields().size();
    description->inputs = engine.inputs().size();
    description->outputs = engine.outputs().size();
    description->rate = engine.rate();
  });
}

lram_status lram_model_memory(const lram_model* model, lram_memory* memory) {
  return guarded([&] {
    expect(model != nullptr && memory != nullptr, "model, memory: expected both, got NULL");
    const lram::MappedFile* file = model->engine->file();
    *memory = file == nullptr ? lram_memory{} : memory_of(file->bytes(), file->size());
  });
}

lram_status lram_input(const lram_model* model, size_t index, lram_field* field) {
  return guarded([&] {
    expect(model != nullptr && field != nullptr, "model, field: expected both, got NULL");
    const lram::Field& found = at(model->engine->inputs(), index);
    copy_field(found, field);
    field->read = found.read ? 1 : 0;
  });
}

lram_status lram_output(const lram_model* model, size_t index, lram_field* field) {
  return guarded([&] {
    expect(model != nullptr && field != nullptr, "model, field: expected both, got NULL");
    copy_field(at(model->engine->outputs(), index), field);
  });
}

lram_status lram_input_element(const lram_model* model, size_t index, size_t element, lram_element_facts* facts) {
  return guarded([&] {
    expect(model != nullptr && facts != nullptr, "model, facts: expected both, got NULL");
    copy_element(at(model->engine->inputs(), index), element, facts);
  });
}

lram_status lram_output_element(const lram_model* model, size_t index, size_t element, lram_element_facts* facts) {
  return guarded([&] {
    expect(model != nullptr && facts != nullptr, "model, facts: expected both, got NULL");
    copy_element(at(model->engine->outputs(), index), element, facts);
  });
}

lram_status lram_state_tensor(const lram_model* model, size_t index, lram_tensor* tensor) {
  return guarded([&] {
    expect(model != nullptr && tensor != nullptr, "model, tensor: expected both, got NULL");
    const lram::StateField& found = at(model->engine->state_fields(), index);
    *tensor = {};
    copy_shape(found, tensor);
    tensor->initial = found.initial_values == nullptr ? found.initial : 0;
    tensor->initial_values = found.initial_values;
  });
}

lram_status lram_state_create(lram_model* model, int batch, lram_state** state) {
  return guarded([&] {
    expect(state != nullptr, "state: expected a place for the result, got NULL");
    *state = nullptr;
    expect(model != nullptr, "model: expected one, got NULL");
    expect_own(*model);
    *state = new lram_state{*model, model->engine->start(batch), lram::Safety(*model->engine, batch)};
  });
}

lram_status lram_state_clone(const lram_state* state, lram_state** copy) {
  return guarded([&] {
    expect(copy != nullptr, "copy: expected a place for the result, got NULL");
    *copy = nullptr;
    expect(state != nullptr, "state: expected one, got NULL");
    expect_own(state->model);
    *copy = new lram_state{state->model, state->episodes->clone(), state->safety};
  });
}

void lram_state_free(lram_state* state) { delete state; }

lram_status lram_state_memory(const lram_state* state, lram_memory* memory) {
  return guarded([&] {
    expect(state != nullptr && memory != nullptr, "state, memory: expected both, got NULL");
    const lram::Arena* arena = state->episodes->arena();
    *memory = arena == nullptr ? lram_memory{} : memory_of(arena->begin(), arena->bytes());
  });
}

lram_status lram_state_reset(lram_state* state, const int* rows, size_t count) {
  return guarded([&] {
    expect(state != nullptr, "state: expected one, got NULL");
    expect_own(state->model);
    lram::Episodes& episodes = *state->episodes;
    if (rows == nullptr) {
      for (int row = 0; row < episodes.batch(); ++row) episodes.reset(row);
      state->safety.restart();
      return;
    }
    for (size_t i = 0; i < count; ++i) expect_row("rows", *state, rows[i]);
    for (size_t i = 0; i < count; ++i) {
      episodes.reset(rows[i]);
      state->safety.restart(rows[i]);
    }
  });
}

lram_status lram_state_save(const lram_state* state, float* values, size_t count) {
  return guarded([&] {
    expect(state != nullptr && values != nullptr, "state, values: expected both, got NULL");
    expect_own(state->model);
    const lram::ChosenRows rows = state->episodes->all();
    expect_size(*state, rows, count);
    state->episodes->save(rows, values);
  });
}

lram_status lram_state_save_rows(const lram_state* state, const int* rows, size_t row_count, float* values,
                                 size_t count) {
  return guarded([&] {
    expect(state != nullptr && rows != nullptr && values != nullptr, "state, rows, values: expected all, got NULL");
    expect_own(state->model);
    const lram::ChosenRows chosen = chosen_rows(*state, rows, row_count);
    expect_size(*state, chosen, count);
    state->episodes->save(chosen, values);
  });
}

lram_status lram_state_load(lram_state* state, const float* values, size_t count) {
  return guarded([&] {
    expect(state != nullptr && values != nullptr, "state, values: expected both, got NULL");
    expect_own(state->model);
    const lram::ChosenRows rows = state->episodes->all();
    expect_size(*state, rows, count);
    state->episodes->load(rows, values);
    state->safety.restart();
  });
}

lram_status lram_state_load_rows(lram_state* state, const int* rows, size_t row_count, const float* values,
                                 size_t count) {
  return guarded([&] {
    expect(state != nullptr && rows != nullptr && values != nullptr, "state, rows, values: expected all, got NULL");
    expect_own(state->model);
    const lram::ChosenRows chosen = chosen_rows(*state, rows, row_count);
    expect_size(*state, chosen, count);
    state->episodes->load(chosen, values);
    for (int row = 0; row < chosen.count; ++row) state->safety.restart(chosen.place(row));
  });
}

lram_status lram_state_hold(lram_state* state, size_t output, const float* values) {
  return guarded([&] {
    expect(state != nullptr && values != nullptr, "state, values: expected both, got NULL");
    expect_own(state->model);
    at(state->model.engine->outputs(), output);
    state->safety.hold(output, values);
  });
}

lram_status lram_state_account(const lram_state* state, size_t output, int row, lram_account* account,
                               uint64_t* clamped, uint64_t* slowed) {
  return guarded([&] {
    expect(state != nullptr && account != nullptr, "state, account: expected both, got NULL");
    expect_own(state->model);
    at(state->model.engine->outputs(), output);
    expect_row("row", *state, row);
    *account = state->safety.account(output, row, clamped, slowed);
  });
}

lram_status lram_step(lram_state* state, const lram_inputs* inputs, const lram_outputs* outputs) {
  return guarded([&] {
    expect(state != nullptr && inputs != nullptr && outputs != nullptr,
           "state, inputs, outputs: expected all, got NULL");
    const lram_model& model = state->model;
    expect_own(model);
    if (!model.own_names.empty())
      throw lram::Error(LRAM_ERROR_ARGUMENT, "model: its inputs and outputs have names of their own (" +
                                                 model.own_names + "); use lram_step_fields");
    // in the order of kInputMembers and kOutputMembers
    const void* const given[kMostInputs] = {inputs->observation, inputs->return_to_go, inputs->reward,
                                            inputs->is_first};
    void* const wanted[kMostOutputs] = {outputs->action, outputs->logits};
    const void* in[kMostInputs] = {};
    void* out[kMostOutputs] = {};
    for (std::size_t i = 0; i < model.input_members.size(); ++i) in[i] = given[model.input_members[i]];
    for (std::size_t i = 0; i < model.output_members.size(); ++i) {
      out[i] = wanted[model.output_members[i]];
      expect(out[i] != nullptr || model.output_members[i] != 0, "action: expected an array, got NULL");
    }
    step(*state, state->episodes->all(), in, out);
  });
}

lram_status lram_settle(lram_state* state) {
  return guarded([&] {
    expect(state != nullptr, "state: expected one, got NULL");
    expect_own(state->model);
    state->episodes->settle();
  });
}

lram_status lram_step_fields(lram_state* state, const void* const* inputs, size_t input_count, void* const* outputs,
                             size_t output_count) {
  return guarded([&] {
    expect(state != nullptr && inputs != nullptr && outputs != nullptr,
           "state, inputs, outputs: expected all, got NULL");
    expect_own(state->model);
    expect_count("input_count", state->model.engine->inputs().size(), input_count);
    expect_count("output_count", state->model.engine->outputs().size(), output_count);
    step(*state, state->episodes->all(), inputs, outputs);
  });
}

lram_status lram_step_rows(lram_state* state, const int* rows, size_t row_count, const void* const* inputs,
                           size_t input_count, void* const* outputs, size_t output_count) {
  return guarded([&] {
    expect(state != nullptr && rows != nullptr && inputs != nullptr && outputs != nullptr,
           "state, rows, inputs, outputs: expected all, got NULL");
    expect_own(state->model);
    const lram::ChosenRows chosen = chosen_rows(*state, rows, row_count);
    expect_count("input_count", state->model.engine->inputs().size(), input_count);
    expect_count("output_count", state->model.engine->outputs().size(), output_count);
    step(*state, chosen, inputs, outputs);
  });
}

}  // extern "C"
