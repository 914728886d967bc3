// The artifact `model.lrn` as it lies on disk: header, tensor directory, tensors. Little endian; the layout of the
// weights is the one the kernels read.
//
//   FileHeader                     256 bytes
//   TensorEntry[tensor_count]      48 bytes each
//   tensors                        each at a multiple of 64 bytes
//
// A tiled tensor has `parts` matrices (rows, cols) one after the other, each in tiles of 32 rows:
//   float32   [cols][32 floats]
//   int8      [32 scales][32 times -128 * sum of the row's codes, int32][ceil(cols / 4)][32][4 codes]
//   int4      per group of 64 inputs: [32 scales][8][32][4 bytes], a byte being the codes + 8 of input i (low) and i +
//   4
// Rows beyond the last are 0, as are inputs beyond the last. sLSTM heads whose width is no multiple of 16 are filled up
// with zeros to one, in everything between the block's norm and the norm of its heads.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lram {

constexpr char kMagic[8] = {'L', 'R', 'A', 'M', 'N', 'A', 'T', '\n'};
constexpr std::uint32_t kFormatVersion = 1;
constexpr std::size_t kAlignment = 64;
constexpr std::size_t kChecksumStart = 40;  // the checksum covers everything after itself

struct FileHeader {
  char magic[8];
  std::uint32_t version;
  std::uint32_t header_bytes;
  std::uint64_t file_bytes;
  // of the 32-bit words w_1, w_2, ...: sum of w_i, sum of i * w_i, modulo 2^64: no change of one word or of two bits
  // leaves both as they were
  std::uint64_t checksum[2];
  std::uint32_t tensor_count;
  std::uint32_t batch;
  std::uint32_t hidden;
  std::uint32_t blocks;
  std::uint32_t heads;
  std::uint32_t inner;
  std::uint32_t conv_kernel;
  std::uint32_t slstm_heads;
  std::uint32_t ffn_slices;
  std::uint32_t ffn_slice;  // width of a slice; the last one is filled up with zeros
  std::uint32_t ffn_activation;
  std::uint32_t observation;  // lram_observation
  std::uint32_t observation_dim;
  std::uint32_t image_channels;
  std::uint32_t image_height;
  std::uint32_t image_width;
  std::uint32_t action;  // lram_action
  std::uint32_t action_dim;
  std::uint32_t action_tokens;  // logits per action
  std::uint32_t discrete_actions;
  std::uint32_t action_channels;
  std::uint32_t planes;        // of int8 codes per activation, 1 or 2; 2 where no weight has codes
  std::uint32_t state_format;  // 0: float32
  float norm_epsilon;
  float head_epsilon;
  float slstm_epsilon;
  float embed_epsilon;
  std::uint32_t padding;
  std::uint64_t slstm_blocks[4];  // bit b: block b is an sLSTM block
  float target_return;            // of the task, in the environment's units
  float reward_scale;             // 0: not known
  std::uint32_t feedback;         // lram_feedback
  // What the manifest calls `name` and `source.sha256`. All zeros where it is not known: in older artifacts.
  char name[28];                   // UTF-8, cut off after a whole character, then zeros, at least one
  std::uint8_t source_sha256[32];  // of the checkpoint
};
static_assert(sizeof(FileHeader) == 256, "the header is part of the format");

enum class TensorId : std::uint32_t {
  embed_reward_weight = 1,
  embed_reward_bias = 2,
  embed_return_weight = 3,
  embed_return_bias = 4,
  embed_observation = 5,
  embed_observation_bias = 6,
  embed_norm_weight = 7,
  embed_norm_bias = 8,
  image_weight = 9,  // block: number of the convolution
  image_bias = 10,
  post_norm = 11,
  head = 12,
  head_bias = 13,
  norm = 20,
  conv_weight = 21,
  conv_bias = 22,
  head_norm = 23,
  up = 30,
  query_key_value = 31,
  gate_weight = 32,
  gate_bias = 33,
  skip = 34,
  down = 35,
  from_conv = 40,
  from_input = 41,
  recurrent = 42,
  gate_biases = 43,
  ffn_norm = 44,
  ffn_up = 45,
  ffn_down = 46,
};

// Added to a layout where the header says one plane, but this tensor's input is to be kept in two: rounded to one, it
// would take the policy beyond the tolerance.
constexpr std::uint32_t kTwoPlanes = 0x100;

enum class Layout : std::uint32_t { plain_float32 = 0, tiled_float32 = 1, tiled_int8 = 2, tiled_int4 = 3 };

struct TensorEntry {
  std::uint32_t id;
  std::uint32_t block;
  std::uint32_t layout;
  std::uint32_t parts;
  std::uint64_t rows;
  std::uint64_t cols;
  std::uint64_t offset;
  std::uint64_t bytes;
};
static_assert(sizeof(TensorEntry) == 48, "the directory is part of the format");

constexpr Layout layout_of(const TensorEntry& entry) { return static_cast<Layout>(entry.layout & ~kTwoPlanes); }

// Bytes of one tile of 32 rows.
constexpr std::uint64_t tile_bytes(Layout layout, std::uint64_t cols) {
  switch (layout) {
    case Layout::tiled_int8:
      return 256 + (cols + 3) / 4 * 128;
    case Layout::tiled_int4:
      return (cols + 63) / 64 * (128 + 1024);
    default:
      return cols * 128;
  }
}

constexpr std::uint64_t tensor_bytes(Layout layout, std::uint64_t parts, std::uint64_t rows, std::uint64_t cols) {
  return layout == Layout::plain_float32 ? 4 * parts * rows * cols
                                         : parts * ((rows + 31) / 32) * tile_bytes(layout, cols);
}

}  // namespace lram
