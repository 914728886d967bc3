#include "mlstm_block.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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

// The scalars of a head's chunk, and m at its end.
struct Chunk {
  ChunkWeights weights;
  float m;
};

// What threads leave for one another, of a head and a row of the batch.
class RowBuffers {
 public:
  RowBuffers(const MlstmWeights& w, const UnitBuffers& b, int row)
      : gate_sums(b.shared + static_cast<std::size_t>(row) * size(w)),
        scores(gate_sums + 2 * w.heads * kTokens),
        chunk_(scores + (w.lazy ? kTokens * kLazyTokens : 0)) {}

  static std::size_t size(const MlstmWeights& w) {
    return static_cast<std::size_t>(2 * w.heads * kTokens + (w.lazy ? kTokens * kLazyTokens : 0)) + kChunk;
  }

  void keep(const Chunk& chunk) const { std::memcpy(chunk_, &chunk, sizeof chunk); }
  Chunk chunk() const {
    Chunk chunk;
    std::memcpy(&chunk, chunk_, sizeof chunk);
    return chunk;
  }

  float* gate_sums;  // [gates of all heads][kTokens]
  float* scores;     // of the ring, where the memory is lazy

 private:
  static constexpr std::size_t kChunk = sizeof(Chunk) / sizeof(float);
  float* chunk_;
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
      const float* sums = RowBuffers(weights, context.state.units[static_cast<std::size_t>(part)], row).gate_sums;
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

// See lram_export/model/step_graph.py.
Chunk chunk_of(const Gates& gates, bool first, float m) {
  ChunkWeights chunk;
  const float old = first ? 0.0F : m;
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
  return {chunk, before};
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
  needs.shared = RowBuffers::size(w);
  needs.shares = w.heads * State::padded(w.width) / kTileRows;
  needs.thread_width = w.room;
  needs.of_thread = std::max(static_cast<std::size_t>(8 * w.room), static_cast<std::size_t>(kTokens * kLazyTokens));
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

// Where the head of a row of the step is in the memory.
int MlstmBlock::cell_of(const StepContext& context, int row, const Share& share) const {
  return context.rows.place(row) * w_.heads + share.unit;
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

// Up-projection and convolution of a share of a head's channels; q, k and v where those are all they are made of.
void MlstmBlock::project(StepContext& context, const MlstmMemory& memory, const Share& share,
                         const Tokens& tokens) const {
  const auto unit = static_cast<std::size_t>(share.unit);
  const UnitBuffers& b = context.state.units[unit];
  const auto stride = static_cast<std::size_t>(w_.room);
  const auto inner = static_cast<std::size_t>(w_.inner);
  const int padded = State::padded(w_.width);
  for (int row = 0; row < context.rows.count && w_.lazy && share.leads(); ++row)
    if (context.first(row)) lazy_cell(memory, cell_of(context, row, share)).reset();
  const Range tiles = share.of(padded / kTileRows);
  if (tiles.begin == tiles.end) return;
  multiply(context, w_.up[2 * unit], tiles, tokens, b.input, padded);
  multiply(context, w_.up[2 * unit + 1], tiles, tokens, b.gate, padded);
  const int first = tiles.begin * kTileRows;
  const int channels = std::min(tiles.end * kTileRows, w_.room) - first;
  const int start = share.unit * w_.room + first;
  for (int row = 0; row < context.rows.count; ++row) {
    const float* input = b.input + row * kTokens * padded + first;
    const int at = row * kTokens * w_.room + first;
    context.kernels.convolve({channels, w_.conv_kernel, w_.conv_weight + start, inner, w_.conv_bias + start, input,
                              static_cast<std::size_t>(padded),
                              memory.conv + context.rows.place(row) * (w_.conv_kernel - 1) * w_.inner + start, inner,
                              b.convolved + at, stride, context.first(row)});
    if (w_.block == 0)
      context.kernels.xlstm.query_key_value({channels, w_.query_key_value + 12 * start, b.convolved + at, input,
                                             static_cast<std::size_t>(padded), stride, b.q + at, b.k + at, b.v + at});
  }
}

// A head's part of a share of all gates.
void MlstmBlock::sum_gates(StepContext& context, const Share& share) const {
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(share.unit)];
  const int padded = State::padded(w_.width);
  const Range gates = share.of(2 * w_.heads);
  const float* weight = w_.gate_weight + 4 * w_.heads * share.unit * w_.room + 2 * gates.begin * w_.room;
  for (int row = 0; row < context.rows.count; ++row)
    context.kernels.xlstm.gate_sums({w_.room, gates.end - gates.begin, weight, b.convolved + row * kTokens * w_.room,
                                     static_cast<std::size_t>(w_.room), b.input + row * kTokens * padded,
                                     static_cast<std::size_t>(padded),
                                     RowBuffers(w_, b, row).gate_sums + gates.begin * kTokens});
}

// q, k and v of a share of a head's channels from blocks of any width, which may begin and end in its neighbours.
void MlstmBlock::project_blocks(const StepContext& context, const Share& share) const {
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(share.unit)];
  const int padded = State::padded(w_.width);
  const int head = share.unit * w_.width;
  const Range channels = share.of(w_.width);
  const int first = head + channels.begin;
  const int last = head + channels.end;
  const auto size = static_cast<std::size_t>(w_.block) * static_cast<std::size_t>(w_.block);
  const std::size_t all = size * static_cast<std::size_t>(w_.heads * w_.width / w_.block);
  for (int token = 0; token < context.tokens(); ++token) {
    const int end = channels.end == w_.width ? w_.room : channels.end;  // what fills up the head is 0
    for (float* y : {b.q, b.k, b.v}) std::fill(y + token * w_.room + channels.begin, y + token * w_.room + end, 0.0F);
    for (int block = first / w_.block; block * w_.block < last; ++block) {
      const int start = block * w_.block;
      const float* weight = w_.query_key_value + static_cast<std::size_t>(block) * size;
      for (int input = start; input < start + w_.block; ++input, weight += w_.block) {
        const UnitBuffers& from = context.state.units[static_cast<std::size_t>(input / w_.width)];
        const float convolved = from.convolved[token * w_.room + input % w_.width];
        const float x = from.input[token * padded + input % w_.width];
        for (int output = std::max(start, first); output < std::min(start + w_.block, last); ++output) {
          const int at = token * w_.room + output - head;
          const float* of_output = weight + output - start;
          b.q[at] += of_output[0] * convolved;
          b.k[at] += of_output[all] * convolved;
          b.v[at] += of_output[2 * all] * x;
        }
      }
    }
  }
}

LazyMemory MlstmBlock::lazy_step(const StepContext& context, const Share& share, int row) const {
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(share.unit)];
  const int at = row * kTokens * w_.room;
  LazyMemory step = {};
  step.fresh = context.first(row);
  step.scores = RowBuffers(w_, b, row).scores;
  step.q = b.q + at;
  step.k = b.k + at;
  step.v = b.v + at;
  step.stride = static_cast<std::size_t>(w_.room);
  step.h = b.h + at;
  return step;
}

// A share of the ring, where the memory is lazy.
void MlstmBlock::score_ring(StepContext& context, const MlstmMemory& memory, const Share& share) const {
  if (!w_.lazy) return;
  lap(Stage::other);
  for (int row = 0; row < context.rows.count; ++row) {
    LazyMemory step = lazy_step(context, share, row);
    lazy_cell(memory, cell_of(context, row, share)).score(context.kernels, step, share.of(kLazySteps));
  }
  lap(Stage::memory);
}

// A share of the matrix memory's columns. What holds for the whole head stays as it is until all have been read.
void MlstmBlock::remember(StepContext& context, const MlstmMemory& memory, int thread, const Share& share) const {
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(share.unit)];
  float* scratch = context.state.threads[static_cast<std::size_t>(thread)].scratch;
  const auto stride = static_cast<std::size_t>(w_.room);
  const Range tiles = share.of(memory_tiles());
  if (tiles.begin == tiles.end && !share.leads()) return;
  for (int row = 0; row < context.rows.count; ++row) {
    const int at = row * kTokens * w_.room;
    const int cell = cell_of(context, row, share);
    const bool first = context.first(row);
    const Chunk chunk = chunk_of(gates_of(context, w_, row, share.unit), first, memory.m[cell]);
    if (share.leads()) RowBuffers(w_, b, row).keep(chunk);
    const float* n = memory.n + cell * w_.room;
    lap(Stage::other);
    if (w_.lazy) {
      LazyMemory step = lazy_step(context, share, row);
      step.chunk = chunk.weights;
      step.n = n;
      step.scratch = scratch;
      lazy_cell(memory, cell).read(context.kernels, step, tiles);
    } else {
      context.kernels.xlstm.memory({w_.room, tiles.begin, tiles.end, chunk.weights, first,
                                    memory.C + static_cast<std::size_t>(cell) * stride * stride, n, b.q + at, b.k + at,
                                    b.v + at, stride, b.h + at, scratch});
    }
    lap(Stage::memory);
  }
}

// The head's gated output, and a share of its part of the block's; n, m and the ring move on.
void MlstmBlock::put_out(StepContext& context, const MlstmMemory& memory, int thread, const Share& share) const {
  const auto unit = static_cast<std::size_t>(share.unit);
  const UnitBuffers& b = context.state.units[unit];
  const int padded = State::padded(w_.width);
  const auto stride = static_cast<std::size_t>(w_.room);
  for (int row = 0; row < context.rows.count && share.leads(); ++row) {
    const Chunk chunk = RowBuffers(w_, b, row).chunk();
    const int cell = cell_of(context, row, share);
    context.kernels.xlstm.normalizer(
        {w_.room, chunk.weights, context.first(row), b.k + row * kTokens * w_.room, stride, memory.n + cell * w_.room});
    memory.m[cell] = chunk.m;
    if (!w_.lazy) continue;
    LazyMemory step = lazy_step(context, share, row);
    step.chunk = chunk.weights;
    lazy_cell(memory, cell).keep(context.kernels, step);
  }
  const Matrix& down = w_.down[unit];
  const Range tiles = share.of(down.tiles);
  if (tiles.begin == tiles.end) return;
  const int start = share.unit * w_.room;
  float* gated = context.state.threads[static_cast<std::size_t>(thread)].rows;
  for (int row = 0; row < context.rows.count; ++row) {
    const int at = row * kTokens * w_.room;
    context.kernels.xlstm.head_output({w_.width, w_.room, w_.head_epsilon, w_.head_norm + start, w_.skip + start,
                                       b.convolved + at, stride, b.gate + row * kTokens * padded,
                                       static_cast<std::size_t>(padded), b.h + at, gated + at});
  }
  const Tokens tokens = of_share(context, thread, share, gated, stride, context.tokens(), w_.room, down);
  multiply(context, down, tiles, tokens, b.part, context.state.padded_hidden());
}

int MlstmBlock::left_over(int batch) const { return w_.lazy ? batch * w_.heads * most_due(memory_tiles()) : 0; }

void MlstmBlock::settle(const Kernels& kernels, BlockMemory& memory, int piece) const {
  const int pieces = most_due(memory_tiles());
  lazy_cell(static_cast<MlstmMemory&>(memory), piece / pieces).flush(kernels, piece % pieces);
}

void MlstmBlock::run(StepContext& context, BlockMemory& memory, int thread) const {
  const auto& own = static_cast<const MlstmMemory&>(memory);
  const Tokens tokens =
      normalized(context, thread, {w_.norm, nullptr, w_.norm_epsilon, false}, w_.up[0].format, w_.up[0].planes);
  in_stages(
      context, thread, w_.heads, [&](const Share& share) { project(context, own, share, tokens); },
      [&](const Share& share) {
        sum_gates(context, share);
        if (w_.block == 0) score_ring(context, own, share);
      });
  context.barrier(thread);
  const auto read = [&](const Share& share) { remember(context, own, thread, share); };
  const auto write = [&](const Share& share) { put_out(context, own, thread, share); };
  if (w_.block == 0)
    in_stages(context, thread, w_.heads, read, write);
  else
    in_stages(
        context, thread, w_.heads, [&](const Share& share) { project_blocks(context, share); },
        [&](const Share& share) { score_ring(context, own, share); }, read, write);
  context.barrier(thread);
  add_parts(context, thread, w_.heads);
}

}  // namespace lram::xlstm
