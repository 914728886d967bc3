// Any bytes as an artifact: an error, or a model whose steps stay within their memory.
#include <algorithm>
#include <cstring>

#include "artifact_writer.h"
#include "error.h"
#include "model.h"
#include "state.h"
#include "step.h"

namespace {

// Two steps, the first of an episode and one after it, of a batch of two.
void run(lram::Model& model) {
  constexpr std::size_t kRows = 2;
  lram::State state(model, kRows);
  const std::vector<float> observation(kRows * model.encoders().observation_size(),
                                       0.5F);  // also enough bytes for an image
  std::vector<std::int64_t> action(kRows * static_cast<std::size_t>(model.head().actions()));
  std::vector<float> logits(kRows * static_cast<std::size_t>(model.head().logits()));
  for (const float first : {1.0F, 0.0F}) {
    const float is_first[kRows] = {first, first};
    const float scalar[kRows] = {0.5F, -0.5F};
    const lram_inputs inputs = {observation.data(), scalar, scalar, is_first};
    const lram_outputs outputs = {action.data(), logits.data()};
    lram::check_inputs(state, inputs, outputs);
    lram::run_step(state, inputs, outputs);
  }
}

}  // namespace

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

// What decides lies in the header and the tables: most mutations go there. Without the right sizes and magic nothing
// else is looked at, so those are mostly put right.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  if (size < sizeof(lram::FileHeader) || seed % 16 == 0) return LLVMFuzzerMutate(data, size, most);
  lram::FileHeader header;
  std::memcpy(&header, data, sizeof header);
  const std::size_t directory = header.token_count * sizeof(lram::TokenEntry) +
                                header.block_count * sizeof(lram::BlockEntry) +
                                header.tensor_count * sizeof(lram::TensorEntry);
  const std::size_t front = std::min(size, sizeof header + std::min(directory, std::size_t{1} << 16));
  if (seed % 16 < 12)
    LLVMFuzzerMutate(data + lram::kChecksumStart, front - lram::kChecksumStart, front - lram::kChecksumStart);
  else
    size = LLVMFuzzerMutate(data, size, most);
  if (size < sizeof header || seed % 32 == 1) return size;
  std::memcpy(&header, data, sizeof header);
  std::memcpy(header.magic, lram::kMagic, sizeof header.magic);
  header.version = lram::kFormatVersion;
  header.header_bytes = sizeof header;
  header.file_bytes = size;
  std::memcpy(data, &header, sizeof header);
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  lram_testing::Bytes bytes({data, data + size});
  try {
    lram::Model model(bytes.data(), bytes.size());
    run(model);
  } catch (const lram::Error&) {  // refused
  }
  return 0;
}
