// Norms, activations and sums over features.
#pragma once
#include "kernels.h"
#include "math.h"

namespace {

struct Moments {
  float mean;
  float inverse_deviation;
};

LRAM_INLINE Moments moments(const float* x, float epsilon, int n) {
  const int whole = n - n % kWidth;
  F total = set(0.0F);
  for (int i = 0; i < whole; i += kWidth) total = total + load(x + i);
  float rest = 0;
  for (int i = whole; i < n; ++i) rest += x[i];
  const float mean = (sum(total) + rest) / static_cast<float>(n);
  F squares = set(0.0F);
  for (int i = 0; i < whole; i += kWidth) {
    const F d = load(x + i) - set(mean);
    squares = fma(d, d, squares);
  }
  float squares_of_rest = 0;
  for (int i = whole; i < n; ++i) squares_of_rest += (x[i] - mean) * (x[i] - mean);
  const float variance = (sum(squares) + squares_of_rest) / static_cast<float>(n);
  // beyond float32 it would make zeros of all it divides; the difference is 0, or else NaN, which the logits show
  return {mean, 1.0F / __builtin_sqrtf(variance + epsilon) + (variance - variance)};
}

void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, int n, float* y) {
  const Moments found = moments(x, epsilon, n);
  const F mean = set(found.mean);
  const F scale = set(found.inverse_deviation);
  for (int i = 0; i < n; i += kWidth) {
    const F normed = (load(x + i) - mean) * scale * load(weight + i);
    store(y + i, bias == nullptr ? normed : normed + load(bias + i));
  }
}

void rms_norm(const float* x, const float* weight, float epsilon, int n, float* y) {
  const int whole = n - n % kWidth;
  F squares = set(0.0F);
  for (int i = 0; i < whole; i += kWidth) squares = fma(load(x + i), load(x + i), squares);
  float rest = 0;
  for (int i = whole; i < n; ++i) rest += x[i] * x[i];
  const float mean = (sum(squares) + rest) / static_cast<float>(n);
  const F scale = set(1.0F / __builtin_sqrtf(mean + epsilon) + (mean - mean));  // see moments()
  for (int i = 0; i < n; i += kWidth) store(y + i, load(x + i) * scale * load(weight + i));
}

void head_norm(const float* x, const float* weight, float epsilon, int n, float* y) {
  const Moments found = moments(x, epsilon, n);
  const int whole = n - n % kWidth;
  for (int i = 0; i < whole; i += kWidth)
    store(y + i, (load(x + i) - set(found.mean)) * set(found.inverse_deviation) * load(weight + i));
  for (int i = whole; i < n; ++i) y[i] = (x[i] - found.mean) * found.inverse_deviation * weight[i];
}

void accumulate(float* x, const float* parts, std::size_t part_stride, int count, int n) {
  for (int i = 0; i < n; i += kWidth) {
    F total = load(parts + i);
    for (int part = 1; part < count; ++part) total = total + load(parts + part * part_stride + i);
    store(x + i, load(x + i) + total);
  }
}

LRAM_INLINE F gelu_of(F x) { return set(0.5F) * x * (set(1.0F) + error_function(x * set(0.70710678F))); }

void gelu(const float* x, int n, float* y) {
  for (int i = 0; i < n; i += kWidth) store(y + i, gelu_of(load(x + i)));
}

template <class Function>
LRAM_INLINE void gate_with(Function function, const float* gate, const float* up, int n, float* y) {
  for (int i = 0; i < n; i += kWidth) store(y + i, function(load(gate + i)) * load(up + i));
}

void gated(lram::Activation activation, const float* gate, const float* up, int n, float* y) {
  using lram::Activation;
  const auto relu = [](F x) { return vmax(set(0.0F), x); };
  switch (activation) {
    case Activation::gelu:
      return gate_with([](F x) { return gelu_of(x); }, gate, up, n, y);
    case Activation::relu:
      return gate_with(relu, gate, up, n, y);
    case Activation::relu_squared:
      return gate_with([relu](F x) { return relu(x) * relu(x); }, gate, up, n, y);
    case Activation::sigmoid:
      return gate_with([](F x) { return sigmoid(x); }, gate, up, n, y);
    case Activation::swish:
      return gate_with([](F x) { return silu(x); }, gate, up, n, y);
    case Activation::selu:
      return gate_with(
          [](F x) {
            const F below = set(1.67326324F) * (exponential(x) - set(1.0F));
            return set(1.05070099F) * where_negative(x, below, x);
          },
          gate, up, n, y);
  }
}

void rectify(const float* x, int n, float* y) {
  for (int i = 0; i < n; i += kWidth) store(y + i, vmax(set(0.0F), load(x + i)));
}

}  // namespace
