#include "window_block.h"

#include <algorithm>

#include "decision_transformer.h"
#include "roles.h"

namespace lram::decision_transformer {
namespace {

std::vector<StatePart> parts_of(const WindowWeights& w) {
  if (w.start == nullptr) return {};
  return {{"tokens", {static_cast<std::size_t>(w.kept()), static_cast<std::size_t>(w.layers.hidden)}, 0, w.start}};
}

std::size_t size_of(int rows, int columns) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
}

// Floats of one row of the batch that threads share: its residual stream.
std::size_t stream_size(const WindowWeights& w) { return size_of(w.rows(), State::padded(w.layers.hidden)); }

// Columns of what is neither: queries, keys and values, then the feed-forward.
int wide(const LayerWeights& l) { return std::max(l.projected(), State::padded(l.ffn)); }

// Floats of a thread's copy of the keys and values of a head.
std::size_t copied(const WindowWeights& w) { return size_of(w.tokens, w.layers.room); }

Needs needs_of(const WindowWeights& w) {
  const LayerWeights& l = w.layers;
  const int hidden = room_of(l.hidden);
  const std::size_t of_head = 2 * copied(w) + attention_scratch(w.tokens) + size_of(kTokens, l.room);
  Needs needs;
  needs.shares = l.shares();
  needs.columns = room_of(l.ffn);
  needs.of_thread = kGemmScratch + std::max(of_head, size_of(w.group, hidden));
  needs.common = size_of(w.rows(), std::max(hidden, room_of(l.ffn)) + wide(l) + hidden);
  needs.common_per_row = stream_size(w) + shared_size(l, kTokens);
  return needs;
}

}  // namespace

struct WindowBuffers {
  float* packed;     // tokens as products read them
  float* projected;  // [rows][wide]: queries, keys and values, then the feed-forward
  float* attended;   // [rows][hidden room]
  Shared last;       // of the tokens of the step, in the last block
  float* streams;    // [batch][rows][padded hidden]

  WindowBuffers(const WindowWeights& w, const State& state) : packed(state.common) {
    const LayerWeights& l = w.layers;
    const int hidden = room_of(l.hidden);
    projected = packed + size_of(w.rows(), std::max(hidden, room_of(l.ffn)));
    attended = projected + size_of(w.rows(), wide(l));
    float* step = attended + size_of(w.rows(), hidden);
    last = shared_of(l, step, state.tokens());
    streams = step + shared_size(l, state.tokens());
  }
};

std::unique_ptr<Block> WindowBlock::make(BlockSource& source) {
  source.expect_unrolled_tokens("a Decision Transformer's block over its window");
  if (source.artifact.header().read_token != kTokens - 1)
    source.refuse("read_token: expected the last of a step, " + std::to_string(kTokens - 1) + ", got " +
                  std::to_string(source.artifact.header().read_token));
  WindowWeights w;
  w.layers = read_layers(source);
  w.tokens = source.integer("steps", 2, 1 << 10) * kTokens - 1;
  source.expect_no_more();
  w.group = source.kernels.gemm_tokens;
  w.last = source.number == source.artifact.blocks() - 1;
  const bool first = source.number == 0;
  w.positions = first ? source.plain(kPositions, std::int64_t{w.tokens} * source.hidden_room()) : nullptr;
  w.start = first ? source.plain(kStart, std::int64_t{w.kept()} * w.layers.hidden) : nullptr;
  return std::make_unique<WindowBlock>(w);
}

WindowBlock::WindowBlock(const WindowWeights& weights) : Block(parts_of(weights), needs_of(weights)), w_(weights) {}

std::unique_ptr<BlockMemory> WindowBlock::plan(Planner& planner, int batch) const {
  auto memory = std::make_unique<BlockMemory>();
  if (w_.start != nullptr)
    memory->parts = {planner.take<float>(size_of(batch, w_.kept()) * static_cast<std::size_t>(w_.layers.hidden))};
  return memory;
}

// This thread's columns of a row's tokens: those of former steps, then the step's, with their positions; the memory
// moves on by a step. At the start of an episode the encoders give the reward of the padding.
void WindowBlock::gather(StepContext& context, float* memory, int thread, int row, float* x) const {
  const int hidden = w_.layers.hidden;
  const int padded = State::padded(hidden);
  const float* former = context.first(row) ? w_.start : memory;
  const float* of_step = context.state.threads[static_cast<std::size_t>(thread)].x + row * kTokens * context.room;
  const Range columns = share(hidden, thread, context.threads());
  const int count = columns.end - columns.begin;
  const auto token_at = [&](int token) {
    return columns.begin + (token < w_.kept() ? former + token * hidden : of_step + (token - w_.kept()) * context.room);
  };
  for (int token = 0; token < w_.tokens; ++token) {
    float* to = x + token * padded + columns.begin;
    const float* from = token_at(token);
    const float* position = w_.positions + token * context.room + columns.begin;
    for (int i = 0; i < count; ++i) to[i] = from[i] + position[i];
    if (columns.end == hidden) std::fill(to + count, x + (token + 1) * padded, 0.0F);
  }
  for (int token = 0; token < w_.kept(); ++token)
    std::copy_n(token_at(token + kTokens), count, memory + token * hidden + columns.begin);
}

// Packs this thread's groups of tokens, normalized.
void WindowBlock::pack_normed(StepContext& context, int thread, const Norm& norm, const float* x, float* packed) const {
  const int padded = State::padded(w_.layers.hidden);
  float* normed = context.state.threads[static_cast<std::size_t>(thread)].scratch;
  const Range groups = share(w_.groups(), thread, context.threads());
  for (int group = groups.begin; group < groups.end; ++group) {
    const int start = group * w_.group;
    const int count = std::min(w_.group, w_.tokens - start);
    for (int token = 0; token < count; ++token) {
      float* to = normed + token * context.room;
      norm(context.kernels, x + (start + token) * padded, context.hidden, to);
      std::fill(to + context.hidden, to + context.room, 0.0F);
    }
    context.kernels.pack_group(normed, static_cast<std::size_t>(context.room), count, context.room,
                               packed + start * context.room);
  }
}

void WindowBlock::pack(StepContext& context, int thread, const float* from, int stride, int cols, float* packed) const {
  const Range groups = share(w_.groups(), thread, context.threads());
  for (int group = groups.begin; group < groups.end; ++group) {
    const int start = group * w_.group;
    context.kernels.pack_group(from + start * stride, static_cast<std::size_t>(stride),
                               std::min(w_.group, w_.tokens - start), cols, packed + start * cols);
  }
}

// This thread's outputs of a matrix for all tokens.
Gemm WindowBlock::product(StepContext& context, int thread, const Matrix& matrix, const float* bias, bool add,
                          const float* packed, float* y, int y_stride) const {
  const Range tiles = share(matrix.tiles, thread, context.threads());
  return {&matrix,
          tiles.begin,
          tiles.end,
          packed,
          0,
          w_.groups(),
          bias,
          add,
          y,
          static_cast<std::size_t>(y_stride),
          context.state.threads[static_cast<std::size_t>(thread)].scratch};
}

// One head of all tokens, or, in the last block, of the last one.
void WindowBlock::attend_head(StepContext& context, int thread, int row, int head, const WindowBuffers& buffers) const {
  const LayerWeights& l = w_.layers;
  const int stride = wide(l);
  const float* queries = buffers.projected + head * l.room;
  float* keys = context.state.threads[static_cast<std::size_t>(thread)].scratch;
  float* values = keys + copied(w_);
  float* scratch = values + copied(w_);
  for (int token = 0; token < w_.tokens; ++token) {
    std::copy_n(queries + token * stride + l.part(), l.room, keys + token * l.room);
    std::copy_n(queries + token * stride + 2 * l.part(), l.room, values + token * l.room);
  }
  for (int token = w_.last ? w_.tokens - 1 : 0; token < w_.tokens; token += kTokens) {
    const float* query = queries + token * stride;
    float* y = w_.last ? buffers.last.attended + (row * kTokens + kTokens - 1) * context.room
                       : buffers.attended + token * context.room;
    attend(context, l,
           {l.room, l.scale(), token, keys, values, std::min(kTokens, w_.tokens - token), true, query, query + l.part(),
            query + 2 * l.part(), static_cast<std::size_t>(stride), nullptr, 0, scratch + kTokens * l.room},
           y + head * l.width, context.room, scratch);
  }
}

// Norm, projection and attention of a row.
void WindowBlock::attend_all(StepContext& context, int thread, int row, const WindowBuffers& buffers, float* x) const {
  const LayerWeights& l = w_.layers;
  pack_normed(context, thread, l.norm, x, buffers.packed);
  context.barrier(thread);
  Gemm gemm =
      product(context, thread, l.attention, l.attention_bias, false, buffers.packed, buffers.projected, wide(l));
  if (w_.last) {
    // of queries only the last token's
    const Range all = {gemm.first_tile, gemm.last_tile};
    const int shared_tile = l.part() / kTileRows;
    gemm.last_tile = std::min(all.end, shared_tile);
    gemm.first_group = w_.groups() - 1;
    multiply(context, gemm);
    gemm.first_tile = std::max(all.begin, shared_tile);
    gemm.last_tile = all.end;
    gemm.first_group = 0;
  }
  multiply(context, gemm);
  context.barrier(thread);
  const Range heads = share(l.heads, thread, context.threads());
  for (int head = heads.begin; head < heads.end; ++head) attend_head(context, thread, row, head, buffers);
  context.barrier(thread);
}

// What follows attention, for all tokens of a row.
void WindowBlock::feed_forward(StepContext& context, int thread, const WindowBuffers& buffers, float* x) const {
  const LayerWeights& l = w_.layers;
  const int padded = State::padded(l.hidden);
  pack(context, thread, buffers.attended, context.room, context.room, buffers.packed);
  context.barrier(thread);
  multiply(context, product(context, thread, l.merge, l.merge_bias, true, buffers.packed, x, padded));
  context.barrier(thread);
  pack_normed(context, thread, l.ffn_norm, x, buffers.packed);
  context.barrier(thread);
  Gemm gemm = product(context, thread, l.up, l.up_bias, false, buffers.packed, buffers.projected, wide(l));
  const Range tiles = {gemm.first_tile, gemm.last_tile};
  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    gemm.first_tile = tile;
    gemm.last_tile = tile + 1;
    multiply(context, gemm);
    for (int token = 0; token < w_.tokens; ++token) {
      float* of_token = buffers.projected + token * wide(l) + tile * kTileRows;
      context.kernels.gelu(of_token, kTileRows, of_token);
    }
  }
  context.barrier(thread);
  pack(context, thread, buffers.projected, wide(l), room_of(l.ffn), buffers.packed);
  context.barrier(thread);
  multiply(context, product(context, thread, l.down, l.down_bias, true, buffers.packed, x, padded));
  context.barrier(thread);
}

// The last token becomes the one that is read of this thread's residual stream. The layers behind attention compute
// with the others, too, which nobody reads: their weights are read anyway.
void WindowBlock::leave_last(StepContext& context, int thread, const WindowBuffers& buffers) const {
  float* to = context.state.threads[static_cast<std::size_t>(thread)].x;
  const int padded = State::padded(w_.layers.hidden);
  for (int row = 0; row < context.rows.count; ++row)
    std::copy_n(buffers.streams + row * stream_size(w_) + size_of(w_.tokens - 1, padded), context.room,
                to + (row * kTokens + kTokens - 1) * context.room);
  finish(context, thread, w_.layers, buffers.last);
}

void WindowBlock::run(StepContext& context, BlockMemory& memory, int thread) const {
  const WindowBuffers buffers(w_, context.state);
  const int rows = context.rows.count;
  const auto stream = [&](int row) { return buffers.streams + static_cast<std::size_t>(row) * stream_size(w_); };
  if (w_.start != nullptr) {
    for (int row = 0; row < rows; ++row)
      gather(context,
             memory.parts[0] + size_of(context.rows.place(row), w_.kept()) * static_cast<std::size_t>(w_.layers.hidden),
             thread, row, stream(row));
    context.barrier(thread);
  }
  for (int row = 0; row < rows; ++row) {
    attend_all(context, thread, row, buffers, stream(row));
    if (!w_.last) feed_forward(context, thread, buffers, stream(row));
  }
  if (w_.last) leave_last(context, thread, buffers);
}

}  // namespace lram::decision_transformer
