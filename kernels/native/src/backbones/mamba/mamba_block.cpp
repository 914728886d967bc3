#include "mamba_block.h"

#include <algorithm>
#include <utility>

#include "mamba.h"
#include "roles.h"

namespace lram::mamba {

struct MambaMemory : BlockMemory {
  float* conv = nullptr;  // [batch][window][channels]
  float* h = nullptr;     // [batch][size][channels]
};

namespace {

enum Part : std::size_t { kConv, kSsm };

std::vector<StatePart> parts_of(const MambaWeights& w) {
  const auto inner = static_cast<std::size_t>(w.inner);
  return {{"conv", {static_cast<std::size_t>(w.conv_kernel - 1), inner}},
          {"ssm", {static_cast<std::size_t>(w.size), inner}}};
}

Needs needs_of(const MambaWeights& w) {
  const int selected = State::padded(w.selected());
  Needs needs;
  needs.units = w.slices;
  needs.width = std::max(w.slice, room_of(w.rank));
  needs.shares = w.channels() / kTileRows;
  needs.of_thread = static_cast<std::size_t>(kTokens * selected);
  needs.shared = static_cast<std::size_t>(kTokens * selected);
  return needs;
}

void add_bias(float* x, int tokens, int stride, const float* bias, int count) {
  for (int token = 0; token < tokens; ++token)
    for (int i = 0; i < count; ++i) x[token * stride + i] += bias[i];
}

}  // namespace

std::vector<BlockKind> kinds() { return {{3, MambaBlock::make}}; }

std::unique_ptr<Block> MambaBlock::make(BlockSource& source) {
  source.expect_unrolled_tokens("a Mamba block");
  MambaWeights w;
  w.inner = source.integer("inner", 1, 1 << 16);
  w.slices = source.integer("slices", 1, 64);
  w.slice = source.integer("slice", kGroup, 1 << 16, kGroup);
  w.size = source.integer("state", 1, 1 << 10);
  w.rank = source.integer("dt_rank", 1, 1 << 15);
  w.conv_kernel = source.integer("conv_kernel", 2, 64);
  const bool rms = source.integer("rms_norm", 0, 1) == 1;
  const bool biased = source.integer("bias", 0, 1) == 1;
  const float epsilon = source.epsilon("norm_epsilon");
  source.expect_no_more();
  if (w.inner > w.channels() || w.inner <= w.channels() - w.slice)
    source.refuse("slices: expected as many as " + std::to_string(w.inner) + " channels fill, got " +
                  std::to_string(w.slices) + " of " + std::to_string(w.slice));
  const int hidden = source.hidden_room();
  const int channels = w.channels();
  w.norm = {source.plain(kNorm, hidden), rms ? nullptr : source.plain(kNormBias, hidden), epsilon, rms};
  w.in = source.matrices(kIn, 2 * w.slices, w.slice, hidden);
  w.in_bias = biased ? source.plain(kInBias, 2 * channels) : nullptr;
  w.conv_weight = source.plain(kConvWeight, std::int64_t{w.conv_kernel} * channels);
  w.conv_bias = source.plain(kConvBias, channels);
  w.select = source.matrices(kSelect, w.slices, w.selected(), w.slice);
  w.step = source.matrices(kStep, w.slices, w.slice, room_of(w.rank));
  w.step_bias = source.plain(kStepBias, channels);
  w.A = source.plain(kA, std::int64_t{w.size} * channels);
  w.D = source.plain(kD, channels);
  w.out = source.matrices(kOut, w.slices, source.hidden(), w.slice);
  w.out_bias = biased ? source.plain(kOutBias, source.hidden()) : nullptr;
  return std::make_unique<MambaBlock>(std::move(w));
}

MambaBlock::MambaBlock(MambaWeights weights) : Block(parts_of(weights), needs_of(weights)), w_(std::move(weights)) {}

std::unique_ptr<BlockMemory> MambaBlock::plan(Planner& planner, int batch) const {
  const std::size_t channels = static_cast<std::size_t>(batch) * static_cast<std::size_t>(w_.channels());
  auto memory = std::make_unique<MambaMemory>();
  memory->conv = planner.take<float>(channels * static_cast<std::size_t>(w_.conv_kernel - 1));
  memory->h = planner.take<float>(channels * static_cast<std::size_t>(w_.size));
  const bool exact = w_.inner == w_.channels();
  memory->parts = {exact ? memory->conv : nullptr, exact ? memory->h : nullptr};
  return memory;
}

// Channels that fill up the last slice are 0 in the memory, and stay so.
void MambaBlock::restart_own(BlockMemory& memory, std::size_t part, int row) const {
  const auto& held = static_cast<const MambaMemory&>(memory);
  const int count = (part == kConv ? w_.conv_kernel - 1 : w_.size) * w_.channels();
  std::fill_n((part == kConv ? held.conv : held.h) + static_cast<std::ptrdiff_t>(row) * count, count, 0.0F);
}

void MambaBlock::save_own(const BlockMemory& memory, std::size_t part, int row, float* values) const {
  const auto& held = static_cast<const MambaMemory&>(memory);
  const int rows = part == kConv ? w_.conv_kernel - 1 : w_.size;
  const float* from = (part == kConv ? held.conv : held.h) + static_cast<std::ptrdiff_t>(row) * rows * w_.channels();
  for (int i = 0; i < rows; ++i) std::copy_n(from + i * w_.channels(), w_.inner, values + i * w_.inner);
}

void MambaBlock::load_own(BlockMemory& memory, std::size_t part, int row, const float* values) const {
  const auto& held = static_cast<const MambaMemory&>(memory);
  const int rows = part == kConv ? w_.conv_kernel - 1 : w_.size;
  float* to = (part == kConv ? held.conv : held.h) + static_cast<std::ptrdiff_t>(row) * rows * w_.channels();
  for (int i = 0; i < rows; ++i) std::copy_n(values + i * w_.inner, w_.inner, to + i * w_.channels());
}

// Input projection and convolution of a share of a slice's channels.
void MambaBlock::project(StepContext& context, const MambaMemory& memory, const Share& share,
                         const Tokens& tokens) const {
  const auto unit = static_cast<std::size_t>(share.unit);
  const UnitBuffers& b = context.state.units[unit];
  const int padded = State::padded(w_.slice);
  const Range tiles = share.of(w_.slice / kTileRows);
  const int first = tiles.begin * kTileRows;
  const int count = tiles.end * kTileRows - first;
  const auto channels = static_cast<std::size_t>(w_.channels());
  multiply(context, w_.in[2 * unit], tiles, tokens, b.input, padded);
  multiply(context, w_.in[2 * unit + 1], tiles, tokens, b.gate, padded);
  if (w_.in_bias != nullptr) {
    const float* bias = w_.in_bias + 2 * share.unit * w_.slice + first;
    add_bias(b.input + first, tokens.count, padded, bias, count);
    add_bias(b.gate + first, tokens.count, padded, bias + w_.slice, count);
  }
  const int start = share.unit * w_.slice + first;
  for (int row = 0; row < context.rows.count; ++row) {
    float* window = memory.conv +
                    static_cast<std::ptrdiff_t>(context.rows.place(row)) * (w_.conv_kernel - 1) * w_.channels() + start;
    context.kernels.convolve({count, w_.conv_kernel, w_.conv_weight + start, channels, w_.conv_bias + start,
                              b.input + row * kTokens * padded + first, static_cast<std::size_t>(padded), window,
                              channels, b.convolved + row * kTokens * w_.slice + first,
                              static_cast<std::size_t>(w_.slice), context.first(row)});
  }
}

// A slice's part of a share of step sizes, B and C.
void MambaBlock::select(StepContext& context, int thread, const Share& share) const {
  const auto unit = static_cast<std::size_t>(share.unit);
  const UnitBuffers& b = context.state.units[unit];
  const Matrix& select = w_.select[unit];
  const Tokens convolved = of_share(context, thread, share, b.convolved, static_cast<std::size_t>(w_.slice),
                                    context.tokens(), w_.slice, select);
  multiply(context, select, share.of(select.tiles), convolved, b.shared, State::padded(w_.selected()));
}

// The state space and the gated output of a share of a slice's channels.
void MambaBlock::scan(StepContext& context, const MambaMemory& memory, int thread, const Share& share) const {
  const auto unit = static_cast<std::size_t>(share.unit);
  State& state = context.state;
  const UnitBuffers& b = state.units[unit];
  const Range tiles = share.of(w_.slice / kTileRows);
  if (tiles.begin == tiles.end) return;
  const int padded = State::padded(w_.slice);
  const int selected = State::padded(w_.selected());
  const int first = tiles.begin * kTileRows;
  const int start = share.unit * w_.slice + first;
  const auto channels = static_cast<std::size_t>(w_.channels());
  float* sums = state.threads[static_cast<std::size_t>(thread)].scratch;
  for (int row = 0; row < context.rows.count; ++row) {
    // every slice's part, in the order of slices
    const int of_row = row * kTokens * selected;
    std::copy_n(state.units[0].shared + of_row, kTokens * selected, sums);
    for (int part = 1; part < w_.slices; ++part)
      context.kernels.accumulate(sums, state.units[static_cast<std::size_t>(part)].shared + of_row, 0, 1,
                                 kTokens * selected);
    const Tokens sizes = of_share(context, thread, share, sums, static_cast<std::size_t>(selected), kTokens,
                                  room_of(w_.rank), w_.step[unit]);
    multiply(context, w_.step[unit], tiles, sizes, b.q, padded);
    const int at = row * kTokens * w_.slice + first;
    const float* B = sums + room_of(w_.rank);
    lap(Stage::other);
    context.kernels.mamba.selective_scan(
        {tiles.end * kTileRows - first, w_.size, w_.A + start,
         memory.h + static_cast<std::ptrdiff_t>(context.rows.place(row)) * w_.size * w_.channels() + start, channels,
         w_.D + start, w_.step_bias + start, B, B + room_of(w_.size), static_cast<std::size_t>(selected), b.q + first,
         static_cast<std::size_t>(padded), b.convolved + at, static_cast<std::size_t>(w_.slice),
         b.gate + row * kTokens * padded + first, static_cast<std::size_t>(padded), b.h + at, context.first(row)});
    lap(Stage::memory);
  }
}

// A share of a slice's part of the block's output.
void MambaBlock::put_out(StepContext& context, int thread, const Share& share) const {
  const auto unit = static_cast<std::size_t>(share.unit);
  const State& state = context.state;
  const UnitBuffers& b = state.units[unit];
  const Matrix& out = w_.out[unit];
  const Range tiles = share.of(out.tiles);
  if (tiles.begin == tiles.end) return;
  const Tokens tokens =
      of_share(context, thread, share, b.h, static_cast<std::size_t>(w_.slice), context.tokens(), w_.slice, out);
  multiply(context, out, tiles, tokens, b.part, state.padded_hidden());
  if (unit != 0 || w_.out_bias == nullptr) return;
  const int first = tiles.begin * kTileRows;
  add_bias(b.part + first, context.tokens(), state.padded_hidden(), w_.out_bias + first,
           std::min(tiles.end * kTileRows, context.hidden) - first);
}

void MambaBlock::run(StepContext& context, BlockMemory& memory, int thread) const {
  const auto& held = static_cast<const MambaMemory&>(memory);
  const Tokens tokens = normalized(context, thread, w_.norm, w_.in[0].format, w_.in[0].planes);
  in_stages(
      context, thread, w_.slices, [&](const Share& share) { project(context, held, share, tokens); },
      [&](const Share& share) { select(context, thread, share); });
  context.barrier(thread);
  in_stages(
      context, thread, w_.slices, [&](const Share& share) { scan(context, held, thread, share); },
      [&](const Share& share) { put_out(context, thread, share); });
  context.barrier(thread);
  add_parts(context, thread, w_.slices);
}

}  // namespace lram::mamba
