// The blocks of xLSTM (arXiv 2405.04517).
#pragma once
#include <vector>

#include "block.h"

namespace lram::xlstm {

std::vector<BlockKind> kinds();

}  // namespace lram::xlstm
