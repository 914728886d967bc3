#include "lazy_memory.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "half.h"

namespace lram::xlstm {
namespace {

int before(int slot, int steps) { return (slot - steps + kLazySteps) % kLazySteps; }

}  // namespace

int count_tiles(int width, int columns) { return width / columns + width % columns / 16; }

int most_due(int tiles) { return (tiles + kLazySteps - 1) / kLazySteps; }

LazyBlock plan_lazy(Planner& planner, std::size_t cells, int width, int columns) {
  const auto w = static_cast<std::size_t>(width);
  LazyBlock block = {};
  block.C = planner.take<std::uint16_t>(cells * w * w);
  const auto tiles = static_cast<std::size_t>(count_tiles(width, columns));
  block.tile_scales = planner.take<float>(cells * tiles);
  block.tile_peaks = planner.take<float>(cells * tiles);
  block.ring_k = planner.take<std::int16_t>(cells * kLazyTokens * w);
  block.ring_v = planner.take<std::int16_t>(cells * kLazyTokens * w);
  block.key_scales = planner.take<float>(cells * kLazyTokens);
  block.value_scales = planner.take<float>(cells * kLazyTokens * tiles);
  block.ring_weights = planner.take<float>(cells * kLazyTokens);
  block.phase_decay = planner.take<float>(cells * kLazySteps);
  block.steps = planner.take<std::int32_t>(cells);
  block.flushed = planner.take<std::int32_t>(cells * static_cast<std::size_t>(most_due(count_tiles(width, columns))));
  return block;
}

LazyCell::LazyCell(const LazyBlock& block, int number, int cell, int width, int columns)
    : number_(number), width_(width), columns_(columns), tiles_(count_tiles(width, columns)) {
  const auto at = static_cast<std::size_t>(cell);
  const auto w = static_cast<std::size_t>(width);
  const auto tiles = static_cast<std::size_t>(tiles_);
  C_ = block.C + at * w * w;
  scales_ = block.tile_scales + at * tiles;
  peaks_ = block.tile_peaks + at * tiles;
  ring_k_ = block.ring_k + at * kLazyTokens * w;
  ring_v_ = block.ring_v + at * kLazyTokens * w;
  key_scales_ = block.key_scales + at * kLazyTokens;
  value_scales_ = block.value_scales + at * kLazyTokens * tiles;
  ring_weights_ = block.ring_weights + at * kLazyTokens;
  phase_decay_ = block.phase_decay + at * kLazySteps;
  steps_ = block.steps + at;
  flushed_ = block.flushed + at * static_cast<std::size_t>(most_due(tiles_));
}

Range LazyCell::due() const {
  const int phase = (now() - number_ % kLazySteps + kLazySteps) % kLazySteps;  // of a block 0
  const auto before = [&](int later) { return (later * tiles_ + kLazySteps - 1) / kLazySteps; };
  return {before(phase), before(phase + 1)};
}

void LazyCell::reset() {
  std::fill_n(scales_, tiles_, 0.0F);
  std::fill_n(peaks_, tiles_, 0.0F);
  std::fill_n(ring_weights_, kLazyTokens, 0.0F);
  std::fill_n(phase_decay_, kLazySteps, 1.0F);
  *steps_ = 0;
  std::fill_n(flushed_, most_due(tiles_), 1);  // there is nothing to add to anything
}

void LazyCell::load(const float* matrix) {
  reset();
  const auto value = [&](int row, int column) { return matrix[row * width_ + column]; };
  for_each_tiled(width_, columns_, [&](int row, int column, std::size_t, int tile) {
    peaks_[tile] = std::max(peaks_[tile], std::fabs(value(row, column)));
  });
  for (int tile = 0; tile < tiles_; ++tile) scales_[tile] = half_scale(peaks_[tile]);
  for_each_tiled(width_, columns_, [&](int row, int column, std::size_t position, int tile) {
    C_[position] = scales_[tile] == 0 ? std::uint16_t{0} : float_to_half(value(row, column) / scales_[tile]);
  });
}

void LazyCell::save(float* matrix) const {
  for (int tile = 0, first = 0; tile < tiles_; ++tile) {
    const int last = first + (first + columns_ <= width_ ? columns_ : 16);
    const int phase = lazy_phase(number_, tile, tiles_);
    const bool flushed = phase == now() && flushed_[tile - due().begin] != 0;
    const int age = phase == now() && !flushed ? kLazySteps : before(now(), phase);
    std::vector<int> pending;  // tokens that are not in the tile yet
    for (int a = std::min(age, held()); a > 0; --a)
      for (int n = 0; n < kTokens; ++n) {
        const int j = before(now(), a) * kTokens + n;
        if (ring_weights_[j] != 0) pending.push_back(j);
      }
    const float decay = flushed ? scales_[tile] : scales_[tile] * phase_decay_[phase];
    const std::int16_t* values = ring_v_ + first * kLazyTokens;
    const auto weight = [&](int j) {
      return ring_weights_[j] * key_scales_[j] * value_scales_[tile * kLazyTokens + j];
    };
    const std::uint16_t* halves = C_ + static_cast<std::size_t>(first) * static_cast<std::size_t>(width_);
    for (int row = 0; row < width_; ++row)
      for (int column = first; column < last; ++column) {
        float c = scales_[tile] == 0 ? 0.0F : decay * half_to_float(*halves);
        ++halves;
        for (const int j : pending)
          c += weight(j) * static_cast<float>(ring_k_[j * width_ + row]) *
               static_cast<float>(values[j * (last - first) + column - first]);
        matrix[row * width_ + column] = c;
      }
    first = last;
  }
}

void LazyCell::fill(LazyMemory& memory) const {
  memory.width = width_;
  memory.block = number_;
  memory.tiles = tiles_;
  memory.now = now();
  memory.held = held();
  memory.C = C_;
  memory.tile_scales = scales_;
  memory.tile_peaks = peaks_;
  memory.phase_decay = phase_decay_;
  memory.ring_weights = ring_weights_;
  memory.ring_k = ring_k_;
  memory.ring_v = ring_v_;
  memory.key_scales = key_scales_;
  memory.value_scales = value_scales_;
}

void LazyCell::flush(const Kernels& kernels, int number) const {
  const int tile = due().begin + number;
  if (tile >= due().end || flushed_[number] != 0) return;
  LazyMemory memory = {};
  fill(memory);
  memory.first_tile = tile;
  memory.last_tile = tile + 1;
  kernels.xlstm.lazy_flush(memory);
  flushed_[number] = 1;
}

void LazyCell::score(const Kernels& kernels, LazyMemory& memory, Range slots) const {
  fill(memory);
  kernels.xlstm.lazy_scores(memory, slots.begin, slots.end);
}

void LazyCell::read(const Kernels& kernels, LazyMemory& memory, Range tiles) const {
  for (int tile = std::max(due().begin, tiles.begin); tile < std::min(due().end, tiles.end); ++tile)
    flush(kernels, tile - due().begin);
  fill(memory);
  memory.first_tile = tiles.begin;
  memory.last_tile = tiles.end;
  kernels.xlstm.lazy_memory(memory);
}

void LazyCell::keep(const Kernels& kernels, LazyMemory& memory) const {
  fill(memory);
  kernels.xlstm.lazy_keep(memory);
  *steps_ = *steps_ + 1 < 2 * kLazySteps ? *steps_ + 1 : kLazySteps;
  std::fill_n(flushed_, most_due(tiles_), 0);
}

}  // namespace lram::xlstm
