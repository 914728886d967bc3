// A network of this project: an artifact with its tensors found, and what a step of it is made of.
#pragma once
#include <memory>
#include <vector>

#include "artifact.h"
#include "block.h"
#include "encoders/encoders.h"
#include "engine.h"
#include "heads/action_bins.h"
#include "lram.h"

namespace lram {

// Where the tensor of a state field is.
struct StateTensor {
  std::size_t block;
  std::size_t part;
  const StatePart* described;
};

class Model : public Engine {
 public:
  // Throws Error: options that make no sense, or a file that is no artifact of a network.
  Model(MappedFile file, const lram_options& options);

  void describe(lram_description& description) const override;
  std::unique_ptr<Episodes> start(int batch) override;

  const MappedFile* file() const override { return &artifact_.file(); }
  const Artifact& artifact() const { return artifact_; }
  const FileHeader& header() const { return artifact_.header(); }
  int hidden() const { return artifact_.hidden(); }

  const Encoders& encoders() const { return encoders_; }
  const std::vector<std::unique_ptr<Block>>& blocks() const { return blocks_; }
  const ActionBins& head() const { return head_; }
  // The most that any block needs.
  const Needs& needs() const { return needs_; }
  // One per state field.
  const std::vector<StateTensor>& state_tensors() const { return state_tensors_; }

 private:
  bool worth_threads(int rows) const override;
  void make_blocks(bool lazy_state);
  void name_fields();

  Artifact artifact_;
  Encoders encoders_;
  std::vector<std::unique_ptr<Block>> blocks_;
  ActionBins head_;
  Needs needs_;
  std::vector<StateTensor> state_tensors_;
};

}  // namespace lram
