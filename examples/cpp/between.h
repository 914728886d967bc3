// What a controller is told between two steps of a policy that is slower than it, as lram_export/interpolation.py has
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// An action for every tick of a controller, `ticks` of them per step of the policy. Held, each is the step's. Linear,
// they lie on a straight line from what was sent last to the step's action, which is the last of them, to the bit: so
// it is reached later than when held, by a period less a tick. The first action is held: nothing was sent before it.
class Between {
 public:
  // At most 10,000 ticks: so a float times a number of them is exact in double, and no rounding leaves the line.
  Between(std::int64_t ticks, bool linear, std::size_t size)
      : ticks_(ticks), linear_(linear), start_(size), action_(size), sent_(size) {}

  std::int64_t ticks() const { return ticks_; }

  // The policy took a step: go to its action from here.
  void aim(const std::vector<float>& action) {
    start_ = aimed_ ? sent_ : action;
    action_ = action;
    aimed_ = true;
  }

  // The action to send `tick` ticks after the step, from 0; ticks may be left out. Valid until the next call.
  const std::vector<float>& at(std::int64_t tick) {
    const auto done = static_cast<double>(tick + 1);
    const auto all = static_cast<double>(ticks_);
    for (std::size_t i = 0; i < sent_.size(); ++i) {
      const bool there = !linear_ || tick + 1 >= ticks_;
      sent_[i] = there ? action_[i] : static_cast<float>((start_[i] * (all - done) + action_[i] * done) / all);
    }
    return sent_;
  }

 private:
  std::int64_t ticks_;
  bool linear_;
  bool aimed_ = false;
  std::vector<float> start_;
  std::vector<float> action_;
  std::vector<float> sent_;
};
