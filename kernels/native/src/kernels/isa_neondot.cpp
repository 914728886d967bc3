#include "../simd/neon.h"
#include "table.h"

namespace lram {
extern const Kernels kernels_neondot;
const Kernels kernels_neondot = LRAM_KERNELS("neondot");
}  // namespace lram
