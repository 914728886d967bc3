// The Mamba block: a causal convolution and a selective state space, gated.
#pragma once
#include <memory>
#include <vector>

#include "block.h"
#include "step.h"

namespace lram::mamba {

struct MambaMemory;

struct MambaWeights {
  int inner;   // channels
  int slices;  // that they are divided in,
  int slice;   // channels of a slice; the last one is filled up with zeros
  int size;    // numbers that each channel remembers
  int rank;    // inputs of the projection to step sizes
  int conv_kernel;
  Norm norm;
  std::vector<Matrix> in;  // per slice: input, gate
  const float* in_bias;    // [slices][2][slice]; NULL: none
  const float* conv_weight;
  const float* conv_bias;
  std::vector<Matrix> select;  // per slice
  std::vector<Matrix> step;
  const float* step_bias;
  const float* A;
  const float* D;
  std::vector<Matrix> out;
  const float* out_bias;  // NULL: none

  int channels() const { return slices * slice; }
  int selected() const { return room_of(rank) + 2 * room_of(size); }
};

class MambaBlock : public Block {
 public:
  static std::unique_ptr<Block> make(BlockSource& source);
  explicit MambaBlock(MambaWeights weights);

  std::unique_ptr<BlockMemory> plan(Planner& planner, int batch) const override;
  void run(StepContext& context, BlockMemory& memory, int thread) const override;

 protected:
  void restart_own(BlockMemory& memory, std::size_t part, int row) const override;
  void save_own(const BlockMemory& memory, std::size_t part, int row, float* values) const override;
  void load_own(BlockMemory& memory, std::size_t part, int row, const float* values) const override;

 private:
  // Stages of a step of a slice: each needs what the whole slice has done in the one before.
  void project(StepContext& context, const MambaMemory& memory, const Share& share, const Tokens& tokens) const;
  void select(StepContext& context, int thread, const Share& share) const;
  // what needs all slices' part of step sizes, B and C
  void scan(StepContext& context, const MambaMemory& memory, int thread, const Share& share) const;
  void put_out(StepContext& context, int thread, const Share& share) const;

  MambaWeights w_;
};

}  // namespace lram::mamba
