#include "state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "error.h"
#include "safety.h"
#include "step.h"

namespace lram {
namespace {

bool allowed(const StatePart& part, float value) {
  if (part.places > 0) return value >= 0 && value < static_cast<float>(part.places) && std::trunc(value) == value;
  return std::isfinite(value) && (part.exponent || std::fabs(value) <= kLargest);
}

std::string what_is_allowed(const StatePart& part, float value) {
  if (!std::isfinite(value)) return "finite values";
  return part.places > 0 ? "whole numbers below " + std::to_string(part.places) : "magnitudes up to 1e+17";
}

}  // namespace

State::State(Model& model, int batch)
    : Episodes(model, batch),
      model_(model),
      workers_(model.threads_for(batch)),
      arena_(planned_bytes(), model.lock_memory(), model.huge_state()),
      lost_(static_cast<std::size_t>(batch), false) {
  Planner planner(arena_.begin());
  plan(planner);
  for (std::size_t block = 0; block < memories_.size(); ++block) {
    model_.blocks()[block]->start(*memories_[block], batch);
    for (int piece = 0; piece < model_.blocks()[block]->left_over(batch); ++piece) leftovers_.push_back({block, piece});
  }
}

State::State(const State& other) : State(other.model_, other.batch()) {
  other.settle();
  std::memcpy(memory(), other.memory(), state_bytes_);
  lost_ = other.lost_;
}

State::~State() {
  if (!model_.forked()) State::settle();
}

std::unique_ptr<Episodes> State::clone() const { return std::make_unique<State>(*this); }

std::size_t State::planned_bytes() {
  Planner counting(nullptr);
  plan(counting);
  return counting.used();
}

void State::plan(Planner& planner) {
  memories_.clear();
  units.clear();
  threads.clear();
  for (const auto& block : model_.blocks()) memories_.push_back(block->plan(planner, batch()));
  state_bytes_ = planner.used();
  planner.guard();
  plan_buffers(planner);
}

void State::plan_buffers(Planner& planner) {
  const auto rows = static_cast<std::size_t>(batch());
  const auto count = static_cast<std::size_t>(tokens());
  const auto hidden = static_cast<std::size_t>(padded_hidden());
  constexpr std::size_t planes = 2;
  const Needs& needs = model_.needs();
  const auto width = static_cast<std::size_t>(padded(needs.width));
  const int most = std::max({needs.width, needs.columns, padded_hidden(), model_.encoders().longest()});
  const auto groups = static_cast<std::size_t>(most / kGroup + 1);
  const std::size_t codes = count * planes * static_cast<std::size_t>(most + kGroup);
  for (int unit = 0; unit < needs.units; ++unit) {
    UnitBuffers b = {};
    for (float** buffer : {&b.input, &b.gate, &b.convolved, &b.q, &b.k, &b.v, &b.h})
      *buffer = planner.take<float>(count * width);
    b.codes = planner.take<std::int8_t>(codes);
    b.code_scales = planner.take<float>(count);
    b.code_sums = planner.take<std::int32_t>(count * planes * groups);
    b.scratch = planner.take<float>(needs.scratch);
    b.shared = planner.take<float>(rows * needs.shared);
    b.part = planner.take<float>(count * hidden);
    units.push_back(b);
  }
  for (int thread = 0; thread < workers_; ++thread) {
    ThreadBuffers b = {};
    b.x = planner.take<float>(count * hidden);
    b.normed = planner.take<float>(count * hidden);
    b.rows = planner.take<float>(count * static_cast<std::size_t>(needs.thread_width));
    b.codes = planner.take<std::int8_t>(codes);
    b.code_scales = planner.take<float>(count);
    b.code_sums = planner.take<std::int32_t>(count * planes * groups);
    b.scratch = planner.take<float>(needs.of_thread);
    threads.push_back(b);
  }
  encoders = model_.encoders().plan(planner, batch(), workers_);
  mixed = planner.take<float>(count * hidden);
  common = planner.take<float>(needs.common + rows * needs.common_per_row);
  logits = planner.take<float>(rows * static_cast<std::size_t>(padded(model_.head().logits())));
  const Field& action = model_.outputs()[0];
  if (looked_after(action)) chosen_actions = planner.take<float>(rows * action.size());
  if (action.clamps) unclamped_actions = planner.take<float>(rows * action.size());
}

void State::require(const ChosenRows& rows, const float* is_first) const {
  for (int row = 0; row < rows.count; ++row)
    if (lost(rows.place(row)) && (is_first == nullptr || is_first[row] == 0))
      throw Error(LRAM_ERROR_OVERFLOW, "state: row " + std::to_string(rows.place(row)) +
                                           " was lost in an earlier step; reset it, load one, or start an episode");
}

void State::leave() {
  if (leftovers_.empty()) return;
  const auto share = [](void* state, int number) { static_cast<State*>(state)->settle_share(number); };
  model_.pool().leave(share, this, shares());
}

int State::shares() const { return std::min(static_cast<int>(leftovers_.size()), ThreadPool::kMostPieces); }

void State::settle_share(int number) {
  const auto step = static_cast<std::size_t>(shares());
  for (auto i = static_cast<std::size_t>(number); i < leftovers_.size(); i += step) {
    const Leftover& left = leftovers_[i];
    model_.blocks()[left.block]->settle(model_.kernels(), *memories_[left.block], left.piece);
  }
}

void State::settle() const {
  const FloatingPointMode mode;
  model_.pool().finish(this);
}

void State::reset(int row) {
  settle();
  set_lost(row, false);
  for (std::size_t block = 0; block < memories_.size(); ++block)
    model_.blocks()[block]->restart(*memories_[block], row);
}

void State::save(const ChosenRows& rows, float* values) const {
  require(rows, nullptr);
  settle();
  for (const StateTensor& tensor : model_.state_tensors()) {
    model_.blocks()[tensor.block]->save(*memories_[tensor.block], tensor.part, rows, values);
    values += tensor.described->size() * static_cast<std::size_t>(rows.count);
  }
}

void State::load(const ChosenRows& rows, const float* values) {
  const float* at = values;
  for (std::size_t number = 0; number < model_.state_tensors().size(); ++number) {
    const StatePart& part = *model_.state_tensors()[number].described;
    const std::size_t count = part.size() * static_cast<std::size_t>(rows.count);
    for (std::size_t i = 0; i < count; ++i)
      if (!allowed(part, at[i]))
        throw Error(LRAM_ERROR_STATE, model_.state_fields()[number].name + ": expected " +
                                          what_is_allowed(part, at[i]) + ", got " + shown(at[i]) + " at element " +
                                          std::to_string(i));
    at += count;
  }
  settle();
  for (int row = 0; row < rows.count; ++row) set_lost(rows.place(row), false);
  for (const StateTensor& tensor : model_.state_tensors()) {
    model_.blocks()[tensor.block]->load(*memories_[tensor.block], tensor.part, rows, values);
    values += tensor.described->size() * static_cast<std::size_t>(rows.count);
  }
}

// Arrays in the order of the model's fields (model.cpp), by their names.
lram_inputs State::named(const void* const* inputs) const {
  lram_inputs found = {};
  found.observation = *inputs++;
  if (model_.encoders().reads(Input::return_to_go)) found.return_to_go = static_cast<const float*>(*inputs++);
  if (model_.encoders().reads(Input::reward)) found.reward = static_cast<const float*>(*inputs++);
  found.is_first = static_cast<const float*>(*inputs);
  return found;
}

void State::check(const ChosenRows& rows, const void* const* inputs, void* const* /*outputs*/) const {
  check_inputs(*this, rows, named(inputs));
}

void State::step(const ChosenRows& rows, const void* const* inputs, void* const* outputs) {
  run_step(*this, rows, named(inputs), {outputs[0], static_cast<float*>(outputs[1])});
}

}  // namespace lram
