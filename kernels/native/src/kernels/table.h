// Puts the kernels of one instruction set into a table. Included once per file of kernels/isa_*.cpp, after the vector
// header; everything before it lies in an anonymous namespace, so that no two instruction sets share a function.
#pragma once
#include "dense.h"
#include "image.h"
#include "kernels.h"
#include "lazy.h"
#include "math.h"
#include "mlstm.h"
#include "pointwise.h"
#include "slstm.h"

#define LRAM_KERNELS(name)  \
  {name,                    \
   kMemoryVectors * kWidth, \
   layer_norm,              \
   head_norm,               \
   accumulate,              \
   gated,                   \
   rectify,                 \
   quantize,                \
   dense,                   \
   convolve,                \
   query_key_value,         \
   gate_sums,               \
   memory,                  \
   lazy_memory,             \
   head_output,             \
   slstm_cell,              \
   image_convolution}
