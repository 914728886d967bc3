// What the kernels of xLSTM blocks are called with; see kernels.h for what holds for all.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../tokens.h"

namespace lram {

constexpr int kLazySteps = 16;  // steps between two rewrites of a tile of a half precision state
constexpr int kLazyTokens = kLazySteps * kTokens;

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

// The scalars of one head's chunk (see lram_export/model/step_graph.py): decay of the old state as each token sees it,
// weight of token j as token t sees it, lower bound of the normalizer.
struct ChunkWeights {
  float decay[kTokens];
  float weight[kTokens][kTokens];
  float floor[kTokens];
};

// Some column tiles of one head's matrix memory in float32: reads, decays and updates C, writes the hidden state of
// their columns.
struct Memory {
  int width;
  int first_tile;
  int last_tile;
  ChunkWeights chunk;
  bool fresh;      // whatever C and n hold is taken as 0
  float* C;        // column tiles [width / tile][width][tile], all of them
  const float* n;  // [width]
  const float* q;  // [3][stride] each; k scaled
  const float* k;
  const float* v;
  std::size_t stride;
  float* h;        // [3][stride]
  float* scratch;  // [8 * width]
};

// One head's n, moved to the end of a chunk; whoever reads the memory needs what it was before.
struct Normalizer {
  int width;
  ChunkWeights chunk;
  bool fresh;  // whatever n holds is taken as 0
  const float* k;
  std::size_t stride;
  float* n;
};

// The same with C in half precision (see lazy.h). The ring holds the tokens of the last steps, three to a slot; `now`
// is the slot of this step, whose old tokens nobody needs: the tiles of this phase have been rewritten since.
struct LazyMemory {
  int width;
  int block;  // spreads the phases of different blocks
  int tiles;
  int first_tile;  // of those that this call is about
  int last_tile;
  ChunkWeights chunk;
  bool fresh;  // what n holds is taken as 0
  int now;
  int held;              // slots in use, at most 16
  std::uint16_t* C;      // column tiles, as above
  float* tile_scales;    // [tiles]: C = scale * half; 0: the tile is 0
  float* tile_peaks;     // [tiles]: the largest magnitude of C when the tile was rewritten
  float* phase_decay;    // [kLazySteps]: of the tiles of a phase since they were rewritten, up to the step before
  float* ring_weights;   // [kLazyTokens]: of the ring's tokens, at the step before
  std::int16_t* ring_k;  // [kLazyTokens][width]
  std::int16_t* ring_v;  // [tiles][kLazyTokens][columns of the tile]
  float* key_scales;     // [kLazyTokens]: key = scale * code
  float* value_scales;   // [tiles][kLazyTokens], likewise
  float* scores;         // [kTokens][kLazyTokens]: of queries and the ring's tokens
  const float* n;
  const float* q;  // [3][stride] each; k scaled
  const float* k;
  const float* v;
  std::size_t stride;
  float* h;        // [3][stride]
  float* scratch;  // [kTokens * kLazyTokens]
};

// Tiles are rewritten in turn: before the step whose slot is a tile's phase, so that those of a phase are neighbours.
static inline int lazy_phase(int block, int tile, int tiles) {
  return (block + tile * kLazySteps / tiles) % kLazySteps;
}

// The power of two by which a magnitude becomes a half between 2^14 and 2^15; 0 for nothing. What is no number stays
// none, so that all that is scaled by it shows.
static inline float half_scale(float peak) {
  if (!(peak <= 3.4028235e38F)) return peak;
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
  int width;     // of the head,
  int channels;  // filled up to a multiple of 16: what is beyond the width comes out as 0
  float epsilon;
  const float* weight;
  const float* skip;
  const float* convolved;
  std::size_t stride;
  const float* gate;  // [3][gate_stride]
  std::size_t gate_stride;
  const float* h;  // [3][stride]
  float* y;        // [3][stride]
};

// One token of some channels of an sLSTM head; gates in the order i, f, z, o.
struct SlstmCell {
  int width;  // of the head
  int first;
  int last;
  const float* from_conv;   // [2 * width]: i, f
  const float* from_input;  // [2 * width]: z, o
  const float* recurrent;   // [4 * width]
  const float* bias;        // [4 * width]
  float* y;
  float* c;
  float* n;
  float* m;
};

// The kernels of xLSTM blocks of one instruction set.
struct XlstmKernels {
  int memory_columns;  // columns of C per tile

  void (*query_key_value)(const QueryKeyValue&);
  void (*gate_sums)(const GateSums&);
  void (*memory)(const Memory&);
  void (*normalizer)(const Normalizer&);
  // A step of a lazy memory: the scores of some slots of the ring; then some tiles, which read them; then, when all
  // that is done, what holds for the whole head.
  void (*lazy_scores)(const LazyMemory&, int first_slot, int last_slot);
  void (*lazy_memory)(const LazyMemory&);
  void (*lazy_keep)(const LazyMemory&);
  void (*lazy_flush)(const LazyMemory&);  // of some tiles, before the step of slot `now`; reads no field of a step
  void (*head_output)(const HeadOutput&);
  void (*slstm_cell)(const SlstmCell&);
};

}  // namespace lram
