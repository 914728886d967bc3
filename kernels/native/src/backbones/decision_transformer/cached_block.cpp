#include "cached_block.h"

#include <algorithm>

#include "decision_transformer.h"
#include "roles.h"

namespace lram::decision_transformer {

struct CachedMemory : BlockMemory {
  float* keys = nullptr;  // [batch][heads][tokens][room]
  float* values = nullptr;
  float* index = nullptr;  // [batch]: of the oldest step
};

namespace {

enum Part : std::size_t { kKey, kValue, kIndex };

std::vector<StatePart> parts_of(const CacheWeights& w) {
  const std::vector<std::size_t> ring = {static_cast<std::size_t>(w.layers.heads), static_cast<std::size_t>(w.tokens()),
                                         static_cast<std::size_t>(w.layers.width)};
  return {{"key", ring, 0, w.keys}, {"value", ring, 0, w.values}, {"index", {}, 0, nullptr, false, w.steps}};
}

Needs needs_of(const CacheWeights& w) {
  Needs needs;
  needs.shares = w.layers.shares();
  needs.columns = room_of(w.layers.ffn);
  needs.of_thread = attention_scratch(w.tokens()) + static_cast<std::size_t>(kTokens * w.layers.room);
  needs.common_per_row = shared_size(w.layers, kTokens);
  return needs;
}

// Rows of `width` to where they are `room` apart, and what is between them to 0.
void spread(const float* from, int rows, int width, int room, float* to) {
  for (int row = 0; row < rows; ++row)
    std::fill(std::copy_n(from + row * width, width, to + row * room), to + (row + 1) * room, 0.0F);
}

}  // namespace

std::unique_ptr<Block> CachedBlock::make(BlockSource& source) {
  source.expect_unrolled_tokens("a Decision Transformer's block with a cache", false);
  CacheWeights w;
  w.layers = read_layers(source);
  w.steps = source.integer("steps", 1, 1 << 10);
  source.expect_no_more();
  const std::int64_t ring = std::int64_t{w.tokens()} * w.layers.hidden;
  w.positions = source.number == 0 ? source.plain(kPositions, std::int64_t{kTokens} * source.hidden_room()) : nullptr;
  w.keys = source.plain(kKeys, ring);
  w.values = source.plain(kValues, ring);
  return std::make_unique<CachedBlock>(w);
}

CachedBlock::CachedBlock(const CacheWeights& weights) : Block(parts_of(weights), needs_of(weights)), w_(weights) {}

std::unique_ptr<BlockMemory> CachedBlock::plan(Planner& planner, int batch) const {
  const auto rows = static_cast<std::size_t>(batch);
  const std::size_t ring = static_cast<std::size_t>(w_.layers.part()) * static_cast<std::size_t>(w_.tokens());
  auto memory = std::make_unique<CachedMemory>();
  memory->keys = planner.take<float>(rows * ring);
  memory->values = planner.take<float>(rows * ring);
  memory->index = planner.take<float>(rows);
  const bool exact = w_.layers.width == w_.layers.room;
  memory->parts = {exact ? memory->keys : nullptr, exact ? memory->values : nullptr, memory->index};
  return memory;
}

void CachedBlock::restart_own(BlockMemory& memory, std::size_t part, int row) const {
  load_own(memory, part, row, parts()[part].initial_values);
}

void CachedBlock::save_own(const BlockMemory& memory, std::size_t part, int row, float* values) const {
  const auto& held = static_cast<const CachedMemory&>(memory);
  const LayerWeights& l = w_.layers;
  const int rows = l.heads * w_.tokens();
  const float* from = (part == kKey ? held.keys : held.values) + static_cast<std::ptrdiff_t>(row) * rows * l.room;
  for (int i = 0; i < rows; ++i) std::copy_n(from + i * l.room, l.width, values + i * l.width);
}

void CachedBlock::load_own(BlockMemory& memory, std::size_t part, int row, const float* values) const {
  const auto& held = static_cast<const CachedMemory&>(memory);
  const LayerWeights& l = w_.layers;
  const int rows = l.heads * w_.tokens();
  spread(values, rows, l.width, l.room,
         (part == kKey ? held.keys : held.values) + static_cast<std::ptrdiff_t>(row) * rows * l.room);
}

// One head of one row; its ring takes in the step's tokens.
void CachedBlock::attend_head(StepContext& context, const CachedMemory& memory, int thread, int row, int head,
                              const Shared& shared) const {
  const LayerWeights& l = w_.layers;
  const int tokens = w_.tokens();
  const bool first = context.first(row);
  const int place = context.rows.place(row);
  const std::ptrdiff_t at = (static_cast<std::ptrdiff_t>(place) * l.heads + head) * tokens * l.room;
  float* keys = memory.keys + at;
  float* values = memory.values + at;
  if (first) {
    spread(w_.keys + head * tokens * l.width, tokens, l.width, l.room, keys);
    spread(w_.values + head * tokens * l.width, tokens, l.width, l.room, values);
  }
  const float* queries = shared.projected + row * kTokens * l.projected() + head * l.room;
  const float* new_keys = queries + l.part();
  const float* new_values = new_keys + l.part();
  float* scratch = context.state.threads[static_cast<std::size_t>(thread)].scratch;
  attend(context, l,
         {l.room, l.scale(), tokens, keys, values, kTokens, first, queries, new_keys, new_values,
          static_cast<std::size_t>(l.projected()), nullptr, 0, scratch + kTokens * l.room},
         shared.attended + row * kTokens * context.room + head * l.width, context.room, scratch);
  // a number that a state was spoiled with points nowhere
  const float index = memory.index[place];
  const int oldest = !first && index >= 0 && index < static_cast<float>(w_.steps) ? static_cast<int>(index) : 0;
  for (int token = 0; token < kTokens; ++token) {
    const int to = (oldest * kTokens + token) * l.room;
    std::copy_n(new_keys + token * l.projected(), l.room, keys + to);
    std::copy_n(new_values + token * l.projected(), l.room, values + to);
  }
}

void CachedBlock::run(StepContext& context, BlockMemory& memory, int thread) const {
  const auto& held = static_cast<const CachedMemory&>(memory);
  const LayerWeights& l = w_.layers;
  const State& state = context.state;
  const Shared shared = shared_of(l, state.common, state.tokens());
  float* x = state.threads[static_cast<std::size_t>(thread)].x;
  for (int row = 0; row < context.rows.count && w_.positions != nullptr; ++row)
    context.kernels.accumulate(x + row * kTokens * context.room, w_.positions, 0, 1, kTokens * context.room);
  const Tokens normed = normalized(context, thread, l.norm, l.attention.format, l.attention.planes);
  project(context, thread, l.attention, l.attention_bias, normed, shared.projected, l.projected());
  context.barrier(thread);
  const Range heads = share(context.rows.count * l.heads, thread, context.threads());
  for (int i = heads.begin; i < heads.end; ++i) attend_head(context, held, thread, i / l.heads, i % l.heads, shared);
  context.barrier(thread);
  for (int row = 0; row < context.rows.count && thread == 0; ++row) {
    float& index = held.index[context.rows.place(row)];
    const float following = (context.first(row) ? 0 : index) + 1;
    index = following < static_cast<float>(w_.steps) ? following : 0;
  }
  finish(context, thread, l, shared);
}

}  // namespace lram::decision_transformer
