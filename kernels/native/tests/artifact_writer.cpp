#include "artifact_writer.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>

#include "backbones/decision_transformer/roles.h"
#include "backbones/mamba/roles.h"
#include "backbones/xlstm/roles.h"
#include "lram.h"

namespace lram_testing {
namespace {

using lram::Layout;
using lram::TensorEntry;
namespace mambas = lram::mamba;
namespace transformers = lram::decision_transformer;
namespace xlstm = lram::xlstm;

class Writer {
 public:
  explicit Writer(const Shape& shape) : shape_(shape), random_(shape.seed) {}

  void plain(std::uint32_t role, int number, int count, float scale, float offset = 0) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = offset + scale * normal();
    add(role, number, Layout::plain_float32, 1, count, 1, values.data(), values.size() * sizeof(float));
  }

  void exact(std::uint32_t role, const std::vector<float>& values) {
    add(role, 0, Layout::plain_float32, 1, static_cast<int>(values.size()), 1, values.data(),
        values.size() * sizeof(float));
  }

  void words(std::uint32_t role, const std::vector<std::uint8_t>& bytes) {
    add(role, 0, Layout::plain_float32, 1, static_cast<int>(bytes.size() / 4), 1, bytes.data(), bytes.size());
  }

  // Some times `width` values, each filled up with zeros to `room`.
  void spread(std::uint32_t role, int number, int times, int width, int room, float scale, float offset = 0) {
    std::vector<float> values(static_cast<std::size_t>(times * room), 0.0F);
    for (int i = 0; i < times * room; ++i)
      if (i % room < width) values[static_cast<std::size_t>(i)] = offset + scale * normal();
    add(role, number, Layout::plain_float32, 1, times, room, values.data(), values.size() * sizeof(float));
  }

  // The inputs from `used` on are filled up with zeros, and so are the outputs from `width` of every `room` on.
  void tiled(std::uint32_t role, int number, int parts, int rows, int used, bool large = true, int width = 1,
             int room = 1) {
    const int cols = large ? lram::room_of(used) : used;
    const Layout layout = large ? shape_.layout : Layout::tiled_float32;
    std::vector<std::uint8_t> bytes;
    for (int part = 0; part < parts; ++part)
      for (int first = 0; first < rows; first += 32) {
        bool filled[32] = {};
        for (int o = 0; o < 32; ++o) filled[o] = first + o < rows && (first + o) % room < width;
        tile(layout, filled, cols, used, bytes);
      }
    add(role, number, layout, parts, rows, cols, bytes.data(), bytes.size());
  }

  std::vector<std::uint8_t> tiles(int rows, int cols, int used) {
    std::vector<std::uint8_t> bytes;
    for (int first = 0; first < rows; first += 32) {
      bool filled[32] = {};
      for (int o = 0; o < 32; ++o) filled[o] = first + o < rows;
      tile(shape_.layout, filled, cols, used, bytes);
    }
    return bytes;
  }

  void block(std::uint32_t kind, const std::vector<int>& integers, const std::vector<float>& floats) {
    lram::BlockEntry entry = {};
    entry.kind = kind;
    std::copy(integers.begin(), integers.end(), entry.integers);
    std::copy(floats.begin(), floats.end(), entry.floats);
    blocks_.push_back(entry);
  }

  std::vector<std::uint8_t> finish(lram::FileHeader header) {
    const std::vector<lram::TokenEntry>& tokens = shape_.tokens;
    const std::size_t tables = sizeof header + bytes_of(tokens) + bytes_of(blocks_);
    std::size_t offset = aligned(tables + bytes_of(entries_));
    for (TensorEntry& entry : entries_) {
      entry.offset = offset;
      offset = aligned(offset + entry.bytes);
    }
    header.start.file_bytes = offset;
    header.tensor_count = static_cast<std::uint32_t>(entries_.size());
    header.token_count = static_cast<std::uint32_t>(tokens.size());
    header.block_count = static_cast<std::uint32_t>(blocks_.size());
    std::vector<std::uint8_t> file(offset, 0);
    std::memcpy(file.data(), &header, sizeof header);
    put(tokens, file.data() + sizeof header);
    put(blocks_, file.data() + sizeof header + bytes_of(tokens));
    put(entries_, file.data() + tables);
    for (std::size_t i = 0; i < entries_.size(); ++i)
      std::copy(data_[i].begin(), data_[i].end(), file.begin() + static_cast<std::ptrdiff_t>(entries_[i].offset));
    seal(file);
    return file;
  }

 private:
  template <class T>
  static std::size_t bytes_of(const std::vector<T>& values) {
    return values.size() * sizeof(T);
  }
  template <class T>
  static void put(const std::vector<T>& values, std::uint8_t* to) {
    if (!values.empty()) std::memcpy(to, values.data(), bytes_of(values));
  }
  static std::size_t aligned(std::size_t position) { return (position + 63) / 64 * 64; }
  float normal() { return std::normal_distribution<float>()(random_); }
  int code(int largest) { return std::uniform_int_distribution<int>(-largest, largest)(random_); }

  template <class T>
  static void append(std::vector<std::uint8_t>& bytes, const T& value) {
    const auto* begin = reinterpret_cast<const std::uint8_t*>(&value);
    bytes.insert(bytes.end(), begin, begin + sizeof value);
  }

  void tile(Layout layout, const bool* filled, int cols, int used, std::vector<std::uint8_t>& bytes) {
    const float deviation = 1.0F / std::sqrt(static_cast<float>(cols));
    if (layout == Layout::tiled_float32) {
      for (int k = 0; k < cols; ++k)
        for (int o = 0; o < 32; ++o) append(bytes, filled[o] && k < used ? deviation * normal() : 0.0F);
    } else if (layout == Layout::tiled_int8) {
      const int quads = (cols + 3) / 4;
      std::vector<std::int8_t> codes(static_cast<std::size_t>(quads * 128), 0);
      std::int32_t sums[32] = {};
      for (int k = 0; k < used; ++k)
        for (int o = 0; o < 32; ++o) {
          if (!filled[o]) continue;
          const int c = code(127);
          codes[static_cast<std::size_t>(k / 4 * 128 + o * 4 + k % 4)] = static_cast<std::int8_t>(c);
          sums[o] -= 128 * c;
        }
      for (int o = 0; o < 32; ++o) append(bytes, filled[o] ? deviation / 73 : 0.0F);
      append(bytes, sums);
      bytes.insert(bytes.end(), codes.begin(), codes.end());
    } else if (layout == Layout::tiled_int8g) {
      for (int k = 0; k < cols; k += 4) {
        if (k % 128 == 0)
          for (int o = 0; o < 32; ++o)  // scales that differ from group to group
            append(bytes, filled[o] ? deviation / 73 * (1 + 0.25F * static_cast<float>(k / 128 % 3)) : 0.0F);
        for (int o = 0; o < 32; ++o)
          for (int i = k; i < k + 4; ++i)
            bytes.push_back(static_cast<std::uint8_t>(128 + (i < used && filled[o] ? code(127) : 0)));
      }
    } else {
      for (int group = 0; group < (cols + 63) / 64; ++group) {
        for (int o = 0; o < 32; ++o) append(bytes, filled[o] ? deviation / 4 : 0.0F);
        for (int k = 0; k < 64; k += 8)
          for (int o = 0; o < 32; ++o)
            for (int i = 0; i < 4; ++i) {
              const auto nibble = [&](int input) {
                return group * 64 + k + input < used && filled[o] ? code(7) + 8 : 8;
              };
              bytes.push_back(static_cast<std::uint8_t>(nibble(i) | nibble(i + 4) << 4));
            }
      }
    }
  }

  void add(std::uint32_t role, int number, Layout layout, int parts, int rows, int cols, const void* data,
           std::size_t size) {
    entries_.push_back({role, static_cast<std::uint32_t>(number), static_cast<std::uint32_t>(layout),
                        static_cast<std::uint32_t>(parts), static_cast<std::uint64_t>(rows),
                        static_cast<std::uint64_t>(cols), 0, size});
    const auto* begin = static_cast<const std::uint8_t*>(data);
    data_.emplace_back(begin, begin + size);
  }

  Shape shape_;
  std::mt19937 random_;
  std::vector<lram::BlockEntry> blocks_;
  std::vector<TensorEntry> entries_;
  std::vector<std::vector<std::uint8_t>> data_;
};

constexpr int kObservation = 20;
constexpr int kLargeObservation = 1024;
constexpr int kSlice = 64;
constexpr int kSlices = 2;

constexpr float kEpsilon = 1e-5F;

void add_mlstm(Writer& w, const Shape& s, int b) {
  const int gates = 2 * s.heads;
  const int width = s.inner / s.heads;
  const int room = lram::room_of(width);
  w.block(1, {s.heads, width, s.conv_kernel, s.block}, {kEpsilon, kEpsilon});
  w.spread(xlstm::kNorm, b, 1, s.hidden, lram::room_of(s.hidden), 0.1F, 1);
  w.tiled(xlstm::kUp, b, 2 * s.heads, width, s.hidden);
  w.spread(xlstm::kConvWeight, b, s.conv_kernel * s.heads, width, room, 0.3F);
  w.spread(xlstm::kConvBias, b, s.heads, width, room, 0.1F);
  if (s.block == 0)
    w.spread(xlstm::kQueryKeyValue, b, s.heads, 12 * width, 12 * room, 0.3F);
  else
    w.plain(xlstm::kQueryKeyValue, b, 3 * s.inner * s.block, 0.3F);
  w.spread(xlstm::kGateWeight, b, s.heads * gates * 2, width, room, 0.02F);
  w.plain(xlstm::kGateBias, b, gates, 1, 2);
  w.spread(xlstm::kHeadNorm, b, s.heads, width, room, 0.1F, 1);
  w.spread(xlstm::kSkip, b, s.heads, width, room, 0.1F, 1);
  w.tiled(xlstm::kDown, b, s.heads, s.hidden, width);
}

void add_slstm(Writer& w, const Shape& s, int b) {
  const int heads = s.slstm_heads;
  const int room = lram::room_of(s.hidden / heads);  // all of it is filled: what is beyond a head stays unseen
  w.block(2, {heads, s.conv_kernel, kSlices, kSlice, 0}, {kEpsilon, kEpsilon});
  w.spread(xlstm::kNorm, b, 1, s.hidden, lram::room_of(s.hidden), 0.1F, 1);
  w.plain(xlstm::kConvWeight, b, s.conv_kernel * heads * room, 0.3F);
  w.plain(xlstm::kConvBias, b, heads * room, 0.1F);
  w.tiled(xlstm::kFromConv, b, heads, 2 * room, room, false);
  w.tiled(xlstm::kFromInput, b, heads, 2 * room, room, false);
  w.tiled(xlstm::kRecurrent, b, heads, 4 * room, room, false);
  w.plain(xlstm::kGateBiases, b, 4 * heads * room, 0.5F);
  w.plain(xlstm::kHeadNorm, b, s.hidden, 0.1F, 1);
  w.spread(xlstm::kFfnNorm, b, 1, s.hidden, lram::room_of(s.hidden), 0.1F, 1);
  w.tiled(xlstm::kFfnUp, b, 2 * kSlices, kSlice, s.hidden);
  w.tiled(xlstm::kFfnDown, b, kSlices, s.hidden, kSlice);
}

constexpr std::uint32_t kMamba = 3;

// What fills up the last slice is convolved to zeros: its other weights stay unseen.
void add_mamba_block(Writer& w, const Shape& s, int b) {
  const int slices = (s.inner + kSlice - 1) / kSlice;
  const int channels = slices * kSlice;
  const int selected = lram::room_of(s.rank) + 2 * lram::room_of(s.size);
  w.block(kMamba, {s.inner, slices, kSlice, s.size, s.rank, s.conv_kernel, 0, 1}, {kEpsilon});
  w.spread(mambas::kNorm, b, 1, s.hidden, lram::room_of(s.hidden), 0.1F, 1);
  w.spread(mambas::kNormBias, b, 1, s.hidden, lram::room_of(s.hidden), 0.1F);
  w.tiled(mambas::kIn, b, 2 * slices, kSlice, s.hidden);
  w.plain(mambas::kInBias, b, 2 * channels, 0.1F);
  w.spread(mambas::kConvWeight, b, s.conv_kernel, s.inner, channels, 0.3F);
  w.spread(mambas::kConvBias, b, 1, s.inner, channels, 0.1F);
  w.tiled(mambas::kSelect, b, slices, selected, kSlice);
  w.tiled(mambas::kStep, b, slices, kSlice, s.rank);
  w.plain(mambas::kStepBias, b, channels, 0.5F, -2);
  w.plain(mambas::kA, b, s.size * channels, 0.2F, -1);
  w.plain(mambas::kD, b, channels, 0.3F, 1);
  w.tiled(mambas::kOut, b, slices, s.hidden, kSlice);
  w.plain(mambas::kOutBias, b, s.hidden, 0.1F);
}

constexpr std::uint32_t kCached = 4;

void add_transformer_block(Writer& w, const Shape& s, int b) {
  const bool cached = s.kind == kCached;
  const int width = s.hidden / s.heads;
  const int room = lram::room_of(width);
  const int hidden_room = lram::room_of(s.hidden);
  const auto in_tiles = [](int count) { return (count + 31) / 32 * 32; };
  w.block(s.kind, {s.heads, s.ffn, cached ? s.steps - 1 : s.steps}, {kEpsilon});
  if (b == 0) w.spread(transformers::kPositions, b, cached ? 3 : 3 * s.steps - 1, s.hidden, hidden_room, 0.3F);
  if (b == 0 && !cached) w.plain(transformers::kStart, b, (3 * s.steps - 4) * s.hidden, 0.5F);
  w.spread(transformers::kNorm, b, 1, s.hidden, hidden_room, 0.1F, 1);
  w.spread(transformers::kNormBias, b, 1, s.hidden, hidden_room, 0.1F);
  w.tiled(transformers::kAttention, b, 1, 3 * s.heads * room, s.hidden, true, width, room);
  w.spread(transformers::kAttentionBias, b, 3 * s.heads, width, room, 0.3F);
  w.tiled(transformers::kMerge, b, 1, s.hidden, s.hidden);
  w.spread(transformers::kMergeBias, b, 1, s.hidden, in_tiles(s.hidden), 0.1F);
  w.spread(transformers::kFfnNorm, b, 1, s.hidden, hidden_room, 0.1F, 1);
  w.spread(transformers::kFfnNormBias, b, 1, s.hidden, hidden_room, 0.1F);
  w.tiled(transformers::kFfnUp, b, 1, s.ffn, s.hidden);
  w.spread(transformers::kFfnUpBias, b, 1, s.ffn, in_tiles(s.ffn), 0.1F);
  w.tiled(transformers::kFfnDown, b, 1, s.hidden, s.ffn);
  w.spread(transformers::kFfnDownBias, b, 1, s.hidden, in_tiles(s.hidden), 0.1F);
  if (cached)
    for (const std::uint32_t role : {transformers::kKeys, transformers::kValues})
      w.plain(role, b, s.heads * 3 * (s.steps - 1) * width, 0.5F);
}

void add_blocks(Writer& w, const Shape& s) {
  for (int b = 0; b < s.blocks; ++b) {
    if (s.steps != 0) {
      add_transformer_block(w, s, b);
    } else if (s.size != 0) {
      add_mamba_block(w, s, b);
    } else if (s.kind != 0) {
      w.block(s.kind, {}, {});
      for (const auto& [role, count] : s.tensors) w.plain(role, b, count, 0.5F);
    } else if (std::find(s.slstm_at.begin(), s.slstm_at.end(), b) == s.slstm_at.end()) {
      add_mlstm(w, s, b);
    } else {
      add_slstm(w, s, b);
    }
  }
}

void add_tokens(Writer& w, const Shape& s) {
  const int room = lram::room_of(s.hidden);
  for (int i = 0; i < static_cast<int>(s.tokens.size()); ++i) {
    w.spread(lram::kEmbedBias, i, 1, s.hidden, room, 0.5F);
    if (s.tokens[static_cast<std::size_t>(i)].input != static_cast<std::uint32_t>(lram::Input::observation)) {
      w.spread(lram::kEmbedWeight, i, 1, s.hidden, room, 0.5F);
    } else if (s.images) {
      const int pooled = (s.image + 7) / 8;
      w.tiled(lram::kEmbedWeight, i, 1, s.hidden, 32 * pooled * pooled);
    } else {
      const int size = s.large_observation ? kLargeObservation : kObservation;
      w.tiled(lram::kEmbedWeight, i, 1, s.hidden, size, s.large_observation);
    }
  }
}

}  // namespace

Shape mamba(Layout layout) {
  Shape shape;
  shape.layout = layout;
  shape.hidden = 60;
  shape.blocks = 2;
  shape.inner = 150;
  shape.size = 7;
  shape.rank = 5;
  return shape;
}

Shape transformer(bool cached, Layout layout) {
  Shape shape;
  shape.kind = cached ? kCached : kCached + 1;
  shape.layout = layout;
  shape.hidden = 60;
  shape.heads = 3;
  shape.blocks = 2;
  shape.ffn = 77;
  shape.steps = 5;
  if (cached) {
    shape.tokens = {{0, 0}, {1, 0}, {2, static_cast<std::uint32_t>(lram::Presence::zero)}};
    shape.read_token = 1;
  }
  return shape;
}

std::vector<std::uint8_t> make_artifact(const Shape& s) {
  Writer w(s);
  add_tokens(w, s);
  w.spread(lram::kEmbedNormWeight, 0, 1, s.hidden, lram::room_of(s.hidden), 0.1F, 1);
  w.spread(lram::kEmbedNormBias, 0, 1, s.hidden, lram::room_of(s.hidden), 0.5F);
  int channels_in = 3;
  for (int i = 0; s.images && i < 15; ++i) {
    const int channels = i < 5 ? 16 : 32;
    w.plain(lram::kImageWeight, i, 9 * channels_in * channels, 0.1F);
    w.plain(lram::kImageBias, i, channels, 0.1F);
    channels_in = channels;
  }
  add_blocks(w, s);
  w.spread(lram::kPostNorm, 0, 1, s.hidden, lram::room_of(s.hidden), 0.1F, 1);
  const int tokens = s.discrete ? 18 : 50;
  const int actions = s.discrete ? 1 : 3;
  w.tiled(lram::kHead, 0, 1, actions * tokens, s.hidden);
  w.plain(lram::kHeadBias, 0, actions * tokens, 0.1F);
  if (s.interface) {
    w.plain(lram::kObservationMean, 0, kObservation, 0, 0.5F);
    w.plain(lram::kObservationDeviation, 0, kObservation, 0, s.deviation);
    w.plain(lram::kObservationClip, 0, 1, 0, 1.5F);
    w.plain(lram::kActionValues, 0, actions * tokens, 0, 7);
  }
  if (s.limit != 0) {
    std::vector<float> unclamped;
    for (int action = 0; action < actions; ++action)
      for (int token = 0; token < tokens; ++token)
        unclamped.push_back(3 * (static_cast<float>(std::max(token - 18, 0)) * (2.0F / 32) - 1));
    std::vector<float> values = unclamped;
    for (float& value : values) value = std::min(std::max(value, -s.limit), s.limit);
    w.exact(lram::kActionValues, values);
    w.exact(lram::kActionUnclamped, unclamped);
  }
  if (s.state_format != -1) w.exact(lram::kStateFormat, {s.state_format});
  if (!s.said.empty()) w.words(lram::kInterface, s.said);

  lram::FileHeader h = {};
  std::memcpy(h.start.magic, lram::kMagic, sizeof h.start.magic);
  h.start.version = lram::kFormatVersion;
  h.start.header_bytes = sizeof h;
  h.batch = 1;
  const auto number = [](int value) { return static_cast<std::uint32_t>(value); };
  h.hidden = number(s.hidden);
  h.read_token = s.read_token;
  h.observation = s.images ? LRAM_IMAGE : LRAM_VECTOR;
  if (s.images) {
    h.image_channels = 3;
    h.image_height = h.image_width = number(s.image);
  } else {
    h.observation_dim = number(s.large_observation ? kLargeObservation : kObservation);
  }
  h.action = s.discrete ? LRAM_DISCRETE : LRAM_CONTINUOUS;
  h.action_dim = number(actions);
  h.action_tokens = number(tokens);
  if (!s.discrete) {
    h.discrete_actions = 18;
    h.action_channels = number(tokens) - 18;
  }
  h.planes = number(s.planes);
  h.norm_epsilon = h.embed_epsilon = kEpsilon;
  std::copy_n(s.name.begin(), std::min(s.name.size(), sizeof h.name), h.name);
  std::fill(std::begin(h.source_sha256), std::end(h.source_sha256), s.source);
  return w.finish(h);
}

std::vector<std::uint8_t> random_tiles(Layout layout, int rows, int cols, int used, unsigned seed) {
  Shape shape;
  shape.layout = layout;
  shape.seed = seed;
  return Writer(shape).tiles(rows, cols, used);
}

void seal(std::vector<std::uint8_t>& artifact) {
  std::uint64_t sums[2] = {};
  std::uint64_t position = 1;
  for (std::size_t at = lram::kChecksumStart; at + 4 <= artifact.size(); at += 4, ++position) {
    std::uint32_t word = 0;
    std::memcpy(&word, artifact.data() + at, sizeof word);
    sums[0] += word;
    sums[1] += position * word;
  }
  std::memcpy(artifact.data() + 24, sums, sizeof sums);
}

Bytes::Bytes(std::vector<std::uint8_t> content)
    : memory_(content.size() + 64),
      begin_(memory_.data() + (64 - reinterpret_cast<std::uintptr_t>(memory_.data()) % 64) % 64),
      size_(content.size()) {
  std::copy(content.begin(), content.end(), begin_);
}

TemporaryFile::TemporaryFile(const std::vector<std::uint8_t>& content) {
  char name[] = "/tmp/lram_test_XXXXXX";
  const int descriptor = mkstemp(name);
  if (descriptor < 0 || write(descriptor, content.data(), content.size()) != static_cast<ssize_t>(content.size())) {
    std::perror(name);
    std::abort();
  }
  close(descriptor);
  path_ = name;
}

TemporaryFile::~TemporaryFile() { unlink(path_.c_str()); }

}  // namespace lram_testing
