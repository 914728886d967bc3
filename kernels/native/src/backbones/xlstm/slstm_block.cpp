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

// Copies some channels of rows of `width` to where they have more room, which is filled up with zeros.
void spread(Rows from, int rows, int width, Range channels, Rows to) {
  for (int row = 0; row < rows; ++row) {
    float* end = std::copy(from.row(row) + channels.begin, from.row(row) + std::min(channels.end, width),
                           to.row(row) + channels.begin);
    std::fill(end, to.row(row) + channels.end, 0.0F);
  }
}

void put_back(Rows copy, int rows, int width, Range channels, Rows to) {
  for (int row = 0; row < rows; ++row)
    std::copy(copy.row(row) + channels.begin, copy.row(row) + std::min(channels.end, width),
              to.row(row) + channels.begin);
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
  needs.shares = w.ffn_slices * State::padded(w.ffn_slice) / kTileRows;
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

// The channels of a head that a share is about. Those of a gate lie in tiles of their own, or the head is not divided.
Range SlstmBlock::channels(const Share& share) const {
  const int tiles = w_.room % kTileRows == 0 ? w_.room / kTileRows : 1;
  const Range own = share.of(tiles);
  return {own.begin * (w_.room / tiles), own.end * (w_.room / tiles)};
}

// Products for some channels of a head, of the gates that a matrix is for.
void SlstmBlock::multiply_gates(StepContext& context, const Matrix& matrix, Range channels, const Tokens& tokens,
                                float* y) const {
  const int gates = matrix.rows / w_.room;
  Range tiles = {0, 0};
  for (int gate = 0; gate < gates; ++gate) {
    const int start = gate * w_.room;
    tiles.begin = std::max(tiles.end, (start + channels.begin) / kTileRows);
    tiles.end = (start + channels.end + kTileRows - 1) / kTileRows;
    multiply(context, matrix, tiles, tokens, y, matrix.rows);
  }
}

// A head whose width is no multiple of 16 is computed in copies of its input and its state that are.
SlstmBlock::Head SlstmBlock::head_of(const StepContext& context, const SlstmMemory& memory, int thread,
                                     int head) const {
  const State& state = context.state;
  const UnitBuffers& b = state.units[static_cast<std::size_t>(head)];
  const bool exact = w_.width == w_.room;
  const int start = head * w_.width;
  const auto room = static_cast<std::size_t>(w_.room);
  const auto hidden = static_cast<std::size_t>(w_.hidden);
  const auto rows = static_cast<std::size_t>(state.batch()) * room;
  Head found = {};
  found.given = {state.threads[static_cast<std::size_t>(thread)].normed + start,
                 static_cast<std::size_t>(context.room)};
  found.x = exact ? found.given : Rows{b.v, room};
  float* const parts[] = {memory.c, memory.n, memory.m};
  for (std::size_t part = 0; part < 3; ++part) {
    found.kept[part] = {parts[part] + start, hidden, context.rows.places};
    found.state[part] = exact ? found.kept[part] : Rows{b.k + part * rows, room};
  }
  for (std::size_t token = 0; token <= kTokens; ++token) found.y[token] = {b.h + token * rows, room};
  return found;
}

// Convolution of a share of a head's channels, whose window moves on; and their state at the start of a step.
void SlstmBlock::convolve(StepContext& context, const SlstmMemory& memory, int thread, const Share& share) const {
  const Range own = channels(share);
  if (own.begin == own.end) return;
  const UnitBuffers& b = context.state.units[static_cast<std::size_t>(share.unit)];
  const Head head = head_of(context, memory, thread, share.unit);
  const int past = w_.conv_kernel - 1;
  const int start = share.unit * w_.width;
  const auto hidden = static_cast<std::size_t>(w_.hidden);
  const auto room = static_cast<std::size_t>(w_.room);
  const bool exact = w_.width == w_.room;
  if (!exact) spread(head.given, context.tokens(), w_.width, own, head.x);
  for (int row = 0; row < context.rows.count; ++row) {
    const Rows window = {memory.conv + context.rows.place(row) * past * w_.hidden + start, hidden};
    const Rows used = exact ? window : Rows{b.scratch, room};
    if (!exact) spread(window, past, w_.width, own, used);
    const int at = share.unit * w_.room + own.begin;
    context.kernels.convolve({own.end - own.begin, w_.conv_kernel, w_.conv_weight + at,
                              static_cast<std::size_t>(w_.heads) * room, w_.conv_bias + at,
                              head.x.row(row * kTokens) + own.begin, head.x.stride, used.data + own.begin, used.stride,
                              b.convolved + row * kTokens * w_.room + own.begin, room, context.first(row)});
    if (!exact) put_back(used, past, w_.width, own, window);
  }
  spread({memory.y + start, hidden, context.rows.places}, context.rows.count, w_.width, own, head.y[0]);
  for (std::size_t part = 0; part < 3 && !exact; ++part)
    spread(head.kept[part], context.rows.count, w_.width, own, head.state[part]);
  const int count = own.end - own.begin;
  for (int row = 0; row < context.rows.count; ++row) {
    if (!context.first(row)) continue;
    std::fill_n(head.y[0].row(row) + own.begin, count, 0.0F);
    for (const std::size_t part : {0U, 1U}) std::fill_n(head.state[part].row(row) + own.begin, count, 0.0F);
    std::fill_n(head.state[2].row(row) + own.begin, count, kInitialM);
  }
}

// What all tokens of a step give a share of a head's channels: to i and f what was convolved, to z and o the input.
void SlstmBlock::project(StepContext& context, const SlstmMemory& memory, int thread, const Share& share) const {
  const Range own = channels(share);
  if (own.begin == own.end) return;
  const auto unit = static_cast<std::size_t>(share.unit);
  const UnitBuffers& b = context.state.units[unit];
  const int count = context.tokens();
  Tokens tokens = of_share(context, thread, share, b.convolved, static_cast<std::size_t>(w_.room), count, w_.room,
                           w_.from_conv[unit]);
  multiply_gates(context, w_.from_conv[unit], own, tokens, b.input);
  const Rows x = head_of(context, memory, thread, share.unit).x;
  tokens = of_share(context, thread, share, x.data, x.stride, count, w_.room, w_.from_input[unit]);
  multiply_gates(context, w_.from_input[unit], own, tokens, b.gate);
}

// The recurrence of one token: all of y before it, and a share of the head's channels after it.
void SlstmBlock::recur(StepContext& context, const SlstmMemory& memory, int thread, const Share& share, int t) const {
  const Range own = channels(share);
  if (own.begin == own.end) return;
  const auto unit = static_cast<std::size_t>(share.unit);
  const UnitBuffers& b = context.state.units[unit];
  const Head head = head_of(context, memory, thread, share.unit);
  const auto& [c, n, m] = head.state;
  const Rows before = head.y[t];
  const Rows after = head.y[t + 1];
  const Tokens tokens =
      of_share(context, thread, share, before.data, before.stride, context.rows.count, w_.room, w_.recurrent[unit]);
  multiply_gates(context, w_.recurrent[unit], own, tokens, b.q);
  for (int row = 0; row < context.rows.count; ++row) {
    const int token = row * kTokens + t;
    if (t > 0 || !context.first(row))  // the first token is skipped where an episode starts
      context.kernels.xlstm.slstm_cell({w_.room, own.begin, own.end, b.input + token * 2 * w_.room,
                                        b.gate + token * 2 * w_.room, b.q + row * 4 * w_.room,
                                        w_.gate_bias + 4 * share.unit * w_.room, after.row(row), c.row(row), n.row(row),
                                        m.row(row)});
    else
      std::fill(after.row(row) + own.begin, after.row(row) + own.end, 0.0F);
  }
  if (t + 1 < kTokens) return;
  put_back(after, context.rows.count, w_.width, own,
           {memory.y + share.unit * w_.width, static_cast<std::size_t>(w_.hidden), context.rows.places});
  for (std::size_t part = 0; part < 3 && w_.width != w_.room; ++part)
    put_back(head.state[part], context.rows.count, w_.width, own, head.kept[part]);
}

// The normalized output of a head, of a share of the step's tokens, into `mixed`.
void SlstmBlock::put_out(const StepContext& context, const SlstmMemory& memory, int thread, const Share& share) const {
  const Head head = head_of(context, memory, thread, share.unit);
  const int start = share.unit * w_.width;
  const Range tokens = share.of(context.tokens());
  for (int token = tokens.begin; token < tokens.end; ++token)
    context.kernels.head_norm(head.y[token % kTokens + 1].row(token / kTokens), w_.head_norm + start, w_.head_epsilon,
                              w_.width, context.state.mixed + token * context.room + start);
}

// A share of the columns of a slice of the feed-forward.
void SlstmBlock::raise(StepContext& context, const Share& share, const Tokens& tokens) const {
  const auto slice = static_cast<std::size_t>(share.unit);
  const UnitBuffers& b = context.state.units[slice];
  const int padded = State::padded(w_.ffn_slice);
  const Range tiles = share.of(padded / kTileRows);
  multiply(context, w_.ffn_up[2 * slice], tiles, tokens, b.input, padded);
  multiply(context, w_.ffn_up[2 * slice + 1], tiles, tokens, b.gate, padded);
  const int first = tiles.begin * kTileRows;
  for (int token = 0; token < tokens.count; ++token) {
    const int at = token * padded + first;
    context.kernels.gated(w_.ffn_activation, b.input + at, b.gate + at, tiles.end * kTileRows - first, b.h + at);
  }
}

// A share of the columns of what a slice of the feed-forward adds.
void SlstmBlock::lower(StepContext& context, int thread, const Share& share) const {
  const auto slice = static_cast<std::size_t>(share.unit);
  const UnitBuffers& b = context.state.units[slice];
  const Matrix& down = w_.ffn_down[slice];
  const Tokens gated = of_share(context, thread, share, b.h, static_cast<std::size_t>(State::padded(w_.ffn_slice)),
                                context.tokens(), w_.ffn_slice, down);
  multiply(context, down, share.of(down.tiles), gated, b.part, context.state.padded_hidden());
}

void SlstmBlock::run(StepContext& context, BlockMemory& memory, int thread) const {
  const auto& held = static_cast<const SlstmMemory&>(memory);
  const ThreadBuffers& own = context.state.threads[static_cast<std::size_t>(thread)];
  normalized(context, thread, {w_.norm, nullptr, w_.norm_epsilon, false}, Format::float32, 2);
  const auto token = [&](int t) { return [&, t](const Share& share) { recur(context, held, thread, share, t); }; };
  static_assert(kTokens == 3);
  in_stages(
      context, thread, w_.heads, [&](const Share& share) { convolve(context, held, thread, share); },
      [&](const Share& share) {
        project(context, held, thread, share);
        recur(context, held, thread, share, 0);
      },
      token(1), token(2), [&](const Share& share) { put_out(context, held, thread, share); });
  context.barrier(thread);
  context.kernels.accumulate(own.x, context.state.mixed, 0, 1, context.tokens() * context.room);
  const Tokens tokens = normalized(context, thread, {w_.ffn_norm, nullptr, w_.norm_epsilon, false}, w_.ffn_up[0].format,
                                   w_.ffn_up[0].planes);
  in_stages(
      context, thread, w_.ffn_slices, [&](const Share& share) { raise(context, share, tokens); },
      [&](const Share& share) { lower(context, thread, share); });
  context.barrier(thread);
  add_parts(context, thread, w_.ffn_slices);
}

}  // namespace lram::xlstm
