// The robot's side of the loop: what a class has to offer.
#ifndef LRAM_LOOP_ROBOT_H
#define LRAM_LOOP_ROBOT_H

#include <lram/loop/asked.h>
#include <lram/loop/values.h>

#include <optional>

namespace lram::loop {

enum class Event {
  none,
  new_episode,  // the robot was put where an episode begins
  done          // one has ended, and nothing is to be done until the next
};

// What run() talks to. Whatever a method throws is a fault of that tick, which is bridged; but of reset() and close().
// Readings are borrowed until the next call of a method: return views of the class's own memory. See Asked for holds()
// and brought(), which it may have.
class Robot : public Asked {
 public:
  // Brings the robot to where an episode begins; its first reading.
  virtual Reading reset() = 0;
  // The reading now; Reading() or Reading::missing(why) where there is none. One that may block for ever keeps a loop
  // from ending: give it a time limit, or let it come back where a signal interrupts it (EINTR): its handler
  // must be set by sigaction without SA_RESTART, which std::signal sets.
  virtual Reading observe() = 0;
  // Sends an action; the reward since the last one, nullopt if it is not known.
  virtual std::optional<double> act(const Action& action) = 0;
  // Stops the motors, and lets go of them. Called once, whatever happens.
  virtual void close() = 0;

  // A safe stop, asked for where the loop must not go on, before close().
  virtual void stop() {}
  // Asked after every step.
  virtual Event event() { return Event::none; }
};

}  // namespace lram::loop

#endif
