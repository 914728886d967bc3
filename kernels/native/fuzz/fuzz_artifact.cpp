// Any bytes as an artifact: an error, or a model whose steps stay within their memory.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "engine.h"
#include "error.h"
#include "program/program.h"
#include "safety.h"
#include "testing.h"

namespace {

constexpr std::size_t kRows = 2;

// All that the artifact says of its robot; it must not be more than its fields have room for.
void tell(const lram::Engine& engine) {
  for (const auto* fields : {&engine.inputs(), &engine.outputs()})
    for (const lram::Field& field : *fields)
      for (std::size_t i = 0; i < field.described(); ++i) {
        const lram::ElementFacts* facts = field.facts_of(i);
        if (facts != nullptr && (facts->name[sizeof facts->name - 1] != 0 || !(facts->low <= facts->high)))
          std::abort();
      }
}

// Two steps, the first of an episode and one after it, of a batch of two, held to what the artifact says.
void run(lram::Engine& engine) {
  const std::unique_ptr<lram::Episodes> episodes = engine.start(kRows);
  lram_testing::FieldArrays arrays(engine, kRows);
  lram::Safety safety(engine, kRows);
  tell(engine);
  for (std::size_t i = 0; i < arrays.inputs.size(); ++i) arrays.fill(i, 0.5);
  for (const double first : {1.0, 0.0}) {
    arrays.fill("is_first", first);
    episodes->check(episodes->all(), arrays.inputs.data(), arrays.outputs.data());
    episodes->step(episodes->all(), arrays.inputs.data(), arrays.outputs.data());
    safety.apply(*episodes, arrays.inputs.data(), arrays.outputs.data());
  }
}

// A few bytes of a program may ask for more memory and time than there is. So may a module; but not here.
bool modest(const lram::Engine& engine) {
  const auto* program = dynamic_cast<const lram::Program*>(&engine);
  if (program == nullptr) return true;
  std::uint64_t floats = program->header().arena;
  for (const auto* sizes : {&program->input_sizes(), &program->output_sizes(), &program->state_sizes()})
    for (const std::size_t size : *sizes) floats += size;
  std::uint64_t work = 0;
  for (const lram::Instruction& instruction : program->instructions()) {
    const std::uint32_t* sizes = instruction.sizes;
    switch (static_cast<lram::Operation>(instruction.operation)) {
      case lram::Operation::dense:
        floats += std::uint64_t{sizes[0]} * sizes[2];
        work += std::uint64_t{sizes[0]} * sizes[1] * sizes[2];
        break;
      case lram::Operation::product:
        work += std::uint64_t{sizes[0]} * sizes[1] * sizes[2] * sizes[3];
        break;
      default:
        work += std::uint64_t{sizes[0]} * std::max(sizes[1], 1U);
    }
  }
  return floats < std::uint64_t{1} << 22 && work < std::uint64_t{1} << 26;
}

// What the two kinds of files have in their place, and how long a file's tables are.
struct Kind {
  const char (&magic)[8];
  std::uint32_t version;
  std::uint32_t header_bytes;
  std::uint64_t (*tables)(const std::uint8_t* data);
};

template <class Header>
Header header_of(const std::uint8_t* data) {
  Header header;
  std::memcpy(&header, data, sizeof header);
  return header;
}

constexpr Kind kNetwork = {lram::kMagic, lram::kFormatVersion, sizeof(lram::FileHeader),
                           [](const std::uint8_t* data) -> std::uint64_t {
                             const auto h = header_of<lram::FileHeader>(data);
                             return std::uint64_t{h.token_count} * sizeof(lram::TokenEntry) +
                                    std::uint64_t{h.block_count} * sizeof(lram::BlockEntry) +
                                    std::uint64_t{h.tensor_count} * sizeof(lram::TensorEntry);
                           }};
constexpr Kind kProgram = {lram::kProgramMagic, lram::kProgramVersion, sizeof(lram::ProgramHeader),
                           [](const std::uint8_t* data) -> std::uint64_t {
                             const auto h = header_of<lram::ProgramHeader>(data);
                             return (std::uint64_t{h.inputs} + h.outputs + h.states) * sizeof(lram::FieldEntry) +
                                    std::uint64_t{h.buffers} * sizeof(lram::BufferEntry) +
                                    std::uint64_t{h.instructions} * sizeof(lram::InstructionEntry) +
                                    std::uint64_t{h.tensors} * sizeof(lram::TensorEntry);
                           }};

// A word of the tables becomes another one of them, or a neighbour of one: numbers of entries, sizes and offsets that
// mean something.
void exchange_word(std::uint8_t* words, std::size_t bytes, unsigned seed) {
  const std::size_t count = bytes / sizeof(std::uint32_t);
  if (count == 0) return;
  std::mt19937 random(seed);
  std::uint32_t word = 0;
  std::memcpy(&word, words + random() % count * sizeof word, sizeof word);
  constexpr std::uint32_t steps[] = {0, 0, 0, 1, ~0U, 16, ~15U};
  word += steps[random() % (sizeof steps / sizeof steps[0])];
  std::memcpy(words + random() % count * sizeof word, &word, sizeof word);
}

}  // namespace

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

// What decides lies in the header and the tables: most mutations go there. Without the right sizes and magic nothing
// else is looked at, so those are mostly put right.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
  constexpr std::size_t shortest = std::max(sizeof(lram::FileHeader), sizeof(lram::ProgramHeader));
  if (size < shortest || seed % 16 == 0) return LLVMFuzzerMutate(data, size, most);
  const Kind& kind = std::memcmp(data, lram::kProgramMagic, sizeof lram::kProgramMagic) == 0 ? kProgram : kNetwork;
  const std::uint64_t tables = std::min(kind.tables(data), std::uint64_t{1} << 16);
  const std::size_t front = std::min(size, kind.header_bytes + static_cast<std::size_t>(tables)) - lram::kChecksumStart;
  if (seed % 16 < 7)
    LLVMFuzzerMutate(data + lram::kChecksumStart, front, front);
  else if (seed % 16 < 11)
    exchange_word(data + lram::kChecksumStart, front, seed);
  else if (seed % 16 == 11)  // what is said of a robot is the last tensor
    exchange_word(data + size - shortest, shortest, seed);
  else
    size = LLVMFuzzerMutate(data, size, most);
  if (size < shortest || seed % 32 == 1) return size;
  lram::FileStart start = {};
  std::memcpy(start.magic, kind.magic, sizeof start.magic);
  start.version = kind.version;
  start.header_bytes = kind.header_bytes;
  start.file_bytes = size;
  std::memcpy(data, &start, sizeof start);
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  lram_testing::Bytes bytes({data, data + size});
  try {
    const std::unique_ptr<lram::Engine> engine = lram::open_engine(bytes.data(), bytes.size());
    if (modest(*engine)) run(*engine);
  } catch (const lram::Error&) {  // refused
  }
  return 0;
}
