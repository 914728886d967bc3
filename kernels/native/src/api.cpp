// The C interface: turns exceptions into statuses. See lram.h.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <memory>
#include <new>
#include <string>

#include "error.h"
#include "lram.h"
#include "model.h"
#include "state.h"
#include "step.h"

struct lram_model : lram::Model {
  using lram::Model::Model;
};

struct lram_state : lram::State {
  using lram::State::State;
};

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
void expect_own(const lram::Model& model) {
  if (model.forked())
    throw lram::Error(LRAM_ERROR_FORKED,
                      "model: it was opened before fork(), whose child has none of its threads; open "
                      "it in the child");
}

void expect_size(const lram::State& state, std::size_t count) {
  if (count != state.size())
    throw lram::Error(LRAM_ERROR_STATE, "count: this state has " + std::to_string(state.size()) + " values, got " +
                                            std::to_string(count) + "; is it the state of another model or batch?");
}

}  // namespace

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
  if (options != nullptr) *options = {1, nullptr, 0, 200, 0, LRAM_STATE_FLOAT32, 1};
}

lram_status lram_open(const char* path, const lram_options* options, lram_model** model) {
  return guarded([&] {
    expect(model != nullptr, "model: expected a place for the result, got NULL");
    *model = nullptr;
    expect(path != nullptr, "path: expected a file, got NULL");
    lram_options chosen;
    lram_options_init(&chosen);
    if (options != nullptr) chosen = *options;
    *model = new lram_model(path, chosen);
  });
}

void lram_close(lram_model* model) { delete model; }

lram_status lram_describe(const lram_model* model, lram_description* description) {
  return guarded([&] {
    expect(model != nullptr && description != nullptr, "model, description: expected both, got NULL");
    auto& held = *const_cast<lram_model*>(model);
    const lram::FileHeader& h = model->header();
    const lram::Encoders& encoders = model->encoders();
    *description = {};
    description->isa = model->kernels().name;
    description->threads = held.pool().threads();
    description->batch = static_cast<int>(h.batch);
    description->observation = static_cast<lram_observation>(h.observation);
    description->observation_size = encoders.observation_size();
    description->action = static_cast<lram_action>(h.action);
    description->action_size = static_cast<std::size_t>(model->head().actions());
    description->logits_size = static_cast<std::size_t>(model->head().logits());
    description->state_size = model->state_size();
    description->state_tensors = model->state_tensors().size();
    description->weight_bytes = model->artifact().weight_bytes();
    description->feedback = static_cast<lram_feedback>(h.feedback);
    description->target_return = h.target_return;
    description->reward_scale = h.reward_scale;
    description->reads_return_to_go = encoders.reads(lram::Input::return_to_go) ? 1 : 0;
    description->reads_reward = encoders.reads(lram::Input::reward) ? 1 : 0;
    std::copy(std::begin(h.name), std::end(h.name), description->name);
    std::copy(std::begin(h.source_sha256), std::end(h.source_sha256), description->source_sha256);
  });
}

lram_status lram_state_tensor(const lram_model* model, size_t index, lram_tensor* tensor) {
  return guarded([&] {
    expect(model != nullptr && tensor != nullptr, "model, tensor: expected both, got NULL");
    const std::vector<lram::StateTensor>& tensors = model->state_tensors();
    if (index >= tensors.size())
      throw lram::Error(LRAM_ERROR_ARGUMENT, "index: expected less than " + std::to_string(tensors.size()) + ", got " +
                                                 std::to_string(index));
    const lram::StateTensor& found = tensors[index];
    *tensor = {};
    std::snprintf(tensor->name, sizeof tensor->name, "%s", found.name.c_str());
    const lram::StatePart& part = *found.described;
    tensor->rank = static_cast<int>(part.extents.size());
    for (std::size_t i = 0; i < part.extents.size(); ++i) tensor->extents[i] = part.extents[i];
    tensor->initial = part.initial_values == nullptr ? part.initial : 0;
    tensor->initial_values = part.initial_values;
  });
}

lram_status lram_state_create(lram_model* model, int batch, lram_state** state) {
  return guarded([&] {
    expect(state != nullptr, "state: expected a place for the result, got NULL");
    *state = nullptr;
    expect(model != nullptr, "model: expected one, got NULL");
    expect_own(*model);
    *state = new lram_state(*model, batch);
  });
}

lram_status lram_state_clone(const lram_state* state, lram_state** copy) {
  return guarded([&] {
    expect(copy != nullptr, "copy: expected a place for the result, got NULL");
    *copy = nullptr;
    expect(state != nullptr, "state: expected one, got NULL");
    expect_own(state->model());
    *copy = new lram_state(*state);
  });
}

void lram_state_free(lram_state* state) { delete state; }

lram_status lram_state_reset(lram_state* state, const int* rows, size_t count) {
  return guarded([&] {
    expect(state != nullptr, "state: expected one, got NULL");
    expect_own(state->model());
    if (rows == nullptr) {
      for (int row = 0; row < state->batch(); ++row) state->reset(row);
      return;
    }
    for (size_t i = 0; i < count; ++i)
      if (rows[i] < 0 || rows[i] >= state->batch())
        throw lram::Error(LRAM_ERROR_ARGUMENT, "rows: expected 0 to " + std::to_string(state->batch() - 1) + ", got " +
                                                   std::to_string(rows[i]));
    for (size_t i = 0; i < count; ++i) state->reset(rows[i]);
  });
}

lram_status lram_state_save(const lram_state* state, float* values, size_t count) {
  return guarded([&] {
    expect(state != nullptr && values != nullptr, "state, values: expected both, got NULL");
    expect_own(state->model());
    expect_size(*state, count);
    state->save(values);
  });
}

lram_status lram_state_load(lram_state* state, const float* values, size_t count) {
  return guarded([&] {
    expect(state != nullptr && values != nullptr, "state, values: expected both, got NULL");
    expect_own(state->model());
    expect_size(*state, count);
    state->load(values);
  });
}

lram_status lram_step(lram_state* state, const lram_inputs* inputs, const lram_outputs* outputs) {
  return guarded([&] {
    expect(state != nullptr && inputs != nullptr && outputs != nullptr,
           "state, inputs, outputs: expected all, got NULL");
    expect_own(state->model());
    lram::check_inputs(*state, *inputs, *outputs);
    if (!state->model().begin_step())
      throw lram::Error(LRAM_ERROR_BUSY, "model: another thread is inside a step; one model runs one step at a time");
    const std::unique_ptr<lram::Model, void (*)(lram::Model*)> stepping(&state->model(),
                                                                        [](lram::Model* model) { model->end_step(); });
    lram::run_step(*state, *inputs, *outputs);
  });
}

}  // extern "C"
