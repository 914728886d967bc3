// Sums, products and the largest of many numbers, and products of two matrices that a step computes.
#pragma once
#include "../kernels.h"

namespace {

LRAM_INLINE float sum_of(const float* x, int n) {
  F total = set(0.0F);
  const int whole = n - n % kWidth;
  for (int i = 0; i < whole; i += kWidth) total = total + load(x + i);
  float rest = 0;
  for (int i = whole; i < n; ++i) rest += x[i];
  return sum(total) + rest;
}

// Of what is no number the first one counts as the largest and as the smallest, as PyTorch has it.
template <class Beyond>
LRAM_INLINE int place_of(const float* x, int n, Beyond beyond) {
  int found = 0;
  for (int i = 1; i < n && x[found] == x[found]; ++i)
    if (beyond(x[i], x[found]) || x[i] != x[i]) found = i;
  return found;
}

LRAM_INLINE float reduce_one(lram::Reduction reduction, const float* x, int n) {
  using lram::Reduction;
  const auto more = [](float a, float b) { return a > b; };
  const auto less = [](float a, float b) { return a < b; };
  switch (reduction) {
    case Reduction::sum:
      return sum_of(x, n);
    case Reduction::product: {
      float product = 1;
      for (int i = 0; i < n; ++i) product *= x[i];
      return product;
    }
    case Reduction::largest:
      return x[place_of(x, n, more)];
    case Reduction::smallest:
      return x[place_of(x, n, less)];
    case Reduction::place_of_largest:
      return static_cast<float>(place_of(x, n, more));
    default:
      return static_cast<float>(place_of(x, n, less));
  }
}

void reduce(const lram::Reduce& r) {
  for (int i = 0; i < r.count; ++i)
    r.y[i] = reduce_one(r.reduction, r.x + static_cast<std::size_t>(i) * r.length, r.length);
}

void product(const lram::Product& p) {
  for (int row = 0; row < p.rows; ++row) {
    const float* a = p.a + static_cast<std::size_t>(row) * p.inner;
    float* y = p.y + static_cast<std::size_t>(row) * p.cols;
    for (int col = 0; col < p.cols; ++col) y[col] = 0;
    for (int i = 0; i < p.inner; ++i) {
      const float* b = p.b + static_cast<std::size_t>(i) * p.cols;
      const float x = a[i];
      for (int col = 0; col < p.cols; ++col) y[col] += x * b[col];
    }
  }
}

}  // namespace
