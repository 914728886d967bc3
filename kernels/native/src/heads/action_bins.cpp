#include "action_bins.h"

#include <algorithm>
#include <cstdint>

#include "lram.h"
#include "step.h"

namespace lram {
namespace {

int arg_max(const float* logits, int count) {
  int best = 0;
  for (int i = 1; i < count; ++i)
    if (logits[i] > logits[best]) best = i;
  return best;
}

Norm norm_of(const Artifact& artifact) {
  const auto room = static_cast<std::uint64_t>(room_of(artifact.hidden()));
  const std::uint32_t kind = artifact.header().norm;
  return {artifact.plain(kPostNorm, 0, room), kind == 1 ? artifact.plain(kPostNormBias, 0, room) : nullptr,
          artifact.header().norm_epsilon, kind == 2};
}

}  // namespace

ActionBins::ActionBins(const Artifact& artifact)
    : discrete_(artifact.header().action == LRAM_DISCRETE),
      actions_(static_cast<int>(artifact.header().action_dim)),
      tokens_(static_cast<int>(artifact.header().action_tokens)),
      first_bin_(static_cast<int>(artifact.header().discrete_actions)),
      bin_width_(discrete_ ? 0.0F : 2.0F / static_cast<float>(artifact.header().action_channels)),
      values_(discrete_ ? nullptr : artifact.finite(kActionValues, 0, static_cast<std::uint64_t>(logits()))),
      unclamped_(values_ == nullptr ? nullptr
                                    : artifact.finite(kActionUnclamped, 0, static_cast<std::uint64_t>(logits()))),
      read_(static_cast<int>(artifact.header().read_token)),
      norm_(norm_of(artifact)),
      matrix_(artifact.matrices(kHead, 0, 1, logits(), room_of(artifact.hidden()))[0]),
      bias_(artifact.plain(kHeadBias, 0, static_cast<std::uint64_t>(logits()))) {}

void ActionBins::run(StepContext& context, int thread) const {
  State& state = context.state;
  const int room = context.room;
  ThreadBuffers& own = state.threads[static_cast<std::size_t>(thread)];
  for (int row = 0; row < context.rows.count; ++row)
    norm_(context.kernels, own.x + (row * state.tokens_per_row() + read_) * room, context.hidden,
          own.normed + row * room);
  const auto stride = static_cast<std::size_t>(room);
  const Tokens tokens = {context.rows.count, own.normed,      stride,          matrix_.planes,
                         own.codes,          stride + kGroup, own.code_scales, own.code_sums};
  context.kernels.quantize(tokens, matrix_.format, room);
  const Range tiles = share(matrix_.tiles, thread, context.threads());
  multiply(context, matrix_, tiles, tokens, state.logits, State::padded(logits()));
}

void ActionBins::add_bias(StepContext& context) const {
  for (int row = 0; row < context.rows.count; ++row) {
    float* of_row = context.logits(row);
    for (int i = 0; i < logits(); ++i) of_row[i] += bias_[i];
  }
}

void ActionBins::choose(const StepContext& context) const {
  const State& state = context.state;
  const bool wanted = context.outputs.action != nullptr || state.chosen_actions != nullptr;
  for (int row = 0; row < context.rows.count; ++row) {
    const float* of_row = context.logits(row);
    for (int action = 0; action < actions_ && wanted; ++action) {
      const int token = arg_max(of_row + action * tokens_, tokens_);
      const int at = row * actions_ + action;
      if (discrete_) {
        if (context.outputs.action != nullptr) static_cast<std::int64_t*>(context.outputs.action)[at] = token;
        continue;
      }
      const float value = values_ != nullptr ? values_[action * tokens_ + token]
                                             : static_cast<float>(std::max(token - first_bin_, 0)) * bin_width_ - 1.0F;
      if (context.outputs.action != nullptr) static_cast<float*>(context.outputs.action)[at] = value;
      if (state.chosen_actions != nullptr) state.chosen_actions[at] = value;
      if (state.unclamped_actions != nullptr) state.unclamped_actions[at] = unclamped_[action * tokens_ + token];
    }
    if (context.outputs.logits != nullptr) std::copy_n(of_row, logits(), context.outputs.logits + row * logits());
  }
}

}  // namespace lram
