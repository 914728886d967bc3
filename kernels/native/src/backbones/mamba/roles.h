// The tensors of Mamba blocks, by their roles in the artifact. Inner channels lie in slices, the last of which is
// filled up with zeros.
#pragma once
#include "format.h"

namespace lram::mamba {

enum Role : std::uint32_t {
  kNorm = kFirstBlockRole,
  kNormBias,  // of layer norms
  kIn,        // per slice: input of the convolution, gate
  kInBias,    // the same
  kConvWeight,
  kConvBias,
  kSelect,  // per slice of its inputs: step sizes, B and C, each with its room
  kStep,    // per slice
  kStepBias,
  kA,  // negative: (size, channels)
  kD,
  kOut,  // per slice of its inputs
  kOutBias,
};

}  // namespace lram::mamba
