#include "encoders.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "error.h"
#include "step.h"

namespace lram {
namespace {

float largest_of(const float* values, std::size_t count) {
  float found = 0;
  for (std::size_t i = 0; i < count; ++i)
    if (std::fabs(values[i]) > std::fabs(found)) found = values[i];
  return found;
}

// What a token that embeds a number reads, one per row.
const float* numbers_of(const lram_inputs& inputs, Input input) {
  return input == Input::reward ? inputs.reward : inputs.return_to_go;
}

}  // namespace

Encoders::Encoders(const Artifact& artifact)
    : hidden_(artifact.hidden()), room_(room_of(hidden_)), epsilon_(artifact.header().embed_epsilon) {
  const FileHeader& h = artifact.header();
  const auto room = static_cast<std::uint64_t>(room_);
  if (h.observation == LRAM_IMAGE) image_ = std::make_unique<const ImageEncoder>(artifact);
  observation_size_ =
      images() ? std::size_t{h.image_channels} * h.image_height * h.image_width : std::size_t{h.observation_dim};
  const int observed = images() ? image_->features() : static_cast<int>(h.observation_dim);
  for (int i = 0; i < artifact.tokens(); ++i) {
    const TokenEntry& entry = artifact.token(i);
    TokenWeights token = {static_cast<Input>(entry.input), entry.skipped_at_start(), entry.zero(), nullptr, nullptr};
    if (token.input != Input::observation) {
      token.weight = artifact.plain(kEmbedWeight, i, room);
    } else {
      observation_ = artifact.matrices(kEmbedWeight, i, 1, hidden_, observed)[0];
      if (observation_.format != Format::float32 && observed % 16 != 0)
        artifact.refuse("observation: expected float32 weights for " + std::to_string(observed) + " inputs");
    }
    token.bias = artifact.plain(kEmbedBias, i, room);
    tokens_.push_back(token);
  }
  const std::uint64_t numbers = images() ? 0 : std::uint64_t{observation_size_};
  mean_ = artifact.finite(kObservationMean, 0, numbers);
  deviation_ = mean_ == nullptr ? nullptr : artifact.plain(kObservationDeviation, 0, numbers);
  const float* clip = mean_ == nullptr ? nullptr : artifact.finite(kObservationClip, 0, 1);
  clip_ = clip == nullptr ? std::numeric_limits<float>::infinity() : *clip;
  if (mean_ != nullptr && !std::all_of(deviation_, deviation_ + numbers, [](float value) { return value > 0; }))
    artifact.refuse("observation: expected positive deviations");
  if (!(clip_ > 0)) artifact.refuse("observation: expected a positive clip");
  norm_weight_ = artifact.plain(kEmbedNormWeight, 0, room);
  norm_bias_ = artifact.plain(kEmbedNormBias, 0, room);
}

bool Encoders::reads(Input input) const {
  return std::any_of(tokens_.begin(), tokens_.end(),
                     [&](const TokenWeights& t) { return t.input == input && !t.zero; });
}

EncoderBuffers Encoders::plan(Planner& planner, int batch, int threads) const {
  EncoderBuffers buffers = {};
  buffers.observed =
      planner.take<float>(static_cast<std::size_t>(batch) * static_cast<std::size_t>(State::padded(hidden_)));
  if (images()) buffers.image = image_->plan(planner, batch);
  if (mean_ != nullptr)
    buffers.normalized =
        planner.take<float>(static_cast<std::size_t>(threads) * static_cast<std::size_t>(batch) * observation_size_);
  return buffers;
}

const float* Encoders::normalized(StepContext& context, int thread) const {
  const float* given = static_cast<const float*>(context.inputs.observation);
  if (mean_ == nullptr) return given;
  const std::size_t count = static_cast<std::size_t>(context.rows.count) * observation_size_;
  float* own = context.state.encoders.normalized + static_cast<std::size_t>(thread) * count;
  for (std::size_t row = 0; row < count; row += observation_size_)
    for (std::size_t i = 0; i < observation_size_; ++i)
      own[row + i] = std::clamp((given[row + i] - mean_[i]) / deviation_[i], -clip_, clip_);
  return own;
}

// The observation of every row, before its bias, divided among the threads by tiles.
void Encoders::encode_observation(StepContext& context, int thread) const {
  State& state = context.state;
  const auto size = static_cast<std::size_t>(observation_.cols);
  if (images()) image_->run(context, thread);
  const float* x = images() ? state.encoders.image.features : normalized(context, thread);
  ThreadBuffers& own = state.threads[static_cast<std::size_t>(thread)];
  const Tokens tokens = {context.rows.count, x, size, observation_.planes, own.codes, size + kGroup, own.code_scales,
                         own.code_sums};
  context.kernels.quantize(tokens, observation_.format, observation_.cols);
  const Range tiles = share(observation_.tiles, thread, context.threads());
  multiply(context, observation_, tiles, tokens, state.encoders.observed, state.padded_hidden());
  context.barrier(thread);
}

// The tokens of every row, before their norm, into this thread's residual stream.
void Encoders::embed(StepContext& context, int thread) const {
  const State& state = context.state;
  float* x = state.threads[static_cast<std::size_t>(thread)].x;
  for (int row = 0; row < context.rows.count; ++row) {
    const float* observed =
        state.encoders.observed + static_cast<std::size_t>(row) * static_cast<std::size_t>(state.padded_hidden());
    for (const TokenWeights& token : tokens_) {
      if (token.input == Input::observation) {
        for (int i = 0; i < room_; ++i) {
          const float encoded = observed[i] + token.bias[i];
          x[i] = images() ? std::max(encoded, 0.0F) : encoded;
        }
      } else {
        // a token that is skipped may be given anything
        const bool skipped = token.zero || (token.skipped_at_start && context.first(row));
        const float number = skipped ? 0.0F : numbers_of(context.inputs, token.input)[row];
        for (int i = 0; i < room_; ++i) x[i] = token.weight[i] * number + token.bias[i];
      }
      x += room_;
    }
  }
}

bool Encoders::run(StepContext& context, int thread) const {
  encode_observation(context, thread);
  embed(context, thread);
  float* x = context.state.threads[static_cast<std::size_t>(thread)].x;
  if (!within(x, context.tokens() * room_, kLargest)) return false;
  for (int token = 0; token < context.tokens(); ++token)
    context.kernels.layer_norm(x + token * room_, norm_weight_, norm_bias_, epsilon_, hidden_, x + token * room_);
  return true;
}

void Encoders::refuse(const StepContext& context) const {
  int token = 0;
  while (within(context.state.threads[0].x + token * room_, room_, kLargest)) ++token;
  const std::size_t row = static_cast<std::size_t>(token) / tokens_.size();
  const Input input = tokens_[static_cast<std::size_t>(token) % tokens_.size()].input;
  const std::string end = " in row " + std::to_string(row) +
                          " is too large: its encoding leaves what float32 computes with (1e17); nothing has changed";
  if (input != Input::observation)
    throw Error(LRAM_ERROR_OVERFLOW, std::string(input == Input::reward ? "reward: " : "return_to_go: ") +
                                         shown(numbers_of(context.inputs, input)[row]) + end);
  if (images()) throw Error(LRAM_ERROR_OVERFLOW, "observation: the image" + end);
  const float* observation = static_cast<const float*>(context.inputs.observation) + row * observation_size_;
  throw Error(LRAM_ERROR_OVERFLOW, "observation: " + shown(largest_of(observation, observation_size_)) + end);
}

}  // namespace lram
