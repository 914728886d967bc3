// Tiles of int8 codes times many tokens, for processors that multiply matrices of bytes (AMX). They sum whole numbers,
// so that a token's result has the same bits among few others, where dense_planes.h computes it.
#pragma once
#include "dense_planes.h"

namespace {

constexpr int kCodeRows = 16;   // rows of codes in a register, one for each plane of each token,
constexpr int kCodeBytes = 64;  // and inputs in each
constexpr std::size_t kStepBytes = static_cast<std::size_t>(kCodeBytes) * lram::kTileRows;  // weights of so many inputs
constexpr int kSums = 2 * kCodeRows * lram::kTileRows;

// All eight registers are 16 rows of 64 bytes.
struct alignas(64) RegisterShapes {
  std::uint8_t palette = 1;
  std::uint8_t first_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// No variable: GCC 12 does not know that all of it is read.
constexpr RegisterShapes kShapes;

// Sums [Registers * 16 rows of codes][32 outputs] over `steps` times 64 inputs; `next` is what comes into the cache
// meanwhile, `share` bytes of it in each step.
template <int Registers>
void sum_products(const std::uint8_t* weights, int steps, const std::int8_t* codes, std::size_t stride,
                  const std::uint8_t* next, std::size_t share, std::int32_t* sums) {
  constexpr std::size_t kQuadBytes = 4 * lram::kTileRows;
  _tile_zero(0);
  _tile_zero(1);
  if (Registers == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int step = 0; step < steps; ++step, weights += kStepBytes, codes += kCodeBytes) {
    _tile_loadd(4, weights, kQuadBytes);
    _tile_loadd(5, weights + kCodeBytes, kQuadBytes);
    _tile_loadd(6, codes, stride);
    _tile_dpbusd(0, 6, 4);
    _tile_dpbusd(1, 6, 5);
    if (Registers == 2) {
      _tile_loadd(7, codes + kCodeRows * stride, stride);
      _tile_dpbusd(2, 7, 4);
      _tile_dpbusd(3, 7, 5);
    }
    for (std::size_t byte = 0; byte < share; byte += 64) prefetch_far(next + byte);
    next += share;
  }
  constexpr std::size_t kRow = 4 * lram::kTileRows;
  _tile_stored(0, sums, kRow);
  _tile_stored(1, sums + kWidth, kRow);
  if (Registers == 2) {
    _tile_stored(2, sums + kCodeRows * lram::kTileRows, kRow);
    _tile_stored(3, sums + kCodeRows * lram::kTileRows + kWidth, kRow);
  }
}

// Outputs of `count` tokens from their sums and the inputs beyond the last 64.
template <int P>
void finish_tile(const std::uint8_t* tile, int first_quad, int quads, const lram::Tokens& x, int token, int count,
                 std::int32_t* sums, float* y, std::size_t y_stride) {
  const auto* scales = reinterpret_cast<const float*>(tile);
  const auto* code_sums = reinterpret_cast<const std::int32_t*>(tile) + lram::kTileRows;
  const std::uint8_t* codes = tile + 8 * lram::kTileRows;
  for (int t = 0; t < count; ++t) {
    I acc[1][P][kPerTile];
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < kPerTile; ++v)
        acc[0][p][v] =
            add_sums(load_sums(sums + (t * P + p) * lram::kTileRows + v * kWidth), load_sums(code_sums + v * kWidth));
    const std::int8_t* planes = x.codes + static_cast<std::size_t>(token + t) * P * x.code_stride;
    const std::uint8_t* rest = codes + static_cast<std::size_t>(first_quad) * 4 * lram::kTileRows;
    add_quads<false>(rest, quads - first_quad, planes + 4 * first_quad, x.code_stride, rest + kAhead, acc);
    for (int v = 0; v < kPerTile; ++v) {
      const F total = both_planes<P>(acc[0][0], acc[0][P - 1], v);
      store(y + t * y_stride + v * kWidth, total * set(x.scales[token + t]) * load(scales + v * kWidth));
    }
  }
}

template <int P, int Registers>
void dense_tile(const std::uint8_t* tile, int quads, const lram::Tokens& x, int token, const std::uint8_t* next,
                std::size_t next_bytes, float* y, std::size_t y_stride) {
  alignas(64) std::int32_t sums[kSums];
  const int steps = quads / (kCodeBytes / 4);
  const std::int8_t* codes = x.codes + static_cast<std::size_t>(token) * P * x.code_stride;
  sum_products<Registers>(tile + 8 * lram::kTileRows, steps, codes, x.code_stride, next,
                          steps > 0 ? next_bytes / steps : 0, sums);
  finish_tile<P>(tile, steps * (kCodeBytes / 4), quads, x, token, Registers * kCodeRows / P, sums, y, y_stride);
}

// Computes as many tokens as fill registers, and returns how many those are.
template <int P>
int dense_many(const lram::Matrix& matrix, int first_tile, int last_tile, const lram::Tokens& x, float* y,
               std::size_t y_stride) {
  constexpr int kTokens = kCodeRows / P;
  const int groups = x.count / kTokens;
  if (groups == 0) return 0;
  _tile_loadconfig(&kShapes);
  const std::size_t share = matrix.tile_bytes / static_cast<std::size_t>((groups + 1) / 2);
  for (int tile = first_tile; tile < last_tile; ++tile) {
    const std::uint8_t* data = matrix.data + tile * matrix.tile_bytes;
    const std::uint8_t* next = data + matrix.tile_bytes;
    float* out = y + static_cast<std::size_t>(tile) * lram::kTileRows;
    for (int group = 0; group < groups; group += 2, next += share) {
      const int token = group * kTokens;
      float* to = out + static_cast<std::size_t>(token) * y_stride;
      if (group + 1 < groups)
        dense_tile<P, 2>(data, (matrix.cols + 3) / 4, x, token, next, share, to, y_stride);
      else
        dense_tile<P, 1>(data, (matrix.cols + 3) / 4, x, token, next, share, to, y_stride);
    }
  }
  _tile_release();
  return groups * kTokens;
}

// Of the tokens of a product those that come in large numbers; returns how many they are, from the first on.
int dense_in_registers(const lram::Matrix& matrix, int first_tile, int last_tile, const lram::Tokens& x, float* y,
                       std::size_t y_stride) {
  if (matrix.format != lram::Format::int8) return 0;
  return x.planes == 2 ? dense_many<2>(matrix, first_tile, last_tile, x, y, y_stride)
                       : dense_many<1>(matrix, first_tile, last_tile, x, y, y_stride);
}

}  // namespace
