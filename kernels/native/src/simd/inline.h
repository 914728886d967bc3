// What the vector headers share.
#pragma once
#include <cstdint>

#define LRAM_INLINE [[maybe_unused]] static inline __attribute__((always_inline))

// four int8 codes that are broadcast together, read from wherever they lie
typedef std::int32_t __attribute__((aligned(1), may_alias)) Unaligned32;
