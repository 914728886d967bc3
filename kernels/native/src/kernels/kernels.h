// The inner loops of a step, as a table of functions per instruction set. Orchestration knows only this header.
//
// Pointers in argument structs are the caller's; kernels allocate nothing. Widths (channels, head width) are
// multiples of 16, but for that of `head_norm`. Buffers for the outputs of `dense` have room for whole tiles of 32.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace lram {

constexpr int kTokens = 3;     // reward, observation, return-to-go
constexpr int kTileRows = 32;  // outputs per weight tile
constexpr int kGroup = 64;     // inputs that share an int4 scale

constexpr int kMostInt8Columns = 133144;  // 127 * 127 times so many products of codes still fit 32 bits

constexpr int kLazySteps = 16;  // steps between two rewrites of a tile of a half precision state
constexpr int kLazyTokens = kLazySteps * kTokens;

// Larger numbers in a state or in an embedded token are refused: their squares, which norms add up, leave float32.
constexpr float kLargest = 1e17F;

enum class Format : std::uint32_t { float32, int8, int4 };

enum class Activation : std::uint32_t { gelu = 0, relu = 1, relu_squared = 2, sigmoid = 3, swish = 4, selu = 5 };

// A weight matrix (rows, cols) in tiles of 32 rows, as it lies on disk (see format.h).
struct Matrix {
  Format format;
  int rows;
  int cols;
  int tiles;
  std::size_t tile_bytes;
  const std::uint8_t* data;
  int planes;  // of the codes it is multiplied with
};

// What a matrix is multiplied with: some tokens, in float32 and, where the format asks for it, in codes: about 15 bits
// where `planes` is 2, 8 bits where it is 1. How they lie is up to the instruction set (dense_planes.h, dense_wide.h).
struct Tokens {
  int count;
  const float* x;  // [count][stride]
  std::size_t stride;
  int planes;
  std::int8_t* codes;  // [count][2][code_stride]
  std::size_t code_stride;
  float* scales;       // [count]: x = scale * code
  std::int32_t* sums;  // [count][planes][groups]: -8 * sum of the group's codes (int4)
};

// Causal depthwise convolution with SiLU over a window of past inputs and three tokens; updates the window.
struct Convolution {
  int channels;
  int kernel;
  const float* weight;  // [kernel][weight_stride], oldest input first
  std::size_t weight_stride;
  const float* bias;
  const float* x;  // [3][x_stride]
  std::size_t x_stride;
  float* window;  // [kernel - 1][window_stride], oldest first
  std::size_t window_stride;
  float* y;  // [3][y_stride]
  std::size_t y_stride;
  bool first;  // the row starts an episode: window 0, first token skipped
};

// Block-diagonal projections with 4x4 blocks; weights [channels / 16][q, k, v][input 0..3][16].
struct QueryKeyValue {
  int channels;
  const float* weight;
  const float* convolved;  // [3][stride], read by q and k
  const float* x;          // [3][x_stride], read by v
  std::size_t x_stride;
  std::size_t stride;
  float* q;  // [3][stride] each
  float* k;
  float* v;
};

// Sums over a head's channels that the input and forget gates of all heads are made of.
struct GateSums {
  int channels;
  int gates;
  const float* weight;  // [gates][2][channels]: for convolved, for x
  const float* convolved;
  std::size_t stride;
  const float* x;
  std::size_t x_stride;
  float* sums;  // [gates][3]
};

// The scalars of one head's chunk (see lram_export/model/step_graph.py): decay of the old state as each token sees it, weight of
// token j as token t sees it, lower bound of the normalizer.
struct ChunkWeights {
  float decay[kTokens];
  float weight[kTokens][kTokens];
  float floor[kTokens];
};

// One head's matrix memory in float32: reads, decays and updates C and n, writes the hidden state.
struct Memory {
  int width;
  ChunkWeights chunk;
  bool fresh;      // whatever C and n hold is taken as 0
  float* C;        // column tiles [width / tile][width][tile]
  float* n;        // [width]
  const float* q;  // [3][stride] each; k scaled
  const float* k;
  const float* v;
  std::size_t stride;
  float* h;        // [3][stride]
  float* scratch;  // [8 * width]
};

// The same with C in half precision (see lazy.h). The ring holds the tokens of the last steps, three to a slot; `now`
// is the slot of this step, whose old tokens nobody needs once the tiles of this phase are rewritten.
struct LazyMemory {
  int width;
  int block;  // spreads the phases of different blocks
  int tiles;
  ChunkWeights chunk;
  bool fresh;  // what n holds is taken as 0
  int now;
  int held;             // slots in use, at most 16
  std::uint16_t* C;     // column tiles, as above
  float* tile_scales;   // [tiles]: C = scale * half; 0: the tile is 0
  float* phase_decay;   // [kLazySteps]: of the tiles of a phase since they were rewritten, up to the step before
  float* ring_weights;  // [kLazyTokens]: of the ring's tokens, at the step before
  float* ring_k;        // [kLazyTokens][width]; this step's tokens are written last
  float* ring_v;        // [tiles][kLazyTokens][columns of the tile]
  float* n;
  const float* q;  // [3][stride] each; k scaled
  const float* k;
  const float* v;
  std::size_t stride;
  float* h;        // [3][stride]
  float* scratch;  // lazy_scratch() floats
};

// Tiles are rewritten in turn: the step whose slot is a tile's phase.
static inline int lazy_phase(int block, int tile, int tiles) {
  return (block + tile * kLazySteps / tiles) % kLazySteps;
}

static inline std::size_t lazy_scratch(int width, int columns) {
  return static_cast<std::size_t>(2 * kTokens * kLazyTokens) +
         static_cast<std::size_t>(columns) * static_cast<std::size_t>(kLazyTokens + width);
}

// The power of two by which the largest magnitude of a tile becomes a half between 2^14 and 2^15; 0 for nothing.
static inline float half_scale(float peak) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &peak, sizeof bits);
  const std::uint32_t exponent = bits >> 23;
  if (exponent <= 14) return 0;
  bits = (exponent - 14) << 23;
  float scale = 0;
  std::memcpy(&scale, &bits, sizeof scale);
  return scale;
}

// Group norm of a head, plus the learnable skip, times SiLU of the gate.
struct HeadOutput {
  int channels;
  float epsilon;
  const float* weight;
  const float* skip;
  const float* convolved;
  std::size_t stride;
  const float* gate;  // [3][gate_stride]
  std::size_t gate_stride;
  float* h;  // [3][stride], in and out
};

// One token of an sLSTM head; gates in the order i, f, z, o.
struct SlstmCell {
  int width;
  const float* from_conv;   // [2 * width]: i, f
  const float* from_input;  // [2 * width]: z, o
  const float* recurrent;   // [4 * width]
  const float* bias;        // [4 * width]
  float* y;
  float* c;
  float* n;
  float* m;
};

// 3x3 convolution, padding 1, over images [height + 2][width + 2][channels] with a border of 0.
struct ImageConvolution {
  int width;
  int channels_in;
  int channels;
  bool relu;            // apply ReLU to the result
  const float* weight;  // [3][3][channels_in][channels]
  const float* bias;
  const float* x;
  const float* residual;  // added to the result, same layout as y; NULL: nothing
  float* y;
};

struct Kernels {
  const char* name;
  int memory_columns;  // columns of C per tile

  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon, int n, float* y);
  void (*head_norm)(const float* x, const float* weight, float epsilon, int n, float* y);
  void (*accumulate)(float* x, const float* parts, std::size_t part_stride, int count, int n);
  void (*gated)(Activation activation, const float* gate, const float* up, int n, float* y);
  void (*rectify)(const float* x, int n, float* y);

  void (*quantize)(const Tokens& tokens, Format format, int cols);
  void (*dense)(const Matrix& matrix, int first_tile, int last_tile, const Tokens& tokens, float* y,
                std::size_t y_stride);

  void (*convolve)(const Convolution&);
  void (*query_key_value)(const QueryKeyValue&);
  void (*gate_sums)(const GateSums&);
  void (*memory)(const Memory&);
  void (*lazy_memory)(const LazyMemory&);
  void (*head_output)(const HeadOutput&);
  void (*slstm_cell)(const SlstmCell&);

  void (*image_convolution)(const ImageConvolution&, int first_row, int last_row);
};

// Whether this processor runs a table, and the tables compiled into this library, best first.
struct Candidate {
  const Kernels* kernels;
  bool (*supported)();
};
const Candidate* candidates(int* count);

// The best supported table, or the one that LRAM_ISA names; throws Error naming what is known.
const Kernels& choose_kernels();

}  // namespace lram
