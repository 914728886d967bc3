// Puts the kernels of one instruction set into a table. Included once per file of kernels/isa_*.cpp, after the vector
// header; everything before it lies in an anonymous namespace, so that no two instruction sets share a function.
#pragma once
#include "convolution.h"
#include "decision_transformer/table.h"
#include "dense.h"
#include "gemm.h"
#include "image.h"
#include "kernels.h"
#include "mamba/table.h"
#include "math.h"
#include "pointwise.h"
#include "program/table.h"
#include "xlstm/table.h"

#define LRAM_KERNELS(name) \
  {name,                   \
   layer_norm,             \
   rms_norm,               \
   head_norm,              \
   accumulate,             \
   gated,                  \
   rectify,                \
   gelu,                   \
   quantize,               \
   dense,                  \
   kGemmTokens,            \
   pack_group,             \
   gemm,                   \
   convolve,               \
   image_convolution,      \
   LRAM_PROGRAM_KERNELS,   \
   LRAM_XLSTM_KERNELS,     \
   LRAM_MAMBA_KERNELS,     \
   LRAM_DECISION_TRANSFORMER_KERNELS}
