// States whose large matrices are kept in half precision and rewritten every 16 steps: the bookkeeping around the
// kernels `lazy_memory` and `lazy_flush`. A cell is one head of one row of the batch.
#pragma once
#include <cstddef>
#include <cstdint>

#include "arena.h"
#include "kernels/kernels.h"
#include "step.h"

namespace lram::xlstm {

// One mLSTM block; all arrays start with the cells.
struct LazyBlock {
  std::uint16_t* C;
  float* tile_scales;
  float* tile_peaks;
  std::int16_t* ring_k;
  std::int16_t* ring_v;
  float* key_scales;
  float* value_scales;
  float* ring_weights;    // [kLazyTokens], relative to m as everything is
  float* phase_decay;     // [kLazySteps]
  std::int32_t* steps;    // since the matrices were set; from 16 on only modulo 16, and never below 16
  std::int32_t* flushed;  // [most_due()]: 1: a tile that has to be rewritten before the next step has been
};

// Visits every element of a matrix in column tiles: `visit(row, column, position, tile)`.
template <class Visit>
void for_each_tiled(int width, int columns, Visit visit) {
  std::size_t position = 0;
  int tile = 0;
  for (int column = 0; column < width; ++tile) {
    const int size = column + columns <= width ? columns : 16;
    for (int row = 0; row < width; ++row)
      for (int i = 0; i < size; ++i) visit(row, column + i, position++, tile);
    column += size;
  }
}

int count_tiles(int width, int columns);
// The most of so many tiles that have to be rewritten before a step.
int most_due(int tiles);

LazyBlock plan_lazy(Planner& planner, std::size_t cells, int width, int columns);

// One cell of a block, in a matrix of `width`, with tiles of `columns`.
class LazyCell {
 public:
  LazyCell(const LazyBlock& block, int number, int cell, int width, int columns);

  void reset();                    // to 0
  void load(const float* matrix);  // row by row
  void save(float* matrix) const;

  // The stages of a step. They fill in what a kernel needs beyond what the caller has set, and run it: for some slots
  // of the ring; for some tiles, when all slots have been scored; and once, when all tiles have been read: counts the
  // step.
  void score(const Kernels& kernels, LazyMemory& memory, Range slots) const;
  void read(const Kernels& kernels, LazyMemory& memory, Range tiles) const;
  void keep(const Kernels& kernels, LazyMemory& memory) const;
  // Rewrites the tile of this number, below most_due(), of those that the next step wants to be rewritten; nothing if
  // there is none, or that has been done. A step does it, too.
  void flush(const Kernels& kernels, int number) const;

 private:
  int held() const { return *steps_ < kLazySteps ? *steps_ : kLazySteps; }
  int now() const { return *steps_ % kLazySteps; }
  Range due() const;  // tiles
  void fill(LazyMemory& memory) const;

  int number_;
  int width_;
  int columns_;
  int tiles_;
  std::uint16_t* C_;
  float* scales_;
  float* peaks_;
  std::int16_t* ring_k_;
  std::int16_t* ring_v_;
  float* key_scales_;
  float* value_scales_;
  float* ring_weights_;
  float* phase_decay_;
  std::int32_t* steps_;
  std::int32_t* flushed_;  // one after the other for the tiles that are due
};

}  // namespace lram::xlstm
