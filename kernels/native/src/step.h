// One environment step, run by all threads of the model together.
//
// Work is divided by units of a block and by tiles, never by threads, and partial sums are added in the order of units:
// so the bits of the result do not depend on the number of threads.
#pragma once
#include "lram.h"
#include "norm.h"
#include "state.h"

namespace lram {

// Throws Error naming the first input that is not finite or not allowed, or the row that is lost.
void check_inputs(const State& state, const lram_inputs& inputs);

// Advances the state; inputs must have been checked, outputs that are NULL are not written. Throws Error (OVERFLOW): an
// input too large, which changes nothing; or logits that are not finite, whose rows are lost then.
void run_step(State& state, const lram_inputs& inputs, const lram_outputs& outputs);

// What the parts of a step share.
struct StepContext {
  State& state;
  Model& model;
  const Kernels& kernels;
  int hidden;  // width of a token,
  int room;    // filled up with zeros to this: how tokens lie
  const lram_inputs& inputs;
  const lram_outputs& outputs;
  bool decoded = false;  // whether there are logits; set by the first thread

  int threads() const { return state.workers(); }
  void barrier(int thread) {
    if (threads() > 1) model.pool().barrier(thread);
  }
  bool first(int row) const { return inputs.is_first[row] > 0; }
  float* logits(int row) const { return state.logits + row * State::padded(model.head().logits()); }
};

// A contiguous share of some work.
struct Range {
  int begin;
  int end;
};
inline Range share(int total, int thread, int threads) {
  return {total * thread / threads, total * (thread + 1) / threads};
}

// Whether no value is NaN or of a magnitude beyond `largest`.
bool within(const float* values, int count, float largest);

// Adds the parts of some units to this thread's residual stream, in their order.
void add_parts(StepContext& context, int thread, int count);

// Normalizes this thread's residual stream and quantizes it for matrices of this format.
Tokens normalized(StepContext& context, int thread, const Norm& norm, Format format, int planes);

// `count` tokens of a unit, `width` values each, for a matrix of this format.
Tokens of_unit(StepContext& context, const UnitBuffers& buffers, const float* x, std::size_t stride, int count,
               int width, const Matrix& matrix);

// `count` tokens that all threads see, `width` values each, for this thread to multiply with a matrix.
Tokens of_thread(StepContext& context, int thread, const float* x, std::size_t stride, int count, int width,
                 const Matrix& matrix);

// The product of some tokens with a share of a matrix's tiles.
inline void multiply(StepContext& context, const Matrix& matrix, Range tiles, const Tokens& tokens, float* y,
                     int y_stride) {
  lap(Stage::other);
  context.kernels.dense(matrix, tiles.begin, tiles.end, tokens, y, static_cast<std::size_t>(y_stride));
  lap(Stage::dense);
}

inline void multiply(StepContext& context, const Gemm& product) {
  lap(Stage::other);
  context.kernels.gemm(product);
  lap(Stage::dense);
}

inline void multiply(StepContext& context, const Matrix& matrix, const Tokens& tokens, float* y, int y_stride) {
  multiply(context, matrix, {0, matrix.tiles}, tokens, y, y_stride);
}

}  // namespace lram
