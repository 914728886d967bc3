#include "model.h"

#include <algorithm>

#include "error.h"

namespace lram {
namespace {

Sizes sizes_of(const FileHeader& h) {
  Sizes s = {};
  s.hidden = static_cast<int>(h.hidden);
  s.blocks = static_cast<int>(h.blocks);
  s.heads = static_cast<int>(h.heads);
  s.inner = static_cast<int>(h.inner);
  s.head_width = s.inner / s.heads;
  s.conv_kernel = static_cast<int>(h.conv_kernel);
  bool any_slstm = false;
  for (const std::uint64_t mask : h.slstm_blocks) any_slstm = any_slstm || mask != 0;
  if (any_slstm) {
    s.slstm_heads = static_cast<int>(h.slstm_heads);
    s.slstm_width = s.hidden / s.slstm_heads;
    s.slstm_room = (s.slstm_width + 15) / 16 * 16;
    s.ffn_slices = static_cast<int>(h.ffn_slices);
    s.ffn_slice = static_cast<int>(h.ffn_slice);
  }
  if (h.observation == LRAM_IMAGE) {
    s.image_channels = static_cast<int>(h.image_channels);
    s.image_height = static_cast<int>(h.image_height);
    s.image_width = static_cast<int>(h.image_width);
    int height = s.image_height;
    int width = s.image_width;
    for (int block = 0; block < kImageBlocks; ++block) {
      height = (height + 1) / 2;
      width = (width + 1) / 2;
    }
    s.image_features = kImageChannels[kImageBlocks - 1] * height * width;
  }
  s.actions = h.action == LRAM_DISCRETE ? 1 : static_cast<int>(h.action_dim);
  s.logits = s.actions * static_cast<int>(h.action_tokens);
  return s;
}

// Checks the options that do not belong to one member, too.
int usable_threads(const lram_options& options, const Sizes& sizes) {
  if (options.threads < 1 || options.threads > 1024)
    throw Error(LRAM_ERROR_ARGUMENT, "threads: expected 1 to 1024, got " + std::to_string(options.threads));
  if (options.spin_microseconds < 0 || options.spin_microseconds > 1000000)
    throw Error(LRAM_ERROR_ARGUMENT,
                "spin_microseconds: expected 0 to 1000000, got " + std::to_string(options.spin_microseconds));
  if (options.state_format != LRAM_STATE_FLOAT32 && options.state_format != LRAM_STATE_LAZY_HALF)
    throw Error(LRAM_ERROR_ARGUMENT, "state_format: expected 0 or 1, got " + std::to_string(options.state_format));
  return std::min(options.threads, sizes.heads);
}

std::vector<int> pinned_cpus(const lram_options& options) {
  if (options.cpus == nullptr) return {};
  if (options.cpu_count < 1)
    throw Error(LRAM_ERROR_ARGUMENT, "cpu_count: expected at least 1, got " + std::to_string(options.cpu_count));
  return {options.cpus, options.cpus + options.cpu_count};
}

lram_options one_thread() {
  lram_options options;
  lram_options_init(&options);
  return options;
}

}  // namespace

Model::Model(const std::string& path, const lram_options& options)
    : artifact_(path, options.verify != 0, options.lock_memory != 0),
      sizes_(sizes_of(artifact_.header())),
      kernels_(choose_kernels()),
      lock_memory_(options.lock_memory != 0),
      lazy_state_(options.state_format == LRAM_STATE_LAZY_HALF),
      generation_(fork_generation()),
      pool_(std::make_unique<ThreadPool>(usable_threads(options, sizes_), pinned_cpus(options),
                                         options.spin_microseconds)) {
  resolve();
}

Model::Model(const std::uint8_t* bytes, std::size_t size)
    : artifact_(bytes, size, false),
      sizes_(sizes_of(artifact_.header())),
      kernels_(choose_kernels()),
      lock_memory_(false),
      lazy_state_(false),
      generation_(fork_generation()),
      pool_(std::make_unique<ThreadPool>(usable_threads(one_thread(), sizes_), std::vector<int>(), 0)) {
  resolve();
}

Model::~Model() {
  // no thread is there to be waited for, and a lock may be held for ever: a child gives up its copy of the pool
  if (forked()) {
    [[maybe_unused]] ThreadPool* given_up = pool_.release();
  }
}

std::size_t Model::observation_size() const {
  const FileHeader& h = header();
  return images() ? std::size_t{h.image_channels} * h.image_height * h.image_width : h.observation_dim;
}

void Model::resolve() {
  const auto hidden = static_cast<std::uint64_t>(sizes_.hidden);
  embed_reward_weight = artifact_.plain(TensorId::embed_reward_weight, 0, hidden);
  embed_reward_bias = artifact_.plain(TensorId::embed_reward_bias, 0, hidden);
  embed_return_weight = artifact_.plain(TensorId::embed_return_weight, 0, hidden);
  embed_return_bias = artifact_.plain(TensorId::embed_return_bias, 0, hidden);
  const int observed = images() ? sizes_.image_features : static_cast<int>(header().observation_dim);
  embed_observation = artifact_.matrices(TensorId::embed_observation, 0, 1, sizes_.hidden, observed)[0];
  if (embed_observation.format != Format::float32 && observed % 16 != 0)
    throw Error(LRAM_ERROR_ARTIFACT,
                "embed_observation: expected float32 weights for " + std::to_string(observed) + " inputs");
  embed_observation_bias = artifact_.plain(TensorId::embed_observation_bias, 0, hidden);
  embed_norm_weight = artifact_.plain(TensorId::embed_norm_weight, 0, hidden);
  embed_norm_bias = artifact_.plain(TensorId::embed_norm_bias, 0, hidden);
  if (images()) {
    int channels_in = sizes_.image_channels;
    for (int i = 0; i < kImageBlocks * kConvolutionsPerImageBlock; ++i) {
      const int channels = kImageChannels[i / kConvolutionsPerImageBlock];
      const std::uint64_t count = std::uint64_t{9} * static_cast<std::uint64_t>(channels_in * channels);
      image.push_back({channels_in, channels, artifact_.plain(TensorId::image_weight, i, count),
                       artifact_.plain(TensorId::image_bias, i, static_cast<std::uint64_t>(channels))});
      channels_in = channels;
    }
  }
  for (int block = 0; block < sizes_.blocks; ++block) {
    BlockWeights found = {};
    found.is_slstm = artifact_.is_slstm(block);
    if (found.is_slstm)
      found.slstm = resolve_slstm(block);
    else
      found.mlstm = resolve_mlstm(block);
    blocks.push_back(std::move(found));
  }
  post_norm = artifact_.plain(TensorId::post_norm, 0, hidden);
  head = artifact_.matrices(TensorId::head, 0, 1, sizes_.logits, sizes_.hidden)[0];
  head_bias = artifact_.plain(TensorId::head_bias, 0, static_cast<std::uint64_t>(sizes_.logits));
}

MlstmWeights Model::resolve_mlstm(int block) const {
  const Artifact& a = artifact_;
  const Sizes& s = sizes_;
  const auto inner = static_cast<std::uint64_t>(s.inner);
  const auto gates = static_cast<std::uint64_t>(2 * s.heads);
  MlstmWeights w;
  w.norm = a.plain(TensorId::norm, block, static_cast<std::uint64_t>(s.hidden));
  w.up = a.matrices(TensorId::up, block, 2 * s.heads, s.head_width, s.hidden);
  w.conv_weight = a.plain(TensorId::conv_weight, block, static_cast<std::uint64_t>(s.conv_kernel) * inner);
  w.conv_bias = a.plain(TensorId::conv_bias, block, inner);
  w.query_key_value = a.plain(TensorId::query_key_value, block, 12 * inner);
  w.gate_weight = a.plain(TensorId::gate_weight, block, gates * 2 * inner);
  w.gate_bias = a.plain(TensorId::gate_bias, block, gates);
  w.head_norm = a.plain(TensorId::head_norm, block, inner);
  w.skip = a.plain(TensorId::skip, block, inner);
  w.down = a.matrices(TensorId::down, block, s.heads, s.hidden, s.head_width);
  return w;
}

SlstmWeights Model::resolve_slstm(int block) const {
  const Artifact& a = artifact_;
  const Sizes& s = sizes_;
  const auto hidden = static_cast<std::uint64_t>(s.hidden);
  const auto room = static_cast<std::uint64_t>(s.slstm_heads * s.slstm_room);  // of all heads
  SlstmWeights w;
  w.norm = a.plain(TensorId::norm, block, hidden);
  w.conv_weight = a.plain(TensorId::conv_weight, block, static_cast<std::uint64_t>(s.conv_kernel) * room);
  w.conv_bias = a.plain(TensorId::conv_bias, block, room);
  w.from_conv = a.matrices(TensorId::from_conv, block, s.slstm_heads, 2 * s.slstm_room, s.slstm_room);
  w.from_input = a.matrices(TensorId::from_input, block, s.slstm_heads, 2 * s.slstm_room, s.slstm_room);
  w.recurrent = a.matrices(TensorId::recurrent, block, s.slstm_heads, 4 * s.slstm_room, s.slstm_room);
  w.gate_bias = a.plain(TensorId::gate_biases, block, 4 * room);
  w.head_norm = a.plain(TensorId::head_norm, block, hidden);
  w.ffn_norm = a.plain(TensorId::ffn_norm, block, hidden);
  w.ffn_up = a.matrices(TensorId::ffn_up, block, 2 * s.ffn_slices, s.ffn_slice, s.hidden);
  w.ffn_down = a.matrices(TensorId::ffn_down, block, s.ffn_slices, s.hidden, s.ffn_slice);
  return w;
}

}  // namespace lram
