#include "model.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "interface.h"
#include "state.h"

namespace lram {
namespace {

lram_state_format chosen(lram_state_format asked, const Artifact& artifact) {
  const lram_state_format exported = artifact.state_format();  // refused, where it makes no sense
  return asked == LRAM_STATE_AS_EXPORTED ? exported : asked;
}

}  // namespace

Model::Model(MappedFile file, const lram_options& options)
    : Engine(options),
      artifact_(std::move(file), options.verify != 0, options.lock_memory != 0, huge_weights(options)),
      encoders_(artifact_),
      head_(artifact_) {
  make_blocks(chosen(options.state_format, artifact_) == LRAM_STATE_LAZY_HALF);
  name_fields();
  if (artifact_.interface() != nullptr)
    rate_ = read_interface(artifact_.file(), *artifact_.interface(), inputs_, outputs_);
  start_threads(std::max(needs_.units, needs_.shares));
}

void Model::describe(lram_description& description) const {
  const FileHeader& h = header();
  description.batch = static_cast<int>(h.batch);
  description.observation = static_cast<lram_observation>(h.observation);
  description.observation_size = encoders_.observation_size();
  description.action = static_cast<lram_action>(h.action);
  description.action_size = static_cast<std::size_t>(head_.actions());
  description.logits_size = static_cast<std::size_t>(head_.logits());
  description.weight_bytes = artifact_.weight_bytes();
  description.feedback = static_cast<lram_feedback>(h.feedback);
  description.target_return = h.target_return;
  description.reward_scale = h.reward_scale;
  const bool lazy = std::any_of(blocks_.begin(), blocks_.end(), [](const auto& b) { return b->left_over(1) > 0; });
  description.state_format = lazy ? LRAM_STATE_LAZY_HALF : LRAM_STATE_FLOAT32;
  description.reads_return_to_go = encoders_.reads(Input::return_to_go) ? 1 : 0;
  description.reads_reward = encoders_.reads(Input::reward) ? 1 : 0;
  std::copy(std::begin(h.name), std::end(h.name), description.name);
  std::copy(std::begin(h.source_sha256), std::end(h.source_sha256), description.source_sha256);
}

std::unique_ptr<Episodes> Model::start(int batch) { return std::make_unique<State>(*this, batch); }

bool Model::worth_threads(int rows) const {
  return static_cast<std::size_t>(rows) * (artifact_.weight_bytes() + state_size() * sizeof(float)) > small_step_bytes;
}

// A state takes its arrays in this order (state.cpp).
void Model::name_fields() {
  const FileHeader& h = header();
  if (encoders_.images())
    inputs_.push_back({"observation", Element::uint8, {h.image_channels, h.image_height, h.image_width}});
  else
    inputs_.push_back({"observation", Element::float32, {h.observation_dim}});
  if (encoders_.reads(Input::return_to_go)) inputs_.push_back({"return_to_go", Element::float32, {}});
  if (encoders_.reads(Input::reward)) inputs_.push_back({"reward", Element::float32, {}});
  inputs_.push_back({"is_first", Element::float32, {}});
  const auto actions = static_cast<std::size_t>(head_.actions());
  const auto logits = static_cast<std::size_t>(head_.logits());
  outputs_.push_back({"action", head_.discrete() ? Element::int64 : Element::float32, {actions}});
  if (head_.discrete())
    outputs_.push_back({"action_logits", Element::float32, {logits}});
  else
    outputs_.push_back({"action_logits", Element::float32, {actions, logits / actions}});
  outputs_[0].clamps = head_.clamps();
  count_choices(outputs_);
}

void Model::make_blocks(bool lazy_state) {
  for (int number = 0; number < artifact_.blocks(); ++number) {
    blocks_.push_back(make_block({artifact_, number, kernels(), lazy_state}));
    const Block& block = *blocks_.back();
    needs_.units = std::max(needs_.units, block.needs().units);
    needs_.width = std::max(needs_.width, block.needs().width);
    needs_.scratch = std::max(needs_.scratch, block.needs().scratch);
    needs_.shared = std::max(needs_.shared, block.needs().shared);
    needs_.shares = std::max(needs_.shares, block.needs().shares);
    needs_.thread_width = std::max(needs_.thread_width, block.needs().thread_width);
    needs_.columns = std::max(needs_.columns, block.needs().columns);
    needs_.of_thread = std::max(needs_.of_thread, block.needs().of_thread);
    needs_.common = std::max(needs_.common, block.needs().common);
    needs_.common_per_row = std::max(needs_.common_per_row, block.needs().common_per_row);
    for (std::size_t part = 0; part < block.parts().size(); ++part) {
      const StatePart& described = block.parts()[part];
      state_tensors_.push_back({static_cast<std::size_t>(number), part, &described});
      state_fields_.push_back({"state." + std::to_string(number) + "." + described.name, described.extents,
                               described.initial, described.initial_values});
    }
  }
}

}  // namespace lram
