// Functions of numbers, one by one. What compilers turn into vectors by themselves is written plainly.
#pragma once
#include "../kernels.h"
#include "../math.h"

namespace {

// A function of floats; an operand that is one number is read once.
template <class Of>
LRAM_INLINE void plainly(const lram::Pointwise& p, Of of) {
  const int n = p.count;
  float* y = p.y;
  const float* a = p.a;
  const float* b = p.b;
  if (p.a_step == 1 && p.b_step == 1) {
    for (int i = 0; i < n; ++i) y[i] = of(a[i], b[i]);
  } else if (p.a_step == 1) {
    const float one = *b;
    for (int i = 0; i < n; ++i) y[i] = of(a[i], one);
  } else {
    const float one = *a;
    for (int i = 0; i < n; ++i) y[i] = of(one, b[i * p.b_step]);
  }
}

template <class Of>
LRAM_INLINE void plainly_of_one(const lram::Pointwise& p, Of of) {
  for (int i = 0; i < p.count; ++i) p.y[i] = of(p.a[i * p.a_step]);
}

// a ? b : c, all of one of them where `a` is one number.
void choose(const lram::Pointwise& p) {
  const int n = p.count;
  const float* a = p.a;
  const float* b = p.b;
  const float* c = p.c;
  float* y = p.y;
  if (p.a_step == 0) {
    const float* x = *a != 0 ? b : c;
    const int step = *a != 0 ? p.b_step : p.c_step;
    for (int i = 0; i < n; ++i) y[i] = x[i * step];
  } else if (p.b_step == 1 && p.c_step == 1) {
    for (int i = 0; i < n; ++i) {
      const float yes = b[i];
      const float no = c[i];
      y[i] = a[i] != 0 ? yes : no;
    }
  } else {
    for (int i = 0; i < n; ++i) y[i] = a[i] != 0 ? b[i * p.b_step] : c[i * p.c_step];
  }
}

template <class Of>
LRAM_INLINE void plainly_of_three(const lram::Pointwise& p, Of of) {
  const int n = p.count;
  const float* a = p.a;
  const float* b = p.b;
  const float* c = p.c;
  float* y = p.y;
  if (p.a_step == 1 && p.b_step == 1 && p.c_step == 1) {
    for (int i = 0; i < n; ++i) y[i] = of(a[i], b[i], c[i]);
  } else if (p.a_step == 1 && p.b_step == 0 && p.c_step == 0) {
    const float second = *b;
    const float third = *c;
    for (int i = 0; i < n; ++i) y[i] = of(a[i], second, third);
  } else {
    for (int i = 0; i < n; ++i) y[i] = of(a[i * p.a_step], b[i * p.b_step], c[i * p.c_step]);
  }
}

// A function of vectors of one operand.
template <class Of>
LRAM_INLINE void by_vectors(const lram::Pointwise& p, Of of) {
  if (p.a_step == 0) {
    float one[kWidth];
    store(one, of(set(*p.a)));
    for (int i = 0; i < p.count; ++i) p.y[i] = one[0];
    return;
  }
  const int whole = p.count - p.count % kWidth;
  for (int i = 0; i < whole; i += kWidth) store(p.y + i, of(load(p.a + i)));
  if (whole == p.count) return;
  float rest[kWidth] = {};
  for (int i = whole; i < p.count; ++i) rest[i - whole] = p.a[i];
  store(rest, of(load(rest)));
  for (int i = whole; i < p.count; ++i) p.y[i] = rest[i - whole];
}

LRAM_INLINE float truth(bool holds) { return holds ? 1.0F : 0.0F; }

LRAM_INLINE float remainder_of(float a, float b) {
  const float rest = __builtin_fmodf(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

// NaN stays NaN, whichever operand it is.
LRAM_INLINE float lesser(float a, float b) { return a < b || a != a ? a : b; }
LRAM_INLINE float greater(float a, float b) { return a > b || a != a ? a : b; }

void pointwise_of_two(const lram::Pointwise& p) {
  using lram::Function;
  switch (p.function) {
    case Function::add:
      return plainly(p, [](float a, float b) { return a + b; });
    case Function::subtract:
      return plainly(p, [](float a, float b) { return a - b; });
    case Function::multiply:
      return plainly(p, [](float a, float b) { return a * b; });
    case Function::divide:
      return plainly(p, [](float a, float b) { return a / b; });
    case Function::minimum:
      return plainly(p, [](float a, float b) { return lesser(a, b); });
    case Function::maximum:
      return plainly(p, [](float a, float b) { return greater(a, b); });
    case Function::power:
      return plainly(p, [](float a, float b) { return __builtin_powf(a, b); });
    case Function::remainder:
      return plainly(p, [](float a, float b) { return remainder_of(a, b); });
    case Function::equal:
      return plainly(p, [](float a, float b) { return truth(a == b); });
    case Function::not_equal:
      return plainly(p, [](float a, float b) { return truth(a != b); });
    case Function::less:
      return plainly(p, [](float a, float b) { return truth(a < b); });
    case Function::less_equal:
      return plainly(p, [](float a, float b) { return truth(a <= b); });
    case Function::greater:
      return plainly(p, [](float a, float b) { return truth(a > b); });
    case Function::greater_equal:
      return plainly(p, [](float a, float b) { return truth(a >= b); });
    case Function::both:
      return plainly(p, [](float a, float b) { return truth(a != 0 && b != 0); });
    case Function::either:
      return plainly(p, [](float a, float b) { return truth(a != 0 || b != 0); });
    default:
      return plainly(p, [](float a, float b) { return __builtin_atan2f(a, b); });
  }
}

void pointwise_of_one(const lram::Pointwise& p) {
  using lram::Function;
  switch (p.function) {
    case Function::negative:
      return plainly_of_one(p, [](float a) { return -a; });
    case Function::absolute:
      return plainly_of_one(p, [](float a) { return __builtin_fabsf(a); });
    case Function::sign:
      return plainly_of_one(p, [](float a) { return static_cast<float>(a > 0) - static_cast<float>(a < 0); });
    case Function::floor:
      return plainly_of_one(p, [](float a) { return __builtin_floorf(a); });
    case Function::ceiling:
      return plainly_of_one(p, [](float a) { return __builtin_ceilf(a); });
    case Function::round:
      return plainly_of_one(p, [](float a) { return __builtin_nearbyintf(a); });
    case Function::truncate:
      return plainly_of_one(p, [](float a) { return __builtin_truncf(a); });
    case Function::square_root:
      return plainly_of_one(p, [](float a) { return __builtin_sqrtf(a); });
    case Function::reciprocal_square_root:
      return plainly_of_one(p, [](float a) { return 1.0F / __builtin_sqrtf(a); });
    case Function::reciprocal:
      return plainly_of_one(p, [](float a) { return 1.0F / a; });
    case Function::logarithm:
      return plainly_of_one(p, [](float a) { return __builtin_logf(a); });
    case Function::logarithm_of_one_more:
      return plainly_of_one(p, [](float a) { return __builtin_log1pf(a); });
    case Function::arctangent:
      return plainly_of_one(p, [](float a) { return __builtin_atanf(a); });
    case Function::sine:
      return plainly_of_one(p, [](float a) { return __builtin_sinf(a); });
    case Function::cosine:
      return plainly_of_one(p, [](float a) { return __builtin_cosf(a); });
    case Function::exponential:
      return by_vectors(p, [](F a) { return exponential(a); });
    case Function::exponential_less_one:
      return by_vectors(p, [](F a) { return exponential_less_one(a); });
    case Function::error_function:
      return by_vectors(p, [](F a) { return error_function(a); });
    case Function::hyperbolic_tangent:
      return by_vectors(p, [](F a) { return hyperbolic_tangent(a); });
    case Function::sigmoid:
      return by_vectors(p, [](F a) { return sigmoid(a); });
    case Function::rectify:
      return by_vectors(p, [](F a) { return vmax(set(0.0F), a); });
    case Function::silu:
      return by_vectors(p, [](F a) { return silu(a); });
    case Function::gelu:
      return by_vectors(p, [](F a) { return gelu_of(a); });
    default:
      return plainly_of_one(p, [](float a) { return truth(a == 0); });
  }
}

void pointwise_of_three(const lram::Pointwise& p) {
  using lram::Function;
  switch (p.function) {
    case Function::choose:
      return choose(p);
    case Function::clamp:
      return plainly_of_three(p, [](float a, float b, float c) { return lesser(greater(a, b), c); });
    default:
      return plainly_of_three(p, [](float a, float b, float c) { return a * b + c; });
  }
}

void pointwise(const lram::Pointwise& p) {
  const int arguments = lram::arguments_of(p.function);
  if (arguments == 2) return pointwise_of_two(p);
  if (arguments == 1) return pointwise_of_one(p);
  pointwise_of_three(p);
}

}  // namespace
