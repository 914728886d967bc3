// The norms of a hidden token.
#pragma once
#include "kernels/kernels.h"

namespace lram {

// A norm over the features of a hidden token.
struct Norm {
  const float* weight;
  const float* bias;  // NULL: none
  float epsilon;
  bool rms;  // by the root of the mean square, without a bias

  void operator()(const Kernels& kernels, const float* x, int n, float* y) const {
    if (rms)
      kernels.rms_norm(x, weight, epsilon, n, y);
    else
      kernels.layer_norm(x, weight, bias, epsilon, n, y);
  }
};

}  // namespace lram
