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
  const int* places = nullptr;  // of the rows of a step, in the memory of a batch; NULL: one after the other

  float* row(int number) const {
    return data + static_cast<std::size_t>(places == nullptr ? number : places[number]) * stride;
  }
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
  // What a head reads and writes in a step, row by row of the batch.
  struct Head {
    Rows given;    // normalized tokens, as they lie in the thread's buffer
    Rows x;        // the same with room
    Rows kept[3];  // c, n, m, as they lie
    Rows state[3];
    Rows y[kTokens + 1];  // before each token, and after the last
  };
  Head head_of(const StepContext& context, const SlstmMemory& memory, int thread, int head) const;
  Range channels(const Share& share) const;
  void multiply_gates(StepContext& context, const Matrix& matrix, Range channels, const Tokens& tokens, float* y) const;

  // Stages of a step of a head: each needs what the whole head has done in the one before.
  void convolve(StepContext& context, const SlstmMemory& memory, int thread, const Share& share) const;
  void project(StepContext& context, const SlstmMemory& memory, int thread, const Share& share) const;
  void recur(StepContext& context, const SlstmMemory& memory, int thread, const Share& share, int t) const;
  void put_out(const StepContext& context, const SlstmMemory& memory, int thread, const Share& share) const;
  // and of a slice of the feed-forward
  void raise(StepContext& context, const Share& share, const Tokens& tokens) const;
  void lower(StepContext& context, int thread, const Share& share) const;

  SlstmWeights w_;
};

}  // namespace lram::xlstm
