// Small programs (see program/format.h), made in memory, with what they compute in plain C++.
#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "artifact_writer.h"
#include "kernels/program/program.h"
#include "program/format.h"

namespace lram_testing {

using lram::Function;
using lram::Operation;
using lram::Place;
using lram::Reduction;
using Extents = std::vector<std::uint32_t>;

constexpr std::uint32_t kFloat32 = 0;
constexpr std::uint32_t kUint8 = 1;
constexpr std::uint32_t kInt64 = 2;

// A place in the same buffer.
constexpr Place behind(const Place& place, std::uint32_t offset) { return {place.buffer, place.offset + offset}; }

// A matrix with random weights, in tiles and as the plain numbers that those stand for.
struct Weights {
  Weights(lram::Layout layout, int rows, int cols, int used, unsigned seed);

  std::vector<double> times(const double* x) const;  // [cols]

  lram::Layout layout;
  int rows;
  int cols;
  std::vector<std::uint8_t> tiles;
  std::vector<float> values;  // [rows][cols]
  std::vector<float> bias;    // [rows]
};

// Writes a program. Every buffer of a step's own has memory of its own.
class ProgramWriter {
 public:
  ProgramWriter();

  // Return where their numbers are.
  Place input(const std::string& name, const Extents& extents, std::uint32_t element = kFloat32, bool read = true);
  Place state(const std::string& name, const Extents& extents, float initial);
  Place state(const std::string& name, const Extents& extents, const std::vector<float>& initial);
  void output(const std::string& name, const Extents& extents, const Place& place, std::uint32_t element = kFloat32);
  void next(const Place& place);  // of the states, in their order

  Place room(std::size_t floats);                        // of a step's own
  Place floats(const std::vector<float>& values);        // that all rows share
  Place numbers(const std::vector<std::int32_t>& from);  // for `gather`
  Place matrix(const Weights& weights, bool two_planes = false);
  Place bias(const Weights& weights);  // filled up to whole tiles

  void emit(Operation operation, const std::vector<std::uint32_t>& sizes, const std::vector<Place>& operands,
            std::uint32_t function = 0);

  // What is used most often: the result goes to room of its own.
  Place apply(Function function, std::uint32_t count, const std::vector<Place>& operands, std::uint32_t each);
  Place gather(const Place& from, std::uint32_t size, const std::vector<std::int32_t>& places, float fill = 0);
  Place dense(const Place& x, const Weights& weights);  // [whole tiles]
  Place dense(const Place& tokens, std::uint32_t count, std::uint32_t step, const Weights& weights);
  Place reduce(Reduction reduction, const Place& x, std::uint32_t count, std::uint32_t length);

  lram::ProgramHeader header = {};  // but for the counts
  std::vector<std::uint8_t> said;   // of its robot, see interface_writer.h
  std::vector<std::uint8_t> finish() const;

 private:
  std::uint32_t add_tensor(lram::Layout layout, std::size_t rows, std::size_t cols, const void* data,
                           std::size_t bytes);
  Place add_buffer(lram::BufferKind kind, std::uint32_t number, std::size_t stride);

  std::vector<lram::FieldEntry> inputs_;
  std::vector<lram::FieldEntry> outputs_;
  std::vector<lram::FieldEntry> states_;
  std::vector<lram::BufferEntry> buffers_;
  std::vector<lram::InstructionEntry> instructions_;
  std::vector<lram::TensorEntry> tensors_;
  std::vector<std::vector<std::uint8_t>> data_;
  std::size_t next_ = 0;
};

// The tables of a program's file.
struct Tables {
  explicit Tables(std::uint8_t* file);
  lram::ProgramHeader& header;
  lram::FieldEntry* fields;
  lram::BufferEntry* buffers;
  lram::InstructionEntry* instructions;
  lram::TensorEntry* tensors;
};

// ---- programs of policies --------------------------------------------------------------------------------------

// Three layers: an observation [20] that becomes an action [5].
struct Perceptron {
  Perceptron(lram::Layout layout, int planes, int hidden, unsigned seed = 1);

  std::vector<double> action(const float* observation) const;

  Weights first;
  Weights second;
  Weights third;
  std::vector<std::uint8_t> file;
};

// Looks at an image, at numbers and at a mode; remembers a vector, which is a tensor at first, and a number.
struct Recurrent {
  static constexpr int kImage = 24;
  static constexpr int kProprio = 20;
  static constexpr int kLogits = 7;

  Recurrent(lram::Layout layout, int hidden);

  struct Memory {
    std::vector<double> h;
    double steps;
  };
  Memory start() const;
  // The logits of a step, which changes the memory.
  std::vector<double> step(Memory& memory, const std::uint8_t* image, const float* proprio, std::int64_t mode) const;

  int hidden;
  Weights inner;
  Weights head;
  std::vector<float> initial;
  std::vector<std::uint8_t> file;
};

// The same layer for several tokens of a signal [count][12]; the results have 120 features each.
struct Tokenwise {
  static constexpr int kInputs = 12;
  static constexpr int kOutputs = 120;

  Tokenwise(lram::Layout layout, int count);

  int count;
  Weights layer;
  std::vector<std::uint8_t> file;
};

// Every operation once, in few bytes: what is damaged, and where fuzzers begin.
//
//   fields        0 observation [20], 1 is_first, 2 unread [3], 3 action [3], 4 choice (int64), 5 state.0.h [20],
//                 6 state.1.steps
//   instructions  0 choose, 1 gather, 2 dense, 3 reduce, 4 product, 5 copy, 6 dense of two tokens, 7 and 8 pointwise
std::vector<std::uint8_t> small_program(lram::Layout layout);

// An observation [2] that is clamped to [-1, 1] as an action, and summed up over an episode; `said` is of its robot.
//
//   inputs   0 observation [2], 1 is_first, read or not
//   outputs  0 action [2], 1 sum [2], 2 action_unclamped [2]
std::vector<std::uint8_t> limited_program(const std::vector<std::uint8_t>& said, bool reads_first = true);

// Some programs for fuzzers to begin with.
std::vector<std::vector<std::uint8_t>> program_seeds();

}  // namespace lram_testing
