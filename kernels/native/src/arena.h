// One block of memory for everything a state needs, populated at once.
#pragma once
#include <cstddef>
#include <cstdint>

#include "pages.h"

#if defined(__SANITIZE_ADDRESS__)
#define LRAM_GUARDS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LRAM_GUARDS 1
#endif
#endif

namespace lram {

class Arena {
 public:
  // In huge pages where they are asked for, see pages.h. Throws Error: no memory, or it cannot be locked.
  Arena(std::size_t bytes, bool lock, bool huge_pages = false);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  std::uint8_t* begin() const { return pages_.begin(); }
  std::size_t bytes() const { return pages_.bytes(); }

 private:
  Pages pages_;
};

// Hands out parts of an arena in order, or, with `memory` NULL, only counts: the same code runs twice.
class Planner {
 public:
  explicit Planner(std::uint8_t* memory) : memory_(memory) {}

  // Throws Error if there are more than an int can count: kernels index with one.
  template <class T>
  T* take(std::size_t count) {
    return reinterpret_cast<T*>(take_bytes(count, sizeof(T)));
  }
  std::size_t used() const { return used_; }

  // From here on AddressSanitizer, where it is on, finds an access between two parts.
  void guard();

 private:
  std::uint8_t* take_bytes(std::size_t count, std::size_t size);
  void close_gap(std::size_t from);

  std::uint8_t* memory_;
  std::size_t used_ = 0;
  bool guarded_ = false;
};

}  // namespace lram
