// Products of weight tiles with a few tokens. A tile is read once for three tokens; for more it stays in the cache.
#pragma once
#include <type_traits>

#include "kernels.h"

namespace {

constexpr int kPerTile = lram::kTileRows / kWidth;  // vectors of outputs
constexpr int kAhead = 2048;                        // bytes to prefetch ahead: past the page the hardware stops at

// `Tiles` neighbouring float32 tiles [cols][32] times `T` tokens
template <int T, int Tiles>
LRAM_INLINE void dense_float32(const std::uint8_t* data, std::size_t tile_bytes, int cols, const float* x,
                               std::size_t stride, float* y, std::size_t y_stride) {
  F acc[T][Tiles][kPerTile];
  for (auto& token : acc)
    for (auto& tile : token)
      for (F& a : tile) a = set(0.0F);
  for (int k = 0; k < cols; ++k) {
    F w[Tiles][kPerTile];
    for (int tile = 0; tile < Tiles; ++tile) {
      const auto* row = reinterpret_cast<const float*>(data + tile * tile_bytes) + k * lram::kTileRows;
      prefetch(reinterpret_cast<const char*>(row) + kAhead);
      prefetch(reinterpret_cast<const char*>(row) + kAhead + 64);
      for (int v = 0; v < kPerTile; ++v) w[tile][v] = load(row + v * kWidth);
    }
    for (int t = 0; t < T; ++t) {
      const F b = set(x[t * stride + k]);
      for (int tile = 0; tile < Tiles; ++tile)
        for (int v = 0; v < kPerTile; ++v) acc[t][tile][v] = fma(w[tile][v], b, acc[t][tile][v]);
    }
  }
  for (int t = 0; t < T; ++t)
    for (int tile = 0; tile < Tiles; ++tile)
      for (int v = 0; v < kPerTile; ++v)
        store(y + t * y_stride + tile * lram::kTileRows + v * kWidth, acc[t][tile][v]);
}

// Vectors of outputs that fit the registers at once beside T * P accumulators each.
template <int Accumulators>
constexpr int vectors_at_once() {
  constexpr int registers = kWidth == 8 ? 16 : 32;  // AVX2 has half as many as the others
  int v = kPerTile;
  while (v > 1 && v * (Accumulators + 1) + 2 > registers) v /= 2;
  return v;
}

// One int8 tile: [32 scales][32 sums of codes][cols / 4][32][4 codes]
template <int T, int P>
LRAM_INLINE void dense_int8(const std::uint8_t* tile, int quads, const lram::Tokens& x, int token, float* y,
                            std::size_t y_stride) {
  constexpr int V = vectors_at_once<T * P>();
  const auto* scales = reinterpret_cast<const float*>(tile);
  const auto* code_sums = reinterpret_cast<const std::int32_t*>(tile) + lram::kTileRows;
  const std::uint8_t* codes = tile + 8 * lram::kTileRows;
  const std::int8_t* planes = x.codes + static_cast<std::size_t>(token) * P * x.code_stride;
  for (int part = 0; part < kPerTile; part += V) {
    I acc[T * P][V];
    for (int v = 0; v < V; ++v) {
      I start = zero_sums();
      if (kUnsignedActivations) start = load_sums(code_sums + (part + v) * kWidth);
      for (auto& a : acc) a[v] = start;
    }
    const std::uint8_t* w = codes + part * kWidth * 4;
    for (int k = 0; k < quads; ++k, w += 4 * lram::kTileRows) {
      I wv[V];
      prefetch(w + kAhead);
      if (V * kWidth * 4 > 64) prefetch(w + kAhead + 64);
      for (int v = 0; v < V; ++v) wv[v] = load_codes(w + v * kWidth * 4);
      for (int p = 0; p < T * P; ++p) {
        const I a = four_codes(planes + p * x.code_stride + 4 * k);
        for (int v = 0; v < V; ++v) acc[p][v] = dot_int8(acc[p][v], wv[v], a);
      }
    }
    for (int t = 0; t < T; ++t)
      for (int v = 0; v < V; ++v) {
        F total = to_float(acc[t * P][v]);
        if (P == 2) total = fma(total, set(128.0F), to_float(acc[t * P + P - 1][v]));
        const int o = (part + v) * kWidth;
        store(y + t * y_stride + o, total * set(x.scales[token + t]) * load(scales + o));
      }
  }
}

// One int4 tile: per group [32 scales][8][32][4 bytes], low nibbles of inputs 0..3, high ones of 4..7; nibble = code + 8
template <int T, int P>
LRAM_INLINE void dense_int4(const std::uint8_t* tile, int groups, const lram::Tokens& x, int token, float* y,
                            std::size_t y_stride) {
  constexpr int V = vectors_at_once<T * P + T>() > 1 ? vectors_at_once<T * P + T>() : 1;
  constexpr std::size_t kGroupBytes = 4 * lram::kTileRows + lram::kTileRows * lram::kGroup / 2;
  const std::int8_t* planes = x.codes + static_cast<std::size_t>(token) * P * x.code_stride;
  const std::int32_t* sums = x.sums + static_cast<std::size_t>(token) * P * groups;
  for (int part = 0; part < kPerTile; part += V) {
    F total[T][V];
    for (auto& t : total)
      for (F& a : t) a = set(0.0F);
    for (int g = 0; g < groups; ++g) {
      const std::uint8_t* group = tile + g * kGroupBytes;
      const auto* scales = reinterpret_cast<const float*>(group);
      const std::uint8_t* w = group + 4 * lram::kTileRows + part * kWidth * 4;
      I acc[T * P][V];
      for (int p = 0; p < T * P; ++p)
        for (int v = 0; v < V; ++v) acc[p][v] = set_sums(sums[p * groups + g]);
      for (int k = 0; k < lram::kGroup; k += 8, w += 4 * lram::kTileRows) {
        I low[V];
        I high[V];
        prefetch(w + kAhead);
        if (V * kWidth * 4 > 64) prefetch(w + kAhead + 64);
        for (int v = 0; v < V; ++v) {
          const I both = load_codes(w + v * kWidth * 4);
          low[v] = low_nibbles(both);
          high[v] = high_nibbles(both);
        }
        for (int p = 0; p < T * P; ++p) {
          const std::int8_t* a = planes + p * x.code_stride + g * lram::kGroup + k;
          const I first = four_codes(a);
          const I second = four_codes(a + 4);
          for (int v = 0; v < V; ++v) acc[p][v] = dot_int4(acc[p][v], low[v], first);
          for (int v = 0; v < V; ++v) acc[p][v] = dot_int4(acc[p][v], high[v], second);
        }
      }
      for (int v = 0; v < V; ++v) {
        const F scale = load(scales + (part + v) * kWidth);
        for (int t = 0; t < T; ++t) {
          F sum_of_group = to_float(acc[t * P][v]);
          if (P == 2) sum_of_group = fma(sum_of_group, set(128.0F), to_float(acc[t * P + P - 1][v]));
          total[t][v] = fma(sum_of_group, scale, total[t][v]);
        }
      }
    }
    for (int t = 0; t < T; ++t)
      for (int v = 0; v < V; ++v)
        store(y + t * y_stride + (part + v) * kWidth, total[t][v] * set(x.scales[token + t]));
  }
}

// all tokens, three at a time
template <class Step>
LRAM_INLINE void by_threes(int count, Step step) {
  int token = 0;
  for (; token + 3 <= count; token += 3) step(std::integral_constant<int, 3>{}, token);
  if (count - token == 2) step(std::integral_constant<int, 2>{}, token);
  if (count - token == 1) step(std::integral_constant<int, 1>{}, token);
}

template <int P>
LRAM_INLINE void dense_codes(const lram::Matrix& matrix, const std::uint8_t* tile, const lram::Tokens& x, float* y,
                             std::size_t y_stride) {
  by_threes(x.count, [&](auto tokens, int token) {
    constexpr int T = decltype(tokens)::value;
    if (matrix.format == lram::Format::int8)
      dense_int8<T, P>(tile, (matrix.cols + 3) / 4, x, token, y + token * y_stride, y_stride);
    else
      dense_int4<T, P>(tile, (matrix.cols + lram::kGroup - 1) / lram::kGroup, x, token, y + token * y_stride, y_stride);
  });
}

void dense(const lram::Matrix& matrix, int first_tile, int last_tile, const lram::Tokens& x, float* y,
           std::size_t y_stride) {
  int tile = first_tile;
  while (tile < last_tile) {
    const std::uint8_t* data = matrix.data + tile * matrix.tile_bytes;
    float* out = y + static_cast<std::size_t>(tile) * lram::kTileRows;
    if (matrix.format == lram::Format::float32) {
      const bool several = tile + kTilesAtOnce <= last_tile;
      by_threes(x.count, [&](auto tokens, int token) {
        constexpr int T = decltype(tokens)::value;
        const float* in = x.x + token * x.stride;
        float* to = out + token * y_stride;
        if (several)
          dense_float32<T, kTilesAtOnce>(data, matrix.tile_bytes, matrix.cols, in, x.stride, to, y_stride);
        else
          dense_float32<T, 1>(data, matrix.tile_bytes, matrix.cols, in, x.stride, to, y_stride);
      });
      tile += several ? kTilesAtOnce : 1;
    } else {
      if (x.planes == 2)
        dense_codes<2>(matrix, data, x, out, y_stride);
      else
        dense_codes<1>(matrix, data, x, out, y_stride);
      ++tile;
    }
  }
}

LRAM_INLINE F codes_of(F scaled, int planes, F* low) {
  const F value = round_even(scaled);
  if (planes == 1) return value;
  const F high = round_even(value * set(1.0F / 128));
  *low = value - high * set(128.0F);
  return high;
}

void quantize(const lram::Tokens& x, lram::Format format, int cols) {
  if (format == lram::Format::float32) return;
  const int group = format == lram::Format::int4 ? lram::kGroup : cols;
  const int groups = (cols + group - 1) / group;
  const auto flip = static_cast<std::int8_t>(kUnsignedActivations && format == lram::Format::int8 ? -128 : 0);
  const F limit = set(x.planes == 2 ? 16256.0F : 127.0F);
  for (int t = 0; t < x.count; ++t) {
    const float* in = x.x + t * x.stride;
    F magnitude = set(1e-30F);
    for (int i = 0; i < cols; i += kWidth) magnitude = vmax(magnitude, vabs(load(in + i)));
    const float peak = largest(magnitude);
    const float bound = x.planes == 2 ? 16256.0F : 127.0F;
    x.scales[t] = peak / bound;
    const F inverse = set(bound / peak);
    std::int8_t* planes = x.codes + static_cast<std::size_t>(t) * x.planes * x.code_stride;
    for (int g = 0; g < groups; ++g) {
      F high_sum = set(0.0F);
      F low_sum = set(0.0F);
      const int end = (g + 1) * group < cols ? (g + 1) * group : cols;
      for (int i = g * group; i < end; i += kWidth) {
        F low = set(0.0F);
        const F scaled = vmin(vmax(load(in + i) * inverse, set(0.0F) - limit), limit);
        const F high = codes_of(scaled, x.planes, &low);
        store_codes(planes + i, high, flip);
        high_sum = high_sum + high;
        if (x.planes == 2) {
          store_codes(planes + x.code_stride + i, low, flip);
          low_sum = low_sum + low;
        }
      }
      if (format == lram::Format::int4) {
        for (int i = end; i < (g + 1) * group; i += kWidth) {
          store_codes(planes + i, set(0.0F), 0);
          if (x.planes == 2) store_codes(planes + x.code_stride + i, set(0.0F), 0);
        }
        std::int32_t* sums = x.sums + static_cast<std::size_t>(t) * x.planes * groups;
        sums[g] = -8 * static_cast<std::int32_t>(sum(high_sum));
        if (x.planes == 2) sums[groups + g] = -8 * static_cast<std::int32_t>(sum(low_sum));
      }
    }
  }
}

}  // namespace
