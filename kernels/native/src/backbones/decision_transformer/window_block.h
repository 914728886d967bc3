// The block over a window: the tokens of the last steps go through it anew at every step, as products with many tokens.
// The first block of a model holds the tokens and puts them together, the last one leaves the one that is read.
#pragma once
#include <memory>

#include "layers.h"

namespace lram::decision_transformer {

struct WindowWeights {
  LayerWeights layers;
  int tokens;              // of the window
  int group;               // tokens that are multiplied at once
  bool last;               // block
  const float* positions;  // [tokens][hidden room]; NULL, like `start`: of another block than the first
  const float* start;      // tokens that an episode starts with, [kept][hidden]

  int kept() const { return tokens - kTokens; }  // from one step to the next
  int groups() const { return (tokens + group - 1) / group; }
  int rows() const { return groups() * group; }  // tokens, filled up to whole groups
};

// What threads share of a window.
struct WindowBuffers;

class WindowBlock : public Block {
 public:
  static std::unique_ptr<Block> make(BlockSource& source);
  explicit WindowBlock(const WindowWeights& weights);

  std::unique_ptr<BlockMemory> plan(Planner& planner, int batch) const override;
  void run(StepContext& context, BlockMemory& memory, int thread) const override;

 private:
  void gather(StepContext& context, float* memory, int thread, int row, float* x) const;
  void attend_all(StepContext& context, int thread, int row, const WindowBuffers& buffers, float* x) const;
  void attend_head(StepContext& context, int thread, int row, int head, const WindowBuffers& buffers) const;
  void feed_forward(StepContext& context, int thread, const WindowBuffers& buffers, float* x) const;
  void leave_last(StepContext& context, int thread, const WindowBuffers& buffers) const;

  void pack_normed(StepContext& context, int thread, const Norm& norm, const float* x, float* packed) const;
  void pack(StepContext& context, int thread, const float* from, int stride, int cols, float* packed) const;
  Gemm product(StepContext& context, int thread, const Matrix& matrix, const float* bias, bool add, const float* packed,
               float* y, int y_stride) const;

  WindowWeights w_;
};

}  // namespace lram::decision_transformer
