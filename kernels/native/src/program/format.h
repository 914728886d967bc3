// The traced step of a module as it lies on disk: header, tables, tensors. Little endian. It is written for one row; a
// batch is many of them.
//
//   ProgramHeader                  144 bytes
//   FieldEntry[inputs, then outputs, then states]   128 bytes each
//   BufferEntry[buffers]           16 bytes each: where numbers are
//   InstructionEntry[instructions] 64 bytes each, in their order
//   TensorEntry[tensors]           48 bytes each, see format.h; role 0, number its own
//   tensors                        each at a multiple of 64 bytes
//
// All numbers are float32 while a step computes: truth is 1 or 0, and whole numbers are those that float32 holds.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../format.h"

namespace lram {

struct ProgramHeader {
  FileStart start;
  std::uint32_t inputs;
  std::uint32_t outputs;
  std::uint32_t states;
  std::uint32_t buffers;
  std::uint32_t instructions;
  std::uint32_t tensors;
  std::uint32_t batch;   // that it was exported for; states may have another
  std::uint32_t arena;   // floats per row of all buffers of a step
  std::uint32_t planes;  // of codes per activation, 1 or 2, as in FileHeader
  std::uint32_t zero[2];
  char name[28];  // as in FileHeader
  std::uint8_t source_sha256[32];
};
static_assert(sizeof(ProgramHeader) == 144, "the header is part of the format");

constexpr std::uint32_t kMostFields = 1024;
constexpr std::uint32_t kMostBuffers = 1U << 20;
constexpr std::uint32_t kMostArena = 1U << 26;
constexpr int kFieldExtents = 7;
constexpr std::uint32_t kFieldName = 72;

// Where some numbers of a row begin: in a buffer, at so many floats from its start.
struct Place {
  std::uint32_t buffer;
  std::uint32_t offset;
};

struct FieldEntry {
  char name[kFieldName];
  std::uint32_t element;  // Element
  std::uint32_t rank;
  std::uint32_t extents[kFieldExtents];
  Place place;                   // of an input: where its numbers go; of an output, or the next state: where they are
  std::uint32_t initial_tensor;  // of a state: 0: it starts as the number below; else 1 + the tensor that it starts as
  float initial;
  std::uint32_t read;  // of an input: whether a step reads it
};
static_assert(sizeof(FieldEntry) == 128, "the table of fields is part of the format");

enum class BufferKind : std::uint32_t {
  arena = 0,     // number: where its first row begins, in floats per row; a step's own
  state = 1,     // number: of the state; what it is before the step
  constant = 2,  // number: of the tensor
};

struct BufferEntry {
  std::uint32_t kind;  // BufferKind
  std::uint32_t number;
  std::uint32_t stride;  // floats from row to row, a multiple of 16; of constants 0
  std::uint32_t zero;
};
static_assert(sizeof(BufferEntry) == 16, "the table of buffers is part of the format");

enum class Operation : std::uint32_t {
  // function of operands 1 to 3, for sizes[0] times sizes[1] elements; sizes[2 to 4]: floats from one of the sizes[0]
  // to
  // the next in an operand; sizes[5]: bit i is set where operand i + 1 has sizes[1] elements, else it has one
  pointwise = 0,
  copy = 1,    // sizes[0] elements of operand 1
  gather = 2,  // sizes[0] elements: of operand 1 (sizes[1] of them) as operand 2, whole numbers, says; -1: operand 3
  dense = 3,   // matrix 2 (sizes[1] x sizes[2]) times the sizes[0] tokens of operand 1, each sizes[3] floats from the
               // last; plus operand 3, of whole tiles. Tokens of the result are whole tiles
  reduce = 4,  // function: a Reduction; over the last axis of [sizes[0]][sizes[1]]
  product = 5  // sizes[0] times: [sizes[1]][sizes[2]] of operand 1 times [sizes[2]][sizes[3]] of operand 2
};

struct InstructionEntry {
  std::uint32_t operation;  // Operation
  std::uint32_t function;   // Function or Reduction, else 0
  std::uint32_t sizes[6];
  Place operands[4];  // the first one is the result
};
static_assert(sizeof(InstructionEntry) == 64, "the table of instructions is part of the format");

constexpr std::uint32_t kNowhere = 0xffffffffU;  // buffer of an operand that is not there

}  // namespace lram
