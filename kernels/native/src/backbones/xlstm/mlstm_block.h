// The mLSTM block: pre-up-projection, a causal convolution, and heads with a matrix memory.
#pragma once
#include <memory>
#include <vector>

#include "block.h"
#include "step.h"

namespace lram::xlstm {

struct MlstmMemory;

struct MlstmWeights {
  int heads;
  int inner;  // width of all heads
  int width;  // of one
  int conv_kernel;
  bool lazy;  // C in half precision, see lazy_memory.h
  int memory_columns;
  float norm_epsilon;
  float head_epsilon;
  const float* norm;
  std::vector<Matrix> up;  // per head: the cell's input, the output gate
  const float* conv_weight;
  const float* conv_bias;
  const float* query_key_value;  // k scaled by 1 / sqrt(head width)
  const float* gate_weight;      // [heads][gates][2][head width]: gates folded through q, k and v
  const float* gate_bias;        // [input gates, forget gates]
  const float* head_norm;
  const float* skip;
  std::vector<Matrix> down;  // per head: its columns
};

class MlstmBlock : public Block {
 public:
  static std::unique_ptr<Block> make(BlockSource& source);
  MlstmBlock(MlstmWeights weights, int number);

  std::unique_ptr<BlockMemory> plan(Planner& planner, int batch) const override;
  void run(StepContext& context, BlockMemory& memory, int thread) const override;

 protected:
  // C: in column tiles, or lazy
  void restart_own(BlockMemory& memory, std::size_t part, int row) const override;
  void save_own(const BlockMemory& memory, std::size_t part, int row, float* values) const override;
  void load_own(BlockMemory& memory, std::size_t part, int row, const float* values) const override;

 private:
  void before_gates(StepContext& context, const MlstmMemory& memory, int head, const Tokens& tokens) const;
  void after_gates(StepContext& context, const MlstmMemory& memory, int head) const;

  MlstmWeights w_;
  int number_;  // of the block: spreads the work of lazy states
};

}  // namespace lram::xlstm
