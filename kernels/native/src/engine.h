// What the C interface knows of a model and of the episodes that it is in, whatever computes a step: a network of this
// project (model.h, state.h), or the traced step of a module (program/).
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arena.h"
#include "chosen_rows.h"
#include "forked.h"
#include "format.h"
#include "kernels/kernels.h"
#include "lram.h"
#include "mapped_file.h"
#include "thread_pool.h"

namespace lram {

// What a field may have at most, of a name in bytes and of extents: what lram_field and lram_tensor have room for.
constexpr std::size_t kLongestName = sizeof(lram_field::name) - 1;
constexpr std::size_t kMostExtents = sizeof(lram_field::extents) / sizeof(std::size_t);

enum class Element : std::uint32_t { float32 = 0, uint8 = 1, int64 = 2 };
std::size_t element_bytes(Element element);

// An input or an output of a step, without the rows of the batch.
struct Field {
  std::string name;
  Element element;
  std::vector<std::size_t> extents;
  bool read = true;  // of an input: whether a step looks at it; if not, its array may be NULL

  std::size_t choices = 0;  // of an output of one whole number that is chosen from logits: how many they are; else 0
  bool clamps = false;      // of an output: whether episodes tell what it was before limits clamped it
  // What the artifact says: of every element, or choice; one for all of them; or nothing. They lie in the artifact.
  const ElementFacts* facts = nullptr;
  std::size_t fact_count = 0;
  std::uint32_t most_clamps = 0;

  std::size_t size() const;  // elements
  // Of how many elements something can be said: its choices, where it has any.
  std::size_t described() const { return choices > 0 ? choices : size(); }
  // NULL: nothing is said.
  const ElementFacts* facts_of(std::size_t index) const { return fact_count > 1 ? facts + index : facts; }
};

// One tensor of a state, without the rows of the batch, in the order in which they are saved.
struct StateField {
  std::string name;
  std::vector<std::size_t> extents;
  float initial = 0;  // as StatePart
  const float* initial_values = nullptr;

  std::size_t size() const;  // floats
};

// Whether weights are copied into huge pages.
inline bool huge_weights(const lram_options& options) { return options.huge_pages == LRAM_HUGE_PAGES_ALL; }

class Episodes;

// Bytes of weights and state, times rows, up to which one thread computes a step of a network: it has done so before
// others are awake. A variable for tests, which want threads in models that are small.
extern std::size_t small_step_bytes;

class Engine {
 public:
  virtual ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const Kernels& kernels() const { return kernels_; }
  ThreadPool& pool() const { return *pool_; }
  bool lock_memory() const { return lock_memory_; }
  bool huge_state() const { return huge_pages_ != LRAM_HUGE_PAGES_NONE; }
  bool safety() const { return safety_; }  // whether actions are held to the artifact's safety envelope
  double rate() const { return rate_; }    // Hz; 0: not known
  // Whether this is a child of the process that opened the model.
  bool forked() const { return generation_ != fork_generation(); }
  // Set while a step runs; true if it was not.
  bool begin_step() { return !stepping_.test_and_set(std::memory_order_acquire); }
  void end_step() { stepping_.clear(std::memory_order_release); }

  // What the bundle's manifest lists, in its order; a network does not know that order of its inputs, see model.cpp.
  const std::vector<Field>& inputs() const { return inputs_; }
  const std::vector<Field>& outputs() const { return outputs_; }
  const std::vector<StateField>& state_fields() const { return state_fields_; }
  std::size_t state_size() const;  // floats per row
  // How many threads take part in a step of so many rows; to wake others for a small one takes longer than the step.
  int threads_for(int rows) const { return worth_threads(rows) ? pool_->threads() : 1; }

  // Everything of a description but isa, threads, state_size, state_tensors, inputs, outputs, rate. It is 0 before.
  virtual void describe(lram_description& description) const = 0;
  // What the weights lie in; NULL: it has none.
  virtual const MappedFile* file() const { return nullptr; }
  // Episodes of `batch` rows at their start. Throws Error: the batch, or no memory.
  virtual std::unique_ptr<Episodes> start(int batch) = 0;

 protected:
  // Throws Error: options that make no sense.
  explicit Engine(const lram_options& options);
  virtual bool worth_threads(int /*rows*/) const { return true; }
  // As many threads as the options say, but at most so many. Once, when it is known how work is divided.
  void start_threads(int most);

  std::vector<Field> inputs_;
  std::vector<Field> outputs_;
  std::vector<StateField> state_fields_;
  double rate_ = 0;

 private:
  int threads_;
  std::vector<int> cpus_;
  int spin_microseconds_;
  bool lock_memory_;
  lram_huge_pages huge_pages_;
  bool safety_;
  const Kernels& kernels_;
  std::uint32_t generation_;
  std::unique_ptr<ThreadPool> pool_;
  std::atomic_flag stepping_ = ATOMIC_FLAG_INIT;
};

class Episodes {
 public:
  virtual ~Episodes() = default;
  Episodes(const Episodes&) = delete;
  Episodes& operator=(const Episodes&) = delete;

  Engine& engine() const { return engine_; }
  int batch() const { return batch_; }
  ChosenRows all() const { return {batch_, nullptr}; }
  std::size_t size() const { return engine_.state_size() * static_cast<std::size_t>(batch_); }  // floats

  virtual std::unique_ptr<Episodes> clone() const = 0;
  virtual void reset(int row) = 0;
  // Throw Error: a row that was lost in a step; a value that no state may have, which changes nothing.
  virtual void save(const ChosenRows& rows, float* values) const = 0;
  virtual void load(const ChosenRows& rows, const float* values) = 0;

  // Arrays in the order of the engine's fields; NULL where an input is not read, or an output not wanted. `check` comes
  // before begin_step and throws Error naming an input that is missing, not finite or not allowed. A step that throws
  // Error (OVERFLOW) has changed nothing, or has lost rows (see lram_step).
  virtual void check(const ChosenRows& rows, const void* const* inputs, void* const* outputs) const = 0;
  virtual void step(const ChosenRows& rows, const void* const* inputs, void* const* outputs) = 0;

  // Does what the last step left for the time after its action, if it left anything.
  virtual void settle() const {}

  // What the last step that succeeded gave as an output of numbers that is looked after (see safety.h), wanted or not,
  // and, where the field `clamps`, what that was before; (rows of the step, size) each.
  virtual const float* chosen(std::size_t /*output*/) const { return nullptr; }
  virtual const float* unclamped(std::size_t /*output*/) const { return nullptr; }

  // The recurrent memory as it lies, for tests that need to spoil it.
  virtual float* memory() const = 0;
  virtual std::size_t memory_floats() const = 0;
  // All memory that steps need, that included; NULL: none.
  virtual const Arena* arena() const { return nullptr; }

 protected:
  // Throws Error: a batch that is not 1 to 4096.
  Episodes(Engine& engine, int batch);

 private:
  Engine& engine_;
  int batch_;
};

// A model of whichever kind the file is, which its first bytes say. Throws Error.
std::unique_ptr<Engine> open_engine(const std::string& path, const lram_options& options);
// The same over bytes in memory (see MappedFile), not compared with their checksum, with one thread; for the fuzzer.
std::unique_ptr<Engine> open_engine(const std::uint8_t* bytes, std::size_t size);

}  // namespace lram
