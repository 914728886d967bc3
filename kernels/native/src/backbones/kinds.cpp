// The blocks of every backbone that this library computes: one row each.
#include "block.h"
#include "decision_transformer/decision_transformer.h"
#include "mamba/mamba.h"
#include "xlstm/xlstm.h"

namespace lram {

std::vector<BlockKind>& block_kinds() {
  static std::vector<BlockKind> kinds = [] {
    std::vector<BlockKind> all;
    for (const auto& of_backbone : {xlstm::kinds(), mamba::kinds(), decision_transformer::kinds()})
      all.insert(all.end(), of_backbone.begin(), of_backbone.end());
    return all;
  }();
  return kinds;
}

}  // namespace lram
