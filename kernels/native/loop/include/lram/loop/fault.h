// What may be wrong with a step of the loop. docs/robot.md has the table.
#ifndef LRAM_LOOP_FAULT_H
#define LRAM_LOOP_FAULT_H

#include <array>
#include <cstddef>
#include <string>

namespace lram::loop {

enum class Fault {
  none,
  missing,        // there is no reading
  unusable,       // another number of elements, or another type, than the policy takes
  not_finite,     // NaN or infinite
  out_of_limits,  // of what the artifact says the sensor can read, or of what the arithmetic of the step can take
  frozen,         // the same too often in a row; only where that is asked for
  no_result,      // the policy refused the step
  not_sent,       // the action did not reach the robot
  stale,          // the action was chosen by a reading that is too old: it is not sent
  no_event        // the robot could not say whether there is an event
};
constexpr std::size_t kFaults = 10;  // `none` included

// In the words of docs/robot.md, e.g. "out of limits"; "" for `none`.
const char* name_of(Fault fault) noexcept;

// A fault, and a line that names the field; cut off where it is too long. No memory but its own.
struct Trouble {
  Fault kind = Fault::none;
  std::array<char, 320> text = {};

  Trouble() = default;
#if defined(__GNUC__)
  __attribute__((format(printf, 3, 4)))
#endif
  Trouble(Fault fault, const char* format, ...) noexcept;

  explicit operator bool() const noexcept { return kind != Fault::none; }
  std::string described() const;  // "out of limits: observation: knee: expected -8 to 100, got 101"
};

}  // namespace lram::loop

#endif
