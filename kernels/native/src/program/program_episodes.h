// The states of a batch of episodes of a program, and the buffers that its steps need.
//
// ChosenRows know nothing of each other: threads share them, a few at a time through the whole program, so that what a
// step computes stays in the cache. A single row is worth more threads than one only where its matrices are large; then
// they share the outputs of each. Either way the bits of the result do not depend on the number of threads.
//
// A step writes next states and outputs beside what was there, and all of it becomes true at its end, or nothing.
#pragma once
#include <memory>
#include <vector>

#include "arena.h"
#include "engine.h"
#include "program/program.h"

namespace lram {

// Buffers of one thread.
struct ProgramBuffers {
  float* arena;
  std::int8_t* codes;
  float* code_scales;
  std::int32_t* code_sums;
  float* packed;
  float* scratch;
  std::vector<const float*> bases;  // of each buffer: its first row of those that are computed
  bool finite;                      // whether all results of a step were
};

class ProgramEpisodes : public Episodes {
 public:
  ProgramEpisodes(Program& program, int batch);
  ProgramEpisodes(const ProgramEpisodes& other);
  ProgramEpisodes& operator=(const ProgramEpisodes&) = delete;
  ~ProgramEpisodes() override = default;

  std::unique_ptr<Episodes> clone() const override;
  void reset(int row) override;
  void save(const ChosenRows& rows, float* values) const override;
  void load(const ChosenRows& rows, const float* values) override;
  void check(const ChosenRows& chosen, const void* const* inputs, void* const* outputs) const override;
  void step(const ChosenRows& rows, const void* const* inputs, void* const* outputs) override;
  const float* chosen(std::size_t output) const override { return outputs_[output]; }
  const float* unclamped(std::size_t output) const override { return outputs_[program_.unclamped(output)]; }
  float* memory() const override { return states_[side_][0]; }
  std::size_t memory_floats() const override { return state_floats_; }
  const Arena* arena() const override { return &arena_; }

 private:
  friend struct ProgramRows;

  void begin(int row);
  void plan(Planner& planner);
  std::size_t planned_bytes();
  std::size_t stride_of(std::size_t state) const;
  std::vector<float*>& current() { return states_[side_]; }
  const std::vector<float*>& current() const { return states_[side_]; }
  std::vector<float*>& next() { return states_[1 - side_]; }
  // Throws Error: an output that its type does not hold.
  void check_whole_numbers(const ChosenRows& rows) const;
  void hand_out(const ChosenRows& rows, void* const* outputs) const;
  // The next states of some rows become true; those of the others are as they were.
  void take_over(const ChosenRows& rows);
  [[noreturn]] void refuse(const ChosenRows& rows) const;

  Program& program_;
  int rows_at_once_;
  int rows_of_buffers_;  // products write whole groups of tokens
  std::vector<float*> states_[2];
  int side_ = 0;  // which of them is true
  std::size_t state_floats_ = 0;
  std::vector<float*> outputs_;  // [batch][size]
  std::vector<ProgramBuffers> threads_;
  Arena arena_;
};

}  // namespace lram
