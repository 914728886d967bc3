// The mLSTM block between its two large projections: q/k/v, gates, the matrix memory in float32, the gated output.
#pragma once
#include "../kernels.h"
#include "../math.h"
#include "../pointwise.h"

namespace {

LRAM_INLINE F project_fours(const float* weight, F x) {
  F y = load(weight) * spread_in_fours<0>(x);
  y = fma(load(weight + 16), spread_in_fours<1>(x), y);
  y = fma(load(weight + 32), spread_in_fours<2>(x), y);
  return fma(load(weight + 48), spread_in_fours<3>(x), y);
}

void query_key_value(const lram::QueryKeyValue& p) {
  for (int i = 0; i < p.channels; i += kWidth) {
    const float* weight = p.weight + (i / 16) * 192 + i % 16;
    for (int t = 0; t < lram::kTokens; ++t) {
      const std::size_t at = t * p.stride + i;
      const F convolved = load(p.convolved + at);
      store(p.q + at, project_fours(weight, convolved));
      store(p.k + at, project_fours(weight + 64, convolved));
      store(p.v + at, project_fours(weight + 128, load(p.x + t * p.x_stride + i)));
    }
  }
}

template <int G>
LRAM_INLINE void gate_sums_of(const lram::GateSums& g, int gate) {
  F acc[G][lram::kTokens];
  for (auto& of_gate : acc)
    for (F& a : of_gate) a = set(0.0F);
  const float* weight = g.weight + static_cast<std::size_t>(gate) * 2 * g.channels;
  for (int i = 0; i < g.channels; i += kWidth)
    for (int t = 0; t < lram::kTokens; ++t) {
      const F convolved = load(g.convolved + t * g.stride + i);
      const F x = load(g.x + t * g.x_stride + i);
      for (int j = 0; j < G; ++j) {
        const float* of_gate = weight + static_cast<std::size_t>(j) * 2 * g.channels + i;
        acc[j][t] = fma(load(of_gate), convolved, fma(load(of_gate + g.channels), x, acc[j][t]));
      }
    }
  for (int j = 0; j < G; ++j)
    for (int t = 0; t < lram::kTokens; ++t) g.sums[(gate + j) * lram::kTokens + t] = sum(acc[j][t]);
}

void gate_sums(const lram::GateSums& g) {
  int gate = 0;
  for (; gate + 4 <= g.gates; gate += 4) gate_sums_of<4>(g, gate);
  for (; gate < g.gates; ++gate) gate_sums_of<1>(g, gate);
}

// Scores q_t . k_j and q_t . n of a chunk, weighted; and the reciprocal of the normalizer.
struct Scores {
  float weighted[lram::kTokens][lram::kTokens];
  float inverse_normalizer[lram::kTokens];
};

LRAM_INLINE Scores score(const lram::ChunkWeights& chunk, int width, const float* q, const float* k, std::size_t stride,
                         const float* n, bool fresh) {
  const float* q1 = q + stride;
  const float* q2 = q1 + stride;
  const float* k1 = k + stride;
  const float* k2 = k1 + stride;
  F d00 = set(0.0F), d10 = d00, d11 = d00, d20 = d00, d21 = d00, d22 = d00, n0 = d00, n1 = d00, n2 = d00;
  for (int i = 0; i < width; i += kWidth) {
    const F a = load(q + i), b = load(q1 + i), c = load(q2 + i);
    const F x = load(k + i), y = load(k1 + i), z = load(k2 + i);
    const F old = fresh ? set(0.0F) : load(n + i);
    d00 = fma(a, x, d00);
    d10 = fma(b, x, d10);
    d11 = fma(b, y, d11);
    d20 = fma(c, x, d20);
    d21 = fma(c, y, d21);
    d22 = fma(c, z, d22);
    n0 = fma(a, old, n0);
    n1 = fma(b, old, n1);
    n2 = fma(c, old, n2);
  }
  const float raw[3][3] = {{sum(d00), 0, 0}, {sum(d10), sum(d11), 0}, {sum(d20), sum(d21), sum(d22)}};
  const float old[3] = {sum(n0), sum(n1), sum(n2)};
  Scores s;
  for (int t = 0; t < lram::kTokens; ++t) {
    float normalizer = chunk.decay[t] * old[t];
    for (int j = 0; j < lram::kTokens; ++j) {
      s.weighted[t][j] = j <= t ? raw[t][j] * chunk.weight[t][j] : 0.0F;
      normalizer += s.weighted[t][j];
    }
    const float magnitude = normalizer < 0 ? -normalizer : normalizer;
    s.inverse_normalizer[t] = 1.0F / ((magnitude <= chunk.floor[t] ? chunk.floor[t] : magnitude) + 1e-6F);
  }
  return s;
}

void normalizer(const lram::Normalizer& m) {
  for (int i = 0; i < m.width; i += kWidth) {
    F next = m.fresh ? set(0.0F) : load(m.n + i) * set(m.chunk.decay[2]);
    for (int t = 0; t < lram::kTokens; ++t) next = fma(load(m.k + t * m.stride + i), set(m.chunk.weight[2][t]), next);
    store(m.n + i, next);
  }
}

// Columns of a head in front of a tile: tiles of kMemoryVectors vectors come first, then those of 16.
LRAM_INLINE int column_of(int tile, int width) {
  constexpr int columns = kMemoryVectors * kWidth;
  const int whole = width / columns;
  return tile < whole ? tile * columns : whole * columns + (tile - whole) * 16;
}

// One tile of V * kWidth columns of C: read once, multiplied with three queries, decayed, updated, written.
template <int V, bool Fresh>
LRAM_INLINE void memory_tile(const lram::Memory& m, const Scores& s, float* C, int column) {
  F v[lram::kTokens][V];
  F acc[lram::kTokens][V];
  for (int t = 0; t < lram::kTokens; ++t)
    for (int r = 0; r < V; ++r) {
      v[t][r] = load(m.v + t * m.stride + column + r * kWidth);
      acc[t][r] = set(0.0F);
    }
  const F decay = set(m.chunk.decay[2]);
  for (int i = 0; i < m.width; ++i, C += V * kWidth) {
    const float* of_row = m.scratch + 8 * i;  // three queries, three weighted keys
    for (int byte = 0; byte < V * kWidth * 4; byte += 64) prefetch(reinterpret_cast<const char*>(C) + kAhead + byte);
    for (int r = 0; r < V; ++r) {
      F c = set(0.0F);
      if (!Fresh) {
        c = load(C + r * kWidth);
        for (int t = 0; t < lram::kTokens; ++t) acc[t][r] = fma(c, set(of_row[t]), acc[t][r]);
        c = c * decay;
      }
      for (int t = 0; t < lram::kTokens; ++t) c = fma(v[t][r], set(of_row[4 + t]), c);
      store(C + r * kWidth, c);
    }
  }
  for (int t = 0; t < lram::kTokens; ++t)
    for (int r = 0; r < V; ++r) {
      F h = acc[t][r] * set(m.chunk.decay[t]);
      for (int j = 0; j <= t; ++j) h = fma(v[j][r], set(s.weighted[t][j]), h);
      store(m.h + t * m.stride + column + r * kWidth, h * set(s.inverse_normalizer[t]));
    }
}

template <bool Fresh>
LRAM_INLINE void memory_tiles(const lram::Memory& m, const Scores& s) {
  const int whole = m.width / (kMemoryVectors * kWidth);
  for (int tile = m.first_tile; tile < m.last_tile; ++tile) {
    const int column = column_of(tile, m.width);
    float* C = m.C + static_cast<std::size_t>(column) * m.width;
    if (tile < whole)
      memory_tile<kMemoryVectors, Fresh>(m, s, C, column);
    else
      memory_tile<16 / kWidth, Fresh>(m, s, C, column);
  }
}

void memory(const lram::Memory& m) {
  const Scores s = score(m.chunk, m.width, m.q, m.k, m.stride, m.n, m.fresh);
  for (int i = 0; i < m.width; ++i)
    for (int t = 0; t < lram::kTokens; ++t) {
      m.scratch[8 * i + t] = m.q[t * m.stride + i];
      m.scratch[8 * i + 4 + t] = m.k[t * m.stride + i] * m.chunk.weight[2][t];
    }
  if (m.fresh)
    memory_tiles<true>(m, s);
  else
    memory_tiles<false>(m, s);
}

void head_output(const lram::HeadOutput& o) {
  for (int t = 0; t < lram::kTokens; ++t) {
    const float* h = o.h + t * o.stride;
    float* y = o.y + t * o.stride;
    const float* convolved = o.convolved + t * o.stride;
    const float* gate = o.gate + t * o.gate_stride;
    const Moments found = moments(h, o.epsilon, o.width);
    for (int i = 0; i < o.channels; i += kWidth) {
      const F normed = (load(h + i) - set(found.mean)) * set(found.inverse_deviation) * load(o.weight + i);
      store(y + i, fma(load(o.skip + i), load(convolved + i), normed) * silu(load(gate + i)));
    }
  }
}

}  // namespace
