#include <algorithm>
#include <cstring>

#include "step.h"

namespace lram {
namespace {

constexpr float kInitialM = -1e30F;

// Convolution, projections and recurrence of one head; its normalized output into `mixed`.
void cell_head(StepContext& context, int block, int head, const float* normed) {
  const Sizes& s = context.sizes;
  const SlstmWeights& w = context.model.blocks[static_cast<std::size_t>(block)].slstm;
  State& state = context.state;
  const BlockState& held = state.blocks[static_cast<std::size_t>(block)];
  HeadBuffers& b = state.heads[static_cast<std::size_t>(head)];
  const auto at_head = static_cast<std::size_t>(head);
  const int width = s.slstm_width;
  const int start = head * width;
  const auto stride = static_cast<std::size_t>(width);
  const auto hidden = static_cast<std::size_t>(s.hidden);

  for (int row = 0; row < state.batch(); ++row)
    context.kernels.convolve({width, s.conv_kernel, w.conv_weight + start, hidden, w.conv_bias + start,
                              normed + row * kTokens * s.hidden + start, hidden,
                              held.conv + row * (s.conv_kernel - 1) * s.hidden + start, hidden,
                              b.convolved + row * kTokens * width, stride, context.first(row)});
  // i, f of all tokens, then z, o
  Tokens tokens = of_head(context, b, b.convolved, stride, state.tokens(), width, w.from_conv[at_head]);
  multiply(context, w.from_conv[at_head], tokens, b.input, 2 * width);
  tokens = of_head(context, b, normed + start, hidden, state.tokens(), width, w.from_input[at_head]);
  multiply(context, w.from_input[at_head], tokens, b.gate, 2 * width);

  for (int row = 0; row < state.batch(); ++row) {
    if (!context.first(row)) continue;
    const int at = row * s.hidden + start;
    for (float* part : {held.y, held.c, held.n}) std::fill_n(part + at, width, 0.0F);
    std::fill_n(held.m + at, width, kInitialM);
  }
  for (int t = 0; t < kTokens; ++t) {
    const Matrix& recurrent = w.recurrent[at_head];
    tokens = of_head(context, b, held.y + start, hidden, state.batch(), width, recurrent);
    multiply(context, recurrent, tokens, b.q, 4 * width);
    for (int row = 0; row < state.batch(); ++row) {
      const int at = row * s.hidden + start;
      const int token = row * kTokens + t;
      if (t > 0 || !context.first(row))  // the reward token is skipped where an episode starts
        context.kernels.slstm_cell({width, b.input + token * 2 * width, b.gate + token * 2 * width,
                                    b.q + row * 4 * width, w.gate_bias + 4 * start, held.y + at, held.c + at,
                                    held.n + at, held.m + at});
      context.kernels.head_norm(held.y + at, w.head_norm + start, context.model.header().slstm_epsilon, width,
                                state.shared.mixed + token * s.hidden + start);
    }
  }
}

void feed_forward_slice(StepContext& context, int block, int slice, const Tokens& tokens) {
  const Sizes& s = context.sizes;
  const SlstmWeights& w = context.model.blocks[static_cast<std::size_t>(block)].slstm;
  HeadBuffers& b = context.state.heads[static_cast<std::size_t>(slice)];
  const int padded = State::padded(s.ffn_slice);
  multiply(context, w.ffn_up[static_cast<std::size_t>(2 * slice)], tokens, b.input, padded);
  multiply(context, w.ffn_up[static_cast<std::size_t>(2 * slice + 1)], tokens, b.gate, padded);
  context.kernels.gated(context.model.ffn_activation(), b.input, b.gate, context.state.tokens() * padded, b.h);
  const Matrix& down = w.ffn_down[static_cast<std::size_t>(slice)];
  const Tokens gated =
      of_head(context, b, b.h, static_cast<std::size_t>(padded), context.state.tokens(), s.ffn_slice, down);
  multiply(context, down, gated, b.part, context.state.padded_hidden());
}

}  // namespace

void slstm_block(StepContext& context, int block, int thread) {
  const Sizes& s = context.sizes;
  const SlstmWeights& w = context.model.blocks[static_cast<std::size_t>(block)].slstm;
  const ThreadBuffers& own = context.state.threads[static_cast<std::size_t>(thread)];
  const Tokens normed = normalized(context, thread, w.norm, Format::float32, 2);
  const Range heads = share(s.slstm_heads, thread, context.threads());
  for (int head = heads.begin; head < heads.end; ++head) cell_head(context, block, head, normed.x);
  context.barrier(thread);
  context.kernels.accumulate(own.x, context.state.shared.mixed, 0, 1, context.state.tokens() * s.hidden);
  const Tokens tokens = normalized(context, thread, w.ffn_norm, w.ffn_up[0].format, w.ffn_up[0].planes);
  const Range slices = share(s.ffn_slices, thread, context.threads());
  for (int slice = slices.begin; slice < slices.end; ++slice) feed_forward_slice(context, block, slice, tokens);
  context.barrier(thread);
  add_parts(context, thread, s.ffn_slices);
}

}  // namespace lram
