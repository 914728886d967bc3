// Runs a program for some neighbouring rows at a time, in one thread.
#pragma once
#include "program/program_episodes.h"

namespace lram {

// From so many tokens in a batch on, products are bound by arithmetic, and are computed for groups of tokens.
constexpr int kManyTokens = 16;
inline bool by_groups(int batch, int tokens_per_row) { return batch * tokens_per_row >= kManyTokens; }

struct ProgramRows {
  ProgramRows(ProgramEpisodes& of, const ChosenRows& rows, const void* const* given, int thread, int threads)
      : episodes(of),
        program(of.program_),
        kernels(of.program_.kernels()),
        chosen(rows),
        inputs(given),
        number(thread),
        together(threads),
        own(of.threads_[static_cast<std::size_t>(thread)]),
        buffers(of.threads_[static_cast<std::size_t>(threads > 1 ? 0 : thread)]) {}

  // This thread's share of all rows.
  void run_share(int threads);
  // The only row, by all threads.
  void run_together();

 private:
  // How many rows from this one on, below `end`, lie one after the other in the memory.
  int neighbours(int row, int end) const;
  void begin(int first_row, int rows);
  void read_inputs();
  void run(const Instruction& instruction);
  void pointwise(const Instruction& instruction);
  void dense(const Instruction& instruction);
  void keep_results();
  void barrier();

  std::size_t stride(const Place& place) const { return program.buffers()[place.buffer].stride; }
  const float* at(const Place& place, int row) const {
    return buffers.bases[place.buffer] + static_cast<std::size_t>(row) * stride(place) + place.offset;
  }
  // Where results go: buffers of a step's own, which nobody else has.
  float* to(const Place& place, int row) const { return const_cast<float*>(at(place, row)); }

  ProgramEpisodes& episodes;
  Program& program;
  const Kernels& kernels;
  const ChosenRows& chosen;  // of the batch
  const void* const* inputs;
  int number;    // of the thread
  int together;  // threads that share the outputs of matrices
  ProgramBuffers& own;
  ProgramBuffers& buffers;  // with the arena that is computed in
  int first_ = 0;           // of the step's rows
  int rows_ = 0;
};

}  // namespace lram
