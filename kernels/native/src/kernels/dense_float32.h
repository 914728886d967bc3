// Float32 tiles times a few tokens.
#pragma once
#include "kernels.h"

namespace {

constexpr int kPerTile = lram::kTileRows / kWidth;  // vectors of outputs
constexpr int kAhead = 2048;                        // bytes to prefetch ahead: past the page the hardware stops at

// Into the cache, whole lines.
template <int Bytes>
LRAM_INLINE void prefetch_bytes(const void* p) {
  for (int byte = 0; byte < Bytes; byte += 64) prefetch(static_cast<const char*>(p) + byte);
}

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
      prefetch_bytes<4 * lram::kTileRows>(reinterpret_cast<const char*>(row) + kAhead);
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
      for (int v = 0; v < kPerTile; ++v) store(y + t * y_stride + tile * lram::kTileRows + v * kWidth, acc[t][tile][v]);
}

}  // namespace
