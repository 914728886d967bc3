#include "xlstm.h"

#include "kernels/tokens.h"
#include "mlstm_block.h"
#include "slstm_block.h"

namespace lram::xlstm {
namespace {

template <class Kind>
std::unique_ptr<Block> make(BlockSource& source) {
  expect_unrolled_tokens(source);
  return Kind::make(source);
}

}  // namespace

// Their numbers are part of the format.
std::vector<BlockKind> kinds() { return {{1, make<MlstmBlock>}, {2, make<SlstmBlock>}}; }

void expect_unrolled_tokens(const BlockSource& source) {
  const Artifact& artifact = source.artifact;
  bool fits = artifact.tokens() == kTokens;
  for (int token = 0; token < kTokens && fits; ++token)
    fits = artifact.token(token).skipped_at_start == (token == 0 ? 1U : 0U);
  if (!fits)
    source.refuse("an xLSTM block takes " + std::to_string(kTokens) +
                  " tokens per step, of which the first is skipped at the start of an episode; this artifact feeds " +
                  std::to_string(artifact.tokens()));
}

}  // namespace lram::xlstm
