// Vectors of 4 floats: NEON on aarch64, with the dot product instructions where the file is compiled for them.
#pragma once
#include <arm_neon.h>

#include <cstdint>

#include "inline.h"

namespace {

using F = float32x4_t;
using I = int32x4_t;
constexpr int kWidth = 4;
constexpr int kMemoryVectors = 4;
constexpr int kTilesRead = 1;
constexpr int kTilesAtOnce = 1;
constexpr int kGemmTokens = 6;   // whose sums registers hold,
constexpr int kGemmVectors = 4;  // of so many vectors of outputs

LRAM_INLINE F load(const float* p) { return vld1q_f32(p); }
LRAM_INLINE void store(float* p, F v) { vst1q_f32(p, v); }
LRAM_INLINE F set(float x) { return vdupq_n_f32(x); }
LRAM_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
LRAM_INLINE F vmin(F a, F b) { return vminq_f32(a, b); }
LRAM_INLINE F vmax(F a, F b) { return vmaxq_f32(a, b); }
LRAM_INLINE F vabs(F a) { return vabsq_f32(a); }
LRAM_INLINE F round_even(F a) { return vrndnq_f32(a); }
LRAM_INLINE F scale_by_power(F a, F n) {
  const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23);
  return a * vreinterpretq_f32_s32(exponent);
}
LRAM_INLINE F with_sign(F magnitude, F sign) { return vbslq_f32(vdupq_n_u32(0x80000000U), sign, magnitude); }
LRAM_INLINE F where_negative(F condition, F yes, F no) {
  return vbslq_f32(vcltq_s32(vreinterpretq_s32_f32(condition), vdupq_n_s32(0)), yes, no);
}
LRAM_INLINE float sum(F a) { return vaddvq_f32(a); }
LRAM_INLINE float largest(F a) { return vmaxvq_f32(a); }
template <int Lane>
LRAM_INLINE F spread_in_fours(F a) {
  return vdupq_laneq_f32(a, Lane);
}
LRAM_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
LRAM_INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

LRAM_INLINE F load_half(const std::uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
LRAM_INLINE void store_half(std::uint16_t* p, F v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }

LRAM_INLINE F load_short(const std::int16_t* p) { return vcvtq_f32_s32(vmovl_s16(vld1_s16(p))); }
LRAM_INLINE void store_short(std::int16_t* p, F v) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(v))); }  // nearest even

LRAM_INLINE I zero_sums() { return vdupq_n_s32(0); }
LRAM_INLINE I set_sums(std::int32_t x) { return vdupq_n_s32(x); }
LRAM_INLINE I add_sums(I a, I b) { return vaddq_s32(a, b); }
LRAM_INLINE I load_sums(const std::int32_t* p) { return vld1q_s32(p); }
LRAM_INLINE I load_codes(const void* p) { return vreinterpretq_s32_s8(vld1q_s8(static_cast<const std::int8_t*>(p))); }
LRAM_INLINE I four_codes(const std::int8_t* p) { return vdupq_n_s32(*reinterpret_cast<const Unaligned32*>(p)); }
LRAM_INLINE I low_nibbles(I v) { return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(v), vdupq_n_u8(15))); }
LRAM_INLINE I high_nibbles(I v) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(v), 4)); }
LRAM_INLINE I flip_signs(I v) {
  return vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s32(v), vdupq_n_u8(128)));
}  // of every byte
template <int Byte>
LRAM_INLINE I signed_byte(I v) {  // of each 32 bits
  return vshrq_n_s32(vshlq_n_s32(v, 24 - 8 * Byte), 24);
}
LRAM_INLINE F to_float(I v) { return vcvtq_f32_s32(v); }
LRAM_INLINE void store_codes(std::int8_t* p, F v, std::int8_t flip) {
  const int16x4_t narrow = vmovn_s32(vcvtnq_s32_f32(v));
  const int8x8_t bytes = veor_s8(vmovn_s16(vcombine_s16(narrow, narrow)), vdup_n_s8(flip));
  *reinterpret_cast<Unaligned32*>(p) = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
}

#ifdef __ARM_FEATURE_DOTPROD
constexpr bool kUnsignedActivations = false;
LRAM_INLINE I dot_int8(I acc, I weights, I activations) {
  return vdotq_s32(acc, vreinterpretq_s8_s32(weights), vreinterpretq_s8_s32(activations));
}
LRAM_INLINE I dot_unsigned(I acc, I weights, I activations) { return dot_int8(acc, weights, activations); }
#else
#define LRAM_WIDE_CODES
struct WideSums {  // of an output each, divided by which of four inputs they are of
  int32x4_t of[4];
};
struct WideWeights {  // of four inputs and two outputs each, int16
  int16x8_t low;
  int16x8_t high;
};
using WideCodes = int16x8_t;  // four, twice
LRAM_INLINE WideSums no_wide_sums() { return {{vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}}; }
LRAM_INLINE I joined(const WideSums& sums) {
  return vpaddq_s32(vpaddq_s32(sums.of[0], sums.of[1]), vpaddq_s32(sums.of[2], sums.of[3]));
}
LRAM_INLINE WideWeights widen_unsigned(uint8x16_t v) {
  return {vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(v))), vreinterpretq_s16_u16(vmovl_high_u8(v))};
}
template <bool Unsigned>
LRAM_INLINE WideWeights widen(I v) {
  if (Unsigned) return widen_unsigned(vreinterpretq_u8_s32(v));
  const int8x16_t codes = vreinterpretq_s8_s32(v);
  return {vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes)};
}
LRAM_INLINE WideWeights widen_low_nibbles(I v) { return widen_unsigned(vreinterpretq_u8_s32(low_nibbles(v))); }
LRAM_INLINE WideWeights widen_high_nibbles(I v) { return widen_unsigned(vreinterpretq_u8_s32(high_nibbles(v))); }
LRAM_INLINE WideCodes load_wide_codes(const std::int8_t* p) {
  return vreinterpretq_s16_s64(vld1q_dup_s64(reinterpret_cast<const std::int64_t*>(p)));
}
LRAM_INLINE WideSums add_wide_products(const WideSums& sums, const WideWeights& w, WideCodes codes) {
  return {{vmlal_s16(sums.of[0], vget_low_s16(w.low), vget_low_s16(codes)), vmlal_high_s16(sums.of[1], w.low, codes),
           vmlal_s16(sums.of[2], vget_low_s16(w.high), vget_low_s16(codes)),
           vmlal_high_s16(sums.of[3], w.high, codes)}};
}
LRAM_INLINE void store_wide_codes(std::int8_t* p, F v) {
  vst1_s16(reinterpret_cast<std::int16_t*>(p), vmovn_s32(vcvtnq_s32_f32(v)));
}
#endif

}  // namespace
