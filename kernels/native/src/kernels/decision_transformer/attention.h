// Attention of a head: keys and values are read once for all tokens of a call.
#pragma once
#include "../kernels.h"
#include "../math.h"

namespace {

constexpr int kKeysAtOnce = 4;

// Scores of `T` queries with `N` neighbouring keys.
template <int T, int N>
LRAM_INLINE void scores_of(const lram::Attention& a, const float* keys, std::size_t stride, float* scores,
                           std::size_t score_stride) {
  F products[T][N];
  for (auto& of_token : products)
    for (F& p : of_token) p = set(0.0F);
  for (int i = 0; i < a.width; i += kWidth) {
    F q[T];
    for (int t = 0; t < T; ++t) q[t] = load(a.queries + t * a.stride + i);
    for (int n = 0; n < N; ++n) {
      const F k = load(keys + n * stride + i);
      for (int t = 0; t < T; ++t) products[t][n] = fma(q[t], k, products[t][n]);
    }
  }
  for (int t = 0; t < T; ++t)
    for (int n = 0; n < N; ++n) scores[t * score_stride + n] = sum(products[t][n]) * a.scale;
}

// Scores become weights, which add up to 1; what is beyond the last becomes 0.
LRAM_INLINE void softmax(float* scores, int count, int room) {
  for (int i = count; i < room; ++i) scores[i] = scores[0];
  F peaks = load(scores);
  for (int i = kWidth; i < room; i += kWidth) peaks = vmax(peaks, load(scores + i));
  const F peak = set(largest(peaks));
  for (int i = 0; i < room; i += kWidth) store(scores + i, exponential(load(scores + i) - peak));
  for (int i = count; i < room; ++i) scores[i] = 0;
  F total = set(0.0F);
  for (int i = 0; i < room; i += kWidth) total = total + load(scores + i);
  const F inverse = set(1.0F / sum(total));
  for (int i = 0; i < room; i += kWidth) store(scores + i, load(scores + i) * inverse);
}

// `V` vectors of what `T` tokens have seen.
template <int T, int V>
LRAM_INLINE void seen_by(const lram::Attention& a, const float* weights, std::size_t weight_stride, int at) {
  F y[T][V];
  for (auto& of_token : y)
    for (F& v : of_token) v = set(0.0F);
  const auto add = [&](const float* values, std::size_t stride, int count, const float* weight) {
    for (int n = 0; n < count; ++n) {
      F value[V];
      for (int v = 0; v < V; ++v) value[v] = load(values + n * stride + at + v * kWidth);
      for (int t = 0; t < T; ++t) {
        const F w = set(weight[t * weight_stride + n]);
        for (int v = 0; v < V; ++v) y[t][v] = fma(w, value[v], y[t][v]);
      }
    }
  };
  add(a.past_values, static_cast<std::size_t>(a.width), a.past, weights);
  add(a.values, a.stride, T, weights + a.past);
  for (int t = 0; t < T; ++t)
    for (int v = 0; v < V; ++v) store(a.y + t * a.y_stride + at + v * kWidth, y[t][v]);
}

template <int T>
LRAM_INLINE void attention_of(const lram::Attention& a) {
  const auto width = static_cast<std::size_t>(a.width);
  const std::size_t stride = lram::attention_stride(a.past);
  int n = 0;
  for (; n + kKeysAtOnce <= a.past; n += kKeysAtOnce)
    scores_of<T, kKeysAtOnce>(a, a.past_keys + n * width, width, a.scratch + n, stride);
  for (; n < a.past; ++n) scores_of<T, 1>(a, a.past_keys + n * width, width, a.scratch + n, stride);
  scores_of<T, T>(a, a.keys, a.stride, a.scratch + a.past, stride);
  const int room = (a.past + T + kWidth - 1) / kWidth * kWidth;
  for (int t = 0; t < T; ++t) softmax(a.scratch + t * stride, a.past + (a.causal ? t + 1 : T), room);
  constexpr int V = 16 / kWidth < 2 ? 2 : 16 / kWidth > 4 ? 4 : 16 / kWidth;  // vectors that registers hold
  int i = 0;
  for (; i + V * kWidth <= a.width; i += V * kWidth) seen_by<T, V>(a, a.scratch, stride, i);
  for (; i < a.width; i += kWidth) seen_by<T, 1>(a, a.scratch, stride, i);
}

void attention(const lram::Attention& a) {
  switch (a.tokens) {
    case 3:
      return attention_of<3>(a);
    case 2:
      return attention_of<2>(a);
    default:
      return attention_of<1>(a);
  }
}

}  // namespace
