// Products of weight tiles with a few tokens. A tile is read once for three tokens; for more it stays in the cache.
#pragma once
#include <type_traits>

#include "dense_float32.h"
#include "kernels.h"
#ifdef LRAM_WIDE_CODES
#include "dense_wide.h"
#else
#include "dense_planes.h"
#endif
#ifdef __AMX_INT8__
#include "dense_tiles.h"
#endif

namespace {

// tokens from `token` on, three at a time
template <class Step>
LRAM_INLINE void by_threes(int token, int count, Step step) {
  for (; token + 3 <= count; token += 3) step(std::integral_constant<int, 3>{}, token);
  if (count - token == 2) step(std::integral_constant<int, 2>{}, token);
  if (count - token == 1) step(std::integral_constant<int, 1>{}, token);
}

void dense(const lram::Matrix& matrix, int first_tile, int last_tile, const lram::Tokens& x, float* y,
           std::size_t y_stride) {
  int first_token = 0;
#ifdef __AMX_INT8__
  first_token = dense_in_registers(matrix, first_tile, last_tile, x, y, y_stride);
  if (first_token == x.count) return;
#endif
  int tile = first_tile;
  while (tile < last_tile) {
    const std::uint8_t* data = matrix.data + tile * matrix.tile_bytes;
    float* out = y + static_cast<std::size_t>(tile) * lram::kTileRows;
    if (matrix.format == lram::Format::float32) {
      const bool several = tile + kTilesAtOnce <= last_tile;
      by_threes(first_token, x.count, [&](auto tokens, int token) {
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
      by_threes(first_token, x.count, [&](auto tokens, int token) {
        dense_codes<decltype(tokens)::value>(matrix, data, x, token, out + token * y_stride, y_stride);
      });
      ++tile;
    }
  }
}

// Codes of the tokens for matrices of a format: symmetric, one scale per token.
void quantize(const lram::Tokens& x, lram::Format format, int cols) {
  if (format == lram::Format::float32) return;
  const bool summed = format == lram::Format::int4 || format == lram::Format::int8g;
  const int group = format == lram::Format::int4    ? lram::kGroup
                    : format == lram::Format::int8g ? lram::kWideGroup
                                                    : cols;
  const int offset = format == lram::Format::int4 ? 8 : 128;  // of the weights' codes
  const int groups = (cols + group - 1) / group;
  const int planes = sum_planes(x);
  const float bound = x.planes == 2 ? 16256.0F : 127.0F;
  const F limit = set(bound);
  for (int t = 0; t < x.count; ++t) {
    const float* in = x.x + t * x.stride;
    F magnitude = set(1e-30F);
    F nothing = set(0.0F);
    for (int i = 0; i < cols; i += kWidth) {
      const F v = load(in + i);
      magnitude = vmax(magnitude, vabs(v));
      nothing = fma(v, set(0.0F), nothing);
    }
    // codes are numbers whatever they are made of: what is none, which maxima may pass over, shows in the scale
    const float peak = largest(magnitude) + sum(nothing);
    x.scales[t] = peak / bound;
    const F inverse = set(bound / peak);
    for (int g = 0; g < groups; ++g) {
      F sums[2] = {set(0.0F), set(0.0F)};
      // a group of int4 is filled up with zeros, the last one of int8g ends with the inputs
      const int end = format == lram::Format::int4 || (g + 1) * group < cols ? (g + 1) * group : cols;
      for (int i = g * group; i < end; i += kWidth) {
        const F scaled = i < cols ? load(in + i) * inverse : set(0.0F);
        encode(x, format, t, i, round_even(vmin(vmax(scaled, set(0.0F) - limit), limit)), sums);
      }
      if (!summed) continue;
      for (int p = 0; p < planes; ++p)
        x.sums[(t * planes + p) * groups + g] = -offset * static_cast<std::int32_t>(sum(sums[p]));
    }
  }
}

}  // namespace
