// The loop as a program runs it: observe, act, send, wait; what fails is bridged for a while, then the robot is
// stopped.
#ifndef LRAM_LOOP_RUN_H
#define LRAM_LOOP_RUN_H

#include <lram/loop/clock.h>
#include <lram/loop/core.h>
#include <lram/loop/error.h>
#include <lram/loop/notifier.h>
#include <lram/loop/robot.h>

namespace lram::loop {

constexpr double kLongestNap = 0.1;  // seconds between two looks at what is asked of a loop that waits for an episode

// Where lines go: the first fault in a row, and its end.
class Log {
 public:
  Log() = default;
  virtual ~Log() = default;
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  virtual void info(const char* line);     // to standard error
  virtual void warning(const char* line);  // likewise
};

// What is around a loop. nullptr: one of the default kind.
struct Around {
  Clock* clock = nullptr;
  Notifier* notifier = nullptr;
  Log* log = nullptr;
  bool resumed = false;  // the policy goes on where Policy::load put it; so the robot is not reset, but observed
};

// Loops until the steps are done, Loop::end is called, or the robot has to be stopped. Closes the robot, whatever
// happens, not the policy. Once per loop.
//
// Throws SafeStop: a robot that cannot be reset or closed, more steps in a row with a fault than may be bridged, or
// anything else that the loop cannot go on with. The robot's stop() and close() were called then.
void run(Loop& loop, Robot& robot, const Around& around = {});

}  // namespace lram::loop

#endif
