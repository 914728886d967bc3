// The inner loops of a step, as a table of functions per instruction set. Orchestration knows only this header.
//
// Pointers in argument structs are the caller's; kernels allocate nothing. Widths (channels, head width) are
// multiples of 16, but for that of `head_norm`. Buffers for the outputs of `dense` have room for whole tiles of 32.
#pragma once
#include <cstddef>
#include <cstdint>

#include "decision_transformer/decision_transformer.h"
#include "mamba/mamba.h"
#include "program/program.h"
#include "xlstm/xlstm.h"

namespace lram {

constexpr int kTileRows = 32;    // outputs per weight tile
constexpr int kGroup = 64;       // inputs that share an int4 scale
constexpr int kWideGroup = 128;  // inputs that share an int8g scale

constexpr int kMostInt8Columns = 133144;  // 127 * 127 times so many products of codes still fit 32 bits

// Larger numbers in a state or in an embedded token are refused: their squares, which norms add up, leave float32.
constexpr float kLargest = 1e17F;

enum class Format : std::uint32_t { float32, int8, int4, int8g };

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
  std::int32_t* sums;  // [count][planes][groups]: -8 (int4) or -128 (int8g) * sum of the group's codes
};

constexpr int kGemmInputs = 192;  // of a tile that are multiplied at once: they stay in the first cache
constexpr int kGemmScratch = kGemmInputs * kTileRows;  // floats

// A matrix times many tokens, which lie in groups of `gemm_tokens` (see Kernels).
struct Gemm {
  const Matrix* matrix;
  int first_tile;
  int last_tile;
  const float* tokens;  // [groups][cols][tokens of a group]
  int first_group;
  int last_group;
  const float* bias;  // [outputs of all tiles]
  bool add;           // to what y holds
  float* y;           // [tokens of all groups][y_stride]
  std::size_t y_stride;
  float* scratch;  // kGemmScratch floats
};

// Causal depthwise convolution with SiLU over a window of past inputs and a step's tokens; updates the window.
struct Convolution {
  int channels;
  int kernel;
  const float* weight;  // [kernel][weight_stride], oldest input first
  std::size_t weight_stride;
  const float* bias;
  const float* x;  // [kTokens][x_stride]
  std::size_t x_stride;
  float* window;  // [kernel - 1][window_stride], oldest first
  std::size_t window_stride;
  float* y;  // [kTokens][y_stride]
  std::size_t y_stride;
  bool first;  // the row starts an episode: window 0, first token skipped
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

  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon, int n, float* y);
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int n, float* y);
  void (*head_norm)(const float* x, const float* weight, float epsilon, int n, float* y);
  void (*accumulate)(float* x, const float* parts, std::size_t part_stride, int count, int n);
  void (*gated)(Activation activation, const float* gate, const float* up, int n, float* y);
  void (*rectify)(const float* x, int n, float* y);
  void (*gelu)(const float* x, int n, float* y);

  void (*quantize)(const Tokens& tokens, Format format, int cols);
  void (*dense)(const Matrix& matrix, int first_tile, int last_tile, const Tokens& tokens, float* y,
                std::size_t y_stride);

  int gemm_tokens;  // of a group
  void (*pack_group)(const float* x, std::size_t stride, int count, int cols, float* packed);
  void (*gemm)(const Gemm&);

  void (*convolve)(const Convolution&);

  void (*image_convolution)(const ImageConvolution&, int first_row, int last_row);

  ProgramKernels program;

  // of one backbone each
  XlstmKernels xlstm;
  MambaKernels mamba;
  DecisionTransformerKernels decision_transformer;
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
