// The blocks of a Decision Transformer (arXiv 2106.01345): pre-norm attention and feed-forward layers.
#pragma once
#include <vector>

#include "block.h"

namespace lram::decision_transformer {

std::vector<BlockKind> kinds();

}  // namespace lram::decision_transformer
