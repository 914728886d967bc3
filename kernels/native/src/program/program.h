// The traced step of a module: tensor operations over buffers, for one row, with all sizes known. See format.h.
#pragma once
#include <memory>
#include <vector>

#include "engine.h"
#include "mapped_file.h"
#include "program/format.h"
#include "program/written.h"

namespace lram {

// Throws Error: what is not a program that can run, naming the entry.
std::unique_ptr<Engine> open_program(MappedFile file, const lram_options& options);

// An instruction, checked against the buffers that it reads and writes.
struct Instruction : InstructionEntry {
  Matrix matrix;  // of dense
};

class Program : public Engine {
 public:
  Program(MappedFile file, const lram_options& options);

  void describe(lram_description& description) const override;
  std::unique_ptr<Episodes> start(int batch) override;

  const MappedFile* file() const override { return &file_; }
  const ProgramHeader& header() const { return *header_; }
  const std::vector<BufferEntry>& buffers() const { return buffers_; }
  const std::vector<Instruction>& instructions() const { return instructions_; }
  const FieldEntry& input(std::size_t number) const { return fields_[number]; }
  const FieldEntry& output(std::size_t number) const { return fields_[header_->inputs + number]; }
  const FieldEntry& state(std::size_t number) const { return fields_[header_->inputs + header_->outputs + number]; }
  const float* constant(std::uint32_t tensor) const;
  // Elements of a row of each field.
  const std::vector<std::size_t>& input_sizes() const { return input_sizes_; }
  const std::vector<std::size_t>& output_sizes() const { return output_sizes_; }
  const std::vector<std::size_t>& state_sizes() const { return state_sizes_; }
  std::size_t is_first() const { return is_first_; }  // which input it is; inputs().size(): none
  // Which output says what another one was before it was clamped; outputs().size(): none.
  std::size_t unclamped(std::size_t output) const { return unclamped_[output]; }

  // The most tokens per row that a product has.
  int most_tokens() const { return most_tokens_; }
  // Whether so many rows are worth more threads than one.
  bool worth_threads(int rows) const override;

 private:
  void read_tables();
  void read_fields();
  void read_field(const FieldEntry& entry, std::uint32_t place);
  void relate_outputs();
  void check_buffers() const;
  void check_state_buffers() const;
  void check_tensors();
  void read_instruction(const InstructionEntry& entry, const std::string& name);
  void check_pointwise(const InstructionEntry& entry, const std::string& name) const;
  void check_gather(const InstructionEntry& entry, const std::string& name) const;
  std::uint64_t read_dense(Instruction& instruction, const std::string& name);  // floats of the result

  // Which floats from a place on an instruction reads: some times `count` of them, `step` floats apart.
  struct Reach {
    std::uint64_t times;
    std::uint64_t step;
    std::uint64_t count;
  };
  // Throw unless so many floats from a place on are in its buffer; `written`: and it is a step's own.
  void check_place(const Place& place, std::uint64_t count, bool written, const std::string& name) const;
  void check_result(const InstructionEntry& entry, std::uint64_t count, const std::string& name) const;
  // And those of a step's own are there by now, and not where the `results` of the instruction go: rows, and threads,
  // would find what others have written. Functions of numbers may put each of them in the place of what it is of.
  void check_operand(const InstructionEntry& entry, int operand, const Reach& reach, std::uint64_t results,
                     const std::string& name) const;
  void check_written(const Place& place, std::uint64_t count, const std::string& name) const;
  void check_results() const;
  // Throws unless that is all that an instruction has.
  void check_rest(const InstructionEntry& entry, int sizes, int operands, const std::string& name) const;
  const TensorEntry* interface() const;  // NULL: it says nothing of its robot
  const TensorEntry& tensor_of(const Place& place, const std::string& name) const;
  void check_text(const char* text, std::size_t room, bool may_be_empty, const std::string& name) const;
  void within(const std::string& name, std::uint64_t value, std::uint64_t low, std::uint64_t high) const;

  MappedFile file_;
  const ProgramHeader* header_ = nullptr;
  const FieldEntry* fields_ = nullptr;
  const TensorEntry* tensors_ = nullptr;
  std::vector<BufferEntry> buffers_;
  std::vector<Instruction> instructions_;
  std::vector<std::size_t> input_sizes_;
  std::vector<std::size_t> output_sizes_;
  std::vector<std::size_t> state_sizes_;
  Written written_;  // by a step, up to what was read last of the file
  std::vector<std::size_t> unclamped_;
  std::size_t is_first_ = 0;
  std::size_t weight_bytes_ = 0;
  std::size_t work_ = 0;  // of a row, in multiplications
  int most_tokens_ = 0;
  int most_tiles_ = 1;
};

}  // namespace lram
