// The causal depthwise convolution over a window of past inputs.
#pragma once
#include "kernels.h"
#include "math.h"

namespace {

// K is the kernel size where the compiler may know it, else 0
template <int K>
LRAM_INLINE void convolve_with(const lram::Convolution& c) {
  constexpr int kMost = K == 0 ? 64 : K;
  const int kernel = K == 0 ? c.kernel : K;
  for (int i = 0; i < c.channels; i += kWidth) {
    F input[kMost - 1 + lram::kTokens];
    for (int j = 0; j < kernel - 1; ++j) input[j] = c.first ? set(0.0F) : load(c.window + j * c.window_stride + i);
    for (int t = 0; t < lram::kTokens; ++t)
      input[kernel - 1 + t] = c.first && t == 0 ? set(0.0F) : load(c.x + t * c.x_stride + i);
    const F bias = load(c.bias + i);
    for (int t = 0; t < lram::kTokens; ++t) {
      F y = bias;
      for (int tap = 0; tap < kernel; ++tap) y = fma(input[t + tap], load(c.weight + tap * c.weight_stride + i), y);
      store(c.y + t * c.y_stride + i, silu(y));
    }
    for (int j = 0; j < kernel - 1; ++j) store(c.window + j * c.window_stride + i, input[j + lram::kTokens]);
  }
}

void convolve(const lram::Convolution& c) {
  if (c.kernel == 4)
    convolve_with<4>(c);
  else
    convolve_with<0>(c);
}

}  // namespace
