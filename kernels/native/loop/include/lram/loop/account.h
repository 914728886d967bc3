// How a run of the control loop went, in numbers.
#ifndef LRAM_LOOP_ACCOUNT_H
#define LRAM_LOOP_ACCOUNT_H

#include <lram/loop/fault.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lram::loop {

constexpr std::size_t kTimesKept = 100000;  // for the percentiles: an endless loop knows its last minutes

struct Account {
  std::uint64_t steps = 0;     // of the loop, with or without a result
  std::uint64_t episodes = 0;  // that were begun
  std::uint64_t missed = 0;    // deadlines
  std::uint64_t bridged = 0;   // steps that were acted on the last good reading, or held the last action
  std::uint64_t stale = 0;     // actions that were not sent, since what they were chosen by was too old
  double last = 0;             // seconds of the last step, from its reading to its action
  double largest = 0;          // seconds of the longest step, from its reading to its action
  double overslept = 0;        // seconds that run() woke after a tick, at most
  std::array<std::uint64_t, kFaults> faults = {};  // by kind: steps that had it

  Account() : seconds_(kTimesKept) {}

  std::uint64_t of(Fault kind) const noexcept { return faults[static_cast<std::size_t>(kind)]; }
  // Keeps the time that a step took.
  void add(double seconds) noexcept;
  // Of the times kept, e.g. 99, in seconds, as numpy has it; 0 where there are none. Allocates.
  double percentile(double percent) const;
  // All of it in a line, as lram-export loop says it. Allocates.
  std::string text() const;

 private:
  std::uint64_t timed_ = 0;      // how many add() was told
  std::vector<double> seconds_;  // the last of them, a ring
};

}  // namespace lram::loop

#endif
