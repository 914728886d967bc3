#include "program/program.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <string>
#include <utility>

#include "error.h"
#include "interface.h"
#include "program/program_episodes.h"
#include "text.h"

namespace lram {
namespace {

constexpr std::uint32_t kMostSize = 1U << 24;
constexpr std::size_t kSmall = std::size_t{1}
                               << 20;  // multiplications that one thread does sooner than it wakes another

std::string number(std::uint64_t value) { return std::to_string(value); }

MappedFile mapped(MappedFile file, const lram_options& options) {
  file.map(kProgramMagic, kOldestProgramVersion, kProgramVersion, sizeof(ProgramHeader), huge_weights(options));
  if (options.verify != 0) file.check_checksum();
  if (options.lock_memory != 0) file.lock();
  return file;
}

}  // namespace

std::unique_ptr<Engine> open_program(MappedFile file, const lram_options& options) {
  return std::make_unique<Program>(std::move(file), options);
}

Program::Program(MappedFile file, const lram_options& options)
    : Engine(options), file_(mapped(std::move(file), options)) {
  read_tables();
  check_tensors();
  check_buffers();
  read_fields();
  if (interface() != nullptr) rate_ = read_interface(file_, *interface(), inputs_, outputs_);
  check_state_buffers();
  const auto* instructions = reinterpret_cast<const InstructionEntry*>(
      reinterpret_cast<const BufferEntry*>(fields_ + header_->inputs + header_->outputs + header_->states) +
      header_->buffers);
  for (std::uint32_t i = 0; i < header_->instructions; ++i)
    read_instruction(instructions[i], "instruction " + number(i));
  check_results();
  const int shares = work_ > kSmall ? most_tiles_ : 1;
  start_threads(std::max(static_cast<int>(header_->batch), shares));
}

void Program::within(const std::string& name, std::uint64_t value, std::uint64_t low, std::uint64_t high) const {
  if (value < low || value > high)
    file_.refuse(name + ": expected " + number(low) + " to " + number(high) + ", got " + number(value));
}

void Program::check_text(const char* text, std::size_t room, bool may_be_empty, const std::string& name) const {
  const char* end = std::find(text, text + room, '\0');
  const auto size = static_cast<std::size_t>(end - text);
  if (size == room || (size == 0 && !may_be_empty))
    file_.refuse(name + ": expected " + (may_be_empty ? "at most " : "1 to ") + number(room - 1) + " bytes");
  if (std::any_of(end, text + room, [](char c) { return c != '\0'; }))
    file_.refuse(name + ": expected zeros after its end");
  if (!is_printable_utf8(text, size)) file_.refuse(name + ": expected UTF-8 without control characters");
}

void Program::read_tables() {
  header_ = reinterpret_cast<const ProgramHeader*>(file_.bytes());
  const ProgramHeader& h = *header_;
  within("inputs", h.inputs, 1, kMostFields);
  within("outputs", h.outputs, 1, kMostFields);
  within("states", h.states, 0, kMostFields);
  within("buffers", h.buffers, 1, kMostBuffers);
  within("instructions", h.instructions, 0, kMostBuffers);
  within("tensors", h.tensors, 0, kMostBuffers);
  within("batch", h.batch, 1, 4096);
  within("arena", h.arena, 0, kMostArena);
  within("planes", h.planes, 1, 2);
  if (h.zero[0] != 0 || h.zero[1] != 0) file_.refuse("header: expected zeros after its numbers");
  check_text(h.name, sizeof h.name, true, "name");
  const std::uint64_t fields = std::uint64_t{h.inputs} + h.outputs + h.states;
  const std::uint64_t end = sizeof(ProgramHeader) + fields * sizeof(FieldEntry) + h.buffers * sizeof(BufferEntry) +
                            std::uint64_t{h.instructions} * sizeof(InstructionEntry) +
                            std::uint64_t{h.tensors} * sizeof(TensorEntry);
  if (end > file_.size()) file_.refuse("tables: " + number(end) + " bytes do not fit the file");
  fields_ = reinterpret_cast<const FieldEntry*>(file_.bytes() + sizeof(ProgramHeader));
  const auto* buffers = reinterpret_cast<const BufferEntry*>(fields_ + fields);
  buffers_.assign(buffers, buffers + h.buffers);
  tensors_ = reinterpret_cast<const TensorEntry*>(reinterpret_cast<const InstructionEntry*>(buffers + h.buffers) +
                                                  h.instructions);
}

void Program::check_tensors() {
  const auto data =
      static_cast<std::uint64_t>(reinterpret_cast<const std::uint8_t*>(tensors_ + header_->tensors) - file_.bytes());
  for (std::uint32_t i = 0; i < header_->tensors; ++i) {
    const TensorEntry& e = tensors_[i];
    const std::string name = "tensor " + number(i);
    if (layout_of(e) > kLastLayout) file_.refuse(name + ": layout: unknown: " + number(e.layout));
    const bool weights = &e != interface();
    if (weights) within(name + ": role", e.role, 0, 0);
    within(name + ": number", e.number, i, i);
    within(name + ": parts", e.parts, 1, 1);
    within(name + ": rows", e.rows, 1, kMostSize);
    within(name + ": cols", e.cols, 1, kMostSize);
    const std::uint64_t expected = tensor_bytes(layout_of(e), 1, e.rows, e.cols);
    if (e.bytes != expected) file_.refuse(name + ": bytes: expected " + number(expected) + ", got " + number(e.bytes));
    if (e.offset % kAlignment != 0 || e.offset < data || e.offset > file_.size() || e.bytes > file_.size() - e.offset)
      file_.refuse(name + ": offset: " + number(e.offset) + " with " + number(e.bytes) +
                   " bytes does not lie in the file");
    if (weights) weight_bytes_ += e.bytes;
  }
}

void Program::check_buffers() const {
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    const BufferEntry& b = buffers_[i];
    const std::string name = "buffer " + number(i);
    const bool constant = b.kind == static_cast<std::uint32_t>(BufferKind::constant);
    within(name + ": kind", b.kind, 0, static_cast<std::uint32_t>(BufferKind::constant));
    within(name + ": stride", b.stride, constant ? 0 : 16, constant ? 0 : kMostSize);
    if (b.stride % 16 != 0) file_.refuse(name + ": stride: expected a multiple of 16, got " + number(b.stride));
    if (b.zero != 0) file_.refuse(name + ": expected a zero at its end");
    if (constant) {
      if (b.number >= header_->tensors) file_.refuse(name + ": number: no such tensor: " + number(b.number));
    } else if (b.kind == static_cast<std::uint32_t>(BufferKind::state)) {
      if (b.number >= header_->states) file_.refuse(name + ": number: no such state: " + number(b.number));
    } else if (b.number % 16 != 0 || b.number > header_->arena || b.stride > header_->arena - b.number) {
      file_.refuse(name + ": number: expected to lie within the arena, got " + number(b.number));
    } else {
      end = std::max(end, std::uint64_t{b.number} + b.stride);
    }
  }
  within("arena", header_->arena, end, end);  // memory that no buffer has is not asked for
}

void Program::check_state_buffers() const {
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    const BufferEntry& b = buffers_[i];
    if (b.kind != static_cast<std::uint32_t>(BufferKind::state)) continue;
    const std::uint64_t room = (state_sizes_[b.number] + 15) / 16 * 16;
    within("buffer " + number(i) + ": stride", b.stride, room, room);
  }
}

const float* Program::constant(std::uint32_t tensor) const {
  return reinterpret_cast<const float*>(file_.bytes() + tensors_[tensor].offset);
}

const TensorEntry* Program::interface() const {
  if (header_->tensors == 0 || header_->start.version == kOldestProgramVersion) return nullptr;
  const TensorEntry* last = tensors_ + header_->tensors - 1;
  return last->role == kInterface ? last : nullptr;
}

const TensorEntry& Program::tensor_of(const Place& place, const std::string& name) const {
  if (place.buffer >= buffers_.size() ||
      buffers_[place.buffer].kind != static_cast<std::uint32_t>(BufferKind::constant) || place.offset != 0)
    file_.refuse(name + ": expected a tensor");
  return tensors_[buffers_[place.buffer].number];
}

void Program::check_place(const Place& place, std::uint64_t count, bool written, const std::string& name) const {
  if (place.buffer >= buffers_.size()) file_.refuse(name + ": no such buffer: " + number(place.buffer));
  const BufferEntry& b = buffers_[place.buffer];
  if (written && b.kind != static_cast<std::uint32_t>(BufferKind::arena))
    file_.refuse(name + ": buffer " + number(place.buffer) + " is not to be written to");
  std::uint64_t room = b.stride;
  if (b.kind == static_cast<std::uint32_t>(BufferKind::constant)) {
    const TensorEntry& tensor = tensors_[b.number];
    if (tensor.layout != static_cast<std::uint32_t>(Layout::plain_float32))
      file_.refuse(name + ": expected plain floats");
    room = tensor.rows * tensor.cols;
  }
  if (place.offset > room || count > room - place.offset)
    file_.refuse(name + ": " + number(count) + " floats from " + number(place.offset) + " on are not in a buffer of " +
                 number(room));
}

void Program::read_fields() {
  is_first_ = header_->inputs;
  for (std::uint32_t i = 0; i < header_->inputs + header_->outputs + header_->states; ++i) read_field(fields_[i], i);
  relate_outputs();
}

void Program::relate_outputs() {
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    unclamped_.push_back(unclamped_of(outputs_, i));
    outputs_[i].clamps = unclamped_[i] < outputs_.size();
  }
  count_choices(outputs_);
}

void Program::read_field(const FieldEntry& entry, std::uint32_t place) {
  const bool input = place < header_->inputs;
  const bool state = place >= header_->inputs + header_->outputs;
  const std::string where = "field " + number(place);
  check_text(entry.name, sizeof entry.name, false, where + ": name");
  const std::string name(entry.name);
  for (std::uint32_t i = 0; i < place; ++i)
    if (name == fields_[i].name) file_.refuse((where + ": name: an earlier field has it, too: ").append(name));
  within(where + ": element", entry.element, 0, static_cast<std::uint32_t>(state ? Element::float32 : Element::int64));
  within(where + ": rank", entry.rank, 0, kFieldExtents);
  within(where + ": read", entry.read, 0, input ? 1 : 0);
  std::vector<std::size_t> extents;
  std::uint64_t size = 1;
  for (std::uint32_t i = 0; i < kFieldExtents; ++i) {
    within(where + ": extents", entry.extents[i], i < entry.rank ? 1 : 0, i < entry.rank ? kMostSize : 0);
    if (i >= entry.rank) continue;
    extents.push_back(entry.extents[i]);
    size *= entry.extents[i];
    within(where + ": size", size, 1, kMostSize);
  }
  check_place(entry.place, size, input, where);
  if (input && entry.read != 0) written_.add(buffers_[entry.place.buffer], entry.place.offset, size);
  if ((!state || entry.initial_tensor != 0) && !(entry.initial == 0))
    file_.refuse(where + ": initial: expected 0 where it is not what a state starts as");
  within(where + ": initial_tensor", entry.initial_tensor, 0, state ? header_->tensors : 0);
  (input ? input_sizes_ : state ? state_sizes_ : output_sizes_).push_back(size);
  if (!state) {
    (input ? inputs_ : outputs_)
        .push_back({name, static_cast<Element>(entry.element), extents, input && entry.read != 0});
    if (input && name == "is_first") {
      if (size != 1 || entry.element != 0) file_.refuse(where + ": is_first: expected one float");
      is_first_ = place;
    }
  } else {
    const float* initial = nullptr;
    if (entry.initial_tensor != 0) {
      const TensorEntry& tensor = tensors_[entry.initial_tensor - 1];
      if (tensor.layout != 0 || tensor.rows * tensor.cols != size)
        file_.refuse(where + ": initial_tensor: expected " + number(size) + " plain floats");
      initial = constant(entry.initial_tensor - 1);
    }
    for (std::uint64_t i = 0; i < (initial == nullptr ? 1 : size); ++i)
      if (!std::isfinite(initial == nullptr ? entry.initial : initial[i]))
        file_.refuse(where + ": initial: expected finite numbers");
    state_fields_.push_back({name, extents, entry.initial, initial});
  }
}

void Program::check_results() const {
  for (std::uint32_t i = header_->inputs; i < header_->inputs + header_->outputs + header_->states; ++i) {
    const std::uint32_t output = i - header_->inputs;
    const std::uint64_t size =
        output < header_->outputs ? output_sizes_[output] : state_sizes_[output - header_->outputs];
    check_written(fields_[i].place, size, "field " + number(i));
  }
}

void Program::check_written(const Place& place, std::uint64_t count, const std::string& name) const {
  const BufferEntry& b = buffers_[place.buffer];
  if (b.kind == static_cast<std::uint32_t>(BufferKind::arena) && !written_.holds(b, place.offset, count))
    file_.refuse(name + ": " + number(count) + " floats from " + number(place.offset) + " on in buffer " +
                 number(place.buffer) + " are not all written before");
}

void Program::check_result(const InstructionEntry& entry, std::uint64_t count, const std::string& name) const {
  check_place(entry.operands[0], count, true, name + ": result");
}

void Program::check_operand(const InstructionEntry& entry, int operand, const Reach& reach, std::uint64_t results,
                            const std::string& name) const {
  const Place& place = entry.operands[operand];
  const Place& result = entry.operands[0];
  const std::string where = name + ": operand " + std::to_string(operand);
  const std::uint64_t count = (reach.times - 1) * reach.step + reach.count;
  check_place(place, count, false, where);
  const BufferEntry& from = buffers_[place.buffer];
  const BufferEntry& to = buffers_[result.buffer];
  if (from.kind != static_cast<std::uint32_t>(BufferKind::arena)) return;
  if (!written_.holds(from, place.offset, count))  // what is not read in between need not be written
    for (std::uint64_t time = 0; time < reach.times; ++time)
      check_written({place.buffer, static_cast<std::uint32_t>(place.offset + time * reach.step)}, reach.count, where);
  const bool same = from.number == to.number && from.stride == to.stride;
  const bool disjoint = place.offset + count <= result.offset || result.offset + results <= place.offset;
  const bool whole = reach.times == 1 || reach.step == reach.count;
  const bool in_place = entry.operation == static_cast<std::uint32_t>(Operation::pointwise) && whole &&
                        count == results && place.offset == result.offset;
  if (in_the_way(from, to) || (same && !disjoint && !in_place))
    file_.refuse(where + ": the result would be written over it");
}

void Program::check_rest(const InstructionEntry& entry, int sizes, int operands, const std::string& name) const {
  const bool function = entry.operation == static_cast<std::uint32_t>(Operation::pointwise) ||
                        entry.operation == static_cast<std::uint32_t>(Operation::reduce);
  if (!function) within(name + ": function", entry.function, 0, 0);
  for (const std::uint32_t* size = entry.sizes + sizes; size != std::end(entry.sizes); ++size)
    within(name + ": sizes it has not", *size, 0, 0);
  for (const Place* place = entry.operands + operands; place != std::end(entry.operands); ++place)
    if (place->buffer != kNowhere || place->offset != 0)
      file_.refuse(name + ": expected " + std::to_string(operands - 1) + " operands");
}

void Program::read_instruction(const InstructionEntry& entry, const std::string& name) {
  Instruction instruction = {entry, {}};
  const std::uint32_t* sizes = entry.sizes;
  for (const std::uint32_t size : entry.sizes) within(name + ": sizes", size, 0, kMostSize);
  std::uint64_t results = sizes[0];
  switch (static_cast<Operation>(entry.operation)) {
    case Operation::pointwise:
      results *= sizes[1];
      check_pointwise(entry, name);
      break;
    case Operation::copy:
      check_result(entry, results, name);
      check_operand(entry, 1, {1, 0, results}, results, name);
      check_rest(entry, 1, 2, name);
      break;
    case Operation::gather:
      check_gather(entry, name);
      break;
    case Operation::dense:
      results = read_dense(instruction, name);
      break;
    case Operation::reduce:
      within(name + ": function", entry.function, 0, kReductions - 1);
      within(name + ": sizes", sizes[1], 1, kMostSize);
      check_result(entry, results, name);
      check_operand(entry, 1, {1, 0, results * sizes[1]}, results, name);
      check_rest(entry, 2, 2, name);
      break;
    case Operation::product:
      for (int i = 0; i < 4; ++i) within(name + ": sizes", sizes[i], 1, 1U << 14);
      results *= std::uint64_t{sizes[1]} * sizes[3];
      check_result(entry, results, name);
      check_operand(entry, 1, {1, 0, std::uint64_t{sizes[0]} * sizes[1] * sizes[2]}, results, name);
      check_operand(entry, 2, {1, 0, std::uint64_t{sizes[0]} * sizes[2] * sizes[3]}, results, name);
      check_rest(entry, 4, 3, name);
      break;
    default:
      file_.refuse(name + ": operation: unknown: " + number(entry.operation));
  }
  written_.add(buffers_[entry.operands[0].buffer], entry.operands[0].offset, results);
  instructions_.push_back(instruction);
}

void Program::check_pointwise(const InstructionEntry& entry, const std::string& name) const {
  within(name + ": function", entry.function, 0, kFunctions - 1);
  const std::uint32_t* sizes = entry.sizes;
  const std::uint64_t times = sizes[0];
  within(name + ": sizes", times, 1, kMostSize);
  within(name + ": sizes", sizes[1], 1, kMostSize);
  const int arguments = arguments_of(static_cast<Function>(entry.function));
  within(name + ": sizes", sizes[5], 0, (1U << arguments) - 1);
  for (int i = arguments; i < 3; ++i) within(name + ": sizes it has not", sizes[2 + i], 0, 0);
  check_result(entry, times * sizes[1], name);
  for (int i = 0; i < arguments; ++i) {
    const std::uint64_t count = (sizes[5] >> i & 1) != 0 ? sizes[1] : 1;
    check_operand(entry, i + 1, {times, sizes[2 + i], count}, times * sizes[1], name);
  }
  check_rest(entry, 6, 1 + arguments, name);
}

void Program::check_gather(const InstructionEntry& entry, const std::string& name) const {
  const std::uint32_t* sizes = entry.sizes;
  check_result(entry, sizes[0], name);
  check_operand(entry, 1, {1, 0, sizes[1]}, sizes[0], name);
  check_operand(entry, 3, {1, 0, 1}, sizes[0], name);
  const TensorEntry& places = tensor_of(entry.operands[2], name + ": operand 2");
  if (places.layout != 0 || places.rows * places.cols != sizes[0])
    file_.refuse(name + ": operand 2: expected " + number(sizes[0]) + " places");
  const auto* from = reinterpret_cast<const std::int32_t*>(file_.bytes() + places.offset);
  for (std::uint32_t i = 0; i < sizes[0]; ++i)
    if (from[i] < -1 || from[i] >= static_cast<std::int64_t>(sizes[1]))
      file_.refuse(name + ": operand 2: expected places below " + number(sizes[1]) + ", got " +
                   std::to_string(from[i]));
  check_rest(entry, 2, 4, name);
}

std::uint64_t Program::read_dense(Instruction& instruction, const std::string& name) {
  const std::uint32_t* sizes = instruction.sizes;
  within(name + ": sizes", sizes[0], 1, 1U << 16);
  within(name + ": sizes", sizes[1], 1, kMostSize);
  within(name + ": sizes", sizes[2], 1, kMostSize);
  const TensorEntry& e = tensor_of(instruction.operands[2], name + ": operand 2");
  const Layout layout = layout_of(e);
  if (layout == Layout::plain_float32 || e.rows != sizes[1] || e.cols != sizes[2])
    file_.refuse(name + ": operand 2: expected a tiled matrix of " + number(sizes[1]) + " x " + number(sizes[2]));
  const Format format = layout == Layout::tiled_int8    ? Format::int8
                        : layout == Layout::tiled_int4  ? Format::int4
                        : layout == Layout::tiled_int8g ? Format::int8g
                                                        : Format::float32;
  if (format != Format::float32 && sizes[2] % 16 != 0)
    file_.refuse(name + ": sizes: expected codes of a multiple of 16 columns, got " + number(sizes[2]));
  if (format == Format::int8) within(name + ": sizes", sizes[2], 1, kMostInt8Columns);
  const int tiles = static_cast<int>((sizes[1] + kTileRows - 1) / kTileRows);
  const std::uint64_t wide = std::uint64_t{static_cast<std::uint32_t>(tiles)} * kTileRows;
  const int planes = (e.layout & kTwoPlanes) != 0 ? 2 : static_cast<int>(header_->planes);
  instruction.matrix = {format,
                        static_cast<int>(sizes[1]),
                        static_cast<int>(sizes[2]),
                        tiles,
                        static_cast<std::size_t>(tile_bytes(layout, e.cols)),
                        file_.bytes() + e.offset,
                        planes};
  const std::uint64_t results = sizes[0] * wide;
  check_result(instruction, results, name);
  check_operand(instruction, 1, {sizes[0], sizes[3], sizes[2]}, results, name);
  check_place(instruction.operands[3], wide, false, name + ": operand 3");
  if (buffers_[instruction.operands[3].buffer].kind != static_cast<std::uint32_t>(BufferKind::constant))
    file_.refuse(name + ": operand 3: expected a tensor, which all rows share");
  if (sizes[0] > 1) {  // tokens of all rows lie one after the other
    if (buffers_[instruction.operands[0].buffer].stride != sizes[0] * wide || instruction.operands[0].offset != 0)
      file_.refuse(name + ": result: expected a buffer of its own");
    if (buffers_[instruction.operands[1].buffer].stride != std::uint64_t{sizes[0]} * sizes[3])
      file_.refuse(name + ": operand 1: expected a buffer of its own");
  }
  most_tokens_ = std::max(most_tokens_, static_cast<int>(sizes[0]));
  most_tiles_ = std::max(most_tiles_, tiles);
  work_ += std::size_t{sizes[0]} * sizes[1] * sizes[2];
  check_rest(instruction, 4, 4, name);
  return results;
}

bool Program::worth_threads(int rows) const { return work_ * static_cast<std::size_t>(rows) > kSmall; }

void Program::describe(lram_description& description) const {
  const ProgramHeader& h = *header_;
  description.batch = static_cast<int>(h.batch);
  description.weight_bytes = weight_bytes_;
  for (const Field& field : inputs_)
    if (field.name == "observation") {
      description.observation_size = field.size();
      description.observation = field.element == Element::uint8 ? LRAM_IMAGE : LRAM_VECTOR;
    }
  for (const Field& field : outputs_) {
    if (field.name == "action") {
      description.action_size = field.size();
      description.action = field.element == Element::int64 ? LRAM_DISCRETE : LRAM_CONTINUOUS;
    }
    if (field.name == "action_logits") description.logits_size = field.size();
  }
  std::copy(std::begin(h.name), std::end(h.name), description.name);
  std::copy(std::begin(h.source_sha256), std::end(h.source_sha256), description.source_sha256);
}

std::unique_ptr<Episodes> Program::start(int batch) { return std::make_unique<ProgramEpisodes>(*this, batch); }

}  // namespace lram
