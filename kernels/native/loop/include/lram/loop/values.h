// Arrays of somebody's that go in and come out: an observation, an action.
#ifndef LRAM_LOOP_VALUES_H
#define LRAM_LOOP_VALUES_H

#include <lram.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lram::loop {

std::size_t bytes_of(lram_element element) noexcept;  // of one
const char* name_of(lram_element element) noexcept;   // e.g. "float32"

// The elements of one field, without rows, in C order. Borrowed, never owned.
struct Values {
  const void* data = nullptr;
  lram_element element = LRAM_FLOAT32;
  std::size_t size = 0;

  Values() = default;
  Values(const void* values, lram_element type, std::size_t count) noexcept
      : data(values), element(type), size(count) {}
  Values(const float* values, std::size_t count) noexcept : data(values), size(count) {}
  Values(const std::uint8_t* values, std::size_t count) noexcept : data(values), element(LRAM_UINT8), size(count) {}
  Values(const std::int64_t* values, std::size_t count) noexcept : data(values), element(LRAM_INT64), size(count) {}
  template <class Number>
  Values(const std::vector<Number>& values) noexcept  // NOLINT(google-explicit-constructor): it means the same
      : Values(values.data(), values.size()) {}

  // Its elements; nullptr where they are of another type.
  const float* floats() const noexcept { return element == LRAM_FLOAT32 ? static_cast<const float*>(data) : nullptr; }
  const std::int64_t* choices() const noexcept {
    return element == LRAM_INT64 ? static_cast<const std::int64_t*>(data) : nullptr;
  }
};

// An action: floats, or one int64_t that is chosen.
using Action = Values;

// What a robot observed: the values of each of Policy::observations(), in that order; or nothing. Borrowed for the
// length of the call that it is given to, which copies what it keeps.
class Reading {
 public:
  Reading() = default;  // missing
  // Nothing, and why not: a text that must live as long as the reading does.
  static Reading missing(const char* why) noexcept {
    Reading reading;
    reading.why_ = why;
    return reading;
  }

  // Of a policy with one observation.
  Reading(Values only) noexcept : only_(only), count_(1) {}  // NOLINT(google-explicit-constructor)
  template <class Number>
  Reading(const std::vector<Number>& only) noexcept : Reading(Values(only)) {}  // NOLINT(google-explicit-constructor)
  Reading(const float* values, std::size_t size) noexcept : Reading(Values(values, size)) {}
  // Of one with several; the array, too, is borrowed.
  Reading(const Values* all, std::size_t count) noexcept : all_(all), count_(count) {}

  bool is_missing() const noexcept { return count_ == 0; }
  const char* why() const noexcept { return why_; }
  std::size_t size() const noexcept { return count_; }
  const Values& operator[](std::size_t i) const noexcept { return all_ == nullptr ? only_ : all_[i]; }

 private:
  Values only_;
  const Values* all_ = nullptr;
  std::size_t count_ = 0;
  const char* why_ = "";
};

}  // namespace lram::loop

#endif
