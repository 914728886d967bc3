// One environment step, run by all threads of the model together.
//
// Work is divided by units of a block and by tiles, and partial sums are added in the order of units. What is summed
// over a whole unit, every thread that has a share of it sums as a whole. So the bits of the result do not depend on
// the number of threads.
#pragma once
#include <algorithm>

#include "lram.h"
#include "norm.h"
#include "state.h"

namespace lram {

// Throws Error naming the first input that is not finite or not allowed, or the row that is lost.
void check_inputs(const State& state, const ChosenRows& chosen, const lram_inputs& inputs);

// Advances the state; inputs must have been checked, outputs that are NULL are not written. Throws Error (OVERFLOW): an
// input too large, which changes nothing; or logits that are not finite, whose rows are lost then.
void run_step(State& state, const ChosenRows& rows, const lram_inputs& inputs, const lram_outputs& outputs);

// What the parts of a step share.
struct StepContext {
  State& state;
  Model& model;
  const Kernels& kernels;
  const ChosenRows& rows;  // inputs, outputs and buffers have so many; the memory has them at their places
  int hidden;              // width of a token,
  int room;                // filled up with zeros to this: how tokens lie
  const lram_inputs& inputs;
  const lram_outputs& outputs;
  bool decoded = false;  // whether there are logits; set by the first thread

  int tokens() const { return rows.count * state.tokens_per_row(); }
  int threads() const { return state.workers(); }
  void barrier(int thread) {
    if (threads() > 1) model.pool().barrier(thread);
  }
  // Where units are divided among threads, see Shares: returns when all that share one with this thread are here.
  void meet(int thread, int units);
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

// What one thread does of a unit (a head, a slice): of whatever there is to do from `begin` to `end` parts of `parts`.
// Those of all threads make up the unit.
struct Share {
  int unit;
  int begin;
  int end;
  int parts;

  // Whether it does what one thread does for all.
  bool leads() const { return begin == 0; }
  bool whole() const { return leads() && end == parts; }
  Range of(int count) const { return {count * begin / parts, count * end / parts}; }
};

// One thread's share of some units: whole ones, where that comes out even, and else also parts of those at its ends.
class Shares {
 public:
  Shares(int units, int thread, int threads)
      : units_(units), threads_(threads), begin_(thread * units), end_((thread + 1) * units) {}

  bool divided() const { return units_ % threads_ != 0; }
  template <class Work>
  void each(const Work& work) const {
    for (int unit = begin_ / threads_; unit * threads_ < end_; ++unit) {
      const int start = unit * threads_;
      work(Share{unit, std::max(begin_ - start, 0), std::min(end_ - start, threads_), threads_});
    }
  }
  // The threads that have a share of the same units.
  Range team() const {
    const int first = begin_ / threads_;
    const int last = (end_ + threads_ - 1) / threads_;
    return {first * threads_ / units_, (last * threads_ + units_ - 1) / units_};
  }

 private:
  int units_;
  int threads_;
  int begin_;  // in parts of all units, of which each has as many as there are threads
  int end_;
};

inline void StepContext::meet(int thread, int units) {
  const Shares shares(units, thread, threads());
  if (shares.divided()) model.pool().barrier(thread, shares.team().begin, shares.team().end);
}

// Runs the stages of this thread's shares, stage(share): of one unit after the other, or, where units are divided, of
// all of them one after the other, so that what the team has done in one is there in the next.
template <class... Stages>
void in_stages(StepContext& context, int thread, int units, const Stages&... stages) {
  const Shares shares(units, thread, context.threads());
  if (!shares.divided()) return shares.each([&](const Share& share) { (stages(share), ...); });
  int left = sizeof...(stages);
  const auto run = [&](const auto& stage) {
    shares.each(stage);
    if (--left > 0) context.meet(thread, units);
  };
  (run(stages), ...);
}

// Whether no value is NaN or of a magnitude beyond `largest`.
bool within(const float* values, int count, float largest);

// Adds the parts of some units to this thread's residual stream, in their order.
void add_parts(StepContext& context, int thread, int count);

// Normalizes this thread's residual stream and quantizes it for matrices of this format.
Tokens normalized(StepContext& context, int thread, const Norm& norm, Format format, int planes);

// `count` tokens of a unit, `width` values each, for this thread's share of a matrix.
Tokens of_share(StepContext& context, int thread, const Share& share, const float* x, std::size_t stride, int count,
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
