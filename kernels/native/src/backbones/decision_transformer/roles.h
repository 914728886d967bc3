// The tensors of a Decision Transformer's blocks, by their roles in the artifact. Queries, keys and values lie head by
// head, each filled up with zeros to its room; biases are filled up to whole tiles.
#pragma once
#include "format.h"

namespace lram::decision_transformer {

enum Role : std::uint32_t {
  kPositions = kFirstBlockRole,  // of the first block: added to tokens, (tokens, hidden)
  kStart,                        // of the first block, window: tokens that an episode starts with, (tokens, hidden)
  kNorm,
  kNormBias,
  kAttention,  // queries, keys, values
  kAttentionBias,
  kMerge,
  kMergeBias,
  kFfnNorm,
  kFfnNormBias,
  kFfnUp,
  kFfnUpBias,
  kFfnDown,
  kFfnDownBias,
  kKeys,  // cache: those that an episode starts with, (heads, tokens, width)
  kValues,
};

}  // namespace lram::decision_transformer
