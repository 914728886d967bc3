#include "artifact_writer.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>

#include "lram.h"

namespace lram_testing {
namespace {

using lram::Layout;
using lram::TensorEntry;
using lram::TensorId;

class Writer {
 public:
  explicit Writer(const Shape& shape) : shape_(shape), random_(shape.seed) {}

  void plain(TensorId id, int block, int count, float scale, float offset = 0) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = offset + scale * normal();
    add(id, block, Layout::plain_float32, 1, count, 1, values.data(), values.size() * sizeof(float));
  }

  void tiled(TensorId id, int block, int parts, int rows, int cols, bool large = true) {
    const Layout layout = large ? shape_.layout : Layout::tiled_float32;
    std::vector<std::uint8_t> bytes;
    for (int part = 0; part < parts; ++part)
      for (int first = 0; first < rows; first += 32) tile(layout, std::min(rows - first, 32), cols, bytes);
    add(id, block, layout, parts, rows, cols, bytes.data(), bytes.size());
  }

  std::vector<std::uint8_t> finish(lram::FileHeader header) {
    std::size_t offset = aligned(sizeof header + entries_.size() * sizeof(TensorEntry));
    for (TensorEntry& entry : entries_) {
      entry.offset = offset;
      offset = aligned(offset + entry.bytes);
    }
    header.file_bytes = offset;
    header.tensor_count = static_cast<std::uint32_t>(entries_.size());
    std::vector<std::uint8_t> file(offset, 0);
    std::memcpy(file.data(), &header, sizeof header);
    std::memcpy(file.data() + sizeof header, entries_.data(), entries_.size() * sizeof(TensorEntry));
    for (std::size_t i = 0; i < entries_.size(); ++i)
      std::copy(data_[i].begin(), data_[i].end(), file.begin() + static_cast<std::ptrdiff_t>(entries_[i].offset));
    seal(file);
    return file;
  }

 private:
  static std::size_t aligned(std::size_t position) { return (position + 63) / 64 * 64; }
  float normal() { return std::normal_distribution<float>()(random_); }
  int code(int largest) { return std::uniform_int_distribution<int>(-largest, largest)(random_); }

  template <class T>
  static void append(std::vector<std::uint8_t>& bytes, const T& value) {
    const auto* begin = reinterpret_cast<const std::uint8_t*>(&value);
    bytes.insert(bytes.end(), begin, begin + sizeof value);
  }

  void tile(Layout layout, int rows, int cols, std::vector<std::uint8_t>& bytes) {
    const float deviation = 1.0F / std::sqrt(static_cast<float>(cols));
    if (layout == Layout::tiled_float32) {
      for (int k = 0; k < cols; ++k)
        for (int o = 0; o < 32; ++o) append(bytes, o < rows ? deviation * normal() : 0.0F);
    } else if (layout == Layout::tiled_int8) {
      const int quads = (cols + 3) / 4;
      std::vector<std::int8_t> codes(static_cast<std::size_t>(quads * 128), 0);
      std::int32_t sums[32] = {};
      for (int k = 0; k < cols; ++k)
        for (int o = 0; o < rows; ++o) {
          const int c = code(127);
          codes[static_cast<std::size_t>(k / 4 * 128 + o * 4 + k % 4)] = static_cast<std::int8_t>(c);
          sums[o] -= 128 * c;
        }
      for (int o = 0; o < 32; ++o) append(bytes, o < rows ? deviation / 73 : 0.0F);
      append(bytes, sums);
      bytes.insert(bytes.end(), codes.begin(), codes.end());
    } else {
      for (int group = 0; group < (cols + 63) / 64; ++group) {
        for (int o = 0; o < 32; ++o) append(bytes, o < rows ? deviation / 4 : 0.0F);
        for (int k = 0; k < 64; k += 8)
          for (int o = 0; o < 32; ++o)
            for (int i = 0; i < 4; ++i) {
              const auto nibble = [&](int input) {
                return group * 64 + k + input < cols && o < rows ? code(7) + 8 : 8;
              };
              bytes.push_back(static_cast<std::uint8_t>(nibble(i) | nibble(i + 4) << 4));
            }
      }
    }
  }

  void add(TensorId id, int block, Layout layout, int parts, int rows, int cols, const void* data, std::size_t size) {
    entries_.push_back({static_cast<std::uint32_t>(id), static_cast<std::uint32_t>(block),
                        static_cast<std::uint32_t>(layout), static_cast<std::uint32_t>(parts),
                        static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(cols), 0, size});
    const auto* begin = static_cast<const std::uint8_t*>(data);
    data_.emplace_back(begin, begin + size);
  }

  Shape shape_;
  std::mt19937 random_;
  std::vector<TensorEntry> entries_;
  std::vector<std::vector<std::uint8_t>> data_;
};

constexpr int kObservation = 20;
constexpr int kLargeObservation = 1024;
constexpr int kSlice = 64;
constexpr int kSlices = 2;

void add_blocks(Writer& w, const Shape& s) {
  const int gates = 2 * s.heads;
  const int width = s.inner / s.heads;
  for (int b = 0; b < s.blocks; ++b) {
    w.plain(TensorId::norm, b, s.hidden, 0.1F, 1);
    if (std::find(s.slstm_at.begin(), s.slstm_at.end(), b) == s.slstm_at.end()) {
      w.tiled(TensorId::up, b, 2 * s.heads, width, s.hidden);
      w.plain(TensorId::conv_weight, b, 4 * s.inner, 0.3F);
      w.plain(TensorId::conv_bias, b, s.inner, 0.1F);
      w.plain(TensorId::query_key_value, b, 12 * s.inner, 0.3F);
      w.plain(TensorId::gate_weight, b, gates * 2 * s.inner, 0.02F);
      w.plain(TensorId::gate_bias, b, gates, 1, 2);
      w.plain(TensorId::head_norm, b, s.inner, 0.1F, 1);
      w.plain(TensorId::skip, b, s.inner, 0.1F, 1);
      w.tiled(TensorId::down, b, s.heads, s.hidden, width);
    } else {
      const int heads = s.slstm_heads;
      const int room = (s.hidden / heads + 15) / 16 * 16;  // all of it is filled: what is beyond a head stays unseen
      w.plain(TensorId::conv_weight, b, 4 * heads * room, 0.3F);
      w.plain(TensorId::conv_bias, b, heads * room, 0.1F);
      w.tiled(TensorId::from_conv, b, heads, 2 * room, room, false);
      w.tiled(TensorId::from_input, b, heads, 2 * room, room, false);
      w.tiled(TensorId::recurrent, b, heads, 4 * room, room, false);
      w.plain(TensorId::gate_biases, b, 4 * heads * room, 0.5F);
      w.plain(TensorId::head_norm, b, s.hidden, 0.1F, 1);
      w.plain(TensorId::ffn_norm, b, s.hidden, 0.1F, 1);
      w.tiled(TensorId::ffn_up, b, 2 * kSlices, kSlice, s.hidden);
      w.tiled(TensorId::ffn_down, b, kSlices, s.hidden, kSlice);
    }
  }
}

}  // namespace

std::vector<std::uint8_t> make_artifact(const Shape& s) {
  Writer w(s);
  for (const TensorId id : {TensorId::embed_reward_weight, TensorId::embed_reward_bias, TensorId::embed_return_weight,
                            TensorId::embed_return_bias, TensorId::embed_observation_bias, TensorId::embed_norm_bias})
    w.plain(id, 0, s.hidden, 0.5F);
  w.plain(TensorId::embed_norm_weight, 0, s.hidden, 0.1F, 1);
  if (s.images) {
    int channels_in = 3;
    for (int i = 0; i < 15; ++i) {
      const int channels = i < 5 ? 16 : 32;
      w.plain(TensorId::image_weight, i, 9 * channels_in * channels, 0.1F);
      w.plain(TensorId::image_bias, i, channels, 0.1F);
      channels_in = channels;
    }
    const int pooled = (s.image + 7) / 8;
    w.tiled(TensorId::embed_observation, 0, 1, s.hidden, 32 * pooled * pooled);
  } else {
    const int size = s.large_observation ? kLargeObservation : kObservation;
    w.tiled(TensorId::embed_observation, 0, 1, s.hidden, size, s.large_observation);
  }
  add_blocks(w, s);
  w.plain(TensorId::post_norm, 0, s.hidden, 0.1F, 1);
  const int tokens = s.discrete ? 18 : 50;
  const int actions = s.discrete ? 1 : 3;
  w.tiled(TensorId::head, 0, 1, actions * tokens, s.hidden);
  w.plain(TensorId::head_bias, 0, actions * tokens, 0.1F);

  lram::FileHeader h = {};
  std::memcpy(h.magic, lram::kMagic, sizeof h.magic);
  h.version = lram::kFormatVersion;
  h.header_bytes = sizeof h;
  h.batch = 1;
  const auto number = [](int value) { return static_cast<std::uint32_t>(value); };
  h.hidden = number(s.hidden);
  h.blocks = number(s.blocks);
  h.heads = number(s.heads);
  h.inner = number(s.inner);
  h.conv_kernel = 4;
  h.slstm_heads = number(s.slstm_heads);
  h.ffn_slices = kSlices;
  h.ffn_slice = kSlice;
  h.observation = s.images ? LRAM_IMAGE : LRAM_VECTOR;
  h.observation_dim = number(s.large_observation ? kLargeObservation : kObservation);
  h.image_channels = 3;
  h.image_height = h.image_width = number(s.image);
  h.action = s.discrete ? LRAM_DISCRETE : LRAM_CONTINUOUS;
  h.action_dim = number(actions);
  h.action_tokens = number(tokens);
  h.discrete_actions = 18;
  h.action_channels = 32;
  h.planes = number(s.planes);
  h.norm_epsilon = h.head_epsilon = h.slstm_epsilon = h.embed_epsilon = 1e-5F;
  for (const int b : s.slstm_at) h.slstm_blocks[b / 64] |= std::uint64_t{1} << (b % 64);
  std::copy_n(s.name.begin(), std::min(s.name.size(), sizeof h.name), h.name);
  std::fill(std::begin(h.source_sha256), std::end(h.source_sha256), s.source);
  return w.finish(h);
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
