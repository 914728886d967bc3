// Vectors of 4 floats in plain C++: what every processor can run, and what the tests compare the others with.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../half.h"
#include "inline.h"

namespace {

typedef float F __attribute__((vector_size(16)));
typedef std::int32_t I __attribute__((vector_size(16)));
constexpr int kWidth = 4;
constexpr int kMemoryVectors = 2;
constexpr int kTilesRead = 1;
constexpr int kTilesAtOnce = 1;
constexpr int kGemmTokens = 6;   // whose sums registers hold,
constexpr int kGemmVectors = 2;  // of so many vectors of outputs

LRAM_INLINE F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
LRAM_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
LRAM_INLINE F set(float x) { return F{x, x, x, x}; }
LRAM_INLINE F fma(F a, F b, F c) { return a * b + c; }
LRAM_INLINE F vmin(F a, F b) { return a < b ? a : b; }
LRAM_INLINE F vmax(F a, F b) { return a > b ? a : b; }
LRAM_INLINE F bits(I v) {
  F f;
  std::memcpy(&f, &v, sizeof f);
  return f;
}
LRAM_INLINE I bits(F v) {
  I i;
  std::memcpy(&i, &v, sizeof i);
  return i;
}
LRAM_INLINE F vabs(F a) { return bits(bits(a) & 0x7fffffff); }
LRAM_INLINE F round_even(F a) {
  // adding 1.5 * 2^23 leaves no room for a fraction; holds for what is asked of it, |a| < 2^22
  const F magic = set(12582912.0F);
  return (a + magic) - magic;
}
LRAM_INLINE I to_int(F v) { return __builtin_convertvector(v, I); }
LRAM_INLINE F scale_by_power(F a, F n) { return a * bits((to_int(n) + 127) << 23); }
LRAM_INLINE F with_sign(F magnitude, F sign) { return bits(bits(magnitude) | (bits(sign) & INT32_MIN)); }
LRAM_INLINE F where_negative(F condition, F yes, F no) { return bits(condition) < 0 ? yes : no; }
LRAM_INLINE float sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
LRAM_INLINE float largest(F a) {
  float found = a[0];
  for (int i = 1; i < 4; ++i) found = a[i] > found ? a[i] : found;
  return found;
}
template <int Lane>
LRAM_INLINE F spread_in_fours(F a) {
  return set(a[Lane]);
}
LRAM_INLINE void prefetch(const void*) {}
LRAM_INLINE void prefetch_far(const void*) {}

LRAM_INLINE F load_half(const std::uint16_t* p) {
  return F{lram::half_to_float(p[0]), lram::half_to_float(p[1]), lram::half_to_float(p[2]), lram::half_to_float(p[3])};
}
LRAM_INLINE void store_half(std::uint16_t* p, F v) {
  for (int i = 0; i < 4; ++i) p[i] = lram::float_to_half(v[i]);
}

LRAM_INLINE F load_short(const std::int16_t* p) {
  return F{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}
LRAM_INLINE void store_short(std::int16_t* p, F v) {  // rounded to nearest even
  for (int i = 0; i < 4; ++i) {
    const float rounded = std::nearbyint(v[i]);
    p[i] = static_cast<std::int16_t>(rounded >= 32767.0F ? 32767.0F : rounded >= -32768.0F ? rounded : -32768.0F);
  }
}

LRAM_INLINE I zero_sums() { return I{0, 0, 0, 0}; }
LRAM_INLINE I set_sums(std::int32_t x) { return I{x, x, x, x}; }
LRAM_INLINE I add_sums(I a, I b) { return a + b; }
LRAM_INLINE I load_sums(const std::int32_t* p) {
  I v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
LRAM_INLINE I load_codes(const void* p) {
  I v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
LRAM_INLINE I four_codes(const std::int8_t* p) {
  std::int32_t four;
  std::memcpy(&four, p, sizeof four);
  return set_sums(four);
}
LRAM_INLINE I low_nibbles(I v) { return v & 0x0f0f0f0f; }
LRAM_INLINE I high_nibbles(I v) { return (v >> 4) & 0x0f0f0f0f; }
LRAM_INLINE I flip_signs(I v) { return v ^ static_cast<std::int32_t>(0x80808080U); }  // of every byte
template <int Byte>
LRAM_INLINE I signed_byte(I v) {  // of each 32 bits
  return (v << (24 - 8 * Byte)) >> 24;
}
LRAM_INLINE F to_float(I v) { return __builtin_convertvector(v, F); }
LRAM_INLINE void store_codes(std::int8_t* p, F v, std::int8_t flip) {
  const I wide = to_int(v);
  for (int i = 0; i < 4; ++i) p[i] = static_cast<std::int8_t>(wide[i] ^ flip);
}

constexpr bool kUnsignedActivations = false;
LRAM_INLINE I dot_int8(I acc, I weights, I activations) {
  std::int8_t w[16];
  std::int8_t a[16];
  std::memcpy(w, &weights, sizeof w);
  std::memcpy(a, &activations, sizeof a);
  for (int i = 0; i < 4; ++i) {
    std::int32_t products = 0;
    for (int j = 4 * i; j < 4 * i + 4; ++j) products += w[j] * a[j];
    acc[i] += products;
  }
  return acc;
}
LRAM_INLINE I dot_unsigned(I acc, I weights, I activations) { return dot_int8(acc, weights, activations); }

}  // namespace
