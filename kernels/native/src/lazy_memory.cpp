#include "lazy_memory.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "half.h"

namespace lram {
namespace {

int before(int slot, int steps) { return (slot - steps + kLazySteps) % kLazySteps; }

}  // namespace

int count_tiles(int width, int columns) { return width / columns + width % columns / 16; }

LazyBlock plan_lazy(Planner& planner, std::size_t cells, int width, int columns) {
  const auto w = static_cast<std::size_t>(width);
  LazyBlock block = {};
  block.C = planner.take<std::uint16_t>(cells * w * w);
  block.tile_scales = planner.take<float>(cells * static_cast<std::size_t>(count_tiles(width, columns)));
  block.ring_k = planner.take<float>(cells * kLazyTokens * w);
  block.ring_v = planner.take<float>(cells * kLazyTokens * w);
  block.ring_log_forget = planner.take<float>(cells * kLazyTokens);
  block.ring_input = planner.take<float>(cells * kLazyTokens);
  block.m_before = planner.take<float>(cells * kLazySteps);
  block.m_start = planner.take<float>(cells);
  block.steps = planner.take<std::int32_t>(cells);
  return block;
}

LazyCell::LazyCell(const LazyBlock& block, int number, int cell, int width, int columns)
    : number_(number), width_(width), columns_(columns), tiles_(count_tiles(width, columns)) {
  const auto at = static_cast<std::size_t>(cell);
  const auto w = static_cast<std::size_t>(width);
  C_ = block.C + at * w * w;
  scales_ = block.tile_scales + at * static_cast<std::size_t>(tiles_);
  ring_k_ = block.ring_k + at * kLazyTokens * w;
  ring_v_ = block.ring_v + at * kLazyTokens * w;
  ring_log_forget_ = block.ring_log_forget + at * kLazyTokens;
  ring_input_ = block.ring_input + at * kLazyTokens;
  m_before_ = block.m_before + at * kLazySteps;
  m_start_ = block.m_start + at;
  steps_ = block.steps + at;
}

void LazyCell::reset() {
  std::fill_n(scales_, tiles_, 0.0F);
  *m_start_ = 0;
  *steps_ = 0;
}

void LazyCell::load(const float* matrix, float m) {
  reset();
  *m_start_ = m;
  std::vector<float> peaks(static_cast<std::size_t>(tiles_), 0.0F);
  const auto value = [&](int row, int column) { return matrix[row * width_ + column]; };
  for_each_tiled(width_, columns_, [&](int row, int column, std::size_t, int tile) {
    float& peak = peaks[static_cast<std::size_t>(tile)];
    peak = std::max(peak, std::fabs(value(row, column)));
  });
  for (int tile = 0; tile < tiles_; ++tile) scales_[tile] = half_scale(peaks[static_cast<std::size_t>(tile)]);
  for_each_tiled(width_, columns_, [&](int row, int column, std::size_t position, int tile) {
    C_[position] = scales_[tile] == 0 ? std::uint16_t{0} : float_to_half(value(row, column) / scales_[tile]);
  });
}

void LazyCell::save(float* matrix, const float* m) const {
  for (int tile = 0, first = 0; tile < tiles_; ++tile) {
    const int last = first + (first + columns_ <= width_ ? columns_ : 16);
    const int phase = lazy_phase(number_, tile, tiles_);
    int age = before(now(), phase);
    if (age == 0) age = kLazySteps;
    const int pending = std::min(age, held());
    std::vector<float> weights(kLazyTokens, 0.0F);
    float since = 0;
    for (int a = 1; a <= pending; ++a)
      for (int n = kTokens - 1; n >= 0; --n) {
        const int j = before(now(), a) * kTokens + n;
        weights[static_cast<std::size_t>(j)] = std::exp(since + ring_input_[j] - *m);
        since += ring_log_forget_[j];
      }
    const float decay = scales_[tile] * std::exp(since + base_m(phase, age) - *m);
    const std::uint16_t* halves = C_ + static_cast<std::size_t>(first) * static_cast<std::size_t>(width_);
    for (int row = 0; row < width_; ++row)
      for (int column = first; column < last; ++column) {
        float c = scales_[tile] == 0 ? 0.0F : decay * half_to_float(*halves);
        ++halves;
        for (int j = 0; j < kLazyTokens; ++j)
          if (weights[static_cast<std::size_t>(j)] != 0)
            c += weights[static_cast<std::size_t>(j)] * ring_k_[j * width_ + row] * ring_v_[j * width_ + column];
        matrix[row * width_ + column] = c;
      }
    first = last;
  }
}

void LazyCell::step(const Kernels& kernels, LazyMemory& memory, const float* log_forget, const float* input,
                    float m_before, const float* m_after) {
  memory.width = width_;
  memory.block = number_;
  memory.tiles = tiles_;
  memory.now = now();
  memory.held = held();
  memory.C = C_;
  memory.tile_scales = scales_;
  memory.ring_k = ring_k_;
  memory.ring_v = ring_v_;

  float until[kTokens];  // log decay from the end of the last step to a token of this one
  for (int t = 0; t < kTokens; ++t) until[t] = (t == 0 ? 0.0F : until[t - 1]) + log_forget[t];
  std::fill_n(memory.flush_weights, kLazyTokens, 0.0F);
  for (auto& weights : memory.ring_weights) std::fill_n(weights, kLazyTokens, 0.0F);
  for (int t = 0; t < kTokens; ++t) memory.phase_decay[now()][t] = memory.chunk.decay[t];

  float since = 0;  // log decay from after a ring token to the end of the last step
  for (int age = 1; age < kLazySteps + 1; ++age) {
    const int slot = before(now(), age);
    if (age <= held()) {
      for (int n = kTokens - 1; n >= 0; --n) {
        const int j = slot * kTokens + n;
        memory.flush_weights[j] = std::exp(since + ring_input_[j] - m_before);
        for (int t = 0; t < kTokens && age < kLazySteps; ++t)
          memory.ring_weights[t][j] = std::exp(since + until[t] + ring_input_[j] - m_after[t]);
        since += ring_log_forget_[j];
      }
    }
    const float base = base_m(slot, age);
    if (age == kLazySteps)
      memory.flush_decay = std::exp(since + base - m_before);
    else
      for (int t = 0; t < kTokens; ++t) memory.phase_decay[slot][t] = std::exp(since + until[t] + base - m_after[t]);
  }

  kernels.lazy_memory(memory);

  for (int t = 0; t < kTokens; ++t) {
    ring_log_forget_[now() * kTokens + t] = log_forget[t];
    ring_input_[now() * kTokens + t] = input[t];
  }
  m_before_[now()] = m_before;
  *steps_ = *steps_ + 1 < 2 * kLazySteps ? *steps_ + 1 : kLazySteps;
}

}  // namespace lram
