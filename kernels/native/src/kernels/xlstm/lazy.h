// The mLSTM memory with C in half precision: read every step, rewritten every 16 steps. What came between lies in a
// ring of keys and values, in codes of 16 bits, and is added on the fly. After each step the tiles whose turn comes
// next are rewritten, so no step is a spike, and no action waits for it.
#pragma once
#include <limits>

#include "../kernels.h"
#include "../math.h"
#include "mlstm.h"

namespace {

constexpr int kRing = lram::kLazySteps * lram::kTokens;

// q_t . k_j for every token of some slots of the ring, weighted. Those of slot `now` are in the matrices by then.
void lazy_scores(const lram::LazyMemory& m, int first_slot, int last_slot) {
  for (int slot = first_slot; slot < last_slot; ++slot) {
    const int j = slot * lram::kTokens;
    const std::int16_t* k = m.ring_k + static_cast<std::size_t>(j) * m.width;
    F acc[lram::kTokens][lram::kTokens];
    for (auto& of_token : acc)
      for (F& a : of_token) a = set(0.0F);
    const float* weights = m.ring_weights + j;
    const bool used = slot != m.now && (weights[0] != 0 || weights[1] != 0 || weights[2] != 0);
    for (int i = 0; used && i < m.width; i += kWidth) {
      if (i % 32 == 0)
        for (int n = 0; n < lram::kTokens; ++n) prefetch(k + (lram::kTokens + n) * m.width + i);
      F key[lram::kTokens];
      for (int n = 0; n < lram::kTokens; ++n) key[n] = load_short(k + n * m.width + i);
      for (int t = 0; t < lram::kTokens; ++t) {
        const F q = load(m.q + t * m.stride + i);
        for (int n = 0; n < lram::kTokens; ++n) acc[t][n] = fma(q, key[n], acc[t][n]);
      }
    }
    for (int t = 0; t < lram::kTokens; ++t)
      for (int n = 0; n < lram::kTokens; ++n)
        m.scores[t * kRing + j + n] = used ? sum(acc[t][n]) * weights[n] * m.key_scales[j + n] : 0.0F;
  }
}

constexpr float kLargestCode = 32767;

// Some values as codes of 16 bits, and their scale: four bits more than halves have, of values that are alike.
LRAM_INLINE float to_codes(const float* x, int count, std::int16_t* codes) {
  F peak = set(0.0F);
  for (int i = 0; i < count; i += kWidth) peak = vmax(peak, vabs(load(x + i)));
  const float scale = largest(peak) * (1.0F / kLargestCode);
  const F inverse = set(scale < std::numeric_limits<float>::min() ? 0.0F : 1.0F / scale);
  for (int i = 0; i < count; i += kWidth) store_short(codes + i, load(x + i) * inverse);
  return scale;
}

// What no element of a tile exceeds once it is rewritten: searching the peak would take a pass of its own. Halves have
// an exponent of their own, so a bound that is far too large costs no accuracy but that of what is 2^24 times smaller.
LRAM_INLINE float bound_of(const lram::LazyMemory& m, int tile) {
  float bound = m.tile_peaks[tile] * m.phase_decay[m.now];
  const float* value_scales = m.value_scales + static_cast<std::size_t>(tile) * kRing;
  for (int j = 0; j < kRing; ++j)  // what has no weight may be anything
    if (m.ring_weights[j] != 0)
      bound += m.ring_weights[j] * (kLargestCode * m.key_scales[j]) * (kLargestCode * value_scales[j]);
  return bound;
}

// Rewrites a tile in one pass: decayed, plus all that the ring holds, in half precision with a power of two as scale.
template <int V>
LRAM_INLINE void flush_tile(const lram::LazyMemory& m, int tile, int column) {
  constexpr int columns = V * kWidth;
  constexpr int kRows = 4;
  constexpr int kAtOnce = V < 2 ? V : 2;  // eight sums at once hide the latency of a multiplication
  const std::int16_t* ring_values = m.ring_v + static_cast<std::size_t>(column) * kRing;
  const float* value_scales = m.value_scales + static_cast<std::size_t>(tile) * kRing;
  std::uint16_t* C = m.C + static_cast<std::size_t>(column) * m.width;
  float& scale = m.tile_scales[tile];
  const float next = lram::half_scale(bound_of(m, tile));
  const bool empty = scale == 0;
  const F decay = set(scale * m.phase_decay[m.now]);
  m.tile_peaks[tile] = 0;
  scale = next;
  if (next == 0) return;
  float values[kRing * columns];  // weighted
  float keys[kRing * 16];         // of some rows
  int tokens[kRing];              // that have any weight
  int count = 0;
  for (int j = 0; j < kRing; ++j) {
    if (m.ring_weights[j] == 0) continue;
    const F weight = set(m.ring_weights[j] * m.key_scales[j] * value_scales[j]);
    for (int i = 0; i < columns; i += kWidth)
      store(values + count * columns + i, load_short(ring_values + j * columns + i) * weight);
    tokens[count++] = j;
  }
  const F inverse = set(1.0F / next);
  F peak = set(0.0F);
  for (int i = 0; i < m.width; i += kRows, C += kRows * columns) {
    if (i % 16 == 0)
      for (int j = 0; j < count; ++j)
        for (int e = 0; e < 16; e += kWidth)
          store(keys + j * 16 + e, load_short(m.ring_k + static_cast<std::size_t>(tokens[j]) * m.width + i + e));
    for (int r = 0; r < columns; r += kAtOnce * kWidth) {
      F c[kRows][kAtOnce];
      for (int e = 0; e < kRows; ++e)
        for (int a = 0; a < kAtOnce; ++a)
          c[e][a] = empty ? set(0.0F) : decay * load_half(C + e * columns + r + a * kWidth);
      const float* k = keys + i % 16;
      const float* value = values + r;
      for (int j = 0; j < count; ++j, k += 16, value += columns) {
        F v[kAtOnce];
        for (int a = 0; a < kAtOnce; ++a) v[a] = load(value + a * kWidth);
        for (int e = 0; e < kRows; ++e)
          for (int a = 0; a < kAtOnce; ++a) c[e][a] = fma(v[a], set(k[e]), c[e][a]);
      }
      for (int e = 0; e < kRows; ++e)
        for (int a = 0; a < kAtOnce; ++a) {
          peak = vmax(peak, vabs(c[e][a]));
          store_half(C + e * columns + r + a * kWidth, c[e][a] * inverse);
        }
    }
  }
  m.tile_peaks[tile] = largest(peak);
}

// Products of the queries with `Tiles` neighbouring tiles as they lie: [Tiles][3][V * kWidth]. On the way it prefetches
// the tiles' part of the ring, which is read next. Not inlined: it needs every register.
template <int V, int Tiles>
__attribute__((noinline)) void query_tiles(const lram::LazyMemory& m, const std::uint16_t* C,
                                           const std::int16_t* ring_values, float* products) {
  constexpr int columns = V * kWidth;
  const std::size_t tile_size = static_cast<std::size_t>(columns) * m.width;
  F acc[Tiles][lram::kTokens][V];
  for (auto& tile : acc)
    for (auto& token : tile)
      for (F& a : token) a = set(0.0F);
  const float* q = m.q;
  for (int i = 0; i < m.width; ++i, C += columns, ++q) {
    if (i < Tiles * kRing * columns / 32) prefetch(ring_values + 32 * i);
    for (int tile = 0; tile < Tiles; ++tile) {
      const std::uint16_t* row = C + tile * tile_size;
      for (int byte = 0; byte < columns * 2; byte += 64) prefetch(reinterpret_cast<const char*>(row) + kAhead + byte);
      for (int r = 0; r < V; ++r) {
        const F c = load_half(row + r * kWidth);
        for (int t = 0; t < lram::kTokens; ++t) acc[tile][t][r] = fma(c, set(q[t * m.stride]), acc[tile][t][r]);
      }
    }
  }
  for (auto& tile : acc)
    for (auto& token : tile)
      for (const F& a : token) {
        store(products, a);
        products += kWidth;
      }
}

// Hidden states of a tile's columns, from its products with the queries, the ring, and this step's own tokens.
template <int V>
LRAM_INLINE void hidden_tile(const lram::LazyMemory& m, const Scores& s, const float* scores, const float* products,
                             int tile, int column) {
  constexpr int columns = V * kWidth;
  const int phase = lram::lazy_phase(m.block, tile, m.tiles);
  const float scale = m.tile_scales[tile];
  const float decay = phase == m.now ? scale : scale * m.phase_decay[phase];
  F acc[lram::kTokens][V];
  for (int t = 0; t < lram::kTokens; ++t)
    for (int r = 0; r < V; ++r)  // what lies in a tile of scale 0 may be anything
      acc[t][r] = scale == 0 ? set(0.0F) : load(products + t * columns + r * kWidth) * set(decay * m.chunk.decay[t]);
  const std::int16_t* ring_values = m.ring_v + static_cast<std::size_t>(column) * kRing;
  const float* value_scales = m.value_scales + static_cast<std::size_t>(tile) * kRing;
  const int age = (m.now - phase + lram::kLazySteps) % lram::kLazySteps;
  for (int a = age < m.held ? age : m.held; a > 0; --a) {
    const int j = (m.now - a + lram::kLazySteps) % lram::kLazySteps * lram::kTokens;
    for (int n = 0; n < lram::kTokens; ++n) {
      F weights[lram::kTokens];
      for (int t = 0; t < lram::kTokens; ++t) weights[t] = set(scores[t * kRing + j + n] * value_scales[j + n]);
      for (int r = 0; r < V; ++r) {
        const F v = load_short(ring_values + (j + n) * columns + r * kWidth);
        for (int t = 0; t < lram::kTokens; ++t) acc[t][r] = fma(v, weights[t], acc[t][r]);
      }
    }
  }
  for (int t = 0; t < lram::kTokens; ++t)
    for (int r = 0; r < V; ++r) {
      const int at = column + r * kWidth;
      for (int j = 0; j <= t; ++j) acc[t][r] = fma(load(m.v + j * m.stride + at), set(s.weighted[t][j]), acc[t][r]);
      store(m.h + t * m.stride + at, acc[t][r] * set(s.inverse_normalizer[t]));
    }
}

// This step's values into a tile of the ring.
template <int V>
LRAM_INLINE void keep_values(const lram::LazyMemory& m, int tile, int column) {
  constexpr int columns = V * kWidth;
  std::int16_t* ring_values = m.ring_v + static_cast<std::size_t>(column) * kRing;
  for (int t = 0; t < lram::kTokens; ++t) {
    const int j = m.now * lram::kTokens + t;
    m.value_scales[static_cast<std::size_t>(tile) * kRing + j] =
        to_codes(m.v + t * m.stride + column, columns, ring_values + j * columns);
  }
}

// `Tiles` neighbouring tiles; C points to the first.
template <int V, int Tiles>
LRAM_INLINE void lazy_tiles(const lram::LazyMemory& m, const Scores& s, const float* scores, std::uint16_t* C, int tile,
                            int column) {
  constexpr int columns = V * kWidth;
  const std::int16_t* ring_values = m.ring_v + static_cast<std::size_t>(column) * kRing;
  float products[Tiles * lram::kTokens * columns];
  query_tiles<V, Tiles>(m, C, ring_values, products);
  for (int i = 0; i < Tiles; ++i) {
    hidden_tile<V>(m, s, scores, products + i * lram::kTokens * columns, tile + i, column + i * columns);
    keep_values<V>(m, tile + i, column + i * columns);
  }
}

void lazy_memory(const lram::LazyMemory& m) {
  constexpr int columns = kMemoryVectors * kWidth;
  const auto width = static_cast<std::size_t>(m.width);
  const Scores s = score(m.chunk, m.width, m.q, m.k, m.stride, m.n, m.fresh);
  float* scores = m.scratch;  // as each token sees them
  for (int t = 0; t < lram::kTokens; ++t)
    for (int j = 0; j < kRing; ++j) scores[t * kRing + j] = m.scores[t * kRing + j] * m.chunk.decay[t];
  const int whole = m.last_tile < m.width / columns ? m.last_tile : m.width / columns;
  int tile = m.first_tile;
  int column = column_of(tile, m.width);
  for (; tile + kTilesRead <= whole; column += kTilesRead * columns, tile += kTilesRead)
    lazy_tiles<kMemoryVectors, kTilesRead>(m, s, scores, m.C + column * width, tile, column);
  for (; tile < whole; column += columns, ++tile)
    lazy_tiles<kMemoryVectors, 1>(m, s, scores, m.C + column * width, tile, column);
  for (; tile < m.last_tile; column += 16, ++tile)
    lazy_tiles<16 / kWidth, 1>(m, s, scores, m.C + column * width, tile, column);
}

void lazy_keep(const lram::LazyMemory& m) {
  m.phase_decay[m.now] = 1;
  for (int phase = 0; phase < lram::kLazySteps; ++phase) m.phase_decay[phase] *= m.chunk.decay[2];
  for (int j = 0; j < kRing; ++j) m.ring_weights[j] *= m.chunk.decay[2];
  for (int t = 0; t < lram::kTokens; ++t) {
    const int j = m.now * lram::kTokens + t;
    m.ring_weights[j] = m.chunk.weight[2][t];
    m.key_scales[j] = to_codes(m.k + t * m.stride, m.width, m.ring_k + static_cast<std::size_t>(j) * m.width);
  }
}

void lazy_flush(const lram::LazyMemory& m) {
  const int whole = m.width / (kMemoryVectors * kWidth);
  for (int tile = m.first_tile; tile < m.last_tile; ++tile)
    if (tile < whole)
      flush_tile<kMemoryVectors>(m, tile, column_of(tile, m.width));
    else
      flush_tile<16 / kWidth>(m, tile, column_of(tile, m.width));
}

}  // namespace
