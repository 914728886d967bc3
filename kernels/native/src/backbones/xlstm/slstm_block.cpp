#include "slstm_block.h"

#include <algorithm>
#include <utility>

#include "roles.h"

namespace lram::xlstm {

struct SlstmMemory : BlockMemory {
  float* conv = nullptr;  // [batch][window][hidden]
  float* y = nullptr;     // [batch][hidden] each
  float* c = nullptr;
  float* n = nullptr;
  float* m = nullptr;
};

namespace {

constexpr float kInitialM = -1e30F;  // makes the first step take m = i

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

std::vector<StatePart> parts_of(const SlstmWeights& w) {
  const auto hidden = static_cast<std::size_t>(w.hidden);
  std::vector<StatePart> parts = {{"conv", {static_cast<std::size_t>(w.conv_kernel - 1), hidden}}};
  for (const char* name : {"y", "c", "n"}) parts.push_back({name, {hidden}});
  parts.push_back({"m", {hidden}, kInitialM, nullptr, true});
  return parts;
}

Needs needs_of(const SlstmWeights& w) {
  Needs needs;
  needs.units = std::max(w.heads, w.ffn_slices);
  needs.width = std::max(4 * w.room, w.ffn_slice);
  needs.scratch = static_cast<std::size_t>((w.conv_kernel - 1) * w.room);
  return needs;
}

}  // namespace

std::unique_ptr<Block> SlstmBlock::make(BlockSource& source) {
  SlstmWeights w;
  w.hidden = source.hidden();
  w.heads = source.integer("heads", 1, 1024);
  w.conv_kernel = source.integer("conv_kernel", 2, 64);
  w.ffn_slices = source.integer("ffn_slices", 1, 64);
  w.ffn_slice = source.integer("ffn_slice", 16, 1 << 16, 16);
  w.ffn_activation = static_cast<Activation>(source.integer("ffn_activation", 0, 5));
  w.norm_epsilon = source.epsilon("norm_epsilon");
  w.head_epsilon = source.epsilon("head_epsilon");
  source.expect_no_more();
  if (w.hidden % w.heads != 0)
    source.refuse("heads: expected to divide " + std::to_string(w.hidden) + ", got " + std::to_string(w.heads));
  w.width = w.hidden / w.heads;
  w.room = room_of(w.width);
  const int rooms = w.heads * w.room;
  w.norm = source.plain(kNorm, source.hidden_room());
  w.conv_weight = source.plain(kConvWeight, w.conv_kernel * rooms);
  w.conv_bias = source.plain(kConvBias, rooms);
  w.from_conv = source.matrices(kFromConv, w.heads, 2 * w.room, w.room);
  w.from_input = source.matrices(kFromInput, w.heads, 2 * w.room, w.room);
  w.recurrent = source.matrices(kRecurrent, w.heads, 4 * w.room, w.room);
  w.gate_bias = source.plain(kGateBiases, 4 * rooms);
  w.head_norm = source.plain(kHeadNorm, w.hidden);
  w.ffn_norm = source.plain(kFfnNorm, source.hidden_room());
  w.ffn_up = source.matrices(kFfnUp, 2 * w.ffn_slices, w.ffn_slice, source.hidden_room());
  w.ffn_down = source.matrices(kFfnDown, w.ffn_slices, w.hidden, w.ffn_slice);
  return std::make_unique<SlstmBlock>(std::move(w));
}

SlstmBlock::SlstmBlock(SlstmWeights weights) : Block(parts_of(weights), needs_of(weights)), w_(std::move(weights)) {}

std::unique_ptr<BlockMemory> SlstmBlock::plan(Planner& planner, int batch) const {
  const std::size_t size = static_cast<std::size_t>(batch) * static_cast<std::size_t>(w_.hidden);
  auto memory = std::make_unique<SlstmMemory>();
  memory->conv = planner.take<float>(size * static_cast<std::size_t>(w_.conv_kernel - 1));
  for (float** part : {&memory->y, &memory->c, &memory->n, &memory->m}) *part = planner.take<float>(size);
  memory->parts = {memory->conv, memory->y, memory->c, memory->n, memory->m};
  return memory;
}

// Convolution of one head; its window moves on.
void SlstmBlock::convolve_head(StepContext& context, const SlstmMemory& memory, int head, Rows x) const {
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(head)];
  const int past = w_.conv_kernel - 1;
  const int at = head * w_.room;
  const auto room = static_cast<std::size_t>(w_.room);
  for (int row = 0; row < context.state.batch(); ++row) {
    const Rows window = {memory.conv + row * past * w_.hidden + head * w_.width, static_cast<std::size_t>(w_.hidden)};
    const bool exact = w_.width == w_.room;
    const Rows used = exact ? window : spread(window, past, w_.width, w_.room, b.scratch);
    context.kernels.convolve({w_.room, w_.conv_kernel, w_.conv_weight + at, static_cast<std::size_t>(w_.heads) * room,
                              w_.conv_bias + at, x.row(row * kTokens), x.stride, used.data, used.stride,
                              b.convolved + row * kTokens * w_.room, room, context.first(row)});
    if (!exact) put_back(used, past, w_.width, window);
  }
}

// Convolution, projections and recurrence of one head; its normalized output into `mixed`. A head whose width is no
// multiple of 16 is computed in copies of its input and its state that are.
void SlstmBlock::cell_head(StepContext& context, const SlstmMemory& memory, int head, const float* normed) const {
  State& state = context.state;
  const UnitBuffers& b = state.units[static_cast<std::size_t>(head)];
  const auto at_head = static_cast<std::size_t>(head);
  const int width = w_.width;
  const int room = w_.room;
  const bool exact = width == room;
  const int start = head * width;
  const auto hidden = static_cast<std::size_t>(w_.hidden);

  Rows x = {const_cast<float*>(normed) + start, static_cast<std::size_t>(context.room)};
  if (!exact) x = spread(x, state.tokens(), width, room, b.v);
  convolve_head(context, memory, head, x);
  // i, f of all tokens, then z, o
  Tokens tokens =
      of_unit(context, b, b.convolved, static_cast<std::size_t>(room), state.tokens(), room, w_.from_conv[at_head]);
  multiply(context, w_.from_conv[at_head], tokens, b.input, 2 * room);
  tokens = of_unit(context, b, x.data, x.stride, state.tokens(), room, w_.from_input[at_head]);
  multiply(context, w_.from_input[at_head], tokens, b.gate, 2 * room);

  const Rows whole[4] = {
      {memory.y + start, hidden}, {memory.c + start, hidden}, {memory.n + start, hidden}, {memory.m + start, hidden}};
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
    const Matrix& recurrent = w_.recurrent[at_head];
    tokens = of_unit(context, b, y.data, y.stride, state.batch(), room, recurrent);
    multiply(context, recurrent, tokens, b.q, 4 * room);
    for (int row = 0; row < state.batch(); ++row) {
      const int token = row * kTokens + t;
      if (t > 0 || !context.first(row))  // the first token is skipped where an episode starts
        context.kernels.xlstm.slstm_cell({room, b.input + token * 2 * room, b.gate + token * 2 * room,
                                          b.q + row * 4 * room, w_.gate_bias + 4 * head * room, y.row(row), c.row(row),
                                          n.row(row), m.row(row)});
      context.kernels.head_norm(y.row(row), w_.head_norm + start, w_.head_epsilon, width,
                                state.mixed + token * context.room + start);
    }
  }
  for (int part = 0; part < 4 && !exact; ++part) put_back(used[part], state.batch(), width, whole[part]);
}

void SlstmBlock::feed_forward_slice(StepContext& context, int slice, const Tokens& tokens) const {
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(slice)];
  const int padded = State::padded(w_.ffn_slice);
  multiply(context, w_.ffn_up[static_cast<std::size_t>(2 * slice)], tokens, b.input, padded);
  multiply(context, w_.ffn_up[static_cast<std::size_t>(2 * slice + 1)], tokens, b.gate, padded);
  context.kernels.gated(w_.ffn_activation, b.input, b.gate, context.state.tokens() * padded, b.h);
  const Matrix& down = w_.ffn_down[static_cast<std::size_t>(slice)];
  const Tokens gated =
      of_unit(context, b, b.h, static_cast<std::size_t>(padded), context.state.tokens(), w_.ffn_slice, down);
  multiply(context, down, gated, b.part, context.state.padded_hidden());
}

void SlstmBlock::run(StepContext& context, BlockMemory& memory, int thread) const {
  const auto& held = static_cast<const SlstmMemory&>(memory);
  const ThreadBuffers& own = context.state.threads[static_cast<std::size_t>(thread)];
  const Tokens normed = normalized(context, thread, {w_.norm, nullptr, w_.norm_epsilon, false}, Format::float32, 2);
  const Range heads = share(w_.heads, thread, context.threads());
  for (int head = heads.begin; head < heads.end; ++head) cell_head(context, held, head, normed.x);
  context.barrier(thread);
  context.kernels.accumulate(own.x, context.state.mixed, 0, 1, context.state.tokens() * context.room);
  const Tokens tokens = normalized(context, thread, {w_.ffn_norm, nullptr, w_.norm_epsilon, false}, w_.ffn_up[0].format,
                                   w_.ffn_up[0].planes);
  const Range slices = share(w_.ffn_slices, thread, context.threads());
  for (int slice = slices.begin; slice < slices.end; ++slice) feed_forward_slice(context, slice, tokens);
  context.barrier(thread);
  add_parts(context, thread, w_.ffn_slices);
}

}  // namespace lram::xlstm
