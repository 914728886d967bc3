#include "../simd/avx512.h"
#include "table.h"

namespace lram {
extern const Kernels kernels_avx512amx;
const Kernels kernels_avx512amx = LRAM_KERNELS("avx512amx");
}  // namespace lram
