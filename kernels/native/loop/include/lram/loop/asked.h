// What a step asks the robot for, where it takes one. A Robot is one; a controller that knows it beforehand needs none.
#ifndef LRAM_LOOP_ASKED_H
#define LRAM_LOOP_ASKED_H

#include <optional>

namespace lram::loop {

// Whatever a method throws keeps the policy from its step: a fault, which is bridged.
class Asked {
 public:
  Asked() = default;
  virtual ~Asked() = default;
  Asked(const Asked&) = delete;
  Asked& operator=(const Asked&) = delete;

  // Writes the action that the robot holds, from which safety bounds the next; false: not known. Asked where limits or
  // safety are said of the action, which are of floats, at the start of an episode, and where sending failed: then the
  // action may have reached the robot all the same.
  virtual bool holds(float* action) {
    static_cast<void>(action);
    return false;
  }
  // The reward since the last step; nullopt if it is not known. For a robot that is asked for it, rather than to answer
  // an action with it.
  virtual std::optional<double> brought() { return std::nullopt; }
};

}  // namespace lram::loop

#endif
