#include "../simd/avx512.h"
#include "table.h"

namespace lram {
extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = LRAM_KERNELS("avx512");
}  // namespace lram
