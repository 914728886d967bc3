#include "mlstm_block.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "roles.h"

namespace lram::xlstm {

struct MlstmMemory : BlockMemory {
  float* conv = nullptr;  // [batch][window][inner]
  float* C = nullptr;     // [batch][heads], each matrix in column tiles; NULL where it is lazy
  LazyBlock lazy = {};
  float* n = nullptr;  // [batch][heads][room]
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
  needs.width = w.room;
  needs.scratch = std::max(static_cast<std::size_t>(8 * w.room), static_cast<std::size_t>(kTokens * kLazyTokens));
  needs.shared = static_cast<std::size_t>(2 * w.heads * kTokens);
  return needs;
}

// Rows of `width` out of rows with more room, and back; what is beyond the width is 0.
void crop(const float* from, int rows, int width, int room, float* to) {
  for (int row = 0; row < rows; ++row) std::copy_n(from + row * room, width, to + row * width);
}
void spread(const float* from, int rows, int width, int room, float* to) {
  for (int row = 0; row < rows; ++row)
    std::fill(std::copy_n(from + row * width, width, to + row * room), to + (row + 1) * room, 0.0F);
}

}  // namespace

std::unique_ptr<Block> MlstmBlock::make(BlockSource& source) {
  constexpr int kMostChannels = 1 << 16;
  MlstmWeights w;
  w.heads = source.integer("heads", 1, 1024);
  w.width = source.integer("head width", 1, kMostChannels / w.heads);
  w.conv_kernel = source.integer("conv_kernel", 2, 64);
  w.block = source.integer("qkv_block", 0, kMostChannels);
  w.norm_epsilon = source.epsilon("norm_epsilon");
  w.head_epsilon = source.epsilon("head_epsilon");
  source.expect_no_more();
  w.room = room_of(w.width);
  w.inner = w.heads * w.room;
  if (w.block != 0 && w.heads * w.width % w.block != 0)
    source.refuse("qkv_block: expected 0 or a divisor of " + std::to_string(w.heads * w.width) + ", got " +
                  std::to_string(w.block));
  w.lazy = source.lazy_state;
  w.memory_columns = source.kernels.xlstm.memory_columns;
  w.norm = source.plain(kNorm, source.hidden_room());
  w.up = source.matrices(kUp, 2 * w.heads, w.width, source.hidden_room());
  w.conv_weight = source.plain(kConvWeight, w.conv_kernel * w.inner);
  w.conv_bias = source.plain(kConvBias, w.inner);
  w.query_key_value =
      source.plain(kQueryKeyValue, w.block == 0 ? 12 * w.inner : std::int64_t{3} * w.heads * w.width * w.block);
  w.gate_weight = source.plain(kGateWeight, 4 * w.heads * w.inner);
  w.gate_bias = source.plain(kGateBias, 2 * w.heads);
  w.head_norm = source.plain(kHeadNorm, w.inner);
  w.skip = source.plain(kSkip, w.inner);
  w.down = source.matrices(kDown, w.heads, source.hidden(), w.room);
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
    memory->lazy = plan_lazy(planner, cells, w_.room, w_.memory_columns);
  else
    memory->C = planner.take<float>(rows * inner * static_cast<std::size_t>(w_.room));
  memory->n = planner.take<float>(rows * inner);
  memory->m = planner.take<float>(cells);
  const bool exact = w_.width == w_.room;
  memory->parts = {exact ? memory->conv : nullptr, nullptr, exact ? memory->n : nullptr, memory->m};
  return memory;
}

MlstmBlock::Rows MlstmBlock::spread_rows(const MlstmMemory& memory, std::size_t part, int row) const {
  const int count = w_.heads * (part == kConv ? w_.conv_kernel - 1 : 1);
  float* begin = part == kConv ? memory.conv : memory.n;
  return {begin + static_cast<std::size_t>(row) * static_cast<std::size_t>(count * w_.room), count};
}

LazyCell MlstmBlock::lazy_cell(const MlstmMemory& memory, int cell) const {
  return {memory.lazy, number_, cell, w_.room, w_.memory_columns};
}

void MlstmBlock::restart_own(BlockMemory& memory, std::size_t part, int row) const {
  const auto& held = static_cast<const MlstmMemory&>(memory);
  if (part != kC) {
    const Rows rows = spread_rows(held, part, row);
    std::fill_n(rows.begin, rows.count * w_.room, 0.0F);
    return;
  }
  const std::size_t matrix = static_cast<std::size_t>(w_.room) * static_cast<std::size_t>(w_.room);
  for (int cell = row * w_.heads; cell < (row + 1) * w_.heads; ++cell)
    if (w_.lazy)
      lazy_cell(held, cell).reset();
    else
      std::fill_n(held.C + static_cast<std::size_t>(cell) * matrix, matrix, 0.0F);
}

void MlstmBlock::save_own(const BlockMemory& memory, std::size_t part, int row, float* values) const {
  const auto& held = static_cast<const MlstmMemory&>(memory);
  if (part != kC) {
    const Rows rows = spread_rows(held, part, row);
    return crop(rows.begin, rows.count, w_.width, w_.room, values);
  }
  const std::size_t matrix = static_cast<std::size_t>(w_.room) * static_cast<std::size_t>(w_.room);
  std::vector<float> whole(matrix);
  for (int cell = row * w_.heads; cell < (row + 1) * w_.heads; ++cell, values += w_.width * w_.width) {
    if (w_.lazy) {
      lazy_cell(held, cell).save(whole.data());
    } else {
      const float* C = held.C + static_cast<std::size_t>(cell) * matrix;
      for_each_tiled(w_.room, w_.memory_columns, [&](int i, int j, std::size_t position, int) {
        whole[static_cast<std::size_t>(i * w_.room + j)] = C[position];
      });
    }
    crop(whole.data(), w_.width, w_.width, w_.room, values);
  }
}

void MlstmBlock::load_own(BlockMemory& memory, std::size_t part, int row, const float* values) const {
  const auto& held = static_cast<const MlstmMemory&>(memory);
  if (part != kC) {
    const Rows rows = spread_rows(held, part, row);
    return spread(values, rows.count, w_.width, w_.room, rows.begin);
  }
  const std::size_t matrix = static_cast<std::size_t>(w_.room) * static_cast<std::size_t>(w_.room);
  std::vector<float> whole(matrix, 0.0F);
  for (int cell = row * w_.heads; cell < (row + 1) * w_.heads; ++cell, values += w_.width * w_.width) {
    spread(values, w_.width, w_.width, w_.room, whole.data());
    if (w_.lazy) {
      lazy_cell(held, cell).load(whole.data());
      continue;
    }
    float* C = held.C + static_cast<std::size_t>(cell) * matrix;
    for_each_tiled(w_.room, w_.memory_columns, [&](int i, int j, std::size_t position, int) {
      C[position] = whole[static_cast<std::size_t>(i * w_.room + j)];
    });
  }
}

// q, k and v of a head from blocks of any width, which may begin and end in its neighbours.
void MlstmBlock::project_blocks(const StepContext& context, int row, int head) const {
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(head)];
  const int padded = State::padded(w_.width);
  const int first = head * w_.width;
  const int last = first + w_.width;
  const auto size = static_cast<std::size_t>(w_.block) * static_cast<std::size_t>(w_.block);
  const std::size_t all = size * static_cast<std::size_t>(w_.heads * w_.width / w_.block);
  for (int t = 0; t < kTokens; ++t) {
    const int token = row * kTokens + t;
    for (float* y : {b.q, b.k, b.v}) std::fill_n(y + token * w_.room, w_.room, 0.0F);
    for (int block = first / w_.block; block * w_.block < last; ++block) {
      const int start = block * w_.block;
      const float* weight = w_.query_key_value + static_cast<std::size_t>(block) * size;
      for (int input = start; input < start + w_.block; ++input, weight += w_.block) {
        const UnitBuffers& from = context.state.units[static_cast<std::size_t>(input / w_.width)];
        const float convolved = from.convolved[token * w_.room + input % w_.width];
        const float x = from.input[token * padded + input % w_.width];
        for (int output = std::max(start, first); output < std::min(start + w_.block, last); ++output) {
          const int at = token * w_.room + output - first;
          const float* of_output = weight + output - start;
          b.q[at] += of_output[0] * convolved;
          b.k[at] += of_output[all] * convolved;
          b.v[at] += of_output[2 * all] * x;
        }
      }
    }
  }
}

// Up-projection, convolution, q, k, v and this head's part of all gates.
void MlstmBlock::before_gates(StepContext& context, const MlstmMemory& memory, int head, const Tokens& tokens) const {
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(head)];
  const XlstmKernels& kernels = context.kernels.xlstm;
  const int padded = State::padded(w_.width);
  const int start = head * w_.room;
  const auto stride = static_cast<std::size_t>(w_.room);
  multiply(context, w_.up[static_cast<std::size_t>(2 * head)], tokens, b.input, padded);
  multiply(context, w_.up[static_cast<std::size_t>(2 * head + 1)], tokens, b.gate, padded);
  for (int row = 0; row < context.state.batch(); ++row) {
    const float* input = b.input + row * kTokens * padded;
    const int at = row * kTokens * w_.room;
    float* window = memory.conv + row * (w_.conv_kernel - 1) * w_.inner + start;
    context.kernels.convolve({w_.room, w_.conv_kernel, w_.conv_weight + start, static_cast<std::size_t>(w_.inner),
                              w_.conv_bias + start, input, static_cast<std::size_t>(padded), window,
                              static_cast<std::size_t>(w_.inner), b.convolved + at, stride, context.first(row)});
    if (w_.block == 0)
      kernels.query_key_value({w_.room, w_.query_key_value + 12 * start, b.convolved + at, input,
                               static_cast<std::size_t>(padded), stride, b.q + at, b.k + at, b.v + at});
    kernels.gate_sums({w_.room, 2 * w_.heads, w_.gate_weight + 4 * w_.heads * start, b.convolved + at, stride, input,
                       static_cast<std::size_t>(padded), b.shared + row * 2 * w_.heads * kTokens});
  }
}

// The matrix memory, the gated output, and this head's columns of the down-projection.
void MlstmBlock::after_gates(StepContext& context, const MlstmMemory& memory, int head) const {
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(head)];
  const XlstmKernels& kernels = context.kernels.xlstm;
  const int padded = State::padded(w_.width);
  const int start = head * w_.room;
  const auto stride = static_cast<std::size_t>(w_.room);
  const std::size_t matrix = stride * stride;
  for (int row = 0; row < context.state.batch(); ++row) {
    const int at = row * kTokens * w_.room;
    const int cell = row * w_.heads + head;
    const bool first = context.first(row);
    if (w_.block != 0) project_blocks(context, row, head);
    const Gates gates = gates_of(context, w_, row, head);
    const ChunkWeights chunk = chunk_weights(gates, first, memory.m + cell);
    float* n = memory.n + cell * w_.room;
    lap(Stage::other);
    if (w_.lazy) {
      LazyCell lazy = lazy_cell(memory, cell);
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
      kernels.memory({w_.room, chunk, first, memory.C + static_cast<std::size_t>(cell) * matrix, n, b.q + at, b.k + at,
                      b.v + at, stride, b.h + at, b.scratch});
    }
    lap(Stage::memory);
    kernels.head_output({w_.width, w_.room, w_.head_epsilon, w_.head_norm + start, w_.skip + start, b.convolved + at,
                         stride, b.gate + row * kTokens * padded, static_cast<std::size_t>(padded), b.h + at});
  }
  const Matrix& down = w_.down[static_cast<std::size_t>(head)];
  const Tokens tokens = of_unit(context, b, b.h, stride, context.state.tokens(), w_.room, down);
  multiply(context, down, tokens, b.part, context.state.padded_hidden());
}

int MlstmBlock::left_over(int batch) const { return w_.lazy ? batch * w_.heads : 0; }

void MlstmBlock::settle(const Kernels& kernels, BlockMemory& memory, int piece) const {
  lazy_cell(static_cast<MlstmMemory&>(memory), piece).flush(kernels);
}

void MlstmBlock::run(StepContext& context, BlockMemory& memory, int thread) const {
  const auto& own = static_cast<const MlstmMemory&>(memory);
  const Range heads = share(w_.heads, thread, context.threads());
  const Tokens tokens =
      normalized(context, thread, {w_.norm, nullptr, w_.norm_epsilon, false}, w_.up[0].format, w_.up[0].planes);
  for (int head = heads.begin; head < heads.end; ++head) before_gates(context, own, head, tokens);
  context.barrier(thread);
  for (int head = heads.begin; head < heads.end; ++head) after_gates(context, own, head);
  context.barrier(thread);
  add_parts(context, thread, w_.heads);
}

}  // namespace lram::xlstm
