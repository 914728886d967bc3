// Tiles of codes times a few tokens, for processors without a dot product of bytes: an activation is one int16 code,
// and weights are widened to int16 where they are used. That is one multiplication where two planes of int8 take two,
// and a sum of a block of inputs is exact in 32 bits.
#pragma once
#include "dense_float32.h"
#include "kernels.h"

namespace {

constexpr int kVectors = 2;        // vectors of outputs at once: more do not fit the registers beside three tokens
constexpr int kBlockInputs = 128;  // a block of a tile stays in the first cache until all its outputs are done

// Codes of a token, in fours, ordered as `store_wide_codes` does.
LRAM_INLINE const std::int8_t* wide_codes(const lram::Tokens& x, int token) {
  return x.codes + static_cast<std::size_t>(token) * 2 * x.code_stride;
}

// Each iteration of the loops below reads so many bytes of weights, and prefetches as many: in the order of the file,
// which is not that of the loops.
constexpr int kBytesAtOnce = kVectors * kWidth * 4;
LRAM_INLINE void prefetch_ahead(const std::uint8_t* block, int iteration) {
  prefetch_bytes<kBytesAtOnce>(block + kAhead + iteration * kBytesAtOnce);
}

template <int T>
LRAM_INLINE void start_sums(WideSums (&sums)[T][kVectors]) {
  for (auto& of_token : sums)
    for (WideSums& s : of_token) s = no_wide_sums();
}

// Adds the products of four inputs, from `first` on, to the sums of T tokens.
template <int T>
LRAM_INLINE void add_four(const WideWeights (&weights)[kVectors], const lram::Tokens& x, int token, int first,
                          WideSums (&sums)[T][kVectors]) {
  for (int t = 0; t < T; ++t) {
    const WideCodes codes = load_wide_codes(wide_codes(x, token + t) + 2 * static_cast<std::ptrdiff_t>(first));
    for (int v = 0; v < kVectors; ++v) sums[t][v] = add_wide_products(sums[t][v], weights[v], codes);
  }
}

// One int8 tile: [32 scales][32 sums of codes][cols / 4][32][4 codes], or, where it is Grouped, one of int8g: per
// group, which is a block, [32 scales][inputs / 4][32][4 codes + 128].
template <int T, bool Grouped>
LRAM_INLINE void dense_int8(const std::uint8_t* tile, int quads, const lram::Tokens& x, int token, float* y,
                            std::size_t y_stride) {
  static_assert(kBlockInputs == lram::kWideGroup, "a block of int8g has one scale per output");
  constexpr int kQuads = kBlockInputs / 4;
  const int blocks = (quads + kQuads - 1) / kQuads;
  const auto* scales = reinterpret_cast<const float*>(tile);
  const std::uint8_t* block = tile + (Grouped ? 4 : 8) * lram::kTileRows;
  const std::int32_t* offsets = Grouped ? x.sums + static_cast<std::size_t>(token) * blocks : nullptr;
  F total[T][kPerTile];
  for (auto& of_token : total)
    for (F& a : of_token) a = set(0.0F);
  for (int b = 0; b < blocks; ++b) {
    const int first = b * kQuads;
    const int count = b + 1 < blocks ? kQuads : quads - first;
    for (int part = 0; part < kPerTile; part += kVectors) {
      WideSums sums[T][kVectors];
      start_sums(sums);
      const std::uint8_t* w = block + part * kWidth * 4;
      for (int k = 0; k < count; ++k, w += 4 * lram::kTileRows) {
        prefetch_ahead(block, part / kVectors * count + k);
        WideWeights weights[kVectors];
        for (int v = 0; v < kVectors; ++v) weights[v] = widen<Grouped>(load_codes(w + v * kWidth * 4));
        add_four(weights, x, token, 4 * (first + k), sums);
      }
      for (int t = 0; t < T; ++t)
        for (int v = 0; v < kVectors; ++v) {
          F& sum_of_all = total[t][part + v];
          const I sum_of_block = joined(sums[t][v]);
          sum_of_all = Grouped ? fma(to_float(add_sums(sum_of_block, set_sums(offsets[t * blocks + b]))),
                                     load(scales + (part + v) * kWidth), sum_of_all)
                               : sum_of_all + to_float(sum_of_block);
        }
    }
    block += static_cast<std::size_t>(count) * 4 * lram::kTileRows;
    if (Grouped) {
      scales = reinterpret_cast<const float*>(block);
      block += 4 * lram::kTileRows;
    }
  }
  for (int t = 0; t < T; ++t)
    for (int v = 0; v < kPerTile; ++v) {
      F scale = set(x.scales[token + t]);
      if (!Grouped) scale = scale * load(scales + v * kWidth);
      store(y + t * y_stride + v * kWidth, total[t][v] * scale);
    }
}

// One int4 tile: per group [32 scales][8][32][4 bytes], low nibbles of inputs 0..3, high ones of 4..7; nibble = code +
// 8
template <int T>
LRAM_INLINE void dense_int4(const std::uint8_t* tile, int groups, const lram::Tokens& x, int token, float* y,
                            std::size_t y_stride) {
  constexpr int kRows = lram::kGroup / 8;
  constexpr std::size_t kGroupBytes = 4 * lram::kTileRows + lram::kTileRows * lram::kGroup / 2;
  const std::int32_t* offsets = x.sums + static_cast<std::size_t>(token) * groups;
  F total[T][kPerTile];
  for (auto& of_token : total)
    for (F& a : of_token) a = set(0.0F);
  for (int g = 0; g < groups; ++g) {
    const std::uint8_t* group = tile + g * kGroupBytes;
    const auto* scales = reinterpret_cast<const float*>(group);
    for (int part = 0; part < kPerTile; part += kVectors) {
      WideSums sums[T][kVectors];
      start_sums(sums);
      const std::uint8_t* w = group + 4 * lram::kTileRows + part * kWidth * 4;
      for (int k = 0; k < kRows; ++k, w += 4 * lram::kTileRows) {
        prefetch_ahead(group, part / kVectors * kRows + k);
        I both[kVectors];
        WideWeights weights[kVectors];
        for (int v = 0; v < kVectors; ++v) both[v] = load_codes(w + v * kWidth * 4);
        for (int v = 0; v < kVectors; ++v) weights[v] = widen_low_nibbles(both[v]);
        add_four(weights, x, token, g * lram::kGroup + 8 * k, sums);
        for (int v = 0; v < kVectors; ++v) weights[v] = widen_high_nibbles(both[v]);
        add_four(weights, x, token, g * lram::kGroup + 8 * k + 4, sums);
      }
      for (int t = 0; t < T; ++t) {
        const I offset = set_sums(offsets[t * groups + g]);
        for (int v = 0; v < kVectors; ++v)
          total[t][part + v] = fma(to_float(add_sums(joined(sums[t][v]), offset)), load(scales + (part + v) * kWidth),
                                   total[t][part + v]);
      }
    }
  }
  for (int t = 0; t < T; ++t)
    for (int v = 0; v < kPerTile; ++v) store(y + t * y_stride + v * kWidth, total[t][v] * set(x.scales[token + t]));
}

template <int T>
LRAM_INLINE void dense_codes(const lram::Matrix& matrix, const std::uint8_t* tile, const lram::Tokens& x, int token,
                             float* y, std::size_t y_stride) {
  if (matrix.format == lram::Format::int8)
    dense_int8<T, false>(tile, (matrix.cols + 3) / 4, x, token, y, y_stride);
  else if (matrix.format == lram::Format::int8g)
    dense_int8<T, true>(tile, (matrix.cols + 3) / 4, x, token, y, y_stride);
  else
    dense_int4<T>(tile, (matrix.cols + lram::kGroup - 1) / lram::kGroup, x, token, y, y_stride);
}

LRAM_INLINE int sum_planes(const lram::Tokens&) { return 1; }

// Stores a vector of codes of token `t` from input `i` on, and adds it to their sums.
LRAM_INLINE void encode(const lram::Tokens& x, lram::Format, int t, int i, F value, F* sums) {
  store_wide_codes(x.codes + static_cast<std::size_t>(t) * 2 * x.code_stride + 2 * i, value);
  sums[0] = sums[0] + value;
}

}  // namespace
