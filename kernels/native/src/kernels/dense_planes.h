// Tiles of codes times a few tokens, for processors with a dot product of bytes: an activation is one int8 code, or
// two: x = scale * (128 * high + low).
#pragma once
#include "dense_float32.h"
#include "kernels.h"

namespace {

// Vectors of outputs that fit the registers at once beside T * P accumulators each.
template <int Accumulators>
constexpr int vectors_at_once() {
  constexpr int registers = kWidth == 8 ? 16 : 32;  // AVX2 has half as many as the others
  int v = kPerTile;
  while (v > 1 && v * (Accumulators + 1) + 2 > registers) v /= 2;
  return v;
}

// Among how many sums the products of one token are divided, so that none waits for the one before; whole numbers,
// whose sum is the same in any order.
template <int Accumulators>
constexpr int chains() {
  return Accumulators >= 8 || kWidth == 4 ? 1 : Accumulators >= 4 ? 2 : 4;
}

// Adds the products of some quads of inputs, whose weights begin at `w`, to the sums of N planes of codes at `a`, and
// prefetches as many bytes from `ahead` on.
// Grouped: weights are stored as code + 128, which is how an instruction with one unsigned side takes them.
template <bool Grouped, int C, int N, int V>
LRAM_INLINE void add_quads(const std::uint8_t* w, int quads, const std::int8_t* a, std::size_t stride,
                           const std::uint8_t* ahead, I (&acc)[C][N][V]) {
  const auto multiply = [&](I(&sums)[N][V]) {
    I wv[V];
    prefetch_bytes<V * kWidth * 4>(ahead);
    for (int v = 0; v < V; ++v) {
      const I codes = load_codes(w + v * kWidth * 4);
      wv[v] = in_register(Grouped && !kUnsignedActivations ? flip_signs(codes) : codes);
    }
    for (int n = 0; n < N; ++n) {
      const I four = four_codes(a + n * stride);
      for (int v = 0; v < V; ++v)
        sums[n][v] = in_register(Grouped ? dot_unsigned(sums[n][v], wv[v], four) : dot_int8(sums[n][v], wv[v], four));
    }
    w += 4 * lram::kTileRows;
    a += 4;
    ahead += V * kWidth * 4;
  };
  int k = 0;
  for (; k + C <= quads; k += C)
    for (int chain = 0; chain < C; ++chain) multiply(acc[chain]);
  for (; k < quads; ++k) multiply(acc[0]);
  for (int chain = 1; chain < C; ++chain)
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < V; ++v) acc[0][n][v] = add_sums(acc[0][n][v], acc[chain][n][v]);
}

// Inputs whose weights stay in the first cache until all outputs of a tile are done, where registers hold the sums of
// some of them at a time: the lines of the others lie between theirs.
constexpr int kBlockQuads = lram::kWideGroup / 4;

// The sum of a token's products, from those of its planes.
template <int P, int V>
LRAM_INLINE F both_planes(const I (&planes)[V], const I (&last)[V], int v) {
  const F high = to_float(planes[v]);
  return P == 2 ? fma(high, set(128.0F), to_float(last[v])) : high;
}

// One int8 tile: [32 scales][32 sums of codes][cols / 4][32][4 codes]
template <int T, int P>
LRAM_INLINE void dense_int8(const std::uint8_t* tile, int quads, const lram::Tokens& x, int token, float* y,
                            std::size_t y_stride) {
  constexpr int V = vectors_at_once<T * P>();
  constexpr int C = chains<T * P * V>();
  const auto* scales = reinterpret_cast<const float*>(tile);
  const auto* code_sums = reinterpret_cast<const std::int32_t*>(tile) + lram::kTileRows;
  const std::uint8_t* codes = tile + 8 * lram::kTileRows;
  const std::int8_t* planes = x.codes + static_cast<std::size_t>(token) * P * x.code_stride;
  const int at_once = V == kPerTile ? quads : kBlockQuads;
  I total[T * P][kPerTile];
  for (int v = 0; v < kPerTile; ++v) {
    const I start = kUnsignedActivations ? load_sums(code_sums + v * kWidth) : zero_sums();
    for (auto& of_plane : total) of_plane[v] = start;
  }
  for (int first = 0; first < quads; first += at_once) {
    const int count = first + at_once < quads ? at_once : quads - first;
    const std::uint8_t* block = codes + static_cast<std::size_t>(first) * 4 * lram::kTileRows;
    for (int part = 0; part < kPerTile; part += V) {
      I acc[C][T * P][V];
      for (int p = 0; p < T * P; ++p)
        for (int v = 0; v < V; ++v)
          for (int chain = 0; chain < C; ++chain) acc[chain][p][v] = chain == 0 ? total[p][part + v] : zero_sums();
      add_quads<false>(block + part * kWidth * 4, count, planes + 4 * first, x.code_stride,
                       block + kAhead + static_cast<std::ptrdiff_t>(part) * count * kWidth * 4, acc);
      for (int p = 0; p < T * P; ++p)
        for (int v = 0; v < V; ++v) total[p][part + v] = acc[0][p][v];
    }
  }
  for (int t = 0; t < T; ++t)
    for (int v = 0; v < kPerTile; ++v) {
      const F sum_of_all = both_planes<P>(total[t * P], total[t * P + P - 1], v);
      store(y + t * y_stride + v * kWidth, sum_of_all * set(x.scales[token + t]) * load(scales + v * kWidth));
    }
}

// One int8g tile: per group [32 scales][inputs / 4][32][4 codes + 128]
template <int T, int P>
LRAM_INLINE void dense_int8g(const std::uint8_t* tile, int quads, const lram::Tokens& x, int token, float* y,
                             std::size_t y_stride) {
  constexpr int V = vectors_at_once<T * P>();
  constexpr int C = chains<T * P * V>();
  const int groups = (quads + kBlockQuads - 1) / kBlockQuads;
  const std::int8_t* planes = x.codes + static_cast<std::size_t>(token) * P * x.code_stride;
  const std::int32_t* sums = x.sums + static_cast<std::size_t>(token) * P * groups;
  F total[T][kPerTile];
  for (auto& of_token : total)
    for (F& a : of_token) a = set(0.0F);
  const std::uint8_t* group = tile;
  for (int g = 0; g < groups; ++g) {
    const int count = g + 1 < groups ? kBlockQuads : quads - g * kBlockQuads;
    const auto* scales = reinterpret_cast<const float*>(group);
    const std::uint8_t* codes = group + 4 * lram::kTileRows;
    for (int part = 0; part < kPerTile; part += V) {
      I acc[C][T * P][V];
      for (int p = 0; p < T * P; ++p)
        for (int v = 0; v < V; ++v)
          for (int chain = 0; chain < C; ++chain)
            acc[chain][p][v] = kUnsignedActivations && chain == 0 ? set_sums(sums[p * groups + g]) : zero_sums();
      add_quads<true>(codes + part * kWidth * 4, count, planes + 4 * g * kBlockQuads, x.code_stride,
                      codes + kAhead + static_cast<std::ptrdiff_t>(part) * count * kWidth * 4, acc);
      for (int v = 0; v < V; ++v) {
        const F scale = load(scales + (part + v) * kWidth);
        for (int t = 0; t < T; ++t)
          total[t][part + v] = fma(both_planes<P>(acc[0][t * P], acc[0][t * P + P - 1], v), scale, total[t][part + v]);
      }
    }
    group = codes + static_cast<std::size_t>(count) * 4 * lram::kTileRows;
  }
  for (int t = 0; t < T; ++t)
    for (int v = 0; v < kPerTile; ++v) store(y + t * y_stride + v * kWidth, total[t][v] * set(x.scales[token + t]));
}

// One int4 tile: per group [32 scales][8][32][4 bytes], low nibbles of inputs 0..3, high ones of 4..7; nibble = code +
// 8
template <int T, int P>
LRAM_INLINE void dense_int4(const std::uint8_t* tile, int groups, const lram::Tokens& x, int token, float* y,
                            std::size_t y_stride) {
  constexpr int V = vectors_at_once<T * P + T>();
  constexpr int kRows = lram::kGroup / 8;
  constexpr std::size_t kGroupBytes = 4 * lram::kTileRows + lram::kTileRows * lram::kGroup / 2;
  const std::int8_t* planes = x.codes + static_cast<std::size_t>(token) * P * x.code_stride;
  const std::int32_t* sums = x.sums + static_cast<std::size_t>(token) * P * groups;
  F total[T][kPerTile];
  for (auto& of_token : total)
    for (F& a : of_token) a = set(0.0F);
  for (int g = 0; g < groups; ++g) {
    const std::uint8_t* group = tile + g * kGroupBytes;
    const auto* scales = reinterpret_cast<const float*>(group);
    const std::uint8_t* codes = group + 4 * lram::kTileRows;
    for (int part = 0; part < kPerTile; part += V) {
      const std::uint8_t* w = codes + part * kWidth * 4;
      const std::uint8_t* ahead = codes + kAhead + part * kRows * kWidth * 4;
      I acc[T * P][V];
      for (int p = 0; p < T * P; ++p)
        for (int v = 0; v < V; ++v) acc[p][v] = set_sums(sums[p * groups + g]);
      for (int k = 0; k < lram::kGroup; k += 8, w += 4 * lram::kTileRows, ahead += V * kWidth * 4) {
        I low[V];
        I high[V];
        prefetch_bytes<V * kWidth * 4>(ahead);
        for (int v = 0; v < V; ++v) {
          const I both = load_codes(w + v * kWidth * 4);
          low[v] = low_nibbles(both);
          high[v] = high_nibbles(both);
        }
        for (int p = 0; p < T * P; ++p) {
          const std::int8_t* a = planes + p * x.code_stride + g * lram::kGroup + k;
          const I first = four_codes(a);
          const I second = four_codes(a + 4);
          for (int v = 0; v < V; ++v) acc[p][v] = dot_unsigned(acc[p][v], low[v], first);
          for (int v = 0; v < V; ++v) acc[p][v] = dot_unsigned(acc[p][v], high[v], second);
        }
      }
      for (int v = 0; v < V; ++v) {
        const F scale = load(scales + (part + v) * kWidth);
        for (int t = 0; t < T; ++t)
          total[t][part + v] = fma(both_planes<P>(acc[t * P], acc[t * P + P - 1], v), scale, total[t][part + v]);
      }
    }
  }
  for (int t = 0; t < T; ++t)
    for (int v = 0; v < kPerTile; ++v) store(y + t * y_stride + v * kWidth, total[t][v] * set(x.scales[token + t]));
}

template <int T, int P>
LRAM_INLINE void dense_planes(const lram::Matrix& matrix, const std::uint8_t* tile, const lram::Tokens& x, int token,
                              float* y, std::size_t y_stride) {
  if (matrix.format == lram::Format::int8)
    dense_int8<T, P>(tile, (matrix.cols + 3) / 4, x, token, y, y_stride);
  else if (matrix.format == lram::Format::int8g)
    dense_int8g<T, P>(tile, (matrix.cols + 3) / 4, x, token, y, y_stride);
  else
    dense_int4<T, P>(tile, (matrix.cols + lram::kGroup - 1) / lram::kGroup, x, token, y, y_stride);
}

template <int T>
LRAM_INLINE void dense_codes(const lram::Matrix& matrix, const std::uint8_t* tile, const lram::Tokens& x, int token,
                             float* y, std::size_t y_stride) {
  if (x.planes == 2)
    dense_planes<T, 2>(matrix, tile, x, token, y, y_stride);
  else
    dense_planes<T, 1>(matrix, tile, x, token, y, y_stride);
}

LRAM_INLINE int sum_planes(const lram::Tokens& x) { return x.planes; }

// Stores a vector of codes of token `t` from input `i` on, and adds it to the sums of the planes.
LRAM_INLINE void encode(const lram::Tokens& x, lram::Format format, int t, int i, F value, F* sums) {
  const auto flip = static_cast<std::int8_t>(kUnsignedActivations && format == lram::Format::int8 ? -128 : 0);
  std::int8_t* codes = x.codes + static_cast<std::size_t>(t * x.planes) * x.code_stride + i;
  if (x.planes == 2) {
    const F high = round_even(value * set(1.0F / 128));
    const F low = value - high * set(128.0F);
    store_codes(codes, high, flip);
    store_codes(codes + x.code_stride, low, flip);
    sums[0] = sums[0] + high;
    sums[1] = sums[1] + low;
  } else {
    store_codes(codes, value, flip);
    sums[0] = sums[0] + value;
  }
}

}  // namespace
