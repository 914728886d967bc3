// What a controller is told between two steps of a policy that is slower than it, as lram_export/interpolation.py has
// it.
#ifndef LRAM_LOOP_BETWEEN_H
#define LRAM_LOOP_BETWEEN_H

#include <lram/loop/values.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lram::loop {

constexpr int kMostTicks = 10000;  // of a controller per step

// An action for every tick of a controller, `ticks` of them per step of the policy. Held, each is the step's. Linear,
// they lie on a straight line from what was sent last to the step's action, which is the last of them, to the bit: so
// it is reached later than when held, by a period less a tick. What starts an episode is held: nothing was sent before
// it. Allocates in its constructor only.
class Between {
 public:
  // Throws Error: 1 to kMostTicks ticks, and a line of floats only.
  Between(int ticks, bool linear, lram_element element, std::size_t size);

  int ticks() const noexcept { return ticks_; }
  bool linear() const noexcept { return linear_; }

  // An episode starts.
  void reset() noexcept { started_ = sent_before_ = false; }
  // The policy took a step: go to its action from here. Copied.
  void aim(const void* action) noexcept;
  // There is no new action: the one in hand is held, wherever on its line it is.
  void again() noexcept { on_a_line_ = false; }
  // What at() gave last did not reach the robot: the next line begins at what did.
  void unsent() noexcept;
  // The action to send `tick` ticks after the step, from 0; ticks may be left out. Valid until the next call.
  Action at(int tick) noexcept;

 private:
  int ticks_;
  bool linear_;
  lram_element element_;
  std::size_t size_;
  bool on_a_line_ = false;    // from `start_`
  bool started_ = false;      // `sent_` was, in this episode
  bool sent_before_ = false;  // `before_` was
  std::vector<float> start_;
  std::vector<float> action_;
  std::vector<float> sent_;
  std::vector<float> before_;  // what was sent before that
  std::vector<std::int64_t> choice_;
};

}  // namespace lram::loop

#endif
