// The blocks of xLSTM (arXiv 2405.04517).
#pragma once
#include <vector>

#include "block.h"

namespace lram::xlstm {

std::vector<BlockKind> kinds();

// Throws Error unless a step feeds the tokens that the kernels unroll, the first one skipped where an episode starts.
void expect_unrolled_tokens(const BlockSource& source);

}  // namespace lram::xlstm
