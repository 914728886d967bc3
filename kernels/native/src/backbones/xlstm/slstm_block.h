// The sLSTM block: a causal convolution, heads with a scalar memory, and a gated feed-forward.
#pragma once
#include <memory>
#include <vector>

#include "block.h"
#include "step.h"

namespace lram::xlstm {

struct SlstmMemory;

// Rows of some array.
struct Rows {
  float* data;
  std::size_t stride;

  float* row(int number) const { return data + static_cast<std::size_t>(number) * stride; }
};

struct SlstmWeights {
  int hidden;
  int heads;
  int width;  // of one
  int room;   // the width, filled up to a multiple of 16
  int conv_kernel;
  int ffn_slices;
  int ffn_slice;  // width of a slice; the last one is filled up with zeros
  Activation ffn_activation;
  float norm_epsilon;
  float head_epsilon;
  const float* norm;
  const float* conv_weight;
  const float* conv_bias;
  std::vector<Matrix> from_conv;   // per head: i, f
  std::vector<Matrix> from_input;  // per head: z, o
  std::vector<Matrix> recurrent;   // per head: i, f, z, o
  const float* gate_bias;          // [heads][i, f, z, o]
  const float* head_norm;
  const float* ffn_norm;
  std::vector<Matrix> ffn_up;  // per slice: gate, up
  std::vector<Matrix> ffn_down;
};

class SlstmBlock : public Block {
 public:
  static std::unique_ptr<Block> make(BlockSource& source);
  explicit SlstmBlock(SlstmWeights weights);

  std::unique_ptr<BlockMemory> plan(Planner& planner, int batch) const override;
  void run(StepContext& context, BlockMemory& memory, int thread) const override;

 private:
  void convolve_head(StepContext& context, const SlstmMemory& memory, int head, Rows x) const;
  void cell_head(StepContext& context, const SlstmMemory& memory, int head, const float* normed) const;
  void feed_forward_slice(StepContext& context, int slice, const Tokens& tokens) const;

  SlstmWeights w_;
};

}  // namespace lram::xlstm
