#include <algorithm>
#include <cstring>

#include "step.h"

namespace lram {
namespace {

constexpr float kInitialM = -1e30F;

// Rows of some array, each `width` values.
struct Rows {
  float* data;
  std::size_t stride;

  float* row(int number) const { return data + static_cast<std::size_t>(number) * stride; }
};

// Copies rows of `width` to where they have more room, which is filled up with zeros.
Rows spread(Rows from, int rows, int width, int room, float* to) {
  const Rows copy = {to, static_cast<std::size_t>(room)};
  for (int row = 0; row < rows; ++row)
    std::fill(std::copy_n(from.row(row), width, copy.row(row)), copy.row(row) + room, 0.0F);
  return copy;
}

void put_back(Rows copy, int rows, int width, Rows to) {
  for (int row = 0; row < rows; ++row) std::copy_n(copy.row(row), width, to.row(row));
}

// Convolution of one head; its window moves on.
void convolve_head(StepContext& context, int block, int head, Rows x) {
  const Sizes& s = context.sizes;
  const SlstmWeights& w = context.model.blocks[static_cast<std::size_t>(block)].slstm;
  const BlockState& held = context.state.blocks[static_cast<std::size_t>(block)];
  const HeadBuffers& b = context.state.heads[static_cast<std::size_t>(head)];
  const int past = s.conv_kernel - 1;
  const int at = head * s.slstm_room;
  const auto room = static_cast<std::size_t>(s.slstm_room);
  for (int row = 0; row < context.state.batch(); ++row) {
    const Rows window = {held.conv + row * past * s.hidden + head * s.slstm_width, static_cast<std::size_t>(s.hidden)};
    const bool exact = s.slstm_width == s.slstm_room;
    const Rows used = exact ? window : spread(window, past, s.slstm_width, s.slstm_room, b.scratch);
    context.kernels.convolve({s.slstm_room, s.conv_kernel, w.conv_weight + at,
                              static_cast<std::size_t>(s.slstm_heads) * room, w.conv_bias + at, x.row(row * kTokens),
                              x.stride, used.data, used.stride, b.convolved + row * kTokens * s.slstm_room, room,
                              context.first(row)});
    if (!exact) put_back(used, past, s.slstm_width, window);
  }
}

// Convolution, projections and recurrence of one head; its normalized output into `mixed`. A head whose width is no
// multiple of 16 is computed in copies of its input and its state that are.
void cell_head(StepContext& context, int block, int head, const float* normed) {
  const Sizes& s = context.sizes;
  const SlstmWeights& w = context.model.blocks[static_cast<std::size_t>(block)].slstm;
  State& state = context.state;
  const BlockState& held = state.blocks[static_cast<std::size_t>(block)];
  HeadBuffers& b = state.heads[static_cast<std::size_t>(head)];
  const auto at_head = static_cast<std::size_t>(head);
  const int width = s.slstm_width;
  const int room = s.slstm_room;
  const bool exact = width == room;
  const int start = head * width;
  const auto hidden = static_cast<std::size_t>(s.hidden);

  Rows x = {const_cast<float*>(normed) + start, hidden};
  if (!exact) x = spread(x, state.tokens(), width, room, b.v);
  convolve_head(context, block, head, x);
  // i, f of all tokens, then z, o
  Tokens tokens =
      of_head(context, b, b.convolved, static_cast<std::size_t>(room), state.tokens(), room, w.from_conv[at_head]);
  multiply(context, w.from_conv[at_head], tokens, b.input, 2 * room);
  tokens = of_head(context, b, x.data, x.stride, state.tokens(), room, w.from_input[at_head]);
  multiply(context, w.from_input[at_head], tokens, b.gate, 2 * room);

  const Rows whole[4] = {
      {held.y + start, hidden}, {held.c + start, hidden}, {held.n + start, hidden}, {held.m + start, hidden}};
  for (int row = 0; row < state.batch(); ++row) {
    if (!context.first(row)) continue;
    for (int part = 0; part < 3; ++part) std::fill_n(whole[part].row(row), width, 0.0F);
    std::fill_n(whole[3].row(row), width, kInitialM);
  }
  Rows used[4];
  for (int part = 0; part < 4; ++part)
    used[part] =
        exact ? whole[part] : spread(whole[part], state.batch(), width, room, b.k + part * state.batch() * room);
  const auto& [y, c, n, m] = used;
  for (int t = 0; t < kTokens; ++t) {
    const Matrix& recurrent = w.recurrent[at_head];
    tokens = of_head(context, b, y.data, y.stride, state.batch(), room, recurrent);
    multiply(context, recurrent, tokens, b.q, 4 * room);
    for (int row = 0; row < state.batch(); ++row) {
      const int token = row * kTokens + t;
      if (t > 0 || !context.first(row))  // the reward token is skipped where an episode starts
        context.kernels.slstm_cell({room, b.input + token * 2 * room, b.gate + token * 2 * room, b.q + row * 4 * room,
                                    w.gate_bias + 4 * head * room, y.row(row), c.row(row), n.row(row), m.row(row)});
      context.kernels.head_norm(y.row(row), w.head_norm + start, context.model.header().slstm_epsilon, width,
                                state.shared.mixed + token * s.hidden + start);
    }
  }
  for (int part = 0; part < 4 && !exact; ++part) put_back(used[part], state.batch(), width, whole[part]);
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
