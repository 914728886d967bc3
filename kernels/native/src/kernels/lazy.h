// The mLSTM memory with C in half precision: read every step, rewritten every 16 steps. What came between lies in a
// ring of keys and values and is added on the fly. Each step rewrites the tiles whose turn it is, so no step is a
// spike.
#pragma once
#include "kernels.h"
#include "math.h"
#include "mlstm.h"

namespace {

constexpr int kRing = lram::kLazySteps * lram::kTokens;

// q_t . k_j for every token of the ring, weighted: scores[3][kRing]
LRAM_INLINE void ring_scores(const lram::LazyMemory& m, float* scores) {
  for (int slot = 0; slot < lram::kLazySteps; ++slot) {
    const int j = slot * lram::kTokens;
    const float* k = m.ring_k + static_cast<std::size_t>(j) * m.width;
    F acc[lram::kTokens][lram::kTokens];
    for (auto& of_token : acc)
      for (F& a : of_token) a = set(0.0F);
    bool used = false;
    for (int t = 0; t < lram::kTokens; ++t)
      for (int i = 0; i < lram::kTokens; ++i) used = used || m.ring_weights[t][j + i] != 0;
    for (int i = 0; used && i < m.width; i += kWidth) {
      F key[lram::kTokens];
      for (int n = 0; n < lram::kTokens; ++n) key[n] = load(k + n * m.width + i);
      for (int t = 0; t < lram::kTokens; ++t) {
        const F q = load(m.q + t * m.stride + i);
        for (int n = 0; n < lram::kTokens; ++n) acc[t][n] = fma(q, key[n], acc[t][n]);
      }
    }
    for (int t = 0; t < lram::kTokens; ++t)
      for (int n = 0; n < lram::kTokens; ++n)
        scores[t * kRing + j + n] = used ? sum(acc[t][n]) * m.ring_weights[t][j + n] : 0.0F;
  }
}

// Rewrites a tile: decayed, plus all that the ring holds, in half precision with a power of two as scale.
template <int V>
LRAM_INLINE void flush_tile(const lram::LazyMemory& m, std::uint16_t* C, float* scale, int column, float* scratch) {
  constexpr int columns = V * kWidth;
  constexpr int kRows = 4;
  float* values = scratch;                                       // [kRing][columns], weighted
  float* rewritten = scratch + static_cast<std::size_t>(kRing) * columns;  // [width][columns]
  for (int j = 0; j < kRing; ++j)
    for (int r = 0; r < V; ++r) {
      const F v = m.flush_weights[j] == 0 ? set(0.0F) : load(m.ring_v + static_cast<std::size_t>(j) * m.width + column + r * kWidth);
      store(values + j * columns + r * kWidth, v * set(m.flush_weights[j]));
    }
  const F decay = set(*scale * m.flush_decay);
  const bool empty = *scale == 0;
  F peak = set(0.0F);
  for (int i = 0; i < m.width; i += kRows) {
    for (int r = 0; r < V; ++r) {
      F c[kRows];
      for (int e = 0; e < kRows; ++e)
        c[e] = empty ? set(0.0F) : decay * load_half(C + (i + e) * columns + r * kWidth);
      for (int j = 0; j < kRing; ++j) {
        if (m.flush_weights[j] == 0) continue;
        const F v = load(values + j * columns + r * kWidth);
        const float* k = m.ring_k + static_cast<std::size_t>(j) * m.width + i;
        for (int e = 0; e < kRows; ++e) c[e] = fma(v, set(k[e]), c[e]);
      }
      for (int e = 0; e < kRows; ++e) {
        peak = vmax(peak, vabs(c[e]));
        store(rewritten + (i + e) * columns + r * kWidth, c[e]);
      }
    }
  }
  *scale = lram::half_scale(largest(peak));
  if (*scale == 0) return;
  const F inverse = set(1.0F / *scale);
  for (int i = 0; i < m.width * columns; i += kWidth) store_half(C + i, load(rewritten + i) * inverse);
}

template <int V>
LRAM_INLINE void lazy_tile(const lram::LazyMemory& m, const Scores& s, const float* scores, std::uint16_t* C, int tile,
                           int column) {
  constexpr int columns = V * kWidth;
  float* scale = m.tile_scales + tile;
  const int phase = lram::lazy_phase(m.block, tile, m.tiles);
  if (phase == m.now) flush_tile<V>(m, C, scale, column, m.scratch + 2 * lram::kTokens * kRing);
  F acc[lram::kTokens][V];
  for (auto& token : acc)
    for (F& a : token) a = set(0.0F);
  if (*scale != 0) {
    for (int i = 0; i < m.width; ++i) {
      const std::uint16_t* row = C + i * columns;
      for (int byte = 0; byte < columns * 2; byte += 64) prefetch(reinterpret_cast<const char*>(row) + kAhead + byte);
      for (int r = 0; r < V; ++r) {
        const F c = load_half(row + r * kWidth);
        for (int t = 0; t < lram::kTokens; ++t) acc[t][r] = fma(c, set(m.q[t * m.stride + i]), acc[t][r]);
      }
    }
    for (int t = 0; t < lram::kTokens; ++t)
      for (int r = 0; r < V; ++r) acc[t][r] = acc[t][r] * set(*scale * m.phase_decay[phase][t]);
  }
  const int age = (m.now - phase + lram::kLazySteps) % lram::kLazySteps;
  for (int a = age < m.held ? age : m.held; a > 0; --a) {
    const int j = (m.now - a + lram::kLazySteps) % lram::kLazySteps * lram::kTokens;
    for (int n = 0; n < lram::kTokens; ++n)
      for (int r = 0; r < V; ++r) {
        const F v = load(m.ring_v + static_cast<std::size_t>(j + n) * m.width + column + r * kWidth);
        for (int t = 0; t < lram::kTokens; ++t) acc[t][r] = fma(v, set(scores[t * kRing + j + n]), acc[t][r]);
      }
  }
  for (int t = 0; t < lram::kTokens; ++t)
    for (int r = 0; r < V; ++r) {
      const int at = column + r * kWidth;
      for (int j = 0; j <= t; ++j) acc[t][r] = fma(load(m.v + j * m.stride + at), set(s.weighted[t][j]), acc[t][r]);
      store(m.h + t * m.stride + at, acc[t][r] * set(s.inverse_normalizer[t]));
    }
}

void lazy_memory(const lram::LazyMemory& m) {
  constexpr int columns = kMemoryVectors * kWidth;
  const Scores s = score(m.chunk, m.width, m.q, m.k, m.stride, m.n, m.fresh);
  float* scores = m.scratch;
  ring_scores(m, scores);
  std::uint16_t* C = m.C;
  int tile = 0;
  int column = 0;
  for (; column + columns <= m.width; column += columns, ++tile, C += static_cast<std::size_t>(columns) * m.width)
    lazy_tile<kMemoryVectors>(m, s, scores, C, tile, column);
  for (; column < m.width; column += 16, ++tile, C += static_cast<std::size_t>(16) * m.width)
    lazy_tile<16 / kWidth>(m, s, scores, C, tile, column);
  for (int t = 0; t < lram::kTokens; ++t) {
    const std::size_t to = static_cast<std::size_t>(m.now * lram::kTokens + t) * m.width;
    for (int i = 0; i < m.width; i += kWidth) {
      store(m.ring_k + to + i, load(m.k + t * m.stride + i));
      store(m.ring_v + to + i, load(m.v + t * m.stride + i));
    }
  }
}

}  // namespace
