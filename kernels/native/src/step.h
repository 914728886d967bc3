// One environment step, run by all threads of the model together.
//
// Work is divided by heads, slices and tiles, never by threads, and partial sums are added in the order of heads: so
// the bits of the result do not depend on the number of threads. Two barriers per mLSTM block, three per sLSTM block.
#pragma once
#include "lram.h"
#include "state.h"

namespace lram {

// Throws Error naming the first input that is not finite or not allowed, or the row that is lost.
void check_inputs(const State& state, const lram_inputs& inputs, const lram_outputs& outputs);

// Advances the state; inputs must have been checked. Throws Error (OVERFLOW): an input too large, which changes
// nothing; or logits that are not finite, whose rows are lost then.
void run_step(State& state, const lram_inputs& inputs, const lram_outputs& outputs);

// What the parts of a step share.
struct StepContext {
  State& state;
  Model& model;
  const Kernels& kernels;
  const Sizes& sizes;
  const lram_inputs& inputs;
  const lram_outputs& outputs;
  bool decoded = false;  // whether there are logits; set by the first thread

  int threads() const { return model.pool().threads(); }
  void barrier(int thread) { model.pool().barrier(thread); }
  bool first(int row) const { return inputs.is_first[row] > 0; }
  float* logits(int row) const { return state.shared.logits + row * State::padded(sizes.logits); }
};

// A contiguous share of some work.
struct Range {
  int begin;
  int end;
};
inline Range share(int total, int thread, int threads) {
  return {total * thread / threads, total * (thread + 1) / threads};
}

// The parts, each called by every thread.
void encode_image(StepContext& context, int thread);
void mlstm_block(StepContext& context, int block, int thread);
void slstm_block(StepContext& context, int block, int thread);

// Adds the parts of some heads or slices to this thread's residual stream, in their order.
void add_parts(StepContext& context, int thread, int count);

// Normalizes this thread's residual stream and quantizes it for matrices of this format.
Tokens normalized(StepContext& context, int thread, const float* weight, Format format, int planes);

// This head's `h` (tokens, width) for a matrix of this format.
Tokens of_head(StepContext& context, HeadBuffers& buffers, const float* x, std::size_t stride, int count, int width,
               const Matrix& matrix);

inline void multiply(StepContext& context, const Matrix& matrix, const Tokens& tokens, float* y, int y_stride) {
  context.kernels.dense(matrix, 0, matrix.tiles, tokens, y, static_cast<std::size_t>(y_stride));
}

}  // namespace lram
