// The recurrent memory of a batch, and the buffers a step of it needs.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "arena.h"
#include "lazy_memory.h"
#include "model.h"

namespace lram {

// One block's state; what a block of its kind does not have is NULL. Rows of the batch first, as in the manifest, but
// C (batch, heads) holds each matrix in column tiles.
struct BlockState {
  float* conv;
  float* C;
  float* n;
  float* m;
  float* y;
  float* c;
  LazyBlock lazy;  // instead of C, where the model keeps lazy states
};

// Buffers of one head (or slice) of a block.
struct HeadBuffers {
  float* input;      // [tokens][padded width]
  float* gate;       // [tokens][padded width]
  float* convolved;  // [tokens][width], q, k, v, h likewise
  float* q;
  float* k;
  float* v;
  float* h;
  std::int8_t* codes;
  float* code_scales;
  std::int32_t* code_sums;
  float* scratch;
  float* sums;  // [batch][gates][3]: this head's part of all gates
  float* part;  // [tokens][padded hidden]: this head's part of the block's output
};

// Buffers of one thread.
struct ThreadBuffers {
  float* x;       // [tokens][hidden]: the residual stream, the same in every thread
  float* normed;  // [tokens][hidden]
  std::int8_t* codes;
  float* code_scales;
  std::int32_t* code_sums;
};

// Buffers of the whole step.
struct SharedBuffers {
  float* observed;   // [batch][padded hidden]
  float* mixed;      // [tokens][hidden]: output of the sLSTM heads
  float* logits;     // [batch][padded logits]
  float* images[4];  // bordered feature maps
  float* features;   // [batch][image features]
};

struct StateTensor {
  std::string name;
  std::vector<std::size_t> extents;
  float initial;
  std::size_t size;  // per row
  float* data;       // NULL for lazy matrices
  bool matrices;     // in column tiles
  bool stabilizer;   // m: an exponent, which may be as large as it likes
};

// The tensors of a model's state in the order in which they are saved; `data` is NULL.
std::vector<StateTensor> describe_state(const Model& model);

class State {
 public:
  State(Model& model, int batch);
  State(const State& other);
  State& operator=(const State&) = delete;
  ~State() = default;

  Model& model() const { return model_; }
  int batch() const { return batch_; }
  int tokens() const { return batch_ * kTokens; }
  int padded_hidden() const { return padded(model_.sizes().hidden); }
  const std::vector<StateTensor>& tensors() const { return tensors_; }
  std::size_t size() const { return size_; }  // floats of the whole batch

  void reset(int row);
  void save(float* values) const;
  void load(const float* values);  // throws Error if one is not finite, or too large

  // Rows whose step came to what is no number; reset and load make them whole.
  bool lost(int row) const { return lost_[static_cast<std::size_t>(row)]; }
  // Throws Error naming the first row that is lost and not about to start an episode; is_first: (batch) or null.
  void require(const float* is_first) const;
  void set_lost(int row, bool lost) { lost_[static_cast<std::size_t>(row)] = lost; }

  // The recurrent memory as it is, for tests that need to spoil it.
  float* memory() const { return reinterpret_cast<float*>(arena_.begin()); }
  std::size_t memory_floats() const { return state_bytes_ / sizeof(float); }

  std::vector<BlockState> blocks;
  std::vector<HeadBuffers> heads;
  std::vector<ThreadBuffers> threads;
  SharedBuffers shared;

  static int padded(int rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

 private:
  // work(LazyCell, cell) for every head of every row of every block, in this order
  template <class Work>
  void for_each_lazy_cell(Work work) const;
  void plan(Planner& planner);
  void plan_state(Planner& planner);
  void plan_buffers(Planner& planner);
  std::size_t planned_bytes();

  Model& model_;
  int batch_;
  std::size_t state_bytes_ = 0;
  Arena arena_;
  std::vector<StateTensor> tensors_;
  std::size_t size_ = 0;
  std::vector<bool> lost_;
};

}  // namespace lram
