#include "../simd/neon.h"
#include "table.h"

namespace lram {
extern const Kernels kernels_neon;
const Kernels kernels_neon = LRAM_KERNELS("neon");
}  // namespace lram
