// Vectors of 16 floats: AVX-512 (F, BW, DQ, VL), with VNNI where the file is compiled for it.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "inline.h"

namespace {

using F = __m512;  // floats; GCC and Clang give it + - * /
using I = __m512i;
constexpr int kWidth = 16;
constexpr int kMemoryVectors = 4;  // vectors per column tile of C that registers hold for three tokens
constexpr int kTilesRead = 2;      // tiles of C read together where it is only read
constexpr int kTilesAtOnce = 2;    // weight tiles of 32 outputs multiplied together in float32
constexpr int kGemmTokens = 14;    // whose sums registers hold,
constexpr int kGemmVectors = 2;    // of so many vectors of outputs

LRAM_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
LRAM_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }
LRAM_INLINE F set(float x) { return _mm512_set1_ps(x); }
LRAM_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
LRAM_INLINE F vmin(F a, F b) { return _mm512_min_ps(a, b); }
LRAM_INLINE F vmax(F a, F b) { return _mm512_max_ps(a, b); }
LRAM_INLINE F vabs(F a) { return _mm512_abs_ps(a); }
LRAM_INLINE F round_even(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LRAM_INLINE F scale_by_power(F a, F n) { return _mm512_scalef_ps(a, n); }
LRAM_INLINE F with_sign(F magnitude, F sign) {
  const __m512i mask = _mm512_set1_epi32(INT32_MIN);
  return _mm512_castsi512_ps(
      _mm512_or_si512(_mm512_castps_si512(magnitude), _mm512_and_si512(_mm512_castps_si512(sign), mask)));
}
LRAM_INLINE F where_negative(F condition, F yes, F no) {
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(condition)), no, yes);
}
LRAM_INLINE float sum(F a) { return _mm512_reduce_add_ps(a); }
LRAM_INLINE float largest(F a) { return _mm512_reduce_max_ps(a); }
template <int Lane>
LRAM_INLINE F spread_in_fours(F a) {
  return _mm512_permute_ps(a, Lane * 0x55);
}
LRAM_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
LRAM_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

LRAM_INLINE F load_half(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
LRAM_INLINE void store_half(std::uint16_t* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

LRAM_INLINE F load_short(const std::int16_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
LRAM_INLINE void store_short(std::int16_t* p, F v) {  // rounded to nearest even
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)));
}

LRAM_INLINE I zero_sums() { return _mm512_setzero_si512(); }
LRAM_INLINE I set_sums(std::int32_t x) { return _mm512_set1_epi32(x); }
LRAM_INLINE I add_sums(I a, I b) { return _mm512_add_epi32(a, b); }
LRAM_INLINE I load_sums(const std::int32_t* p) { return _mm512_loadu_si512(p); }
LRAM_INLINE I load_codes(const void* p) { return _mm512_loadu_si512(p); }
LRAM_INLINE I four_codes(const std::int8_t* p) { return _mm512_set1_epi32(*reinterpret_cast<const Unaligned32*>(p)); }
LRAM_INLINE I low_nibbles(I v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
LRAM_INLINE I high_nibbles(I v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
LRAM_INLINE I flip_signs(I v) { return _mm512_xor_si512(v, _mm512_set1_epi8(INT8_MIN)); }  // of every byte
template <int Byte>
LRAM_INLINE I signed_byte(I v) {  // of each 32 bits
  return _mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * Byte), 24);
}
LRAM_INLINE F to_float(I v) { return _mm512_cvtepi32_ps(v); }
LRAM_INLINE void store_codes(std::int8_t* p, F v, std::int8_t flip) {
  const __m128i codes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_xor_si128(codes, _mm_set1_epi8(flip)));
}

#ifdef __AVX512VNNI__
constexpr bool kUnsignedActivations = true;  // dpbusd wants one side unsigned: code + 128, undone by the weights' sums
LRAM_INLINE I dot_int8(I acc, I weights, I activations) { return _mm512_dpbusd_epi32(acc, activations, weights); }
LRAM_INLINE I dot_unsigned(I acc, I weights, I activations) { return _mm512_dpbusd_epi32(acc, weights, activations); }
#else
#define LRAM_WIDE_CODES
using WideSums = I;
struct WideWeights {  // of four inputs, int16
  I even;
  I odd;
};
struct WideCodes {
  I even;
  I odd;
};
LRAM_INLINE WideSums no_wide_sums() { return zero_sums(); }
LRAM_INLINE I joined(WideSums sums) { return sums; }
template <bool Unsigned>
LRAM_INLINE WideWeights widen(I v) {
  if (Unsigned) return {_mm512_and_si512(v, _mm512_set1_epi16(255)), _mm512_srli_epi16(v, 8)};
  return {_mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8), _mm512_srai_epi16(v, 8)};
}
LRAM_INLINE WideWeights widen_low_nibbles(I v) {
  const I mask = _mm512_set1_epi16(15);
  return {_mm512_and_si512(v, mask), _mm512_and_si512(_mm512_srli_epi16(v, 8), mask)};
}
LRAM_INLINE WideWeights widen_high_nibbles(I v) {
  return {_mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi16(15)), _mm512_srli_epi16(v, 12)};
}
LRAM_INLINE WideCodes load_wide_codes(const std::int8_t* p) { return {four_codes(p), four_codes(p + 4)}; }
LRAM_INLINE WideSums add_wide_products(WideSums sums, const WideWeights& w, const WideCodes& codes) {
  sums = _mm512_add_epi32(sums, _mm512_madd_epi16(w.even, codes.even));
  return _mm512_add_epi32(sums, _mm512_madd_epi16(w.odd, codes.odd));
}
LRAM_INLINE void store_wide_codes(std::int8_t* p,
                                  F v) {  // fours as 0, 2, 1, 3: the even bytes of weights, then the odd
  const __m256i codes = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v));
  const __m256i ordered = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(codes, 0xd8), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), ordered);
}
#endif

}  // namespace
