// One block of memory for everything a state needs, populated at once.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lram {

class Arena {
 public:
  // Throws Error: no memory, or it cannot be locked.
  Arena(std::size_t bytes, bool lock);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  std::uint8_t* begin() const { return memory_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::uint8_t* memory_;
  std::size_t bytes_;
};

// Hands out parts of an arena in order, or, with `memory` NULL, only counts: the same code runs twice.
class Planner {
 public:
  explicit Planner(std::uint8_t* memory) : memory_(memory) {}

  template <class T>
  T* take(std::size_t count) {
    const std::size_t at = used_;
    used_ = (used_ + count * sizeof(T) + 127) / 128 * 128;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
  }
  std::size_t used() const { return used_; }

 private:
  std::uint8_t* memory_;
  std::size_t used_ = 0;
};

}  // namespace lram
