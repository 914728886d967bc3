// The recurrent memory of a batch of a network's episodes, and the buffers a step of it needs.
#pragma once
#include <memory>
#include <vector>

#include "arena.h"
#include "block.h"
#include "encoders/encoders.h"
#include "model.h"

namespace lram {

// Buffers of one unit of a block: a head, a slice.
struct UnitBuffers {
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
  float* shared;  // [batch][Needs.shared]: for other threads to read
  float* part;    // [tokens][padded hidden]: this unit's part of the block's output
};

// Buffers of one thread.
struct ThreadBuffers {
  float* x;       // [tokens][hidden]: the residual stream, the same in every thread
  float* normed;  // [tokens][hidden]; zeros after the hidden width stay what they are
  float* rows;    // [tokens][Needs.thread_width]
  std::int8_t* codes;
  float* code_scales;
  std::int32_t* code_sums;
  float* scratch;
};

class State : public Episodes {
 public:
  State(Model& model, int batch);
  State(const State& other);
  State& operator=(const State&) = delete;
  ~State() override;

  Model& model() const { return model_; }
  int workers() const { return workers_; }  // threads that take part in a step
  int tokens_per_row() const { return model_.artifact().tokens(); }
  int tokens() const { return batch() * tokens_per_row(); }  // of all rows: buffers lie alike, whoever makes a step
  int padded_hidden() const { return padded(model_.hidden()); }
  BlockMemory& memory_of(std::size_t block) { return *memories_[block]; }

  std::unique_ptr<Episodes> clone() const override;
  void reset(int row) override;
  void save(const ChosenRows& rows, float* values) const override;
  void load(const ChosenRows& rows, const float* values) override;
  void check(const ChosenRows& rows, const void* const* inputs, void* const* outputs) const override;
  void step(const ChosenRows& rows, const void* const* inputs, void* const* outputs) override;
  void settle() const override;

  // Of a step, by one thread, when all blocks have run: see ThreadPool.
  void leave();

  // ChosenRows whose step came to what is no number; reset and load make them whole.
  bool lost(int row) const { return lost_[static_cast<std::size_t>(row)]; }
  // Throws Error naming the first of some rows that is lost and not about to start an episode; is_first: one for each,
  // or null.
  void require(const ChosenRows& rows, const float* is_first) const;
  void set_lost(int row, bool lost) { lost_[static_cast<std::size_t>(row)] = lost; }

  const float* chosen(std::size_t /*output*/) const override { return chosen_actions; }
  const float* unclamped(std::size_t /*output*/) const override { return unclamped_actions; }

  float* memory() const override {
    settle();
    return reinterpret_cast<float*>(arena_.begin());
  }
  std::size_t memory_floats() const override { return state_bytes_ / sizeof(float); }
  const Arena* arena() const override { return &arena_; }

  std::vector<UnitBuffers> units;
  std::vector<ThreadBuffers> threads;
  EncoderBuffers encoders;
  float* mixed;   // [tokens][padded hidden]: what the units of a block leave for all threads
  float* common;  // of Needs: for all threads, too
  float* logits;  // [batch][padded logits]
  // [batch][actions] each: of an action that is looked after (see safety.h), else NULL
  float* chosen_actions = nullptr;
  float* unclamped_actions = nullptr;  // of one that limits clamp

  static int padded(int rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

 private:
  void plan(Planner& planner);
  void plan_buffers(Planner& planner);
  std::size_t planned_bytes();
  lram_inputs named(const void* const* inputs) const;

  // A piece of what a step leaves over, see Block.
  struct Leftover {
    std::size_t block;
    int piece;
  };
  int shares() const;  // in which threads take them
  void settle_share(int number);

  Model& model_;
  int workers_;
  std::vector<std::unique_ptr<BlockMemory>> memories_;
  std::vector<Leftover> leftovers_;
  std::size_t state_bytes_ = 0;
  Arena arena_;
  std::vector<bool> lost_;
};

}  // namespace lram
