#include "xlstm.h"

#include "mlstm_block.h"
#include "slstm_block.h"

namespace lram::xlstm {
namespace {

template <class Kind>
std::unique_ptr<Block> make(BlockSource& source) {
  source.expect_unrolled_tokens("an xLSTM block");
  return Kind::make(source);
}

}  // namespace

// Their numbers are part of the format.
std::vector<BlockKind> kinds() { return {{1, make<MlstmBlock>}, {2, make<SlstmBlock>}}; }

}  // namespace lram::xlstm
