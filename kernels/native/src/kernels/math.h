// Functions of vectors. Errors are a few units in the last place of float32, absolute near 0. NaN stays NaN: where an
// instruction set's minimum and maximum return one of two operands, that is the second.
#pragma once

namespace {

// e^x as 2^n times e^r, r near 0
struct Exponent {
  F n;
  F r;
};

LRAM_INLINE Exponent exponent_of(F x) {
  x = vmin(set(88.0F), vmax(set(-87.3F), x));
  const F n = round_even(x * set(1.44269504088896341F));
  const F r = fma(n, set(-0.693359375F), x);
  return {n, fma(n, set(2.12194440e-4F), r)};
}

// (e^r - 1 - r) / r^2
LRAM_INLINE F beyond_linear(F r) {
  F p = set(1.9875691500e-4F);
  p = fma(p, r, set(1.3981999507e-3F));
  p = fma(p, r, set(8.3334519073e-3F));
  p = fma(p, r, set(4.1665795894e-2F));
  p = fma(p, r, set(1.6666665459e-1F));
  return fma(p, r, set(5.0000001201e-1F));
}

LRAM_INLINE F exponential(F x) {
  const Exponent e = exponent_of(x);
  const F p = beyond_linear(e.r);
  return scale_by_power(fma(p * e.r, e.r, e.r + set(1.0F)), e.n);
}

LRAM_INLINE F exponential_less_one(F x) {
  const Exponent e = exponent_of(x);
  const F p = beyond_linear(e.r);
  const F power = scale_by_power(set(1.0F), e.n);
  return fma(fma(p * e.r, e.r, e.r), power, power - set(1.0F));
}

LRAM_INLINE F sigmoid(F x) { return set(1.0F) / (set(1.0F) + exponential(set(0.0F) - x)); }

LRAM_INLINE F silu(F x) { return x * sigmoid(x); }

LRAM_INLINE F hyperbolic_tangent(F x) {
  const F e = exponential(vabs(x) * set(-2.0F));
  return with_sign((set(1.0F) - e) / (set(1.0F) + e), x);
}

// min(x, 0) - log(1 + exp(-|x|)); the logarithm as a series in s = u / (2 + u) <= 1/3
LRAM_INLINE F log_sigmoid(F x) {
  const F u = exponential(set(0.0F) - vabs(x));
  const F s = u / (u + set(2.0F));
  const F square = s * s;
  F p = set(2.0F / 15);
  p = fma(p, square, set(2.0F / 13));
  p = fma(p, square, set(2.0F / 11));
  p = fma(p, square, set(2.0F / 9));
  p = fma(p, square, set(2.0F / 7));
  p = fma(p, square, set(2.0F / 5));
  p = fma(p, square, set(2.0F / 3));
  p = fma(p, square, set(2.0F));
  return vmin(set(0.0F), x) - s * p;
}

// Abramowitz and Stegun 7.1.26, absolute error 1.5e-7
LRAM_INLINE F error_function(F x) {
  const F a = vabs(x);
  const F t = set(1.0F) / fma(a, set(0.3275911F), set(1.0F));
  F p = set(1.061405429F);
  p = fma(p, t, set(-1.453152027F));
  p = fma(p, t, set(1.421413741F));
  p = fma(p, t, set(-0.284496736F));
  p = fma(p, t, set(0.254829592F));
  return with_sign(set(1.0F) - p * t * exponential(set(0.0F) - a * a), x);
}

}  // namespace
