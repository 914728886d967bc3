// Vectors of 8 floats: AVX2 with FMA and F16C, with AVX-VNNI where the file is compiled for it.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "inline.h"

namespace {

using F = __m256;
using I = __m256i;
constexpr int kWidth = 8;
constexpr int kMemoryVectors = 2;
constexpr int kTilesRead = 2;
constexpr int kTilesAtOnce = 1;
constexpr int kGemmTokens = 6;   // whose sums registers hold,
constexpr int kGemmVectors = 2;  // of so many vectors of outputs

LRAM_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
LRAM_INLINE void store(float* p, F v) { _mm256_storeu_ps(p, v); }
LRAM_INLINE F set(float x) { return _mm256_set1_ps(x); }
LRAM_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
LRAM_INLINE F vmin(F a, F b) { return _mm256_min_ps(a, b); }
LRAM_INLINE F vmax(F a, F b) { return _mm256_max_ps(a, b); }
LRAM_INLINE F vabs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }
LRAM_INLINE F round_even(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LRAM_INLINE F scale_by_power(F a, F n) {
  const I exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return a * _mm256_castsi256_ps(exponent);
}
LRAM_INLINE F with_sign(F magnitude, F sign) {
  return _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.0F)));
}
LRAM_INLINE F where_negative(F condition, F yes, F no) { return _mm256_blendv_ps(no, yes, condition); }
LRAM_INLINE float sum(F a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
LRAM_INLINE float largest(F a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
template <int Lane>
LRAM_INLINE F spread_in_fours(F a) {
  return _mm256_permute_ps(a, Lane * 0x55);
}
LRAM_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
LRAM_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

LRAM_INLINE F load_half(const std::uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
LRAM_INLINE void store_half(std::uint16_t* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

LRAM_INLINE F load_short(const std::int16_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
LRAM_INLINE void store_short(std::int16_t* p, F v) {  // rounded to nearest even
  const __m256i whole = _mm256_cvtps_epi32(v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
}

LRAM_INLINE I zero_sums() { return _mm256_setzero_si256(); }
LRAM_INLINE I set_sums(std::int32_t x) { return _mm256_set1_epi32(x); }
LRAM_INLINE I add_sums(I a, I b) { return _mm256_add_epi32(a, b); }
LRAM_INLINE I load_sums(const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
LRAM_INLINE I load_codes(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
LRAM_INLINE I four_codes(const std::int8_t* p) { return _mm256_set1_epi32(*reinterpret_cast<const Unaligned32*>(p)); }
LRAM_INLINE I low_nibbles(I v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
LRAM_INLINE I high_nibbles(I v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
LRAM_INLINE I flip_signs(I v) { return _mm256_xor_si256(v, _mm256_set1_epi8(INT8_MIN)); }  // of every byte
template <int Byte>
LRAM_INLINE I signed_byte(I v) {  // of each 32 bits
  return _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * Byte), 24);
}
LRAM_INLINE F to_float(I v) { return _mm256_cvtepi32_ps(v); }
LRAM_INLINE void store_codes(std::int8_t* p, F v, std::int8_t flip) {
  const I wide = _mm256_cvtps_epi32(v);
  const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  const __m128i codes = _mm_xor_si128(_mm_packs_epi16(pairs, pairs), _mm_set1_epi8(flip));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), codes);
}

#ifdef __AVXVNNI__
constexpr bool kUnsignedActivations = true;
LRAM_INLINE I dot_int8(I acc, I weights, I activations) { return _mm256_dpbusd_avx_epi32(acc, activations, weights); }
LRAM_INLINE I dot_unsigned(I acc, I weights, I activations) {
  return _mm256_dpbusd_avx_epi32(acc, weights, activations);
}
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
  if (Unsigned) return {_mm256_and_si256(v, _mm256_set1_epi16(255)), _mm256_srli_epi16(v, 8)};
  return {_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
}
LRAM_INLINE WideWeights widen_low_nibbles(I v) {
  const I mask = _mm256_set1_epi16(15);
  return {_mm256_and_si256(v, mask), _mm256_and_si256(_mm256_srli_epi16(v, 8), mask)};
}
LRAM_INLINE WideWeights widen_high_nibbles(I v) {
  return {_mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi16(15)), _mm256_srli_epi16(v, 12)};
}
LRAM_INLINE WideCodes load_wide_codes(const std::int8_t* p) { return {four_codes(p), four_codes(p + 4)}; }
LRAM_INLINE WideSums add_wide_products(WideSums sums, const WideWeights& w, const WideCodes& codes) {
  sums = _mm256_add_epi32(sums, _mm256_madd_epi16(w.even, codes.even));
  return _mm256_add_epi32(sums, _mm256_madd_epi16(w.odd, codes.odd));
}
LRAM_INLINE void store_wide_codes(std::int8_t* p,
                                  F v) {  // fours as 0, 2, 1, 3: the even bytes of weights, then the odd
  const I wide = _mm256_cvtps_epi32(v);
  const __m128i codes = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  const __m128i ordered = _mm_shufflehi_epi16(_mm_shufflelo_epi16(codes, 0xd8), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), ordered);
}
#endif

}  // namespace
