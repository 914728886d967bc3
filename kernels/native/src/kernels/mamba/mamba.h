// What the kernel of Mamba blocks is called with; see kernels.h for what holds for all.
#pragma once
#include <cstddef>

#include "../tokens.h"

namespace lram {

// The selective state space of some channels, over a step's tokens: the memory h decays by exp(dt A), takes in dt u B,
// and gives C h + D u, times SiLU of the gate. dt = softplus(step + step_bias).
struct SelectiveScan {
  int channels;
  int size;        // numbers that each channel remembers
  const float* A;  // [size][stride], negative
  float* h;        // [size][stride]
  std::size_t stride;
  const float* D;  // [channels]
  const float* step_bias;
  const float* B;  // [kTokens][token_stride]: of all channels, `size` each
  const float* C;
  std::size_t token_stride;
  const float* step;  // [kTokens][step_stride]
  std::size_t step_stride;
  const float* u;  // [kTokens][u_stride]
  std::size_t u_stride;
  const float* gate;  // [kTokens][gate_stride]
  std::size_t gate_stride;
  float* y;    // [kTokens][u_stride]
  bool first;  // the row starts an episode: h is 0, first token skipped
};

// The kernels of Mamba blocks of one instruction set.
struct MambaKernels {
  void (*selective_scan)(const SelectiveScan&);
};

}  // namespace lram
