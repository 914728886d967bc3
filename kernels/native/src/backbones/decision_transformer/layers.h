// What blocks of both contexts are made of, and the layers behind attention, for the tokens of the residual stream.
//
// Threads share the outputs of each matrix by tiles, and attention by heads: each output is computed by one thread.
#pragma once
#include <vector>

#include "block.h"
#include "step.h"

namespace lram::decision_transformer {

// Biases are filled up to whole tiles.
struct LayerWeights {
  int hidden;
  int heads;
  int width;  // of a head,
  int room;   // filled up with zeros to this
  int ffn;
  Norm norm;
  Matrix attention;  // to queries, keys and values of all heads
  const float* attention_bias;
  Matrix merge;
  const float* merge_bias;
  Norm ffn_norm;
  Matrix up;
  const float* up_bias;
  Matrix down;
  const float* down_bias;

  int projected() const { return State::padded(3 * heads * room); }  // from one token to the next
  int part() const { return heads * room; }                          // from queries to keys, from keys to values
  float scale() const;
  // Among how many threads every product can be divided; heads are not divided, and take less time.
  int shares() const;
};

// The block's numbers `heads`, `ffn` and `norm_epsilon`, and its tensors.
LayerWeights read_layers(BlockSource& source);

// What threads share of a step's tokens, (tokens, ...) each.
struct Shared {
  float* projected;  // queries, keys, values
  float* attended;   // what heads have seen, side by side: [tokens][hidden room]
  float* ffn;
};
Shared shared_of(const LayerWeights& weights, float* memory, int tokens);
std::size_t shared_size(const LayerWeights& weights, int tokens);

// This thread's share of a matrix's outputs, for all tokens.
void project(StepContext& context, int thread, const Matrix& matrix, const float* bias, const Tokens& tokens, float* y,
             int y_stride);

// From what heads have seen to the next residual stream of this thread; `attended` is complete.
void finish(StepContext& context, int thread, const LayerWeights& weights, const Shared& shared);

// One head of some tokens, its output side by side with that of other heads. `y` is of its first channel; a head with
// less than its room goes through this thread's `scratch`, kTokens * room floats.
void attend(const StepContext& context, const LayerWeights& weights, Attention attention, float* y, int y_stride,
            float* scratch);

}  // namespace lram::decision_transformer
