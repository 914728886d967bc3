#include "../simd/plain.h"
#include "table.h"

namespace lram {
extern const Kernels kernels_plain;
const Kernels kernels_plain = LRAM_KERNELS("plain");
}  // namespace lram
