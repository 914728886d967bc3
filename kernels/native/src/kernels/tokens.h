// The tokens of a step that kernels unroll: reward, observation, return-to-go. Blocks whose kernels do refuse an
// artifact that feeds another number.
#pragma once

namespace lram {

constexpr int kTokens = 3;

}  // namespace lram
