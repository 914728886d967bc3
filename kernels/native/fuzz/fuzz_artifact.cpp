// Any bytes as an artifact: an error, or a model whose steps stay within their memory.
#include <algorithm>
#include <cstring>

#include "engine.h"
#include "error.h"
#include "testing.h"

namespace {

// Two steps, the first of an episode and one after it, of a batch of two.
void run(lram::Engine& engine) {
  constexpr std::size_t kRows = 2;
  const std::unique_ptr<lram::Episodes> episodes = engine.start(kRows);
  lram_testing::FieldArrays arrays(engine, kRows);
  for (std::size_t i = 0; i < arrays.inputs.size(); ++i) arrays.fill(i, 0.5);
  for (const double first : {1.0, 0.0}) {
    arrays.fill("is_first", first);
    episodes->check(arrays.inputs.data(), arrays.outputs.data());
    episodes->step(arrays.inputs.data(), arrays.outputs.data());
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
  std::memcpy(header.start.magic, lram::kMagic, sizeof header.start.magic);
  header.start.version = lram::kFormatVersion;
  header.start.header_bytes = sizeof header;
  header.start.file_bytes = size;
  std::memcpy(data, &header, sizeof header);
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  lram_testing::Bytes bytes({data, data + size});
  try {
    run(*lram::open_engine(bytes.data(), bytes.size()));
  } catch (const lram::Error&) {  // refused
  }
  return 0;
}
