// When the next tick of a control loop is due. Missed deadlines are counted and left out, never made up for.
#ifndef LRAM_LOOP_CLOCK_H
#define LRAM_LOOP_CLOCK_H

#include <cstdint>

namespace lram::loop {

// A clock that nobody sets (CLOCK_MONOTONIC). Another one, such as a simulation's, overrides both.
class Clock {
 public:
  Clock() = default;
  virtual ~Clock() = default;
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;

  virtual double now();  // seconds since some moment
  virtual void sleep_until(double when);
};

// Ticks of one length.
class Ticks {
 public:
  Ticks(Clock& clock, double period) : clock_(clock), period_(period), due_(clock.now()) {}

  // The first tick is now.
  void start() { due_ = clock_.now(); }
  // Waits for the next tick. `left` is how many there are until the next step, which begins a new count: two steps are
  // never closer to each other than they should be. Returns how many ticks went by, at most `left`: 1 if on time.
  int wait(int left);

  std::uint64_t missed() const { return missed_; }  // ticks that were due before wait() was called, or overslept
  double overslept() const { return overslept_; }   // seconds that a sleep ended after its tick, at most

 private:
  Clock& clock_;
  double period_;
  double due_;
  std::uint64_t missed_ = 0;
  double overslept_ = 0;
};

}  // namespace lram::loop

#endif
