// One token of channels of the sLSTM cell (arXiv 2405.04517, stabilized form).
#pragma once
#include "../kernels.h"
#include "../math.h"

namespace {

void slstm_cell(const lram::SlstmCell& s) {
  for (int j = s.first; j < s.last; j += kWidth) {
    const auto raw = [&](int gate, const float* projected) {
      const int at = gate * s.width + j;
      return load(projected + j) + load(s.recurrent + at) + load(s.bias + at);
    };
    const F i = raw(0, s.from_conv);
    const F log_f = log_sigmoid(raw(1, s.from_conv + s.width)) + load(s.m + j);
    const F z = hyperbolic_tangent(raw(2, s.from_input));
    const F o = sigmoid(raw(3, s.from_input + s.width));
    const F m = vmax(i, log_f);
    const F input_gate = exponential(i - m);
    const F forget_gate = exponential(log_f - m);
    const F c = fma(forget_gate, load(s.c + j), input_gate * z);
    const F n = fma(forget_gate, load(s.n + j), input_gate);
    store(s.m + j, m);
    store(s.c + j, c);
    store(s.n + j, n);
    store(s.y + j, o * c / n);
  }
}

}  // namespace
