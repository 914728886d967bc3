// What __builtin_cpu_supports says, for zig: its runtime has only a stub that says no to everything
// (compiler_rt/fmv.zig), with which every processor would run the slowest kernels. Included before each source by
// zig.cmake.
#pragma once
#if defined(__x86_64__) && defined(__cplusplus)
#include <cpuid.h>

namespace lram_wheel {

// where CPUID tells it, and which registers the operating system must save for it (bits of XCR0)
struct Feature {
  unsigned leaf;
  unsigned char place;  // of EAX, EBX, ECX, EDX
  unsigned char bit;
  unsigned saved;
};
constexpr unsigned kAvx = 0x06;
constexpr unsigned kAvx512 = 0xe6;

constexpr bool same(const char* a, const char* b) {
  while (*a != '\0' && *a == *b) ++a, ++b;
  return *a == *b;
}

// an unknown name does not compile
constexpr Feature feature(const char* name) {
  return same(name, "fma")          ? Feature{1, 2, 12, kAvx}
         : same(name, "avx2")       ? Feature{7, 1, 5, kAvx}
         : same(name, "avx512f")    ? Feature{7, 1, 16, kAvx512}
         : same(name, "avx512dq")   ? Feature{7, 1, 17, kAvx512}
         : same(name, "avx512bw")   ? Feature{7, 1, 30, kAvx512}
         : same(name, "avx512vl")   ? Feature{7, 1, 31, kAvx512}
         : same(name, "avx512vnni") ? Feature{7, 2, 11, kAvx512}
                                    : throw "cpu_supports.h: a feature that it does not know";
}

inline bool supports(Feature wanted) {
  unsigned r[4] = {0, 0, 0, 0};
  constexpr unsigned kOsxsave = 1U << 27;  // of ECX: XGETBV may be asked
  if (__get_cpuid(1, &r[0], &r[1], &r[2], &r[3]) == 0 || (r[2] & kOsxsave) == 0) return false;
  unsigned saved = 0, high = 0;
  __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  return (saved & wanted.saved) == wanted.saved && __get_cpuid_count(wanted.leaf, 0, &r[0], &r[1], &r[2], &r[3]) != 0 &&
         ((r[wanted.place] >> wanted.bit) & 1) != 0;
}

}  // namespace lram_wheel

#define __builtin_cpu_supports(name)                                  \
  ([] {                                                               \
    constexpr lram_wheel::Feature wanted = lram_wheel::feature(name); \
    return lram_wheel::supports(wanted);                              \
  }())
#endif
