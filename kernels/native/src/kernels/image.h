// 3x3 convolution of images with channels last and a border of zeros, 16 output channels at a time.
#pragma once
#include "kernels.h"

namespace {

constexpr int kChannelVectors = 16 / kWidth;
constexpr int kPixels = kWidth == 16 ? 8 : 4;

template <int P>
LRAM_INLINE void convolve_pixels(const lram::ImageConvolution& c, int row, int column, int channel) {
  const std::size_t row_in = static_cast<std::size_t>(c.width + 2) * c.channels_in;
  F acc[P][kChannelVectors];
  for (auto& pixel : acc)
    for (int r = 0; r < kChannelVectors; ++r) pixel[r] = load(c.bias + channel + r * kWidth);
  const float* weight = c.weight + channel;
  for (int dy = 0; dy < 3; ++dy) {
    const float* x = c.x + (row + dy) * row_in + static_cast<std::size_t>(column) * c.channels_in;
    // three neighbouring pixels of a row lie one after the other: one loop over 3 * channels_in
    for (int i = 0; i < 3 * c.channels_in; ++i, weight += c.channels) {
      F w[kChannelVectors];
      for (int r = 0; r < kChannelVectors; ++r) w[r] = load(weight + r * kWidth);
      for (int p = 0; p < P; ++p) {
        const F b = set(x[p * c.channels_in + i]);
        for (int r = 0; r < kChannelVectors; ++r) acc[p][r] = fma(w[r], b, acc[p][r]);
      }
    }
  }
  const std::size_t at = (static_cast<std::size_t>(row + 1) * (c.width + 2) + column + 1) * c.channels + channel;
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < kChannelVectors; ++r) {
      const std::size_t to = at + static_cast<std::size_t>(p) * c.channels + r * kWidth;
      F y = acc[p][r];
      if (c.residual != nullptr) y = y + load(c.residual + to);
      store(c.y + to, c.relu ? vmax(set(0.0F), y) : y);
    }
}

void image_convolution(const lram::ImageConvolution& c, int first_row, int last_row) {
  for (int row = first_row; row < last_row; ++row)
    for (int channel = 0; channel < c.channels; channel += 16) {
      int column = 0;
      for (; column + kPixels <= c.width; column += kPixels) convolve_pixels<kPixels>(c, row, column, channel);
      for (; column < c.width; ++column) convolve_pixels<1>(c, row, column, channel);
    }
}

}  // namespace
