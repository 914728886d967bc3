#include "artifact.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "lram.h"
#include "text.h"

namespace lram {
namespace {

std::string number(std::uint64_t value) { return std::to_string(value); }

std::string tensor_name(std::uint32_t role, int of) {
  const char* owner = role >= kFirstBlockRole                      ? " of block "
                      : role == kEmbedWeight || role == kEmbedBias ? " of token "
                      : role == kImageWeight || role == kImageBias ? " of convolution "
                                                                   : " ";
  return "tensor " + number(role) + owner + std::to_string(of);
}

// Where the tables end; the counts of tokens and blocks have been checked.
std::uint64_t data_start(const FileHeader& h) {
  return sizeof(FileHeader) + h.token_count * sizeof(TokenEntry) + h.block_count * sizeof(BlockEntry) +
         h.tensor_count * sizeof(TensorEntry);
}

}  // namespace

Artifact::Artifact(MappedFile file, bool verify, bool lock, bool huge_pages) : file_(std::move(file)) {
  file_.map(kMagic, kOldestVersion, kFormatVersion, sizeof(FileHeader), huge_pages);
  find_tables();
  if (verify) file_.check_checksum();
  check_sizes();
  check_tokens();
  check_name();
  check_tensors();
  if (lock) file_.lock();
}

void Artifact::find_tables() {
  header_ = reinterpret_cast<const FileHeader*>(file_.bytes());
  const FileHeader& h = *header_;
  if (h.token_count < 1 || h.token_count > kMostTokens)
    refuse("token_count: expected 1 to " + number(kMostTokens) + ", got " + number(h.token_count));
  if (h.block_count < 1 || h.block_count > kMostBlocks)
    refuse("block_count: expected 1 to " + number(kMostBlocks) + ", got " + number(h.block_count));
  if (data_start(h) > file_.size()) refuse("tensor_count: " + number(h.tensor_count) + " entries do not fit the file");
  tokens_ = reinterpret_cast<const TokenEntry*>(file_.bytes() + sizeof(FileHeader));
  blocks_ = reinterpret_cast<const BlockEntry*>(tokens_ + h.token_count);
  entries_ = reinterpret_cast<const TensorEntry*>(blocks_ + h.block_count);
}

void Artifact::check_tensors() {
  const std::uint64_t data = data_start(*header_);
  const std::size_t size = file_.size();
  for (std::uint32_t i = 0; i < header_->tensor_count; ++i) {
    const TensorEntry& e = entries_[i];
    const std::string name = "tensor " + number(i);
    if ((e.layout & ~kTwoPlanes) > static_cast<std::uint32_t>(kLastLayout))
      refuse(name + ": layout: unknown: " + number(e.layout));
    constexpr std::uint64_t most = 1U << 24;
    if (e.parts < 1 || e.parts > 1024 || e.rows < 1 || e.rows > most || e.cols < 1 || e.cols > most)
      refuse(name + ": shape: expected positive extents, got " + number(e.parts) + " x " + number(e.rows) + " x " +
             number(e.cols));
    const std::uint64_t expected = tensor_bytes(layout_of(e), e.parts, e.rows, e.cols);
    if (e.bytes != expected) refuse(name + ": bytes: expected " + number(expected) + ", got " + number(e.bytes));
    if (e.offset % kAlignment != 0 || e.offset < data || e.offset > size || e.bytes > size - e.offset)
      refuse(name + ": offset: " + number(e.offset) + " with " + number(e.bytes) + " bytes does not lie in the file");
    if (e.role != kInterface && e.role != kStateFormat) weight_bytes_ += e.bytes;
  }
}

void Artifact::check_name() const {
  const char* begin = std::begin(header_->name);
  const char* end = std::find(begin, std::end(header_->name), '\0');
  if (end == std::end(header_->name)) refuse("name: expected at most " + number(sizeof header_->name - 1) + " bytes");
  if (std::any_of(end, std::end(header_->name), [](char c) { return c != '\0'; }))
    refuse("name: expected zeros after its end");
  if (!is_printable_utf8(begin, static_cast<std::size_t>(end - begin)))
    refuse("name: expected UTF-8 without control characters");
}

void Artifact::check_sizes() const {
  const FileHeader& h = *header_;
  const auto within = [&](const char* name, std::uint32_t value, std::uint32_t low, std::uint32_t high) {
    if (value < low || value > high)
      refuse(std::string(name) + ": expected " + number(low) + " to " + number(high) + ", got " + number(value));
  };
  within("batch", h.batch, 1, 4096);
  within("hidden", h.hidden, 1, 1U << 15);
  within("observation", h.observation, 0, 1);
  const bool image = h.observation == LRAM_IMAGE;
  within("observation_dim", h.observation_dim, image ? 0 : 1, image ? 0 : 1U << 16);
  within("image_channels", h.image_channels, image ? 1 : 0, image ? 64 : 0);
  within("image_height", h.image_height, image ? 1 : 0, image ? 1024 : 0);
  within("image_width", h.image_width, image ? 1 : 0, image ? 1024 : 0);
  within("action", h.action, 0, 1);
  const bool discrete = h.action == LRAM_DISCRETE;
  within("action_dim", h.action_dim, 1, discrete ? 1 : 1024);
  within("action_tokens", h.action_tokens, 1, 1U << 14);
  within("discrete_actions", h.discrete_actions, 0, discrete ? 0 : h.action_tokens - 1);
  const std::uint32_t bins = discrete ? 0 : h.action_tokens - h.discrete_actions;
  within("action_channels", h.action_channels, bins, bins);
  within("planes", h.planes, 1, 2);
  within("feedback", h.feedback, 0, 1);
  within("norm", h.norm, 0, 2);
  if (!std::isfinite(h.target_return)) refuse("target_return: expected a finite number");
  if (!std::isfinite(h.reward_scale) || h.reward_scale < 0) refuse("reward_scale: expected a positive number");
  for (const float epsilon : {h.norm_epsilon, h.embed_epsilon})
    if (!std::isfinite(epsilon) || epsilon < 0) refuse("epsilon: expected a small positive number");
}

void Artifact::check_tokens() const {
  int found[kInputs] = {};
  for (int i = 0; i < tokens(); ++i) {
    const std::string name = "token " + std::to_string(i);
    const TokenEntry& token = tokens_[i];
    if (token.input >= kInputs) refuse(name + ": input: unknown: " + number(token.input));
    if (++found[token.input] > 1) refuse(name + ": input: an earlier token embeds it, too");
    if (token.presence > static_cast<std::uint32_t>(Presence::zero))
      refuse(name + ": presence: expected 0 to 2, got " + number(token.presence));
    if (token.presence != 0 && token.input == static_cast<std::uint32_t>(Input::observation))
      refuse(name + ": presence: an observation is there in every step");
  }
  if (found[static_cast<int>(Input::observation)] == 0) refuse("tokens: expected one that embeds the observation");
  const std::uint32_t read = header_->read_token;
  if (read >= header_->token_count)
    refuse("read_token: expected less than " + number(header_->token_count) + ", got " + number(read));
  if (tokens_[read].skipped_at_start()) refuse("read_token: expected a token that is there in every step");
}

const TensorEntry* Artifact::find(std::uint32_t role, int of) const {
  for (std::uint32_t i = 0; i < header_->tensor_count; ++i)
    if (entries_[i].role == role && entries_[i].number == static_cast<std::uint32_t>(of)) return &entries_[i];
  return nullptr;
}

const TensorEntry& Artifact::entry(std::uint32_t role, int of) const {
  const TensorEntry* found = find(role, of);
  if (found == nullptr) refuse(tensor_name(role, of) + ": missing");
  return *found;
}

const float* Artifact::finite(std::uint32_t role, int of, std::uint64_t count) const {
  if (find(role, of) == nullptr) return nullptr;
  const float* values = plain(role, of, count);
  if (!std::all_of(values, values + count, [](float value) { return std::isfinite(value); }))
    refuse(tensor_name(role, of) + ": expected finite numbers");
  return values;
}

lram_state_format Artifact::state_format() const {
  if (find(kStateFormat, 0) == nullptr) return LRAM_STATE_FLOAT32;
  const float said = *plain(kStateFormat, 0, 1);
  if (said != LRAM_STATE_FLOAT32 && said != LRAM_STATE_LAZY_HALF)
    refuse(tensor_name(kStateFormat, 0) + ": expected 0 or 1, got " + std::to_string(said));
  return said == LRAM_STATE_LAZY_HALF ? LRAM_STATE_LAZY_HALF : LRAM_STATE_FLOAT32;
}

const float* Artifact::plain(std::uint32_t role, int of, std::uint64_t count) const {
  const TensorEntry& e = entry(role, of);
  if (layout_of(e) != Layout::plain_float32 || e.parts * e.rows * e.cols != count)
    refuse(tensor_name(role, of) + ": expected " + number(count) + " plain floats, got " +
           number(e.parts * e.rows * e.cols) + " in layout " + number(e.layout));
  return reinterpret_cast<const float*>(file_.bytes() + e.offset);
}

std::vector<Matrix> Artifact::matrices(std::uint32_t role, int of, int parts, int rows, int cols) const {
  const TensorEntry& e = entry(role, of);
  const Layout layout = layout_of(e);
  if (layout == Layout::plain_float32 || e.parts != static_cast<std::uint32_t>(parts) ||
      e.rows != static_cast<std::uint64_t>(rows) || e.cols != static_cast<std::uint64_t>(cols))
    refuse(tensor_name(role, of) + ": expected " + std::to_string(parts) + " tiled matrices of " +
           std::to_string(rows) + " x " + std::to_string(cols) + ", got " + number(e.parts) + " of " + number(e.rows) +
           " x " + number(e.cols) + " in layout " + number(e.layout));
  const Format format = layout == Layout::tiled_int8    ? Format::int8
                        : layout == Layout::tiled_int4  ? Format::int4
                        : layout == Layout::tiled_int8g ? Format::int8g
                                                        : Format::float32;
  if (format == Format::int8 && cols > kMostInt8Columns)
    refuse(tensor_name(role, of) + ": expected at most " + std::to_string(kMostInt8Columns) +
           " columns of 8-bit codes, whose sums fit 32 bits, got " + number(e.cols));
  const std::uint64_t per_tile = tile_bytes(layout, e.cols);
  const int tiles = (rows + kTileRows - 1) / kTileRows;
  const int planes = (e.layout & kTwoPlanes) != 0 ? 2 : static_cast<int>(header_->planes);
  std::vector<Matrix> found;
  found.reserve(static_cast<std::size_t>(parts));
  for (int part = 0; part < parts; ++part)
    found.push_back({format, rows, cols, tiles, per_tile, file_.bytes() + e.offset + part * tiles * per_tile, planes});
  return found;
}

}  // namespace lram
