// What an x86-64 processor can do, and the operating system lets it. Read by ourselves: the compilers' builtin knows no
// name for some of it, and that of zig, which builds the wheels, has only a stub that says no to everything.
#pragma once
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace lram {

struct Processor {
  bool avx2 = false;      // with FMA and F16C
  bool avx_vnni = false;  // VEX-encoded, of 256 bits
  bool avx512 = false;    // F, BW, DQ and VL
  bool avx512_vnni = false;
  bool amx = false;  // products of int8, beside AVX-512 VNNI

  static Processor here() {
    constexpr std::uint32_t kOsxsave = 1U << 27;  // of leaf 1, ECX: XGETBV may be asked
    const Registers one = cpuid(1, 0);
    if ((one.c & kOsxsave) == 0) return {};
    const std::uint64_t saved = registers_saved();
    const Registers seven = cpuid(7, 0);
    Processor found;
    found.avx2 = has(saved, kYmm) && has(one.c, bit(12) | bit(29)) && has(seven.b, bit(5));
    found.avx_vnni = found.avx2 && has(cpuid(7, 1).a, bit(4));
    found.avx512 = found.avx2 && has(saved, kZmm) && has(seven.b, bit(16) | bit(17) | bit(30) | bit(31));
    found.avx512_vnni = found.avx512 && has(seven.c, bit(11));
    found.amx = found.avx512_vnni && has(saved, kAmx) && has(seven.d, bit(24) | bit(25));
    return found;
  }

 private:
  struct Registers {
    std::uint32_t a = 0, b = 0, c = 0, d = 0;
  };

  // bits of XCR0: which registers the operating system saves where it changes threads
  static constexpr std::uint64_t kYmm = 0x06;
  static constexpr std::uint64_t kZmm = 0xe6;
  static constexpr std::uint64_t kAmx = 0x60000;

  static constexpr std::uint32_t bit(int place) { return 1U << place; }
  static constexpr bool has(std::uint64_t bits, std::uint64_t wanted) { return (bits & wanted) == wanted; }

  // zeros for a leaf that the processor has not
  static Registers cpuid(std::uint32_t leaf, std::uint32_t part) {
    Registers r;
    __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
    return r;
  }

  // by its opcode's name and not by the intrinsic, for which all of this file would have to be compiled for AVX
  static std::uint64_t registers_saved() {
    std::uint32_t low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<std::uint64_t>(high) << 32) | low;
  }
};

// Asks the system for the registers of AMX, 8 KB per thread, which it lends to processes that ask. False: it does not.
inline bool lend_amx() {
  constexpr long kRequest = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kRegisters = 18;    // XFEATURE_XTILE_DATA
  return syscall(SYS_arch_prctl, kRequest, kRegisters) == 0;
}

}  // namespace lram
