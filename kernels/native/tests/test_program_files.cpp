// Files of programs that are cut off, altered or made to do harm: each is refused with what is wrong, never a crash.
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "error.h"
#include "program_writer.h"
#include "testing.h"

using namespace lram_testing;
using lram::Layout;

namespace {

lram_status try_open(const std::vector<std::uint8_t>& content) {
  setenv("LRAM_ISA", "", 1);
  const TemporaryFile file(content);
  lram_model* model = nullptr;
  const lram_status status = lram_open(file.path().c_str(), nullptr, &model);
  CHECK((status == LRAM_OK) == (model != nullptr));
  const ModelPointer opened(model, lram_close);
  if (status != LRAM_OK) return status;
  for (const int batch : {1, 17}) {  // what is accepted also runs
    const StatePointer state = create_state(opened, batch);
    FieldArrays arrays(*model->engine, static_cast<std::size_t>(batch));
    const lram_status stepped = lram_step_fields(state.get(), arrays.inputs.data(), arrays.inputs.size(),
                                                 arrays.outputs.data(), arrays.outputs.size());
    CHECK(stepped == LRAM_OK || stepped == LRAM_ERROR_OVERFLOW);
  }
  return status;
}

// What an error says behind the name of the file.
std::string problem() {
  const std::string text = lram_last_error();
  const std::size_t colon = text.find(": ");
  return colon == std::string::npos ? text : text.substr(colon + 2);
}

void expect_refused(std::vector<std::uint8_t> file, const std::string& text) {
  seal(file);
  const bool refused = try_open(file) == LRAM_ERROR_ARTIFACT;
  const bool told = refused && problem() == text;
  if (!told) std::printf("  expected: %s\n  got:      %s\n", text.c_str(), refused ? problem().c_str() : "it opens");
  CHECK(told);
}

struct Damage {
  const char* text;  // that it is refused with
  std::function<void(Tables&)> change;
};

void expect_refused(const std::vector<std::uint8_t>& whole, const std::vector<Damage>& damages) {
  CHECK(try_open(whole) == LRAM_OK);
  for (const Damage& damage : damages) {
    std::vector<std::uint8_t> file = whole;
    Tables tables(file.data());
    damage.change(tables);
    expect_refused(file, damage.text);
  }
}

// Fields and instructions of `small_program`.
enum { kObservation, kIsFirst, kUnread, kAction, kChoice, kHidden, kSteps };
enum { kChoose, kGather, kDense, kReduce, kProduct, kCopy, kTokens, kTangent, kAdd };

lram::BufferEntry& buffer_of(Tables& t, int instruction, int operand) {
  return t.buffers[t.instructions[instruction].operands[operand].buffer];
}
lram::TensorEntry& tensor_of(Tables& t, int instruction, int operand) {
  return t.tensors[buffer_of(t, instruction, operand).number];
}
template <class T>
T* numbers_of(Tables& t, const lram::TensorEntry& tensor) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uint8_t*>(&t.header) + tensor.offset);
}

constexpr std::uint32_t kHuge = 0xffffffffU;
constexpr std::uint32_t kMost = 1U << 24;

const std::vector<std::uint8_t>& small() {
  static const std::vector<std::uint8_t> file = small_program(Layout::tiled_int8);
  return file;
}

}  // namespace

TEST(whole_programs_open) {
  for (const std::vector<std::uint8_t>& file : program_seeds()) CHECK(try_open(file) == LRAM_OK);
}

TEST(a_truncated_program_is_refused_at_every_length) {
  const std::vector<std::uint8_t>& whole = small();
  for (std::size_t size = 0; size < whole.size(); size += size < 4000 ? 7 : 101)
    CHECK(try_open({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)}) == LRAM_ERROR_ARTIFACT);
}

TEST(an_altered_byte_of_a_program_is_found) {
  std::vector<std::uint8_t> bytes = small();
  for (std::size_t at = 0; at < bytes.size(); at += at < 300 ? 1 : 131) {
    bytes[at] ^= 0x10;
    CHECK(try_open(bytes) != LRAM_OK);
    bytes[at] ^= 0x10;
  }
  CHECK(try_open(bytes) == LRAM_OK);
}

TEST(tables_that_lie_do_no_harm) {  // even with the right checksum
  for (const Layout layout : {Layout::tiled_int8, Layout::tiled_float32}) {
    const std::vector<std::uint8_t> whole = small_program(layout);
    std::vector<std::uint8_t> bytes = whole;
    const Tables tables(bytes.data());
    const auto end = static_cast<std::size_t>(reinterpret_cast<std::uint8_t*>(tables.tensors + tables.header.tensors) -
                                              bytes.data());
    for (const std::uint32_t value : {0U, 1U, 2U, 16U, 31U, 0x7fU, 0x10000U, kMost, 0x7fffffffU, kHuge})
      for (std::size_t at = lram::kChecksumStart; at < end; at += 4) {
        bytes = whole;
        std::memcpy(bytes.data() + at, &value, sizeof value);
        seal(bytes);
        try_open(bytes);
      }
  }
}

TEST(a_program_of_another_version_says_so) {
  std::vector<std::uint8_t> bytes = small();
  bytes[8] = 4;
  CHECK(try_open(bytes) == LRAM_ERROR_VERSION);
  CHECK(problem() == "version: this artifact has 4, this library reads 3; update lram-export");
  bytes[8] = 0;
  CHECK(try_open(bytes) == LRAM_ERROR_VERSION);
  CHECK(problem() == "version: this artifact has 0, this library reads 3; export the bundle again");
  bytes[8] = 1;  // which says nothing of its robot
  seal(bytes);
  CHECK(try_open(bytes) == LRAM_OK);
}

TEST(headers_are_checked) {
  expect_refused(
      small(),
      {
          {"header_bytes: expected 144, got 192", [](Tables& t) { t.header.start.header_bytes = 192; }},
          {"inputs: expected 1 to 1024, got 0", [](Tables& t) { t.header.inputs = 0; }},
          {"inputs: expected 1 to 1024, got 4294967295", [](Tables& t) { t.header.inputs = kHuge; }},
          {"outputs: expected 1 to 1024, got 0", [](Tables& t) { t.header.outputs = 0; }},
          {"outputs: expected 1 to 1024, got 1025", [](Tables& t) { t.header.outputs = 1025; }},
          {"states: expected 0 to 1024, got 1025", [](Tables& t) { t.header.states = 1025; }},
          {"buffers: expected 1 to 1048576, got 0", [](Tables& t) { t.header.buffers = 0; }},
          {"buffers: expected 1 to 1048576, got 4294967295", [](Tables& t) { t.header.buffers = kHuge; }},
          {"instructions: expected 0 to 1048576, got 1048577",
           [](Tables& t) { t.header.instructions = (1U << 20) + 1; }},
          {"tensors: expected 0 to 1048576, got 4294967295", [](Tables& t) { t.header.tensors = kHuge; }},
          {"batch: expected 1 to 4096, got 0", [](Tables& t) { t.header.batch = 0; }},
          {"batch: expected 1 to 4096, got 4097", [](Tables& t) { t.header.batch = 4097; }},
          {"arena: expected 0 to 67108864, got 67108880", [](Tables& t) { t.header.arena = (1U << 26) + 16; }},
          {"arena: expected 352 to 352, got 368", [](Tables& t) { t.header.arena += 16; }},
          {"planes: expected 1 to 2, got 0", [](Tables& t) { t.header.planes = 0; }},
          {"planes: expected 1 to 2, got 3", [](Tables& t) { t.header.planes = 3; }},
          {"header: expected zeros after its numbers", [](Tables& t) { t.header.zero[0] = 1; }},
          {"header: expected zeros after its numbers", [](Tables& t) { t.header.zero[1] = 1; }},
          {"name: expected at most 27 bytes", [](Tables& t) { std::memset(t.header.name, 'x', sizeof t.header.name); }},
          {"name: expected zeros after its end", [](Tables& t) { t.header.name[20] = 'x'; }},
          {"name: expected UTF-8 without control characters", [](Tables& t) { t.header.name[2] = '\n'; }},
          {"tables: 69168 bytes do not fit the file", [](Tables& t) { t.header.tensors = 1400; }},
          {"tables: 50333616 bytes do not fit the file", [](Tables& t) { t.header.tensors = 1U << 20; }},
      });
}

TEST(tensors_are_checked) {
  const auto first = [](void (*change)(lram::TensorEntry&)) { return [change](Tables& t) { change(t.tensors[1]); }; };
  expect_refused(
      small(),
      {
          {"tensor 1: layout: unknown: 5", first([](auto& e) { e.layout = 5; })},
          {"tensor 1: layout: unknown: 513", first([](auto& e) { e.layout = 0x201; })},
          {"tensor 1: role: expected 0 to 0, got 1", first([](auto& e) { e.role = 1; })},
          {"tensor 1: number: expected 1 to 1, got 0", first([](auto& e) { e.number = 0; })},
          {"tensor 1: parts: expected 1 to 1, got 0", first([](auto& e) { e.parts = 0; })},
          {"tensor 1: parts: expected 1 to 1, got 2", first([](auto& e) { e.parts = 2; })},
          {"tensor 1: rows: expected 1 to 16777216, got 0", first([](auto& e) { e.rows = 0; })},
          {"tensor 1: rows: expected 1 to 16777216, got 18446744073709551615", first([](auto& e) { e.rows = ~0ULL; })},
          {"tensor 1: cols: expected 1 to 16777216, got 0", first([](auto& e) { e.cols = 0; })},
          {"tensor 1: cols: expected 1 to 16777216, got 4294967316", first([](auto& e) { e.cols |= 1ULL << 32; })},
          {"tensor 1: bytes: expected 80, got 84", first([](auto& e) { e.bytes += 4; })},
          {"tensor 1: bytes: expected 1125899906842624, got 80",  // 2^24 times 2^24 floats
           first([](auto& e) { e.rows = e.cols = 1U << 24; })},
          {"tensor 1: offset: 4 with 80 bytes does not lie in the file", first([](auto& e) { e.offset = 4; })},
          {"tensor 1: offset: 64 with 80 bytes does not lie in the file", first([](auto& e) { e.offset = 64; })},
          {"tensor 1: offset: 18446744073709551552 with 80 bytes does not lie in the file",
           first([](auto& e) { e.offset = ~63ULL; })},
          {"tensor 1: offset: 1073741824 with 80 bytes does not lie in the file",
           first([](auto& e) { e.offset = 1U << 30; })},
      });
}

TEST(buffers_are_checked) {
  const auto chosen = [](void (*change)(lram::BufferEntry&)) {
    return [change](Tables& t) { change(buffer_of(t, kChoose, 0)); };
  };
  expect_refused(
      small(),
      {
          {"buffer 6: kind: expected 0 to 2, got 3", chosen([](auto& b) { b.kind = 3; })},
          {"buffer 6: stride: expected 16 to 16777216, got 0", chosen([](auto& b) { b.stride = 0; })},
          {"buffer 6: stride: expected 16 to 16777216, got 4294967280", chosen([](auto& b) { b.stride = kHuge - 15; })},
          {"buffer 6: stride: expected a multiple of 16, got 40", chosen([](auto& b) { b.stride = 40; })},
          {"buffer 6: expected a zero at its end", chosen([](auto& b) { b.zero = 1; })},
          {"buffer 6: number: expected to lie within the arena, got 8", chosen([](auto& b) { b.number = 8; })},
          {"buffer 6: number: expected to lie within the arena, got 400", chosen([](auto& b) { b.number = 400; })},
          {"buffer 6: number: expected to lie within the arena, got 4294967264",
           chosen([](auto& b) { b.number = kHuge - 31; })},
          {"buffer 6: number: expected to lie within the arena, got 64", chosen([](auto& b) { b.stride = kMost; })},
          {"buffer 3: number: no such state: 2", [](Tables& t) { buffer_of(t, kChoose, 3).number = 2; }},
          {"buffer 3: stride: expected 16 to 16777216, got 0", [](Tables& t) { buffer_of(t, kChoose, 3).stride = 0; }},
          {"buffer 3: stride: expected 32 to 32, got 48", [](Tables& t) { buffer_of(t, kChoose, 3).stride = 48; }},
          {"buffer 3: stride: expected 16 to 16, got 32", [](Tables& t) { buffer_of(t, kChoose, 3).number = 1; }},
          {"buffer 5: number: no such tensor: 4294967295", [](Tables& t) { buffer_of(t, kChoose, 2).number = kHuge; }},
          {"buffer 5: stride: expected 0 to 0, got 16", [](Tables& t) { buffer_of(t, kChoose, 2).stride = 16; }},
      });
}

TEST(fields_are_checked) {
  const auto of = [](int field, void (*change)(lram::FieldEntry&)) {
    return [field, change](Tables& t) { change(t.fields[field]); };
  };
  expect_refused(
      small(),
      {
          {"field 0: name: expected 1 to 71 bytes", of(kObservation, [](auto& f) { std::memset(f.name, 0, 72); })},
          {"field 0: name: expected 1 to 71 bytes", of(kObservation, [](auto& f) { std::memset(f.name, 'x', 72); })},
          {"field 0: name: expected zeros after its end", of(kObservation, [](auto& f) { f.name[71] = 'x'; })},
          {"field 0: name: expected UTF-8 without control characters",
           of(kObservation, [](auto& f) { f.name[0] = '\x80'; })},
          {"field 3: name: an earlier field has it, too: unread",
           [](Tables& t) { std::memcpy(t.fields[kAction].name, t.fields[kUnread].name, 72); }},
          {"field 6: name: an earlier field has it, too: observation",
           [](Tables& t) { std::memcpy(t.fields[kSteps].name, t.fields[kObservation].name, 72); }},
          {"field 0: element: expected 0 to 2, got 3", of(kObservation, [](auto& f) { f.element = 3; })},
          {"field 5: element: expected 0 to 0, got 1", of(kHidden, [](auto& f) { f.element = 1; })},
          {"field 0: rank: expected 0 to 7, got 8", of(kObservation, [](auto& f) { f.rank = 8; })},
          {"field 0: read: expected 0 to 1, got 2", of(kObservation, [](auto& f) { f.read = 2; })},
          {"field 3: read: expected 0 to 0, got 1", of(kAction, [](auto& f) { f.read = 1; })},
          {"field 0: extents: expected 1 to 16777216, got 0", of(kObservation, [](auto& f) { f.rank = 2; })},
          {"field 0: extents: expected 0 to 0, got 20", of(kObservation, [](auto& f) { f.rank = 0; })},
          {"field 0: extents: expected 1 to 16777216, got 4294967295",
           of(kObservation, [](auto& f) { f.extents[0] = kHuge; })},
          {"field 0: size: expected 1 to 16777216, got 281474976710656", of(kObservation,
                                                                            [](auto& f) {
                                                                              f.rank = 7;
                                                                              for (std::uint32_t& extent : f.extents)
                                                                                extent = kMost;
                                                                            })},
          {"field 0: 33 floats from 0 on are not in a buffer of 32",
           of(kObservation, [](auto& f) { f.extents[0] = 33; })},
          {"field 0: 20 floats from 4294967295 on are not in a buffer of 32",
           of(kObservation, [](auto& f) { f.place.offset = kHuge; })},
          {"field 0: no such buffer: 4294967295", of(kObservation, [](auto& f) { f.place.buffer = kHuge; })},
          {"field 0: buffer 3 is not to be written to", of(kObservation, [](auto& f) { f.place.buffer = 3; })},
          {"field 2: buffer 5 is not to be written to", of(kUnread, [](auto& f) { f.place.buffer = 5; })},
          {"field 5: 20 floats from 45 on are not in a buffer of 64",
           [](Tables& t) { t.fields[kHidden].place = {t.instructions[kDense].operands[0].buffer, 45}; }},
          {"field 1: is_first: expected one float", of(kIsFirst, [](auto& f) { f.element = 2; })},
          {"field 1: is_first: expected one float", of(kIsFirst,
                                                       [](auto& f) {
                                                         f.rank = 1;
                                                         f.extents[0] = 2;
                                                       })},
          {"field 0: initial: expected 0 where it is not what a state starts as",
           of(kObservation, [](auto& f) { f.initial = 1; })},
          {"field 3: initial: expected 0 where it is not what a state starts as",
           of(kAction, [](auto& f) { f.initial = std::nanf(""); })},
          {"field 5: initial: expected 0 where it is not what a state starts as",
           of(kHidden, [](auto& f) { f.initial = 1; })},
          {"field 4: initial_tensor: expected 0 to 0, got 1", of(kChoice, [](auto& f) { f.initial_tensor = 1; })},
          {"field 5: initial_tensor: expected 0 to 9, got 10", of(kHidden, [](auto& f) { f.initial_tensor = 10; })},
          {"field 6: initial_tensor: expected 1 plain floats", of(kSteps,
                                                                  [](auto& f) {
                                                                    f.initial = 0;
                                                                    f.initial_tensor = 1;
                                                                  })},
          {"field 5: initial_tensor: expected 20 plain floats",
           [](Tables& t) { t.fields[kHidden].initial_tensor = 1 + buffer_of(t, kDense, 2).number; }},
          {"field 6: initial: expected finite numbers", of(kSteps, [](auto& f) { f.initial = HUGE_VALF; })},
          {"field 5: initial: expected finite numbers",
           [](Tables& t) { numbers_of<float>(t, t.tensors[0])[19] = std::numeric_limits<float>::quiet_NaN(); }},
      });
}

TEST(instructions_are_checked) {
  const auto of = [](int instruction, void (*change)(lram::InstructionEntry&)) {
    return [instruction, change](Tables& t) { change(t.instructions[instruction]); };
  };
  expect_refused(small(), {
                              {"instruction 0: operation: unknown: 6", of(kChoose, [](auto& i) { i.operation = 6; })},
                              {"instruction 0: sizes: expected 0 to 16777216, got 4294967295",
                               of(kChoose, [](auto& i) { i.sizes[3] = kHuge; })},
                              // results
                              {"instruction 0: result: no such buffer: 4294967295",
                               of(kChoose, [](auto& i) { i.operands[0].buffer = kHuge; })},
                              {"instruction 0: result: buffer 3 is not to be written to",
                               of(kChoose, [](auto& i) { i.operands[0].buffer = 3; })},
                              {"instruction 5: result: buffer 5 is not to be written to",
                               of(kCopy, [](auto& i) { i.operands[0].buffer = 5; })},
                              {"instruction 0: result: 20 floats from 13 on are not in a buffer of 32",
                               of(kChoose, [](auto& i) { i.operands[0].offset = 13; })},
                              // of numbers
                              {"instruction 0: function: expected 0 to 43, got 44",
                               of(kChoose, [](auto& i) { i.function = 44; })},
                              {"instruction 0: sizes: expected 1 to 16777216, got 0",
                               of(kChoose, [](auto& i) { i.sizes[0] = 0; })},
                              {"instruction 0: sizes: expected 1 to 16777216, got 0",
                               of(kChoose, [](auto& i) { i.sizes[1] = 0; })},
                              {"instruction 0: sizes: expected 0 to 7, got 8",
                               of(kChoose, [](auto& i) { i.sizes[5] = 8; })},
                              {"instruction 7: sizes: expected 0 to 1, got 3",
                               of(kTangent, [](auto& i) { i.sizes[5] = 3; })},
                              {"instruction 8: sizes it has not: expected 0 to 0, got 1",
                               of(kAdd, [](auto& i) { i.sizes[4] = 1; })},
                              {"instruction 0: result: 281474976710656 floats from 0 on are not in a buffer of 32",
                               of(kChoose, [](auto& i) { i.sizes[0] = i.sizes[1] = kMost; })},
                              {"instruction 0: operand 2: 21 floats from 0 on are not in a buffer of 20",
                               of(kChoose, [](auto& i) { i.sizes[1] = 21; })},
                              {"instruction 0: operand 1: 16777217 floats from 0 on are not in a buffer of 16",
                               of(kChoose,
                                  [](auto& i) {
                                    i.sizes[0] = 2;
                                    i.sizes[1] = 10;
                                    i.sizes[2] = kMost;
                                  })},
                              {"instruction 0: operand 3: 29 floats from 4 on are not in a buffer of 32",
                               of(kChoose,
                                  [](auto& i) {
                                    i.sizes[0] = 4;
                                    i.sizes[1] = 5;
                                    i.sizes[4] = 8;
                                    i.operands[3].offset = 4;
                                  })},
                              {"instruction 7: expected 1 operands",
                               of(kTangent, [](auto& i) { i.operands[2] = {0, 0}; })},
                              {"instruction 7: expected 1 operands",
                               of(kTangent, [](auto& i) { i.operands[3].offset = 1; })},
                              {"instruction 0: operand 3: no such buffer: 4294967295",
                               of(kChoose, [](auto& i) { i.operands[3].buffer = lram::kNowhere; })},
                              {"instruction 0: operand 2: expected plain floats",
                               [](Tables& t) {
                                 t.instructions[kChoose].operands[2] = t.instructions[kDense].operands[2];
                               }},
                              // copies
                              {"instruction 5: function: expected 0 to 0, got 1",
                               of(kCopy, [](auto& i) { i.function = 1; })},
                              {"instruction 5: sizes it has not: expected 0 to 0, got 1",
                               of(kCopy, [](auto& i) { i.sizes[1] = 1; })},
                              {"instruction 5: result: 17 floats from 0 on are not in a buffer of 16",
                               of(kCopy, [](auto& i) { i.sizes[0] = 17; })},
                              {"instruction 5: operand 1: 3 floats from 14 on are not in a buffer of 16",
                               of(kCopy, [](auto& i) { i.operands[1].offset = 14; })},
                              {"instruction 5: expected 1 operands",
                               of(kCopy, [](auto& i) { i.operands[2] = i.operands[1]; })},
                              // gathering
                              {"instruction 1: function: expected 0 to 0, got 1",
                               of(kGather, [](auto& i) { i.function = 1; })},
                              {"instruction 1: operand 1: 33 floats from 0 on are not in a buffer of 32",
                               of(kGather, [](auto& i) { i.sizes[1] = 33; })},
                              {"instruction 1: operand 2: expected 31 places",
                               of(kGather, [](auto& i) { i.sizes[0] = 31; })},
                              {"instruction 1: operand 2: expected 32 places",
                               [](Tables& t) {
                                 t.instructions[kGather].operands[2] = t.instructions[kDense].operands[2];
                               }},
                              {"instruction 1: operand 2: expected a tensor",
                               of(kGather, [](auto& i) { i.operands[2] = i.operands[1]; })},
                              {"instruction 1: operand 2: expected a tensor",
                               of(kGather, [](auto& i) { i.operands[2].offset = 1; })},
                              {"instruction 1: operand 2: expected a tensor",
                               of(kGather, [](auto& i) { i.operands[2].buffer = kHuge; })},
                              {"instruction 1: operand 2: expected places below 20, got 20",
                               [](Tables& t) { numbers_of<std::int32_t>(t, tensor_of(t, kGather, 2))[31] = 20; }},
                              {"instruction 1: operand 2: expected places below 20, got -2",
                               [](Tables& t) { numbers_of<std::int32_t>(t, tensor_of(t, kGather, 2))[0] = -2; }},
                              {"instruction 1: operand 2: expected places below 19, got 19",
                               of(kGather, [](auto& i) { i.sizes[1] = 19; })},
                              {"instruction 1: operand 3: 1 floats from 1 on are not in a buffer of 1",
                               of(kGather, [](auto& i) { i.operands[3].offset = 1; })},
                              {"instruction 1: sizes it has not: expected 0 to 0, got 3",
                               of(kGather, [](auto& i) { i.sizes[2] = 3; })},
                              // matrices
                              {"instruction 2: function: expected 0 to 0, got 1",
                               of(kDense, [](auto& i) { i.function = 1; })},
                              {"instruction 2: sizes: expected 1 to 65536, got 0",
                               of(kDense, [](auto& i) { i.sizes[0] = 0; })},
                              {"instruction 2: sizes: expected 1 to 65536, got 65537",
                               of(kDense, [](auto& i) { i.sizes[0] = 65537; })},
                              {"instruction 2: sizes: expected 1 to 16777216, got 0",
                               of(kDense, [](auto& i) { i.sizes[1] = 0; })},
                              {"instruction 2: sizes: expected 1 to 16777216, got 0",
                               of(kDense, [](auto& i) { i.sizes[2] = 0; })},
                              {"instruction 2: operand 2: expected a tiled matrix of 40 x 15",
                               of(kDense, [](auto& i) { i.sizes[2] = 15; })},
                              {"instruction 2: operand 2: expected a tiled matrix of 41 x 16",
                               of(kDense, [](auto& i) { i.sizes[1] = 41; })},
                              {"instruction 2: operand 2: expected a tiled matrix of 40 x 16",
                               of(kDense, [](auto& i) { i.operands[2] = i.operands[3]; })},
                              {"instruction 2: operand 2: expected a tensor",
                               of(kDense, [](auto& i) { i.operands[2] = i.operands[1]; })},
                              {"instruction 2: operand 2: expected a tensor",
                               of(kDense, [](auto& i) { i.operands[2].offset = 64; })},
                              {"instruction 2: sizes: expected codes of a multiple of 16 columns, got 15",
                               [](Tables& t) {
                                 t.instructions[kDense].sizes[2] = 15;
                                 tensor_of(t, kDense, 2).cols = 15;  // which have as many bytes
                               }},
                              {"instruction 2: result: 64 floats from 16 on are not in a buffer of 64",
                               of(kDense, [](auto& i) { i.operands[0].offset = 16; })},
                              {"instruction 2: operand 1: 16 floats from 17 on are not in a buffer of 32",
                               of(kDense, [](auto& i) { i.operands[1].offset = 17; })},
                              {"instruction 2: operand 3: 64 floats from 1 on are not in a buffer of 64",
                               of(kDense, [](auto& i) { i.operands[3].offset = 1; })},
                              {"instruction 2: operand 3: expected a tensor, which all rows share",
                               of(kDense, [](auto& i) { i.operands[3] = i.operands[0]; })},
                              {"instruction 2: sizes it has not: expected 0 to 0, got 1",
                               of(kDense, [](auto& i) { i.sizes[5] = 1; })},
                              // of several tokens
                              {"instruction 6: result: expected a buffer of its own",  // the next row's begins
                                                                                       // elsewhere
                               [](Tables& t) {
                                 buffer_of(t, kTokens, 0).stride += 16;
                                 t.header.arena += 16;
                                 for (std::uint32_t i = 0; i < t.header.buffers; ++i)
                                   if (t.buffers[i].kind == 0 && t.buffers[i].number > buffer_of(t, kTokens, 0).number)
                                     t.buffers[i].number += 16;
                               }},
                              {"instruction 6: operand 1: expected a buffer of its own",
                               of(kTokens, [](auto& i) { i.sizes[3] = 15; })},
                              {"instruction 6: operand 1: expected a buffer of its own",
                               of(kTokens, [](auto& i) { i.sizes[3] = 0; })},
                              {"instruction 6: operand 1: 33 floats from 0 on are not in a buffer of 32",
                               of(kTokens, [](auto& i) { i.sizes[3] = 17; })},
                              {"instruction 6: operand 1: 16777232 floats from 0 on are not in a buffer of 32",
                               of(kTokens, [](auto& i) { i.sizes[3] = kMost; })},
                              {"instruction 6: result: 96 floats from 0 on are not in a buffer of 64",
                               of(kTokens, [](auto& i) { i.sizes[0] = 3; })},
                              {"instruction 6: operand 1: 32 floats from 1 on are not in a buffer of 32",
                               of(kTokens, [](auto& i) { i.operands[1].offset = 1; })},
                              // reductions
                              {"instruction 3: function: expected 0 to 5, got 6",
                               of(kReduce, [](auto& i) { i.function = 6; })},
                              {"instruction 3: sizes: expected 1 to 16777216, got 0",
                               of(kReduce, [](auto& i) { i.sizes[1] = 0; })},
                              {"instruction 3: result: 17 floats from 0 on are not in a buffer of 16",
                               of(kReduce, [](auto& i) { i.sizes[0] = 17; })},
                              {"instruction 3: operand 1: 65 floats from 0 on are not in a buffer of 64",
                               of(kReduce, [](auto& i) { i.sizes[1] = 65; })},
                              {"instruction 3: operand 1: 268435456 floats from 0 on are not in a buffer of 64",
                               of(kReduce,
                                  [](auto& i) {
                                    i.sizes[0] = 16;
                                    i.sizes[1] = kMost;
                                  })},
                              {"instruction 3: sizes it has not: expected 0 to 0, got 1",
                               of(kReduce, [](auto& i) { i.sizes[2] = 1; })},
                              {"instruction 3: expected 1 operands",
                               of(kReduce, [](auto& i) { i.operands[3] = {0, 0}; })},
                              // products
                              {"instruction 4: function: expected 0 to 0, got 1",
                               of(kProduct, [](auto& i) { i.function = 1; })},
                              {"instruction 4: sizes: expected 1 to 16384, got 0",
                               of(kProduct, [](auto& i) { i.sizes[2] = 0; })},
                              {"instruction 4: sizes: expected 1 to 16384, got 16385",
                               of(kProduct, [](auto& i) { i.sizes[1] = 16385; })},
                              {"instruction 4: result: 4398046511104 floats from 0 on are not in a buffer of 16",
                               of(kProduct,
                                  [](auto& i) { i.sizes[0] = i.sizes[1] = i.sizes[2] = i.sizes[3] = 16384; })},
                              {"instruction 4: operand 1: 36 floats from 0 on are not in a buffer of 32",
                               of(kProduct, [](auto& i) { i.sizes[2] = 18; })},
                              {"instruction 4: operand 2: 36 floats from 0 on are not in a buffer of 32",
                               of(kProduct, [](auto& i) { i.sizes[2] = 6; })},
                              {"instruction 4: sizes it has not: expected 0 to 0, got 1",
                               of(kProduct, [](auto& i) { i.sizes[4] = 1; })},
                              {"instruction 4: expected 2 operands",
                               of(kProduct, [](auto& i) { i.operands[3] = {0, 0}; })},
                          });
  CHECK(try_open(small_program(Layout::tiled_int4)) == LRAM_OK);
  expect_refused(small_program(Layout::tiled_int4),
                 {{"instruction 2: sizes: expected codes of a multiple of 16 columns, got 17", [](Tables& t) {
                     t.instructions[kDense].sizes[2] = 17;
                     tensor_of(t, kDense, 2).cols = 17;
                   }}});
}

// Buffers may share memory. But nothing may be read that this step, and this row, did not write: rows, threads, and
// steps before would be seen in the results.
TEST(what_was_not_written_is_not_read) {
  expect_refused(
      small(),
      {
          {"instruction 0: operand 1: 1 floats from 0 on in buffer 2 are not all written before",
           [](Tables& t) { t.instructions[kChoose].operands[1] = t.fields[kUnread].place; }},
          {"instruction 0: operand 1: 1 floats from 0 on in buffer 1 are not all written before",
           [](Tables& t) { t.fields[kIsFirst].read = 0; }},
          {"instruction 2: operand 1: 16 floats from 5 on in buffer 0 are not all written before",  // what fills it up
           [](Tables& t) { t.instructions[kDense].operands[1].offset = 5; }},
          {"instruction 1: operand 1: 20 floats from 0 on in buffer 10 are not all written before",  // only later
           [](Tables& t) { t.instructions[kGather].operands[1] = t.instructions[kDense].operands[0]; }},
          {"field 3: 3 floats from 1 on in buffer 15 are not all written before",
           [](Tables& t) { t.fields[kAction].place.offset = 1; }},
          {"field 5: 20 floats from 12 on in buffer 0 are not all written before",
           [](Tables& t) { t.fields[kHidden].place = {0, 12}; }},
          {"instruction 0: operand 3: 1 floats from 4 on in buffer 1 are not all written before",  // the second time
           [](Tables& t) {
             t.instructions[kChoose].sizes[0] = 2;
             t.instructions[kChoose].sizes[1] = 10;
             t.instructions[kChoose].sizes[4] = 4;
             t.instructions[kChoose].sizes[5] = 2;
             t.instructions[kChoose].operands[3] = t.fields[kIsFirst].place;
           }},
      });
}

TEST(what_was_destroyed_is_not_read) {
  const auto same_memory = [](int instruction, int other) {
    return [=](Tables& t) { buffer_of(t, instruction, 0).number = buffer_of(t, other, 0).number; };
  };
  expect_refused(
      small(), {
                   // the memory has rows of another length by then
                   {"instruction 6: operand 1: 16 floats from 0 on in buffer 7 are not all written before",
                    same_memory(kCopy, kGather)},
                   {"field 3: 3 floats from 0 on in buffer 15 are not all written before", same_memory(kCopy, kTokens)},
                   {"field 5: 20 floats from 0 on in buffer 19 are not all written before",  // or begins elsewhere
                    [](Tables& t) {
                      t.header.arena -= 16;
                      buffer_of(t, kAdd, 0).number -= 16;
                    }},
                   {"instruction 0: operand 1: 1 floats from 0 on in buffer 1 are not all written before",  // inputs
                    [](Tables& t) {
                      buffer_of(t, kChoose, 1).number = 0;
                      std::swap(t.fields[kObservation], t.fields[kIsFirst]);
                    }},
               });
}

TEST(results_are_not_written_over_what_they_are_made_of) {
  const auto same_memory = [](int instruction, int operand) {
    return [=](Tables& t) { buffer_of(t, instruction, 0).number = buffer_of(t, instruction, operand).number; };
  };
  const auto same_place = [](int instruction, int operand, std::uint32_t offset) {
    return [=](Tables& t) {
      t.instructions[instruction].operands[0] = behind(t.instructions[instruction].operands[operand], offset);
    };
  };
  expect_refused(small(),
                 {
                     // another length of rows
                     {"instruction 2: operand 1: the result would be written over it", same_memory(kDense, 1)},
                     {"instruction 3: operand 1: the result would be written over it", same_memory(kReduce, 1)},
                     {"instruction 4: operand 2: the result would be written over it", same_memory(kProduct, 2)},
                     {"instruction 6: operand 1: the result would be written over it", same_memory(kTokens, 1)},
                     {"instruction 7: operand 1: the result would be written over it", same_memory(kTangent, 1)},
                     // the same rows
                     {"instruction 1: operand 1: the result would be written over it", same_place(kGather, 1, 0)},
                     {"instruction 3: operand 1: the result would be written over it", same_place(kReduce, 1, 2)},
                     {"instruction 4: operand 1: the result would be written over it", same_place(kProduct, 1, 2)},
                     {"instruction 5: operand 1: the result would be written over it", same_place(kCopy, 1, 0)},
                     {"instruction 5: operand 1: the result would be written over it", same_place(kCopy, 1, 2)},
                     {"instruction 7: operand 1: the result would be written over it", same_place(kTangent, 1, 1)},
                     {"instruction 7: operand 1: the result would be written over it", same_place(kTangent, 1, 19)},
                 });
  std::vector<std::uint8_t> file = small();
  Tables tables(file.data());
  same_place(kTangent, 1, 0)(tables);  // number by number, in its place
  tables.fields[kHidden].place = tables.instructions[kTangent].operands[0];
  seal(file);
  CHECK(try_open(file) == LRAM_OK);
  file = small();
  Tables beside(file.data());
  same_place(kReduce, 1, 3)(beside);  // what is not read
  beside.fields[kChoice].place = beside.instructions[kReduce].operands[0];
  seal(file);
  CHECK(try_open(file) == LRAM_OK);
}

int main() { return run_all(); }
