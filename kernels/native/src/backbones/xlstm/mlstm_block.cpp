#include "mlstm_block.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "lazy_memory.h"
#include "roles.h"

namespace lram::xlstm {

struct MlstmMemory : BlockMemory {
  float* conv = nullptr;  // [batch][window][inner]
  float* C = nullptr;     // [batch][heads], each matrix in column tiles; NULL where it is lazy
  LazyBlock lazy = {};
  float* n = nullptr;  // [batch][heads][width]
  float* m = nullptr;  // [batch][heads]
};

namespace {

enum Part : std::size_t { kConv, kC, kN, kM };

constexpr float kNever = -1e30F;  // log of a weight that shall be 0

struct Gates {
  float input[kTokens];
  float log_forget[kTokens];
};

float log_sigmoid(float x) { return std::min(x, 0.0F) - std::log1p(std::exp(-std::fabs(x))); }

// Pre-activations of a head's gates: bias plus every head's part, in the order of heads.
Gates gates_of(const StepContext& context, const MlstmWeights& weights, int row, int head) {
  const int heads = weights.heads;
  Gates gates;
  for (int t = 0; t < kTokens; ++t) {
    float input = weights.gate_bias[head];
    float forget = weights.gate_bias[heads + head];
    for (int part = 0; part < heads; ++part) {
      const float* sums = context.state.units[static_cast<std::size_t>(part)].shared + row * 2 * heads * kTokens;
      input += sums[head * kTokens + t];
      forget += sums[(heads + head) * kTokens + t];
    }
    gates.input[t] = input;
    gates.log_forget[t] = log_sigmoid(forget);
  }
  if (context.first(row)) {  // the first token is skipped
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

std::vector<StatePart> parts_of(const MlstmWeights& w) {
  const auto heads = static_cast<std::size_t>(w.heads);
  const auto width = static_cast<std::size_t>(w.width);
  const auto window = static_cast<std::size_t>(w.conv_kernel - 1);
  std::vector<StatePart> parts(4);
  parts[kConv] = {"conv", {window, heads * width}};
  parts[kC] = {"C", {heads, width, width}};
  parts[kN] = {"n", {heads, width}};
  parts[kM] = {"m", {heads}, 0, nullptr, true};
  return parts;
}

Needs needs_of(const MlstmWeights& w) {
  Needs needs;
  needs.units = w.heads;
  needs.width = w.width;
  needs.scratch = std::max(static_cast<std::size_t>(8 * w.width), lazy_scratch(w.width, w.memory_columns));
  needs.shared = static_cast<std::size_t>(2 * w.heads * kTokens);
  return needs;
}

}  // namespace

std::unique_ptr<Block> MlstmBlock::make(BlockSource& source) {
  constexpr int kMostChannels = 1 << 15;
  MlstmWeights w;
  w.heads = source.integer("heads", 1, 64);
  w.inner = source.integer("inner", 16 * w.heads, kMostChannels, 16 * w.heads);
  w.conv_kernel = source.integer("conv_kernel", 2, 16);
  w.norm_epsilon = source.epsilon("norm_epsilon");
  w.head_epsilon = source.epsilon("head_epsilon");
  source.expect_no_more();
  w.width = w.inner / w.heads;
  w.lazy = source.lazy_state;
  w.memory_columns = source.kernels.xlstm.memory_columns;
  w.norm = source.plain(kNorm, source.hidden());
  w.up = source.matrices(kUp, 2 * w.heads, w.width, source.hidden());
  w.conv_weight = source.plain(kConvWeight, w.conv_kernel * w.inner);
  w.conv_bias = source.plain(kConvBias, w.inner);
  w.query_key_value = source.plain(kQueryKeyValue, 12 * w.inner);
  w.gate_weight = source.plain(kGateWeight, 4 * w.heads * w.inner);
  w.gate_bias = source.plain(kGateBias, 2 * w.heads);
  w.head_norm = source.plain(kHeadNorm, w.inner);
  w.skip = source.plain(kSkip, w.inner);
  w.down = source.matrices(kDown, w.heads, source.hidden(), w.width);
  return std::make_unique<MlstmBlock>(std::move(w), source.number);
}

MlstmBlock::MlstmBlock(MlstmWeights weights, int number)
    : Block(parts_of(weights), needs_of(weights)), w_(std::move(weights)), number_(number) {}

std::unique_ptr<BlockMemory> MlstmBlock::plan(Planner& planner, int batch) const {
  const auto rows = static_cast<std::size_t>(batch);
  const auto inner = static_cast<std::size_t>(w_.inner);
  const std::size_t cells = rows * static_cast<std::size_t>(w_.heads);
  auto memory = std::make_unique<MlstmMemory>();
  memory->conv = planner.take<float>(rows * static_cast<std::size_t>(w_.conv_kernel - 1) * inner);
  if (w_.lazy)
    memory->lazy = plan_lazy(planner, cells, w_.width, w_.memory_columns);
  else
    memory->C = planner.take<float>(rows * inner * static_cast<std::size_t>(w_.width));
  memory->n = planner.take<float>(rows * inner);
  memory->m = planner.take<float>(cells);
  memory->parts = {memory->conv, nullptr, memory->n, memory->m};
  return memory;
}

void MlstmBlock::restart_own(BlockMemory& memory, std::size_t /*part*/, int row) const {
  const auto& held = static_cast<const MlstmMemory&>(memory);
  const auto width = static_cast<std::size_t>(w_.width);
  for (int cell = row * w_.heads; cell < (row + 1) * w_.heads; ++cell)
    if (w_.lazy)
      LazyCell(held.lazy, number_, cell, w_.width, w_.memory_columns).reset();
    else
      std::fill_n(held.C + static_cast<std::size_t>(cell) * width * width, width * width, 0.0F);
}

void MlstmBlock::save_own(const BlockMemory& memory, std::size_t /*part*/, int row, float* values) const {
  const auto& held = static_cast<const MlstmMemory&>(memory);
  const std::size_t matrix = static_cast<std::size_t>(w_.width) * static_cast<std::size_t>(w_.width);
  for (int cell = row * w_.heads; cell < (row + 1) * w_.heads; ++cell, values += matrix) {
    if (w_.lazy) {
      LazyCell(held.lazy, number_, cell, w_.width, w_.memory_columns).save(values);
      continue;
    }
    const float* C = held.C + static_cast<std::size_t>(cell) * matrix;
    for_each_tiled(w_.width, w_.memory_columns,
                   [&](int i, int j, std::size_t position, int) { values[i * w_.width + j] = C[position]; });
  }
}

void MlstmBlock::load_own(BlockMemory& memory, std::size_t /*part*/, int row, const float* values) const {
  const auto& held = static_cast<const MlstmMemory&>(memory);
  const std::size_t matrix = static_cast<std::size_t>(w_.width) * static_cast<std::size_t>(w_.width);
  for (int cell = row * w_.heads; cell < (row + 1) * w_.heads; ++cell, values += matrix) {
    if (w_.lazy) {
      LazyCell(held.lazy, number_, cell, w_.width, w_.memory_columns).load(values);
      continue;
    }
    float* C = held.C + static_cast<std::size_t>(cell) * matrix;
    for_each_tiled(w_.width, w_.memory_columns,
                   [&](int i, int j, std::size_t position, int) { C[position] = values[i * w_.width + j]; });
  }
}

// Up-projection, convolution, q, k, v and this head's part of all gates.
void MlstmBlock::before_gates(StepContext& context, const MlstmMemory& memory, int head, const Tokens& tokens) const {
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(head)];
  const XlstmKernels& kernels = context.kernels.xlstm;
  const int padded = State::padded(w_.width);
  const int start = head * w_.width;
  const auto stride = static_cast<std::size_t>(w_.width);
  multiply(context, w_.up[static_cast<std::size_t>(2 * head)], tokens, b.input, padded);
  multiply(context, w_.up[static_cast<std::size_t>(2 * head + 1)], tokens, b.gate, padded);
  for (int row = 0; row < context.state.batch(); ++row) {
    const float* input = b.input + row * kTokens * padded;
    const int at = row * kTokens * w_.width;
    float* window = memory.conv + row * (w_.conv_kernel - 1) * w_.inner + start;
    context.kernels.convolve({w_.width, w_.conv_kernel, w_.conv_weight + start, static_cast<std::size_t>(w_.inner),
                              w_.conv_bias + start, input, static_cast<std::size_t>(padded), window,
                              static_cast<std::size_t>(w_.inner), b.convolved + at, stride, context.first(row)});
    kernels.query_key_value({w_.width, w_.query_key_value + 12 * start, b.convolved + at, input,
                             static_cast<std::size_t>(padded), stride, b.q + at, b.k + at, b.v + at});
    kernels.gate_sums({w_.width, 2 * w_.heads, w_.gate_weight + 4 * w_.heads * start, b.convolved + at, stride, input,
                       static_cast<std::size_t>(padded), b.shared + row * 2 * w_.heads * kTokens});
  }
}

// The matrix memory, the gated output, and this head's columns of the down-projection.
void MlstmBlock::after_gates(StepContext& context, const MlstmMemory& memory, int head) const {
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(head)];
  const XlstmKernels& kernels = context.kernels.xlstm;
  const int padded = State::padded(w_.width);
  const int start = head * w_.width;
  const auto stride = static_cast<std::size_t>(w_.width);
  const std::size_t matrix = stride * stride;
  for (int row = 0; row < context.state.batch(); ++row) {
    const int at = row * kTokens * w_.width;
    const int cell = row * w_.heads + head;
    const bool first = context.first(row);
    const Gates gates = gates_of(context, w_, row, head);
    const ChunkWeights chunk = chunk_weights(gates, first, memory.m + cell);
    float* n = memory.n + cell * w_.width;
    if (w_.lazy) {
      LazyCell lazy(memory.lazy, number_, cell, w_.width, w_.memory_columns);
      if (first) lazy.reset();
      LazyMemory step = {};
      step.chunk = chunk;
      step.fresh = first;
      step.n = n;
      step.q = b.q + at;
      step.k = b.k + at;
      step.v = b.v + at;
      step.stride = stride;
      step.h = b.h + at;
      step.scratch = b.scratch;
      lazy.step(context.kernels, step);
    } else {
      kernels.memory({w_.width, chunk, first, memory.C + static_cast<std::size_t>(cell) * matrix, n, b.q + at, b.k + at,
                      b.v + at, stride, b.h + at, b.scratch});
    }
    kernels.head_output({w_.width, w_.head_epsilon, w_.head_norm + start, w_.skip + start, b.convolved + at, stride,
                         b.gate + row * kTokens * padded, static_cast<std::size_t>(padded), b.h + at});
  }
  const Matrix& down = w_.down[static_cast<std::size_t>(head)];
  const Tokens tokens = of_unit(context, b, b.h, stride, context.state.tokens(), w_.width, down);
  multiply(context, down, tokens, b.part, context.state.padded_hidden());
}

void MlstmBlock::run(StepContext& context, BlockMemory& memory, int thread) const {
  const auto& own = static_cast<const MlstmMemory&>(memory);
  const Range heads = share(w_.heads, thread, context.threads());
  const Tokens tokens = normalized(context, thread, w_.norm, w_.norm_epsilon, w_.up[0].format, w_.up[0].planes);
  for (int head = heads.begin; head < heads.end; ++head) before_gates(context, own, head, tokens);
  context.barrier(thread);
  for (int head = heads.begin; head < heads.end; ++head) after_gates(context, own, head);
  context.barrier(thread);
  add_parts(context, thread, w_.heads);
}

}  // namespace lram::xlstm
