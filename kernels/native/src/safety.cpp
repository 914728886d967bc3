#include "safety.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "error.h"

namespace lram {
namespace {

bool changes_slowly(const ElementFacts& facts) { return std::isfinite(facts.most_change); }

bool is_held(const Field& output) {
  return output.most_clamps > 0 || std::any_of(output.facts, output.facts + output.fact_count, changes_slowly);
}

}  // namespace

bool looked_after(const Field& output) {
  return output.element == Element::float32 && (output.clamps || is_held(output));
}

Safety::Safety(const Engine& engine, int batch) : engine_(engine), batch_(static_cast<std::size_t>(batch)) {
  const std::vector<Field>& inputs = engine.inputs();
  const auto first =
      std::find_if(inputs.begin(), inputs.end(), [](const Field& input) { return input.name == "is_first"; });
  is_first_ = static_cast<std::size_t>(first - inputs.begin());
  for (std::size_t i = 0; i < engine.outputs().size(); ++i) {
    const Field& field = engine.outputs()[i];
    if (looked_after(field)) actions_.push_back({&field, i, field.size(), engine.safety() && is_held(field)});
  }
  if (actions_.empty()) return;
  Planner counting(nullptr);
  plan(counting);
  arena_ = std::make_unique<Arena>(counting.used(), engine.lock_memory());  // of zeros
  Planner planner(arena_->begin());
  plan(planner);
  for (const Action& action : actions_)
    for (std::size_t i = 0; action.held && i < action.size; ++i) {
      action.most_change[i] = action.field->facts_of(i)->most_change;
      action.safe[i] = action.field->facts_of(i)->safe;
    }
}

Safety::Safety(const Safety& other) : Safety(other.engine_, static_cast<int>(other.batch_)) {
  if (arena_ != nullptr) std::memcpy(arena_->begin(), other.arena_->begin(), arena_->bytes());
}

void Safety::plan(Planner& planner) {
  for (Action& action : actions_) {
    const std::size_t count = batch_ * action.size;
    action.rows = planner.take<Row>(batch_);
    action.clamped = planner.take<std::uint64_t>(count);
    if (!action.held) continue;
    action.most_change = planner.take<float>(action.size);
    action.safe = planner.take<float>(action.size);
    action.previous = planner.take<float>(count);
    action.slowed = planner.take<std::uint64_t>(count);
  }
}

const Safety::Action* Safety::find(std::size_t output) const {
  const auto found =
      std::find_if(actions_.begin(), actions_.end(), [=](const Action& action) { return action.output == output; });
  return found == actions_.end() ? nullptr : &*found;
}

void Safety::restart(int row) {
  for (const Action& action : actions_) {
    Row& of = action.rows[row];
    of.consecutive = 0;
    of.is_stopped = of.holds = of.told = false;
  }
}

void Safety::restart() {
  for (std::size_t row = 0; row < batch_; ++row) restart(static_cast<int>(row));
}

void Safety::hold(std::size_t output, const float* values) {
  const Field& field = engine_.outputs()[output];
  if (field.element != Element::float32)
    throw Error(LRAM_ERROR_ARGUMENT, "output: expected one of floats, got " + field.name);
  const std::size_t count = batch_ * field.size();
  const float* odd = std::find_if(values, values + count, [](float value) { return !std::isfinite(value); });
  if (odd != values + count)
    throw Error(LRAM_ERROR_INPUT, field.name + ": expected finite values, got " + shown(*odd) + " at element " +
                                      std::to_string(odd - values));
  const Action* action = find(output);
  if (action == nullptr || !action->held) return;
  std::copy_n(values, count, action->previous);
  for (std::size_t row = 0; row < batch_; ++row) action->rows[row].holds = action->rows[row].told = true;
}

void Safety::apply(const Episodes& episodes, const ChosenRows& rows, const void* const* inputs, void* const* outputs) {
  if (actions_.empty()) return;
  const bool known = is_first_ < engine_.inputs().size();
  const auto* is_first = known ? static_cast<const float*>(inputs[is_first_]) : nullptr;
  for (const Action& action : actions_) {
    const float* chosen = episodes.chosen(action.output);
    const float* unclamped = action.field->clamps ? episodes.unclamped(action.output) : chosen;
    auto* given = static_cast<float*>(outputs[action.output]);
    for (std::size_t row = 0; row < static_cast<std::size_t>(rows.count); ++row) {
      const auto place = static_cast<std::size_t>(rows.place(static_cast<int>(row)));
      if (is_first != nullptr && is_first[row] != 0) {
        Row& of = action.rows[place];
        of.consecutive = 0;
        of.is_stopped = false;
        of.holds = of.told;
      }
      const std::size_t at = row * action.size;
      tick(action, place, chosen + at, unclamped + at, given == nullptr ? nullptr : given + at);
    }
  }
}

void Safety::tick(const Action& action, std::size_t row, const float* chosen, const float* unclamped,
                  float* given) const {
  Row& of = action.rows[row];
  const std::size_t at = row * action.size;
  bool clamped = false;
  for (std::size_t i = 0; i < action.size; ++i) {
    if (chosen[i] == unclamped[i]) continue;
    clamped = true;
    ++action.clamped[at + i];
  }
  of.consecutive = clamped ? of.consecutive + 1 : 0;
  if (!action.held) return;
  const std::uint64_t most = action.field->most_clamps;
  if (most > 0 && of.consecutive > most) of.is_stopped = true;
  if (of.is_stopped) ++of.stopped;
  const float* wanted = of.is_stopped ? action.safe : chosen;
  float* previous = action.previous + at;
  for (std::size_t i = 0; i < action.size; ++i) {
    float value = wanted[i];
    if (of.holds)
      value = std::min(std::max(value, previous[i] - action.most_change[i]), previous[i] + action.most_change[i]);
    if (value != wanted[i]) ++action.slowed[at + i];
    previous[i] = value;
    if (given != nullptr) given[i] = value;
  }
  of.holds = true;
  of.told = false;
}

lram_account Safety::account(std::size_t output, int row, std::uint64_t* clamped, std::uint64_t* slowed) const {
  const Action* action = find(output);
  const std::size_t size = engine_.outputs()[output].size();
  const auto copy = [&](const std::uint64_t* counts, std::uint64_t* to) {
    if (to == nullptr) return;
    if (counts == nullptr)
      std::fill_n(to, size, 0);
    else
      std::copy_n(counts + static_cast<std::size_t>(row) * size, size, to);
  };
  copy(action == nullptr ? nullptr : action->clamped, clamped);
  copy(action == nullptr ? nullptr : action->slowed, slowed);
  if (action == nullptr) return {};
  const Row& of = action->rows[row];
  return {of.consecutive, of.stopped, of.is_stopped ? 1 : 0};
}

}  // namespace lram
