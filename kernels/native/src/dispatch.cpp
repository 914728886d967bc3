// Which kernels this processor runs.
#include <cstdlib>
#include <cstring>
#include <string>

#include "error.h"
#include "kernels/kernels.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include "processor.h"
#endif

namespace lram {

extern const Kernels kernels_plain;
#if defined(__x86_64__)
#if defined(LRAM_AVX512AMX)  // the compiler knows it
extern const Kernels kernels_avx512amx;
#endif
extern const Kernels kernels_avx512vnni;
extern const Kernels kernels_avx512;
#if defined(LRAM_AVX2VNNI)  // likewise
extern const Kernels kernels_avx2vnni;
#endif
extern const Kernels kernels_avx2;
#elif defined(__aarch64__)
extern const Kernels kernels_neondot;
extern const Kernels kernels_neon;
#endif

namespace {

#if defined(__x86_64__)
bool has_avx2() { return Processor::here().avx2; }
#if defined(LRAM_AVX2VNNI)
bool has_avx2vnni() { return Processor::here().avx_vnni; }
#endif
bool has_avx512() { return Processor::here().avx512; }
#if defined(LRAM_AVX512AMX)
bool has_avx512amx() {
  static const bool lent = Processor::here().amx && lend_amx();
  return lent;
}
#endif
bool has_avx512vnni() { return Processor::here().avx512_vnni; }
#elif defined(__aarch64__)
bool has_neondot() { return (getauxval(AT_HWCAP) & (1UL << 20)) != 0; }  // HWCAP_ASIMDDP
#endif
[[maybe_unused]] bool always() { return true; }

const Candidate kCandidates[] = {
#if defined(__x86_64__)
#if defined(LRAM_AVX512AMX)
    {&kernels_avx512amx, has_avx512amx},
#endif
    {&kernels_avx512vnni, has_avx512vnni},
    {&kernels_avx512, has_avx512},
#if defined(LRAM_AVX2VNNI)
    {&kernels_avx2vnni, has_avx2vnni},
#endif
    {&kernels_avx2, has_avx2},
#elif defined(__aarch64__)
    {&kernels_neondot, has_neondot},
    {&kernels_neon, always},
#endif
    {&kernels_plain, always},
};
constexpr int kCount = sizeof kCandidates / sizeof kCandidates[0];

}  // namespace

const Candidate* candidates(int* count) {
  *count = kCount;
  return kCandidates;
}

const Kernels& choose_kernels() {
  const char* forced = std::getenv("LRAM_ISA");
  std::string known;
  for (const Candidate& candidate : kCandidates) {
    const bool named = forced != nullptr && std::strcmp(forced, candidate.kernels->name) == 0;
    if (named && !candidate.supported())
      throw Error(LRAM_ERROR_ARGUMENT, std::string("LRAM_ISA: this processor does not support ") + forced);
    if (named || ((forced == nullptr || *forced == '\0') && candidate.supported())) return *candidate.kernels;
    known += (known.empty() ? "" : ", ") + std::string(candidate.kernels->name);
  }
  throw Error(LRAM_ERROR_ARGUMENT, "LRAM_ISA: expected one of " + known + ", got " + forced);
}

}  // namespace lram
