// The selective state space: a vector of channels goes through all tokens with its memory in registers.
#pragma once
#include "../kernels.h"
#include "../math.h"

namespace {

void selective_scan(const lram::SelectiveScan& s) {
  for (int i = 0; i < s.channels; i += kWidth) {
    const F bias = load(s.step_bias + i);
    const F D = load(s.D + i);
    F dt[lram::kTokens];
    F entering[lram::kTokens];
    F y[lram::kTokens];
    for (int t = 0; t < lram::kTokens; ++t) {
      const bool skipped = s.first && t == 0;
      const F u = load(s.u + t * s.u_stride + i);
      const F step = set(0.0F) - log_sigmoid(set(0.0F) - (load(s.step + t * s.step_stride + i) + bias));  // softplus
      dt[t] = skipped ? set(0.0F) : step;
      entering[t] = dt[t] * u;
      y[t] = D * u;
    }
    for (int n = 0; n < s.size; ++n) {
      const std::size_t at = n * s.stride + i;
      const F A = load(s.A + at);
      F h = s.first ? set(0.0F) : load(s.h + at);
      for (int t = 0; t < lram::kTokens; ++t) {
        h = fma(exponential(dt[t] * A), h, entering[t] * set(s.B[t * s.token_stride + n]));
        y[t] = fma(set(s.C[t * s.token_stride + n]), h, y[t]);
      }
      store(s.h + at, h);
    }
    for (int t = 0; t < lram::kTokens; ++t)
      store(s.y + t * s.u_stride + i, y[t] * silu(load(s.gate + t * s.gate_stride + i)));
  }
}

}  // namespace
