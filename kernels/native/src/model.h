// An artifact with its tensors found, the kernels for this processor, and the threads.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "artifact.h"
#include "block.h"
#include "encoders/encoders.h"
#include "forked.h"
#include "heads/action_bins.h"
#include "kernels/kernels.h"
#include "lram.h"
#include "thread_pool.h"

namespace lram {

// One tensor of a state, in the order in which they are saved.
struct StateTensor {
  std::string name;  // state.<block>.<part>
  std::size_t block;
  std::size_t part;
  std::size_t size;  // floats per row
  const StatePart* described;
};

class Model {
 public:
  Model(const std::string& path, const lram_options& options);
  Model(const std::uint8_t* bytes, std::size_t size);  // see Artifact; one thread
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Artifact& artifact() const { return artifact_; }
  const FileHeader& header() const { return artifact_.header(); }
  const Kernels& kernels() const { return kernels_; }
  int hidden() const { return artifact_.hidden(); }
  bool lock_memory() const { return lock_memory_; }

  const Encoders& encoders() const { return encoders_; }
  const std::vector<std::unique_ptr<Block>>& blocks() const { return blocks_; }
  const ActionBins& head() const { return head_; }
  // The most that any block needs.
  const Needs& needs() const { return needs_; }
  const std::vector<StateTensor>& state_tensors() const { return state_tensors_; }
  std::size_t state_size() const { return state_size_; }  // floats per row

  ThreadPool& pool() { return *pool_; }
  // Whether this is a child of the process that opened the model.
  bool forked() const { return generation_ != fork_generation(); }
  // Set while a step runs; true if it was not.
  bool begin_step() { return !stepping_.test_and_set(std::memory_order_acquire); }
  void end_step() { stepping_.clear(std::memory_order_release); }

 private:
  void make_blocks(bool lazy_state);

  Artifact artifact_;
  const Kernels& kernels_;
  bool lock_memory_;
  std::uint32_t generation_;
  Encoders encoders_;
  std::vector<std::unique_ptr<Block>> blocks_;
  ActionBins head_;
  Needs needs_;
  std::vector<StateTensor> state_tensors_;
  std::size_t state_size_ = 0;
  std::unique_ptr<ThreadPool> pool_;
  std::atomic_flag stepping_ = ATOMIC_FLAG_INIT;
};

}  // namespace lram
