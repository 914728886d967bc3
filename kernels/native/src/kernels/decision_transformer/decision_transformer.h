// What the kernels of a Decision Transformer's blocks are called with; see kernels.h for what holds for all.
#pragma once
#include <cstddef>

#include "../tokens.h"

namespace lram {

// One head's attention: some tokens, at most kTokens, see all that came before, and one another, or, where it is
// causal, those before them.
struct Attention {
  int width;
  float scale;             // of the scores
  int past;                // tokens
  const float* past_keys;  // [past][width]
  const float* past_values;
  int tokens;
  bool causal;
  const float* queries;  // [tokens][stride] each
  const float* keys;
  const float* values;
  std::size_t stride;
  float* y;  // [tokens][y_stride]
  std::size_t y_stride;
  float* scratch;  // attention_scratch() floats
};

// The scores of a token, with room for whole vectors.
static inline std::size_t attention_stride(int past) {
  return static_cast<std::size_t>((past + kTokens + 15) / 16 * 16);
}
static inline std::size_t attention_scratch(int past) { return kTokens * attention_stride(past); }

// The kernels of Decision Transformers of one instruction set.
struct DecisionTransformerKernels {
  void (*attention)(const Attention&);
};

}  // namespace lram
