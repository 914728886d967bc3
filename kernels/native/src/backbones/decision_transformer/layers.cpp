#include "layers.h"

#include <algorithm>
#include <cmath>

#include "roles.h"

namespace lram::decision_transformer {
namespace {

// Adds what all threads left in `mixed` to this thread's residual stream.
void add_mixed(StepContext& context, int thread) {
  const State& state = context.state;
  float* x = state.threads[static_cast<std::size_t>(thread)].x;
  for (int token = 0; token < context.tokens(); ++token)
    context.kernels.accumulate(x + token * context.room, state.mixed + token * state.padded_hidden(), 0, 1,
                               context.room);
}

}  // namespace

float LayerWeights::scale() const { return 1.0F / std::sqrt(static_cast<float>(width)); }

int LayerWeights::shares() const { return std::max(heads, merge.tiles); }

LayerWeights read_layers(BlockSource& source) {
  LayerWeights w;
  w.hidden = source.hidden();
  w.heads = source.integer("heads", 1, 1 << 10);
  w.ffn = source.integer("ffn", 1, 1 << 17);
  if (w.hidden % w.heads != 0)
    source.refuse("heads: expected to divide " + std::to_string(w.hidden) + ", got " + std::to_string(w.heads));
  w.width = w.hidden / w.heads;
  w.room = room_of(w.width);
  const float epsilon = source.epsilon("norm_epsilon");
  const int hidden = source.hidden_room();
  const auto bias = [&](std::uint32_t role, const Matrix& matrix) {
    return source.plain(role, std::int64_t{matrix.tiles} * kTileRows);
  };
  w.norm = {source.plain(kNorm, hidden), source.plain(kNormBias, hidden), epsilon, false};
  w.attention = source.matrices(kAttention, 1, 3 * w.part(), hidden)[0];
  w.attention_bias = bias(kAttentionBias, w.attention);
  w.merge = source.matrices(kMerge, 1, w.hidden, hidden)[0];
  w.merge_bias = bias(kMergeBias, w.merge);
  w.ffn_norm = {source.plain(kFfnNorm, hidden), source.plain(kFfnNormBias, hidden), epsilon, false};
  w.up = source.matrices(kFfnUp, 1, w.ffn, hidden)[0];
  w.up_bias = bias(kFfnUpBias, w.up);
  w.down = source.matrices(kFfnDown, 1, w.hidden, room_of(w.ffn))[0];
  w.down_bias = bias(kFfnDownBias, w.down);
  return w;
}

std::size_t shared_size(const LayerWeights& w, int tokens) {
  return static_cast<std::size_t>(tokens) *
         static_cast<std::size_t>(w.projected() + room_of(w.hidden) + State::padded(w.ffn));
}

Shared shared_of(const LayerWeights& w, float* memory, int tokens) {
  float* attended = memory + static_cast<std::size_t>(tokens) * static_cast<std::size_t>(w.projected());
  return {memory, attended, attended + static_cast<std::size_t>(tokens) * static_cast<std::size_t>(room_of(w.hidden))};
}

void project(StepContext& context, int thread, const Matrix& matrix, const float* bias, const Tokens& tokens, float* y,
             int y_stride) {
  const Range tiles = share(matrix.tiles, thread, context.threads());
  multiply(context, matrix, tiles, tokens, y, y_stride);
  const int first = tiles.begin * kTileRows;
  for (int token = 0; token < tokens.count; ++token)
    context.kernels.accumulate(y + token * y_stride + first, bias + first, 0, 1, tiles.end * kTileRows - first);
}

void finish(StepContext& context, int thread, const LayerWeights& w, const Shared& shared) {
  const State& state = context.state;
  const int tokens = context.tokens();
  const int padded_ffn = State::padded(w.ffn);
  const Tokens attended = of_thread(context, thread, shared.attended, static_cast<std::size_t>(context.room), tokens,
                                    context.room, w.merge);
  project(context, thread, w.merge, w.merge_bias, attended, state.mixed, state.padded_hidden());
  context.barrier(thread);
  add_mixed(context, thread);
  const Tokens normed = normalized(context, thread, w.ffn_norm, w.up.format, w.up.planes);
  project(context, thread, w.up, w.up_bias, normed, shared.ffn, padded_ffn);
  const Range tiles = share(w.up.tiles, thread, context.threads());
  for (int token = 0; token < tokens; ++token) {
    float* of_token = shared.ffn + token * padded_ffn + tiles.begin * kTileRows;
    context.kernels.gelu(of_token, (tiles.end - tiles.begin) * kTileRows, of_token);
  }
  context.barrier(thread);
  const Tokens raised =
      of_thread(context, thread, shared.ffn, static_cast<std::size_t>(padded_ffn), tokens, room_of(w.ffn), w.down);
  project(context, thread, w.down, w.down_bias, raised, state.mixed, state.padded_hidden());
  context.barrier(thread);
  add_mixed(context, thread);
}

void attend(const StepContext& context, const LayerWeights& w, Attention attention, float* y, int y_stride,
            float* scratch) {
  const bool exact = w.width == w.room;
  attention.y = exact ? y : scratch;
  attention.y_stride = static_cast<std::size_t>(exact ? y_stride : w.room);
  lap(Stage::other);
  context.kernels.decision_transformer.attention(attention);
  lap(Stage::memory);
  for (int token = 0; token < attention.tokens && !exact; ++token)
    std::copy_n(scratch + token * w.room, w.width, y + token * y_stride);
}

}  // namespace lram::decision_transformer
