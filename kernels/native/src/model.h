// An artifact with its tensors found, the kernels for this processor, and the threads.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "artifact.h"
#include "forked.h"
#include "kernels/kernels.h"
#include "lram.h"
#include "thread_pool.h"

namespace lram {

struct MlstmWeights {
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

struct SlstmWeights {
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

struct ImageWeights {
  int channels_in;
  int channels;
  const float* weight;
  const float* bias;
};

// One block is one of the two kinds.
struct BlockWeights {
  bool is_slstm;
  MlstmWeights mlstm;
  SlstmWeights slstm;
};

// Sizes as the code uses them.
struct Sizes {
  int hidden;
  int blocks;
  int heads;
  int inner;
  int head_width;
  int conv_kernel;
  int slstm_heads;
  int slstm_width;
  int slstm_room;  // the width, filled up to a multiple of 16
  int ffn_slices;
  int ffn_slice;
  int image_channels;
  int image_height;
  int image_width;
  int image_features;  // after the IMPALA CNN
  int actions;         // entries of an action
  int logits;          // per row
};

constexpr int kImageBlocks = 3;
constexpr int kConvolutionsPerImageBlock = 5;  // one, then two residual units of two
constexpr int kImageChannels[kImageBlocks] = {16, 32, 32};

class Model {
 public:
  Model(const std::string& path, const lram_options& options);
  Model(const std::uint8_t* bytes, std::size_t size);  // see Artifact; one thread
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Artifact& artifact() const { return artifact_; }
  const FileHeader& header() const { return artifact_.header(); }
  const Sizes& sizes() const { return sizes_; }
  const Kernels& kernels() const { return kernels_; }
  bool lock_memory() const { return lock_memory_; }
  bool lazy_state() const { return lazy_state_; }
  bool images() const { return header().observation == LRAM_IMAGE; }
  bool discrete() const { return header().action == LRAM_DISCRETE; }
  std::size_t observation_size() const;
  Activation ffn_activation() const { return static_cast<Activation>(header().ffn_activation); }

  ThreadPool& pool() { return *pool_; }
  // Whether this is a child of the process that opened the model.
  bool forked() const { return generation_ != fork_generation(); }
  // Set while a step runs; true if it was not.
  bool begin_step() { return !stepping_.test_and_set(std::memory_order_acquire); }
  void end_step() { stepping_.clear(std::memory_order_release); }

  const float* embed_reward_weight;
  const float* embed_reward_bias;
  const float* embed_return_weight;
  const float* embed_return_bias;
  Matrix embed_observation;
  const float* embed_observation_bias;
  const float* embed_norm_weight;
  const float* embed_norm_bias;
  std::vector<ImageWeights> image;
  std::vector<BlockWeights> blocks;
  const float* post_norm;
  Matrix head;
  const float* head_bias;

 private:
  void resolve();
  MlstmWeights resolve_mlstm(int block) const;
  SlstmWeights resolve_slstm(int block) const;

  Artifact artifact_;
  Sizes sizes_;
  const Kernels& kernels_;
  bool lock_memory_;
  bool lazy_state_;
  std::uint32_t generation_;
  std::unique_ptr<ThreadPool> pool_;
  std::atomic_flag stepping_ = ATOMIC_FLAG_INIT;
};

}  // namespace lram
