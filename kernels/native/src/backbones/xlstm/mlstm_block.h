// The mLSTM block: pre-up-projection, a causal convolution, and heads with a matrix memory.
#pragma once
#include <memory>
#include <vector>

#include "block.h"
#include "lazy_memory.h"
#include "step.h"

namespace lram::xlstm {

struct MlstmMemory;

struct MlstmWeights {
  int heads;
  int width;  // of one
  int room;   // the width, filled up to a multiple of 16
  int inner;  // room of all heads
  int conv_kernel;
  int block;  // width of the blocks of which q, k and v are made; 0: fours, by a kernel of their own
  bool lazy;  // C in half precision, see lazy_memory.h
  int memory_columns;
  float norm_epsilon;
  float head_epsilon;
  const float* norm;
  std::vector<Matrix> up;  // per head: the cell's input, the output gate
  const float* conv_weight;
  const float* conv_bias;
  // k scaled by 1 / sqrt(head width); of fours as their kernel reads them, else [q, k, v][block][input][output]
  const float* query_key_value;
  const float* gate_weight;  // [heads][gates][2][room]: gates folded through q, k and v
  const float* gate_bias;    // [input gates, forget gates]
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
  int left_over(int batch) const override;
  void settle(const Kernels& kernels, BlockMemory& memory, int piece) const override;

 protected:
  // C: in column tiles, or lazy; and all that has more room than width
  void restart_own(BlockMemory& memory, std::size_t part, int row) const override;
  void save_own(const BlockMemory& memory, std::size_t part, int row, float* values) const override;
  void load_own(BlockMemory& memory, std::size_t part, int row, const float* values) const override;

 private:
  // Stages of a step of a head: each needs what the whole head has done in the one before.
  void project(StepContext& context, const MlstmMemory& memory, const Share& share, const Tokens& tokens) const;
  void sum_gates(StepContext& context, const Share& share) const;
  // what needs the gates of all heads
  void project_blocks(const StepContext& context, const Share& share) const;
  void score_ring(StepContext& context, const MlstmMemory& memory, const Share& share) const;
  void remember(StepContext& context, const MlstmMemory& memory, int thread, const Share& share) const;
  void put_out(StepContext& context, const MlstmMemory& memory, int thread, const Share& share) const;

  // Rows of a state part, w_.room apart; of a row of the batch.
  struct Rows {
    float* begin;
    int count;
  };
  Rows spread_rows(const MlstmMemory& memory, std::size_t part, int row) const;
  int cell_of(const StepContext& context, int row, const Share& share) const;
  LazyCell lazy_cell(const MlstmMemory& memory, int cell) const;
  // What all stages of a step tell its kernels.
  LazyMemory lazy_step(const StepContext& context, const Share& share, int row) const;
  int memory_tiles() const { return count_tiles(w_.room, w_.memory_columns); }

  MlstmWeights w_;
  int number_;  // of the block: spreads the work of lazy states
};

}  // namespace lram::xlstm
