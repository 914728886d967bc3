// The blocks of Mamba (arXiv 2312.00752).
#pragma once
#include <vector>

#include "block.h"

namespace lram::mamba {

std::vector<BlockKind> kinds();

}  // namespace lram::mamba
