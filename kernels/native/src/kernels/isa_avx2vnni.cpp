#include "../simd/avx2.h"
#include "table.h"

namespace lram {
extern const Kernels kernels_avx2vnni;
const Kernels kernels_avx2vnni = LRAM_KERNELS("avx2vnni");
}  // namespace lram
