// Products of weight tiles with many tokens, which is bound by arithmetic: a block of a tile is brought into the cache
// once, from codes to float32 where it has any, and multiplied with all tokens, a group of them at a time, whose sums
// stay in registers.
#pragma once
#include "kernels.h"

namespace {

constexpr int kPanel = kGemmVectors * kWidth;  // outputs of a panel
static_assert(lram::kTileRows % kPanel == 0, "a tile is a number of panels");

template <int Byte>
LRAM_INLINE F scaled_byte(I codes, F offset, F scale) {
  return (to_float(signed_byte<Byte>(codes)) - offset) * scale;
}

// The outputs of a panel for four neighbouring inputs, which lie in the bytes of each output's 32 bits.
LRAM_INLINE void decode_four(float* to, I codes, F offset, F scale) {
  store(to, scaled_byte<0>(codes, offset, scale));
  store(to + kPanel, scaled_byte<1>(codes, offset, scale));
  store(to + 2 * kPanel, scaled_byte<2>(codes, offset, scale));
  store(to + 3 * kPanel, scaled_byte<3>(codes, offset, scale));
}

// Inputs `first` to `first` + `count` of a tile, of its outputs from `start` on, as a panel: [count][kPanel].
void decode_int8(const std::uint8_t* tile, int first, int count, int start, float* panel) {
  const auto* scales = reinterpret_cast<const float*>(tile) + start;
  const std::uint8_t* codes =
      tile + 8 * lram::kTileRows + static_cast<std::size_t>(first) * lram::kTileRows + 4 * start;
  for (int k = 0; k < count; k += 4)
    for (int o = 0; o < kPanel; o += kWidth)
      decode_four(panel + k * kPanel + o, load_codes(codes + k * lram::kTileRows + 4 * o), set(0.0F), load(scales + o));
}

void decode_int8g(const std::uint8_t* tile, int first, int count, int start, float* panel) {
  constexpr std::size_t group_bytes = 4 * lram::kTileRows + lram::kTileRows * lram::kWideGroup;
  for (int k = 0; k < count; k += 4) {
    const std::uint8_t* group = tile + static_cast<std::size_t>((first + k) / lram::kWideGroup) * group_bytes;
    const auto* scales = reinterpret_cast<const float*>(group) + start;
    const std::uint8_t* codes =
        group + 4 * lram::kTileRows + (first + k) % lram::kWideGroup * lram::kTileRows + 4 * start;
    for (int o = 0; o < kPanel; o += kWidth)
      decode_four(panel + k * kPanel + o, flip_signs(load_codes(codes + 4 * o)), set(0.0F), load(scales + o));
  }
}

void decode_int4(const std::uint8_t* tile, int first, int count, int start, float* panel) {
  constexpr std::size_t group_bytes = 4 * lram::kTileRows + lram::kTileRows * lram::kGroup / 2;
  const F eight = set(8.0F);
  for (int k = 0; k < count; k += 8) {
    const std::uint8_t* group = tile + static_cast<std::size_t>((first + k) / lram::kGroup) * group_bytes;
    const auto* scales = reinterpret_cast<const float*>(group) + start;
    const std::uint8_t* codes =
        group + 4 * lram::kTileRows + (first + k) % lram::kGroup / 2 * lram::kTileRows + 4 * start;
    for (int o = 0; o < kPanel; o += kWidth) {
      const I both = load_codes(codes + 4 * o);
      const F scale = load(scales + o);
      decode_four(panel + k * kPanel + o, low_nibbles(both), eight, scale);
      decode_four(panel + (k + 4) * kPanel + o, high_nibbles(both), eight, scale);
    }
  }
}

// A group of tokens [count][kGemmTokens] times a panel [count][Stride], added to y.
template <int Stride>
void multiply_panel(const float* tokens, const float* panel, int count, float* y, std::size_t y_stride) {
  F acc[kGemmTokens][kGemmVectors];
  for (auto& of_token : acc)
    for (F& a : of_token) a = set(0.0F);
  for (int k = 0; k < count; ++k, tokens += kGemmTokens, panel += Stride) {
    F w[kGemmVectors];
    for (int v = 0; v < kGemmVectors; ++v) w[v] = load(panel + v * kWidth);
    for (int t = 0; t < kGemmTokens; ++t) {
      const F x = set(tokens[t]);
      for (int v = 0; v < kGemmVectors; ++v) acc[t][v] = fma(w[v], x, acc[t][v]);
    }
  }
  for (int t = 0; t < kGemmTokens; ++t)
    for (int v = 0; v < kGemmVectors; ++v) {
      float* to = y + t * y_stride + v * kWidth;
      store(to, load(to) + acc[t][v]);
    }
}

void gemm(const lram::Gemm& g) {
  const lram::Matrix& matrix = *g.matrix;
  for (int tile = g.first_tile; tile < g.last_tile; ++tile) {
    const std::uint8_t* data = matrix.data + tile * matrix.tile_bytes;
    const int output = tile * lram::kTileRows;
    for (int row = g.first_group * kGemmTokens; row < g.last_group * kGemmTokens; ++row)
      for (int o = output; o < output + lram::kTileRows; o += kWidth) {
        float* to = g.y + row * g.y_stride + o;
        store(to, g.add ? load(to) + load(g.bias + o) : load(g.bias + o));
      }
    for (int first = 0; first < matrix.cols; first += lram::kGemmInputs) {
      const int count = matrix.cols - first < lram::kGemmInputs ? matrix.cols - first : lram::kGemmInputs;
      // the next block comes into the cache while this one is multiplied
      const std::size_t bytes = matrix.tile_bytes / matrix.cols * count;
      const std::uint8_t* next = data + matrix.tile_bytes / matrix.cols * (first + count);
      const std::size_t share = bytes / (lram::kTileRows / kPanel * (g.last_group - g.first_group)) + 1;
      for (int start = 0; start < lram::kTileRows; start += kPanel) {
        const float* panel = g.scratch;
        if (matrix.format == lram::Format::float32)
          panel = reinterpret_cast<const float*>(data) + static_cast<std::size_t>(first) * lram::kTileRows + start;
        else if (matrix.format == lram::Format::int8)
          decode_int8(data, first, count, start, g.scratch);
        else if (matrix.format == lram::Format::int8g)
          decode_int8g(data, first, count, start, g.scratch);
        else
          decode_int4(data, first, count, start, g.scratch);
        const auto multiply = panel == g.scratch ? multiply_panel<kPanel> : multiply_panel<lram::kTileRows>;
        for (int group = g.first_group; group < g.last_group; ++group) {
          for (std::size_t byte = 0; byte < share; byte += 64) prefetch_far(next + byte);
          next += share;
          const std::size_t row = static_cast<std::size_t>(group) * kGemmTokens;
          multiply(g.tokens + row * matrix.cols + first * kGemmTokens, panel, count,
                   g.y + row * g.y_stride + output + start, g.y_stride);
        }
      }
    }
  }
}

// `count` tokens [count][stride] as a group: [cols][kGemmTokens], filled up with zeros.
void pack_group(const float* x, std::size_t stride, int count, int cols, float* packed) {
  if (count == kGemmTokens) {
    for (int k = 0; k < cols; ++k, packed += kGemmTokens)
      for (int t = 0; t < kGemmTokens; ++t) packed[t] = x[t * stride + k];
    return;
  }
  for (int k = 0; k < cols; ++k, packed += kGemmTokens) {
    for (int t = 0; t < count; ++t) packed[t] = x[t * stride + k];
    for (int t = count; t < kGemmTokens; ++t) packed[t] = 0;
  }
}

}  // namespace
