#include <algorithm>
#include <cmath>

#include "step.h"

namespace lram {
namespace {

constexpr float kNever = -1e30F;  // log of a weight that shall be 0

struct Gates {
  float input[kTokens];
  float log_forget[kTokens];
};

float log_sigmoid(float x) { return std::min(x, 0.0F) - std::log1p(std::exp(-std::fabs(x))); }

// Pre-activations of a head's gates: bias plus every head's part, in the order of heads.
Gates gates_of(const StepContext& context, const MlstmWeights& weights, int row, int head) {
  const int heads = context.sizes.heads;
  Gates gates;
  for (int t = 0; t < kTokens; ++t) {
    float input = weights.gate_bias[head];
    float forget = weights.gate_bias[heads + head];
    for (int part = 0; part < heads; ++part) {
      const float* sums = context.state.heads[static_cast<std::size_t>(part)].sums + row * 2 * heads * kTokens;
      input += sums[head * kTokens + t];
      forget += sums[(heads + head) * kTokens + t];
    }
    gates.input[t] = input;
    gates.log_forget[t] = log_sigmoid(forget);
  }
  if (context.first(row)) {  // the reward token is skipped
    gates.input[0] = kNever;
    gates.log_forget[0] = 0;
  }
  return gates;
}

// The chunk's scalars (see lram_export/model/step_graph.py); moves m to its end.
ChunkWeights chunk_weights(const Gates& gates, bool first, float* m) {
  ChunkWeights chunk;
  const float old = first ? 0.0F : *m;
  float before = old;
  float since_start = 0;
  for (int t = 0; t < kTokens; ++t) {
    const float now = std::max(gates.log_forget[t] + before, gates.input[t]);
    since_start += gates.log_forget[t];
    chunk.decay[t] = first ? 0.0F : std::exp(since_start + old - now);
    float between = 0;  // sum of log forget gates over (j, t]
    for (int j = t; j >= 0; --j) {
      chunk.weight[t][j] = std::exp(between + gates.input[j] - now);
      between += gates.log_forget[j];
    }
    for (int j = t + 1; j < kTokens; ++j) chunk.weight[t][j] = 0;
    chunk.floor[t] = std::exp(-now);
    before = now;
  }
  *m = before;
  return chunk;
}

// Up-projection, convolution, q, k, v and this head's part of all gates.
void before_gates(StepContext& context, int block, int head, const Tokens& tokens) {
  const Sizes& s = context.sizes;
  const MlstmWeights& w = context.model.blocks[static_cast<std::size_t>(block)].mlstm;
  const BlockState& state = context.state.blocks[static_cast<std::size_t>(block)];
  HeadBuffers& b = context.state.heads[static_cast<std::size_t>(head)];
  const int padded = State::padded(s.head_width);
  const int start = head * s.head_width;
  const auto stride = static_cast<std::size_t>(s.head_width);
  multiply(context, w.up[static_cast<std::size_t>(2 * head)], tokens, b.input, padded);
  multiply(context, w.up[static_cast<std::size_t>(2 * head + 1)], tokens, b.gate, padded);
  for (int row = 0; row < context.state.batch(); ++row) {
    const float* input = b.input + row * kTokens * padded;
    const int at = row * kTokens * s.head_width;
    float* window = state.conv + row * (s.conv_kernel - 1) * s.inner + start;
    context.kernels.convolve({s.head_width, s.conv_kernel, w.conv_weight + start, static_cast<std::size_t>(s.inner),
                              w.conv_bias + start, input, static_cast<std::size_t>(padded), window,
                              static_cast<std::size_t>(s.inner), b.convolved + at, stride, context.first(row)});
    context.kernels.query_key_value({s.head_width, w.query_key_value + 12 * start, b.convolved + at, input,
                                     static_cast<std::size_t>(padded), stride, b.q + at, b.k + at, b.v + at});
    context.kernels.gate_sums({s.head_width, 2 * s.heads, w.gate_weight + 4 * s.heads * start, b.convolved + at, stride,
                               input, static_cast<std::size_t>(padded), b.sums + row * 2 * s.heads * kTokens});
  }
}

// The matrix memory, the gated output, and this head's columns of the down-projection.
void after_gates(StepContext& context, int block, int head) {
  const Sizes& s = context.sizes;
  const MlstmWeights& w = context.model.blocks[static_cast<std::size_t>(block)].mlstm;
  const BlockState& state = context.state.blocks[static_cast<std::size_t>(block)];
  HeadBuffers& b = context.state.heads[static_cast<std::size_t>(head)];
  const int padded = State::padded(s.head_width);
  const int start = head * s.head_width;
  const auto stride = static_cast<std::size_t>(s.head_width);
  const std::size_t matrix = stride * stride;
  for (int row = 0; row < context.state.batch(); ++row) {
    const int at = row * kTokens * s.head_width;
    const int cell = row * s.heads + head;
    const bool first = context.first(row);
    const Gates gates = gates_of(context, w, row, head);
    const ChunkWeights chunk = chunk_weights(gates, first, state.m + cell);
    float* n = state.n + cell * s.head_width;
    if (context.model.lazy_state()) {
      LazyCell lazy(state.lazy, block, cell, s.head_width, context.kernels.memory_columns);
      if (first) lazy.reset();
      LazyMemory memory = {};
      memory.chunk = chunk;
      memory.fresh = first;
      memory.n = n;
      memory.q = b.q + at;
      memory.k = b.k + at;
      memory.v = b.v + at;
      memory.stride = stride;
      memory.h = b.h + at;
      memory.scratch = b.scratch;
      lazy.step(context.kernels, memory);
    } else {
      context.kernels.memory({s.head_width, chunk, first, state.C + static_cast<std::size_t>(cell) * matrix, n,
                              b.q + at, b.k + at, b.v + at, stride, b.h + at, b.scratch});
    }
    context.kernels.head_output({s.head_width, context.model.header().head_epsilon, w.head_norm + start, w.skip + start,
                                 b.convolved + at, stride, b.gate + row * kTokens * padded,
                                 static_cast<std::size_t>(padded), b.h + at});
  }
  const Matrix& down = w.down[static_cast<std::size_t>(head)];
  const Tokens tokens = of_head(context, b, b.h, stride, context.state.tokens(), s.head_width, down);
  multiply(context, down, tokens, b.part, context.state.padded_hidden());
}

}  // namespace

void mlstm_block(StepContext& context, int block, int thread) {
  const MlstmWeights& w = context.model.blocks[static_cast<std::size_t>(block)].mlstm;
  const Range heads = share(context.sizes.heads, thread, context.threads());
  const Tokens tokens = normalized(context, thread, w.norm, w.up[0].format, w.up[0].planes);
  for (int head = heads.begin; head < heads.end; ++head) before_gates(context, block, head, tokens);
  context.barrier(thread);
  for (int head = heads.begin; head < heads.end; ++head) after_gates(context, block, head);
  context.barrier(thread);
  add_parts(context, thread, context.sizes.heads);
}

}  // namespace lram
