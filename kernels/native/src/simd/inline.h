// What the vector headers share.
#pragma once
#include <cstdint>

#define LRAM_INLINE [[maybe_unused]] static inline __attribute__((always_inline))

// four int8 codes that are broadcast together, read from wherever they lie
typedef std::int32_t __attribute__((aligned(1), may_alias)) Unaligned32;

// A vector in a register: compilers would rather read it again, for each of the products that it is in.
template <class Vector>
LRAM_INLINE Vector in_register(Vector v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}
