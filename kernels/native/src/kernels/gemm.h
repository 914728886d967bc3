// Products of weight tiles with many tokens, which is bound by arithmetic: a block of a tile is brought into panels of
// float32 once, whatever its format, and multiplied from the cache with all tokens, a group of them at a time, whose
// sums stay in registers.
#pragma once
#include "kernels.h"

namespace {

constexpr int kPanel = kGemmVectors * kWidth;  // outputs of a panel
constexpr int kPanels = lram::kTileRows / kPanel;
static_assert(kPanels * kPanel == lram::kTileRows, "a tile is a number of panels");

LRAM_INLINE void store_in_panels(float* panels, int input, int output, F weights) {
  store(panels + (output / kPanel * lram::kGemmInputs + input) * kPanel + output % kPanel, weights);
}

// Inputs `first` to `first` + `count` of a tile as [panels][kGemmInputs][kPanel].
void decode_float32(const std::uint8_t* tile, int first, int count, float* panels) {
  const float* rows = reinterpret_cast<const float*>(tile) + static_cast<std::size_t>(first) * lram::kTileRows;
  for (int k = 0; k < count; ++k)
    for (int o = 0; o < lram::kTileRows; o += kWidth)
      store_in_panels(panels, k, o, load(rows + k * lram::kTileRows + o));
}

template <int Byte>
LRAM_INLINE F scaled_byte(I codes, F offset, F scale) {
  return (to_float(signed_byte<Byte>(codes)) - offset) * scale;
}

// Four neighbouring inputs, which lie in the bytes of each output's 32 bits.
LRAM_INLINE void decode_four(float* panels, int input, int output, I codes, F offset, F scale) {
  store_in_panels(panels, input, output, scaled_byte<0>(codes, offset, scale));
  store_in_panels(panels, input + 1, output, scaled_byte<1>(codes, offset, scale));
  store_in_panels(panels, input + 2, output, scaled_byte<2>(codes, offset, scale));
  store_in_panels(panels, input + 3, output, scaled_byte<3>(codes, offset, scale));
}

void decode_int8(const std::uint8_t* tile, int first, int count, float* panels) {
  const auto* scales = reinterpret_cast<const float*>(tile);
  const std::uint8_t* codes = tile + 8 * lram::kTileRows + static_cast<std::size_t>(first) * lram::kTileRows;
  for (int k = 0; k < count; k += 4)
    for (int o = 0; o < lram::kTileRows; o += kWidth)
      decode_four(panels, k, o, load_codes(codes + k * lram::kTileRows + 4 * o), set(0.0F), load(scales + o));
}

void decode_int4(const std::uint8_t* tile, int first, int count, float* panels) {
  constexpr std::size_t group_bytes = 4 * lram::kTileRows + lram::kTileRows * lram::kGroup / 2;
  const F eight = set(8.0F);
  for (int k = 0; k < count; k += 8) {
    const std::uint8_t* group = tile + static_cast<std::size_t>((first + k) / lram::kGroup) * group_bytes;
    const auto* scales = reinterpret_cast<const float*>(group);
    const std::uint8_t* codes = group + 4 * lram::kTileRows + (first + k) % lram::kGroup / 2 * lram::kTileRows;
    for (int o = 0; o < lram::kTileRows; o += kWidth) {
      const I both = load_codes(codes + 4 * o);
      const F scale = load(scales + o);
      decode_four(panels, k, o, low_nibbles(both), eight, scale);
      decode_four(panels, k + 4, o, high_nibbles(both), eight, scale);
    }
  }
}

void decode(const lram::Matrix& matrix, const std::uint8_t* tile, int first, int count, float* panels) {
  switch (matrix.format) {
    case lram::Format::float32:
      return decode_float32(tile, first, count, panels);
    case lram::Format::int8:
      return decode_int8(tile, first, count, panels);
    case lram::Format::int4:
      return decode_int4(tile, first, count, panels);
  }
}

// A group of tokens [count][kGemmTokens] times a panel [count][kPanel], added to y.
void multiply_panel(const float* tokens, const float* panel, int count, float* y, std::size_t y_stride) {
  F acc[kGemmTokens][kGemmVectors];
  for (auto& of_token : acc)
    for (F& sum : of_token) sum = set(0.0F);
  for (int k = 0; k < count; ++k, tokens += kGemmTokens, panel += kPanel) {
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
      decode(matrix, data, first, count, g.scratch);
      for (int panel = 0; panel < kPanels; ++panel)
        for (int group = g.first_group; group < g.last_group; ++group) {
          const std::size_t row = static_cast<std::size_t>(group) * kGemmTokens;
          multiply_panel(g.tokens + row * matrix.cols + first * kGemmTokens,
                         g.scratch + panel * lram::kGemmInputs * kPanel, count,
                         g.y + row * g.y_stride + output + panel * kPanel, g.y_stride);
        }
    }
  }
}

// `count` tokens [count][stride] as a group: [cols][kGemmTokens], filled up with zeros.
void pack_group(const float* x, std::size_t stride, int count, int cols, float* packed) {
  for (int k = 0; k < cols; ++k, packed += kGemmTokens) {
    for (int t = 0; t < count; ++t) packed[t] = x[t * stride + k];
    for (int t = count; t < kGemmTokens; ++t) packed[t] = 0;
  }
}

}  // namespace
