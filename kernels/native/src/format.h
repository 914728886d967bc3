// The artifact `model.lrn` as it lies on disk: header, tables, tensors. Little endian; the layout of the weights is the
// one the kernels read.
//
//   FileHeader                     192 bytes, of which the first 40 are a FileStart
//   TokenEntry[token_count]        8 bytes each: the tokens of a step, in their order
//   BlockEntry[block_count]        64 bytes each: the blocks, in their order
//   TensorEntry[tensor_count]      48 bytes each
//   tensors                        each at a multiple of 64 bytes
//
// A tiled tensor has `parts` matrices (rows, cols) one after the other, each in tiles of 32 rows:
//   float32   [cols][32 floats]
//   int8      [32 scales][32 times -128 * sum of the row's codes, int32][ceil(cols / 4)][32][4 codes]
//   int8g     per group of 128 inputs, of which the last may have fewer: [32 scales][ceil(inputs / 4)][32][4 codes +
//   128] int4      per group of 64 inputs: [32 scales][8][32][4 bytes], a byte being the codes + 8 of input i (low) and
//   i +
//   4
// Rows beyond the last are 0, as are inputs beyond the last.
//
// Kernels compute widths that are multiples of 16. So wherever a tensor has the features of a hidden token, or of a
// head of a block, as its inputs or its elements, they are filled up with zeros to one: to `room_of` them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lram {

constexpr char kMagic[8] = {'L', 'R', 'A', 'M', 'N', 'A', 'T', '\n'};
constexpr std::uint32_t kFormatVersion = 7;
// Version 4 may normalize observations and scale actions, version 5 may say what the numbers of a robot are, version 6
// may have the layout int8g, version 7 may say how states keep large matrices. Each is written as the oldest version
// that holds what it says.
constexpr std::uint32_t kOldestVersion = 3;
constexpr std::size_t kAlignment = 64;

// The other kind of file that the engine opens: a module's traced step (see program/).
constexpr char kProgramMagic[8] = {'L', 'R', 'A', 'M', 'S', 'T', 'P', '\n'};
constexpr std::uint32_t kProgramVersion = 3;  // 2 may say what the numbers of a robot are, 3 have the layout int8g
constexpr std::uint32_t kOldestProgramVersion = 1;

constexpr int room_of(int width) { return (width + 15) / 16 * 16; }

// What every kind of file begins with (see mapped_file.h).
struct FileStart {
  char magic[8];
  std::uint32_t version;
  std::uint32_t header_bytes;
  std::uint64_t file_bytes;
  // of the 32-bit words w_1, w_2, ...: sum of w_i, sum of i * w_i, modulo 2^64: no change of one word or of two bits
  // leaves both as they were
  std::uint64_t checksum[2];
};
constexpr std::size_t kChecksumStart = 40;  // the checksum covers everything after itself
static_assert(sizeof(FileStart) == kChecksumStart, "the start is part of the format");

struct FileHeader {
  FileStart start;
  std::uint32_t tensor_count;
  std::uint32_t token_count;
  std::uint32_t block_count;
  std::uint32_t read_token;  // the action is read behind this one
  std::uint32_t batch;
  std::uint32_t hidden;
  std::uint32_t observation;      // lram_observation
  std::uint32_t observation_dim;  // of vectors, else 0
  std::uint32_t image_channels;   // of images, else 0
  std::uint32_t image_height;
  std::uint32_t image_width;
  std::uint32_t action;  // lram_action
  std::uint32_t action_dim;
  std::uint32_t action_tokens;     // logits per action
  std::uint32_t discrete_actions;  // of continuous actions, else 0: tokens before the first bin
  std::uint32_t action_channels;   // of continuous actions, else 0: bins
  std::uint32_t planes;            // of int8 codes per activation, 1 or 2; 2 where no weight has codes
  std::uint32_t feedback;          // lram_feedback
  float embed_epsilon;
  float norm_epsilon;   // of the norm before the head
  float target_return;  // of the task, in the environment's units
  float reward_scale;   // 0: not known
  std::uint32_t norm;   // before the head: 0 a layer norm, 1 a layer norm with a bias, 2 an RMS norm
  // What the manifest calls `name` and `source.sha256`. All zeros where it is not known.
  char name[28];                   // UTF-8, cut off after a whole character, then zeros, at least one
  std::uint8_t source_sha256[32];  // of the checkpoint
};
static_assert(sizeof(FileHeader) == 192, "the header is part of the format");

constexpr std::uint32_t kMostTokens = 16;
constexpr std::uint32_t kMostBlocks = 256;

// What a token embeds.
enum class Input : std::uint32_t { observation = 0, return_to_go = 1, reward = 2 };
constexpr std::uint32_t kInputs = 3;

// When a token is there.
enum class Presence : std::uint32_t {
  always = 0,
  not_at_start = 1,  // skipped in the first step of an episode
  zero = 2,          // always that of an input of 0, which a step is not given
};

struct TokenEntry {
  std::uint32_t input;     // Input
  std::uint32_t presence;  // Presence

  bool skipped_at_start() const { return presence == static_cast<std::uint32_t>(Presence::not_at_start); }
  bool zero() const { return presence == static_cast<std::uint32_t>(Presence::zero); }
};
static_assert(sizeof(TokenEntry) == 8, "the table of tokens is part of the format");

// A block: what its kind makes of the numbers is the kind's (see backbones/); those that it does not use are 0.
struct BlockEntry {
  static constexpr int kIntegers = 11;
  static constexpr int kFloats = 4;
  std::uint32_t kind;
  std::uint32_t integers[kIntegers];
  float floats[kFloats];
};
static_assert(sizeof(BlockEntry) == 64, "the table of blocks is part of the format");

// What a tensor is: one of these, or from kFirstBlockRole on what the kind of its block says. `number` in a TensorEntry
// is the block's, or what is said here, else 0.
enum Role : std::uint32_t {
  kEmbedWeight = 1,  // number: of the token
  kEmbedBias = 2,
  kEmbedNormWeight = 3,
  kEmbedNormBias = 4,
  kImageWeight = 5,  // number: of the convolution
  kImageBias = 6,
  kPostNorm = 7,
  kHead = 8,
  kHeadBias = 9,
  kPostNormBias = 10,
  // an observation is (value - mean) / deviation, clipped; each of them as many floats as it has, the clip one
  kObservationMean = 11,
  kObservationDeviation = 12,
  kObservationClip = 13,
  kActionValues = 14,     // what a continuous action can be: one float for each of its logits
  kInterface = 15,        // in files of both kinds, see InterfaceHeader; of a program the last tensor
  kActionUnclamped = 16,  // what kActionValues were before limits clamped them
  kStateFormat = 17,      // one float, an lram_state_format: how states are kept unless whoever opens the file says
  kFirstBlockRole = 32,
};

// Added to a layout where the header says one plane, but this tensor's input is to be kept in two: rounded to one, it
// would take the policy beyond the tolerance.
constexpr std::uint32_t kTwoPlanes = 0x100;

enum class Layout : std::uint32_t {
  plain_float32 = 0,
  tiled_float32 = 1,
  tiled_int8 = 2,
  tiled_int4 = 3,
  tiled_int8g = 4,
};
constexpr Layout kLastLayout = Layout::tiled_int8g;

struct TensorEntry {
  std::uint32_t role;
  std::uint32_t number;
  std::uint32_t layout;
  std::uint32_t parts;
  std::uint64_t rows;
  std::uint64_t cols;
  std::uint64_t offset;
  std::uint64_t bytes;
};
static_assert(sizeof(TensorEntry) == 48, "the directory is part of the format");

// What an artifact says of its robot beside what the step does of itself: plain words. An InterfaceHeader, then for
// each field of which something is said a FieldFacts, followed by its ElementFacts.
struct InterfaceHeader {
  double rate;  // Hz; 0: not said
  std::uint32_t fields;
  std::uint32_t zero;
};
static_assert(sizeof(InterfaceHeader) == 16, "the interface is part of the format");

struct FieldFacts {
  char name[72];              // of the step's input or output
  std::uint32_t output;       // 0: of an input, 1: of an output
  std::uint32_t elements;     // how many follow: one for each element (or choice, of a discrete action), or one for all
  std::uint32_t most_clamps;  // of an output, 0: not said
  std::uint32_t zero;
};
static_assert(sizeof(FieldFacts) == 88, "the interface is part of the format");

// What lram_element_facts says, in its way of saying what is not known.
struct ElementFacts {
  char name[72];
  char unit[16];
  float low;
  float high;
  float most_change;
  float safe;
};
static_assert(sizeof(ElementFacts) == 104, "the interface is part of the format");

constexpr Layout layout_of(const TensorEntry& entry) { return static_cast<Layout>(entry.layout & ~kTwoPlanes); }

// Bytes of one tile of 32 rows.
constexpr std::uint64_t tile_bytes(Layout layout, std::uint64_t cols) {
  switch (layout) {
    case Layout::tiled_int8:
      return 256 + (cols + 3) / 4 * 128;
    case Layout::tiled_int4:
      return (cols + 63) / 64 * (128 + 1024);
    case Layout::tiled_int8g:
      return (cols + 127) / 128 * 128 + (cols + 3) / 4 * 128;
    default:
      return cols * 128;
  }
}

constexpr std::uint64_t tensor_bytes(Layout layout, std::uint64_t parts, std::uint64_t rows, std::uint64_t cols) {
  return layout == Layout::plain_float32 ? 4 * parts * rows * cols
                                         : parts * ((rows + 31) / 32) * tile_bytes(layout, cols);
}

}  // namespace lram
