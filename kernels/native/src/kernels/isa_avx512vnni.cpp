#include "../simd/avx512.h"
#include "table.h"

namespace lram {
extern const Kernels kernels_avx512vnni;
const Kernels kernels_avx512vnni = LRAM_KERNELS("avx512vnni");
}  // namespace lram
