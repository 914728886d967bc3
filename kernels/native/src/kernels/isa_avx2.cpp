#include "../simd/avx2.h"
#include "table.h"

namespace lram {
extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = LRAM_KERNELS("avx2");
}  // namespace lram
