// The tensors of xLSTM blocks, by their roles in the artifact.
#pragma once
#include "format.h"

namespace lram::xlstm {

enum Role : std::uint32_t {
  kNorm = kFirstBlockRole,
  kConvWeight,
  kConvBias,
  kHeadNorm,
  // mLSTM
  kUp,
  kQueryKeyValue,
  kGateWeight,
  kGateBias,
  kSkip,
  kDown,
  // sLSTM; heads whose width is no multiple of 16 are filled up with zeros to one, in everything between the block's
  // norm and the norm of its heads
  kFromConv,
  kFromInput,
  kRecurrent,
  kGateBiases,
  kFfnNorm,
  kFfnUp,
  kFfnDown,
};

}  // namespace lram::xlstm
