#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "error.h"

namespace lram {
namespace {

void check_finite(const char* name, const float* values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i)
    if (!std::isfinite(values[i]))
      throw Error(LRAM_ERROR_INPUT, std::string(name) + ": expected finite values, got " + shown(values[i]) +
                                        " at element " + std::to_string(i));
}

// Whether no value is NaN or of a magnitude beyond `largest`.
bool within(const float* values, int count, float largest) {
  int beyond = 0;
  for (int i = 0; i < count; ++i) beyond |= static_cast<int>(!(std::fabs(values[i]) <= largest));
  return beyond == 0;
}

// The observation of every row, before its bias, divided among the threads by tiles.
void encode_observation(StepContext& context, int thread) {
  const Model& model = context.model;
  State& state = context.state;
  const Matrix& matrix = model.embed_observation;
  const auto size = static_cast<std::size_t>(matrix.cols);
  const float* x = static_cast<const float*>(context.inputs.observation);
  if (model.images()) {
    encode_image(context, thread);
    x = state.shared.features;
  }
  ThreadBuffers& own = state.threads[static_cast<std::size_t>(thread)];
  const Tokens tokens = {state.batch(), x, size, matrix.planes, own.codes, size + kGroup, own.code_scales,
                         own.code_sums};
  context.kernels.quantize(tokens, matrix.format, matrix.cols);
  const Range tiles = share(matrix.tiles, thread, context.threads());
  context.kernels.dense(matrix, tiles.begin, tiles.end, tokens, state.shared.observed,
                        static_cast<std::size_t>(state.padded_hidden()));
  context.barrier(thread);
}

// The three tokens of every row, before their norm, into this thread's residual stream.
void embed(StepContext& context, int thread) {
  const Model& model = context.model;
  State& state = context.state;
  const int hidden = context.sizes.hidden;
  ThreadBuffers& own = state.threads[static_cast<std::size_t>(thread)];
  for (int row = 0; row < state.batch(); ++row) {
    const float reward =
        context.first(row) ? 0.0F : context.inputs.reward[row];  // that token is skipped, whatever it is
    const float return_to_go = context.inputs.return_to_go[row];
    const float* observed =
        state.shared.observed + static_cast<std::size_t>(row) * static_cast<std::size_t>(state.padded_hidden());
    float* x = own.x + static_cast<std::size_t>(row) * kTokens * static_cast<std::size_t>(hidden);
    for (int i = 0; i < hidden; ++i) {
      x[i] = model.embed_reward_weight[i] * reward + model.embed_reward_bias[i];
      const float encoded = observed[i] + model.embed_observation_bias[i];
      x[hidden + i] = model.images() ? std::max(encoded, 0.0F) : encoded;
      x[2 * hidden + i] = model.embed_return_weight[i] * return_to_go + model.embed_return_bias[i];
    }
  }
}

void normalize_embedded(StepContext& context, int thread) {
  const Model& model = context.model;
  const int hidden = context.sizes.hidden;
  float* x = context.state.threads[static_cast<std::size_t>(thread)].x;
  for (int token = 0; token < context.state.tokens(); ++token)
    context.kernels.layer_norm(x + token * hidden, model.embed_norm_weight, model.embed_norm_bias,
                               model.header().embed_epsilon, hidden, x + token * hidden);
}

// Logits at the return-to-go token, divided among the threads by tiles.
void decode(StepContext& context, int thread) {
  const Model& model = context.model;
  State& state = context.state;
  const int hidden = context.sizes.hidden;
  ThreadBuffers& own = state.threads[static_cast<std::size_t>(thread)];
  for (int row = 0; row < state.batch(); ++row)
    context.kernels.layer_norm(own.x + (row * kTokens + kTokens - 1) * hidden, model.post_norm, nullptr,
                               model.header().norm_epsilon, hidden, own.normed + row * hidden);
  const Matrix& head = model.head;
  const auto stride = static_cast<std::size_t>(hidden);
  const Tokens tokens = {state.batch(), own.normed,      stride,          head.planes,
                         own.codes,     stride + kGroup, own.code_scales, own.code_sums};
  context.kernels.quantize(tokens, head.format, hidden);
  const Range tiles = share(head.tiles, thread, context.threads());
  context.kernels.dense(head, tiles.begin, tiles.end, tokens, state.shared.logits,
                        static_cast<std::size_t>(State::padded(context.sizes.logits)));
}

int arg_max(const float* logits, int count) {
  int best = 0;
  for (int i = 1; i < count; ++i)
    if (logits[i] > logits[best]) best = i;
  return best;
}

void add_head_bias(StepContext& context) {
  for (int row = 0; row < context.state.batch(); ++row) {
    float* logits = context.logits(row);
    for (int i = 0; i < context.sizes.logits; ++i) logits[i] += context.model.head_bias[i];
  }
}

void choose(StepContext& context) {
  const FileHeader& h = context.model.header();
  const int count = static_cast<int>(h.action_tokens);
  for (int row = 0; row < context.state.batch(); ++row) {
    const float* logits = context.logits(row);
    for (int action = 0; action < context.sizes.actions; ++action) {
      const int token = arg_max(logits + action * count, count);
      const int at = row * context.sizes.actions + action;
      if (context.model.discrete()) {
        static_cast<std::int64_t*>(context.outputs.action)[at] = token;
      } else {
        const int bin = std::max(token - static_cast<int>(h.discrete_actions), 0);
        static_cast<float*>(context.outputs.action)[at] =
            static_cast<float>(bin) * (2.0F / static_cast<float>(h.action_channels)) - 1.0F;
      }
    }
    if (context.outputs.logits != nullptr)
      std::copy_n(logits, context.sizes.logits, context.outputs.logits + row * context.sizes.logits);
  }
}

void work(void* opaque, int thread) {
  StepContext& context = *static_cast<StepContext*>(opaque);
  encode_observation(context, thread);
  embed(context, thread);
  // every thread has the same tokens, so all go on or none does
  if (!within(context.state.threads[static_cast<std::size_t>(thread)].x, context.state.tokens() * context.sizes.hidden,
              kLargest))
    return;
  normalize_embedded(context, thread);
  for (int block = 0; block < context.sizes.blocks; ++block) {
    if (context.model.blocks[static_cast<std::size_t>(block)].is_slstm)
      slstm_block(context, block, thread);
    else
      mlstm_block(context, block, thread);
  }
  decode(context, thread);
  if (thread == 0) context.decoded = true;
}

float largest_of(const float* values, std::size_t count) {
  float found = 0;
  for (std::size_t i = 0; i < count; ++i)
    if (std::fabs(values[i]) > std::fabs(found)) found = values[i];
  return found;
}

// Names the input whose embedded token is too large.
[[noreturn]] void refuse_inputs(const StepContext& context) {
  const int hidden = context.sizes.hidden;
  int token = 0;
  while (within(context.state.threads[0].x + token * hidden, hidden, kLargest)) ++token;
  const auto row = static_cast<std::size_t>(token / kTokens);
  const std::string end = " in row " + std::to_string(row) +
                          " is too large: its encoding leaves what float32 computes with (1e17); nothing has changed";
  const std::size_t size = context.model.observation_size();
  if (token % kTokens == 0) throw Error(LRAM_ERROR_OVERFLOW, "reward: " + shown(context.inputs.reward[row]) + end);
  if (token % kTokens == 2)
    throw Error(LRAM_ERROR_OVERFLOW, "return_to_go: " + shown(context.inputs.return_to_go[row]) + end);
  if (context.model.images()) throw Error(LRAM_ERROR_OVERFLOW, "observation: the image" + end);
  const float* observation = static_cast<const float*>(context.inputs.observation) + row * size;
  throw Error(LRAM_ERROR_OVERFLOW, "observation: " + shown(largest_of(observation, size)) + end);
}

// Marks the rows whose logits are not finite.
void check_logits(const StepContext& context) {
  int first_lost = -1;
  for (int row = context.state.batch() - 1; row >= 0; --row) {
    const bool lost = !within(context.logits(row), context.sizes.logits, std::numeric_limits<float>::max());
    context.state.set_lost(row, lost);
    if (lost) first_lost = row;
  }
  if (first_lost >= 0)
    throw Error(LRAM_ERROR_OVERFLOW, "logits: expected finite values, got others in row " + std::to_string(first_lost) +
                                         "; its state is lost: reset it, load one, or start an episode");
}

}  // namespace

void check_inputs(const State& state, const lram_inputs& inputs, const lram_outputs& outputs) {
  const Model& model = state.model();
  const auto rows = static_cast<std::size_t>(state.batch());
  const auto present = [](const char* name, const void* pointer) {
    if (pointer == nullptr) throw Error(LRAM_ERROR_ARGUMENT, std::string(name) + ": expected an array, got NULL");
  };
  present("observation", inputs.observation);
  present("return_to_go", inputs.return_to_go);
  present("reward", inputs.reward);
  present("is_first", inputs.is_first);
  present("action", outputs.action);
  if (!model.images())
    check_finite("observation", static_cast<const float*>(inputs.observation), rows * model.observation_size());
  check_finite("return_to_go", inputs.return_to_go, rows);
  check_finite("reward", inputs.reward, rows);
  for (std::size_t row = 0; row < rows; ++row)
    if (inputs.is_first[row] != 0 && inputs.is_first[row] != 1)
      throw Error(LRAM_ERROR_INPUT, "is_first: expected 0 or 1, got " + shown(inputs.is_first[row]) + " at element " +
                                        std::to_string(row));
  state.require(inputs.is_first);
}

void run_step(State& state, const lram_inputs& inputs, const lram_outputs& outputs) {
  Model& model = state.model();
  StepContext context = {state, model, model.kernels(), model.sizes(), inputs, outputs};
  const FloatingPointMode mode;
  model.pool().run(work, &context);
  if (!context.decoded) refuse_inputs(context);
  add_head_bias(context);
  check_logits(context);
  choose(context);
}

void add_parts(StepContext& context, int thread, int count) {
  const State& state = context.state;
  const int hidden = context.sizes.hidden;
  const bool several = state.heads.size() > 1;
  const auto part_stride = several ? static_cast<std::size_t>(state.heads[1].part - state.heads[0].part) : 0;
  float* x = state.threads[static_cast<std::size_t>(thread)].x;
  for (int token = 0; token < state.tokens(); ++token)
    context.kernels.accumulate(x + token * hidden, state.heads[0].part + token * state.padded_hidden(), part_stride,
                               count, hidden);
}

Tokens normalized(StepContext& context, int thread, const float* weight, Format format, int planes) {
  const int hidden = context.sizes.hidden;
  ThreadBuffers& own = context.state.threads[static_cast<std::size_t>(thread)];
  for (int token = 0; token < context.state.tokens(); ++token)
    context.kernels.layer_norm(own.x + token * hidden, weight, nullptr, context.model.header().norm_epsilon, hidden,
                               own.normed + token * hidden);
  const auto stride = static_cast<std::size_t>(hidden);
  const Tokens tokens = {context.state.tokens(), own.normed,      stride,       planes, own.codes,
                         stride + kGroup,        own.code_scales, own.code_sums};
  context.kernels.quantize(tokens, format, hidden);
  return tokens;
}

Tokens of_head(StepContext& context, HeadBuffers& buffers, const float* x, std::size_t stride, int count, int width,
               const Matrix& matrix) {
  const Tokens tokens = {count,
                         x,
                         stride,
                         matrix.planes,
                         buffers.codes,
                         static_cast<std::size_t>(width) + kGroup,
                         buffers.code_scales,
                         buffers.code_sums};
  context.kernels.quantize(tokens, matrix.format, width);
  return tokens;
}

}  // namespace lram
