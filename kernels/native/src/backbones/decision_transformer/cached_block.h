// The block behind a cache: the tokens of a step see a ring of the keys and values of former steps. The oldest step of
// the ring is overwritten.
#pragma once
#include <memory>

#include "layers.h"

namespace lram::decision_transformer {

struct CachedMemory;

struct CacheWeights {
  LayerWeights layers;
  int steps;               // of the ring
  const float* positions;  // NULL: of another block than the first
  const float* keys;       // that an episode starts with, [heads][steps * kTokens][width]
  const float* values;

  int tokens() const { return steps * kTokens; }
};

class CachedBlock : public Block {
 public:
  static std::unique_ptr<Block> make(BlockSource& source);
  explicit CachedBlock(const CacheWeights& weights);

  std::unique_ptr<BlockMemory> plan(Planner& planner, int batch) const override;
  void run(StepContext& context, BlockMemory& memory, int thread) const override;

 protected:
  void restart_own(BlockMemory& memory, std::size_t part, int row) const override;
  void save_own(const BlockMemory& memory, std::size_t part, int row, float* values) const override;
  void load_own(BlockMemory& memory, std::size_t part, int row, const float* values) const override;

 private:
  void attend_head(StepContext& context, const CachedMemory& memory, int thread, int row, int head,
                   const Shared& shared) const;

  CacheWeights w_;
};

}  // namespace lram::decision_transformer
