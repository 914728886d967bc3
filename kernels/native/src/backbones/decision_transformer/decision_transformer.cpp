#include "decision_transformer.h"

#include "cached_block.h"
#include "window_block.h"

namespace lram::decision_transformer {

std::vector<BlockKind> kinds() { return {{4, CachedBlock::make}, {5, WindowBlock::make}}; }

}  // namespace lram::decision_transformer
