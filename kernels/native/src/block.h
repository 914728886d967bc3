// What a step, a state and a model know of a block: a kind of layer with a memory of its own (see backbones/).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arena.h"
#include "artifact.h"
#include "chosen_rows.h"
#include "kernels/kernels.h"

namespace lram {

struct StepContext;

// One tensor of a block's recurrent memory, without the rows of the batch.
struct StatePart {
  const char* name;
  std::vector<std::size_t> extents;
  float initial = 0;                      // value of every element at the start of an episode,
  const float* initial_values = nullptr;  // or, where this is not NULL, the values one by one; in the artifact
  bool exponent = false;                  // a stabilizer, which may be as large as it likes
  int places = 0;                         // not 0: a whole number below this

  std::size_t size() const;  // floats
};

// Where a block's memory lies within a state. A kind that keeps a part in a layout of its own derives from it.
struct BlockMemory {
  virtual ~BlockMemory() = default;
  std::vector<float*> parts;  // (batch, extents) each; NULL: in the kind's own layout
};

// What a block needs of the buffers that the blocks of a model share. A step's work is divided by units (heads,
// slices), each of which has buffers of its own: see UnitBuffers; and units by what they consist of: see Shares.
//
// Where threads share outputs of matrices instead, each of which one thread computes as a whole, there is one unit.
struct Needs {
  int units = 1;
  int width = 0;            // of the unit's rows, and the most columns of a matrix that it multiplies them with
  std::size_t scratch = 0;  // floats
  std::size_t shared = 0;   // floats per row of the batch that threads of all units read

  int shares = 1;                  // among how many threads the work can be divided, where those are more than units
  int thread_width = 0;            // of rows that a thread has for itself, one for every token
  int columns = 0;                 // most columns of a matrix that threads multiply with tokens of all units
  std::size_t of_thread = 0;       // floats
  std::size_t common = 0;          // floats that all threads read and write
  std::size_t common_per_row = 0;  // the same, per row of the batch
};

// What a block is made of: its numbers and its tensors, checked as they are read.
class BlockSource {
 public:
  BlockSource(const Artifact& from, int block, const Kernels& with, bool lazy)
      : artifact(from), number(block), kernels(with), lazy_state(lazy) {}

  const Artifact& artifact;
  int number;
  const Kernels& kernels;
  bool lazy_state;  // large matrices in half precision, where the kind can do that

  int hidden() const { return artifact.hidden(); }
  int hidden_room() const { return room_of(artifact.hidden()); }
  // The next number of the block's entry.
  int integer(const char* name, int low, int high, int multiple = 1);
  float epsilon(const char* name);
  void expect_no_more() const;  // the numbers that are left are 0
  // A step feeds the tokens that kernels unroll, the first one skipped where an episode starts, or none. `what`: with
  // article.
  void expect_unrolled_tokens(const char* what, bool skipped = true) const;
  [[noreturn]] void refuse(const std::string& problem) const;

  const float* plain(std::uint32_t role, std::int64_t count) const {
    return artifact.plain(role, number, static_cast<std::uint64_t>(count));
  }
  std::vector<Matrix> matrices(std::uint32_t role, int parts, int rows, int cols) const {
    return artifact.matrices(role, number, parts, rows, cols);
  }

 private:
  int integers_read_ = 0;
  int floats_read_ = 0;
};

class Block {
 public:
  virtual ~Block() = default;

  const std::vector<StatePart>& parts() const { return parts_; }
  const Needs& needs() const { return needs_; }

  // Takes the memory of a batch of states.
  virtual std::unique_ptr<BlockMemory> plan(Planner& planner, int batch) const = 0;
  // One step of every row, called by every thread: adds to each thread's residual stream. ChosenRows that start an
  // episode begin with the initial values, whatever the memory holds.
  virtual void run(StepContext& context, BlockMemory& memory, int thread) const = 0;

  // What a step leaves for the time after its action, in how many pieces that know nothing of one another.
  virtual int left_over(int /*batch*/) const { return 0; }
  // Does one of them, on any thread; nothing if it has been done. Until all are done the memory is not to be touched.
  virtual void settle(const Kernels& /*kernels*/, BlockMemory& /*memory*/, int /*piece*/) const {}

  // Fresh memory, which is 0, becomes that of rows at the start of their episodes.
  void start(BlockMemory& memory, int batch) const;
  void restart(BlockMemory& memory, int row) const;
  // Some rows of a part, as it is described.
  void save(const BlockMemory& memory, std::size_t part, const ChosenRows& rows, float* values) const;
  void load(BlockMemory& memory, std::size_t part, const ChosenRows& rows, const float* values) const;

 protected:
  explicit Block(std::vector<StatePart> parts, const Needs& needs) : parts_(std::move(parts)), needs_(needs) {}

  // The same for one row of a part that lies in a layout of the kind's own, in which bytes of 0 are values of 0.
  virtual void restart_own(BlockMemory& memory, std::size_t part, int row) const;
  virtual void save_own(const BlockMemory& memory, std::size_t part, int row, float* values) const;
  virtual void load_own(BlockMemory& memory, std::size_t part, int row, const float* values) const;

 private:
  void restart_part(BlockMemory& memory, std::size_t part, int row) const;

  std::vector<StatePart> parts_;
  Needs needs_;
};

// A kind of blocks, as BlockEntry.kind numbers them.
struct BlockKind {
  std::uint32_t number;
  std::unique_ptr<Block> (*make)(BlockSource& source);
};

// All kinds, those of every backbone (backbones/kinds.cpp). Tests add theirs.
std::vector<BlockKind>& block_kinds();

// Throws Error: a kind that this library does not know, or numbers and tensors that its kind does not allow.
std::unique_ptr<Block> make_block(BlockSource source);

}  // namespace lram
