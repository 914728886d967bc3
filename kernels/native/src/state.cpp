#include "state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "error.h"

namespace lram {
namespace {

int checked_batch(int batch) {
  if (batch < 1 || batch > 4096)
    throw Error(LRAM_ERROR_ARGUMENT, "batch: expected 1 to 4096, got " + std::to_string(batch));
  return batch;
}

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
    : model_(model),
      batch_(checked_batch(batch)),
      arena_(planned_bytes(), model.lock_memory()),
      lost_(static_cast<std::size_t>(batch), false) {
  Planner planner(arena_.begin());
  plan(planner);
  for (std::size_t block = 0; block < memories_.size(); ++block)
    model_.blocks()[block]->start(*memories_[block], batch_);
}

State::State(const State& other) : State(other.model_, other.batch_) {
  std::memcpy(memory(), other.memory(), state_bytes_);
  lost_ = other.lost_;
}

std::size_t State::planned_bytes() {
  Planner counting(nullptr);
  plan(counting);
  return counting.used();
}

void State::plan(Planner& planner) {
  memories_.clear();
  units.clear();
  threads.clear();
  for (const auto& block : model_.blocks()) memories_.push_back(block->plan(planner, batch_));
  state_bytes_ = planner.used();
  planner.guard();
  plan_buffers(planner);
}

void State::plan_buffers(Planner& planner) {
  const auto rows = static_cast<std::size_t>(batch_);
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
  for (int thread = 0; thread < model_.pool().threads(); ++thread) {
    ThreadBuffers b = {};
    b.x = planner.take<float>(count * hidden);
    b.normed = planner.take<float>(count * hidden);
    b.codes = planner.take<std::int8_t>(codes);
    b.code_scales = planner.take<float>(count);
    b.code_sums = planner.take<std::int32_t>(count * planes * groups);
    b.scratch = planner.take<float>(needs.of_thread);
    threads.push_back(b);
  }
  encoders = model_.encoders().plan(planner, batch_);
  mixed = planner.take<float>(count * hidden);
  common = planner.take<float>(needs.common + rows * needs.common_per_row);
  logits = planner.take<float>(rows * static_cast<std::size_t>(padded(model_.head().logits())));
}

void State::require(const float* is_first) const {
  for (int row = 0; row < batch_; ++row)
    if (lost(row) && (is_first == nullptr || is_first[row] == 0))
      throw Error(LRAM_ERROR_OVERFLOW, "state: row " + std::to_string(row) +
                                           " was lost in an earlier step; reset it, load one, or start an episode");
}

void State::reset(int row) {
  set_lost(row, false);
  for (std::size_t block = 0; block < memories_.size(); ++block)
    model_.blocks()[block]->restart(*memories_[block], row);
}

void State::save(float* values) const {
  require(nullptr);
  for (const StateTensor& tensor : model_.state_tensors()) {
    model_.blocks()[tensor.block]->save(*memories_[tensor.block], tensor.part, batch_, values);
    values += tensor.size * static_cast<std::size_t>(batch_);
  }
}

void State::load(const float* values) {
  const float* at = values;
  for (const StateTensor& tensor : model_.state_tensors()) {
    const std::size_t count = tensor.size * static_cast<std::size_t>(batch_);
    for (std::size_t i = 0; i < count; ++i)
      if (!allowed(*tensor.described, at[i]))
        throw Error(LRAM_ERROR_STATE, tensor.name + ": expected " + what_is_allowed(*tensor.described, at[i]) +
                                          ", got " + shown(at[i]) + " at element " + std::to_string(i));
    at += count;
  }
  lost_.assign(lost_.size(), false);
  for (const StateTensor& tensor : model_.state_tensors()) {
    model_.blocks()[tensor.block]->load(*memories_[tensor.block], tensor.part, batch_, values);
    values += tensor.size * static_cast<std::size_t>(batch_);
  }
}

}  // namespace lram
