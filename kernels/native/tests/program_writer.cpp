#include "program_writer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "interface_writer.h"

namespace lram_testing {
namespace {

using lram::BufferKind;
using lram::Layout;

constexpr int kTile = 32;
constexpr std::uint32_t kBatch = 100;

std::uint32_t number(std::size_t value) { return static_cast<std::uint32_t>(value); }
std::uint32_t number(int value) { return static_cast<std::uint32_t>(value); }
std::size_t rounded(std::size_t size, std::size_t unit) { return (size + unit - 1) / unit * unit; }

std::uint32_t size_of(const Extents& extents) {
  return std::accumulate(extents.begin(), extents.end(), 1U, std::multiplies<>());
}

template <class T>
T read(const std::uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// The weight of output `o` of a tile for an input.
float weight_in(Layout layout, const std::uint8_t* tile, int o, int input) {
  const auto scale = [o](const std::uint8_t* scales) { return read<float>(scales + o * 4); };
  if (layout == Layout::tiled_int8) {
    const auto code = static_cast<std::int8_t>(tile[256 + input / 4 * 128 + o * 4 + input % 4]);
    return scale(tile) * static_cast<float>(code);
  }
  if (layout == Layout::tiled_int8g) {
    const std::uint8_t* group = tile + static_cast<std::ptrdiff_t>(input / 128) * (128 + 4096);
    const int within = input % 128;
    const int code = group[128 + within / 4 * 128 + o * 4 + within % 4] - 128;
    return scale(group) * static_cast<float>(code);
  }
  if (layout == Layout::tiled_int4) {
    const std::uint8_t* group = tile + static_cast<std::ptrdiff_t>(input / 64) * (128 + 1024);
    const int within = input % 64;
    const std::uint8_t both = group[128 + within / 8 * 128 + o * 4 + within % 4];
    return scale(group) * static_cast<float>((within % 8 < 4 ? both & 15 : both >> 4) - 8);
  }
  return read<float>(tile + (static_cast<std::ptrdiff_t>(input) * kTile + o) * 4);
}

std::vector<float> normal(std::size_t count, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(random);
  return values;
}

std::vector<std::int32_t> neighbours(int count, int room) {
  std::vector<std::int32_t> places(static_cast<std::size_t>(room), -1);
  std::iota(places.begin(), places.begin() + count, 0);
  return places;
}

template <class T>
void append(std::vector<std::uint8_t>& bytes, const std::vector<T>& values) {
  const auto* begin = reinterpret_cast<const std::uint8_t*>(values.data());
  bytes.insert(bytes.end(), begin, begin + values.size() * sizeof(T));
}

std::vector<double> hyperbolic_tangents(std::vector<double> values) {
  for (double& value : values) value = std::tanh(value);
  return values;
}

}  // namespace

Weights::Weights(Layout of, int rows_, int cols_, int used, unsigned seed)
    : layout(of),
      rows(rows_),
      cols(cols_),
      tiles(random_tiles(layout, rows, cols, used, seed)),
      bias(normal(static_cast<std::size_t>(rows), seed + 1, 0.3F)) {
  const std::uint64_t tile = lram::tile_bytes(layout, number(cols));
  for (int row = 0; row < rows; ++row)
    for (int col = 0; col < cols; ++col)
      values.push_back(
          weight_in(layout, tiles.data() + static_cast<std::size_t>(row / kTile) * tile, row % kTile, col));
}

std::vector<double> Weights::times(const double* x) const {
  std::vector<double> y(bias.begin(), bias.end());
  const float* weight = values.data();
  for (double& sum : y)
    for (int col = 0; col < cols; ++col) sum += static_cast<double>(*weight++) * x[col];
  return y;
}

ProgramWriter::ProgramWriter() {
  std::memcpy(header.start.magic, lram::kProgramMagic, sizeof header.start.magic);
  header.start.version = lram::kProgramVersion;
  header.start.header_bytes = sizeof header;
  header.batch = kBatch;
  header.planes = 2;
  std::memcpy(header.name, "module", 6);
  std::memset(header.source_sha256, 0xcd, sizeof header.source_sha256);
}

namespace {

lram::FieldEntry field(const std::string& name, const Extents& extents, const Place& place, std::uint32_t element) {
  lram::FieldEntry entry = {};
  std::copy_n(name.begin(), std::min(name.size(), sizeof entry.name), entry.name);
  entry.element = element;
  entry.rank = number(extents.size());
  std::copy(extents.begin(), extents.end(), entry.extents);
  entry.place = place;
  return entry;
}

}  // namespace

Place ProgramWriter::input(const std::string& name, const Extents& extents, std::uint32_t element, bool read) {
  const Place place = room(size_of(extents));
  inputs_.push_back(field(name, extents, place, element));
  inputs_.back().read = read ? 1 : 0;
  return place;
}

Place ProgramWriter::state(const std::string& name, const Extents& extents, float initial) {
  states_.push_back(field(name, extents, {}, kFloat32));
  states_.back().initial = initial;
  return add_buffer(BufferKind::state, number(states_.size() - 1), rounded(size_of(extents), 16));
}

Place ProgramWriter::state(const std::string& name, const Extents& extents, const std::vector<float>& initial) {
  const Place place = state(name, extents, 0);
  states_.back().initial_tensor =
      1 + add_tensor(Layout::plain_float32, 1, initial.size(), initial.data(), initial.size() * sizeof(float));
  return place;
}

void ProgramWriter::output(const std::string& name, const Extents& extents, const Place& place, std::uint32_t element) {
  outputs_.push_back(field(name, extents, place, element));
}

void ProgramWriter::next(const Place& place) { states_[next_++].place = place; }

Place ProgramWriter::room(std::size_t floats) {
  const Place place = add_buffer(BufferKind::arena, header.arena, rounded(floats, 16));
  header.arena += buffers_.back().stride;
  return place;
}

Place ProgramWriter::floats(const std::vector<float>& values) {
  const std::size_t bytes = values.size() * sizeof(float);
  return add_buffer(BufferKind::constant, add_tensor(Layout::plain_float32, 1, values.size(), values.data(), bytes), 0);
}

Place ProgramWriter::numbers(const std::vector<std::int32_t>& from) {
  const std::size_t bytes = from.size() * sizeof(std::int32_t);
  return add_buffer(BufferKind::constant, add_tensor(Layout::plain_float32, 1, from.size(), from.data(), bytes), 0);
}

Place ProgramWriter::matrix(const Weights& w, bool two_planes) {
  const std::uint32_t tensor = add_tensor(w.layout, static_cast<std::size_t>(w.rows), static_cast<std::size_t>(w.cols),
                                          w.tiles.data(), w.tiles.size());
  if (two_planes) tensors_.back().layout |= lram::kTwoPlanes;
  return add_buffer(BufferKind::constant, tensor, 0);
}

Place ProgramWriter::bias(const Weights& weights) {
  std::vector<float> filled = weights.bias;
  filled.resize(rounded(filled.size(), kTile));
  return floats(filled);
}

std::uint32_t ProgramWriter::add_tensor(Layout layout, std::size_t rows, std::size_t cols, const void* data,
                                        std::size_t bytes) {
  tensors_.push_back({0, number(tensors_.size()), static_cast<std::uint32_t>(layout), 1, rows, cols, 0, bytes});
  const auto* begin = static_cast<const std::uint8_t*>(data);
  data_.emplace_back(begin, begin + bytes);
  return number(tensors_.size() - 1);
}

Place ProgramWriter::add_buffer(BufferKind kind, std::uint32_t of, std::size_t stride) {
  buffers_.push_back({static_cast<std::uint32_t>(kind), of, number(stride), 0});
  return {number(buffers_.size() - 1), 0};
}

void ProgramWriter::emit(Operation operation, const std::vector<std::uint32_t>& sizes,
                         const std::vector<Place>& operands, std::uint32_t function) {
  lram::InstructionEntry entry = {static_cast<std::uint32_t>(operation), function, {}, {}};
  std::copy(sizes.begin(), sizes.end(), entry.sizes);
  std::fill(std::begin(entry.operands), std::end(entry.operands), Place{lram::kNowhere, 0});
  std::copy(operands.begin(), operands.end(), entry.operands);
  instructions_.push_back(entry);
}

Place ProgramWriter::apply(Function function, std::uint32_t count, const std::vector<Place>& operands,
                           std::uint32_t each) {
  std::vector<Place> all = {room(count)};
  all.insert(all.end(), operands.begin(), operands.end());
  emit(Operation::pointwise, {1, count, 0, 0, 0, each}, all, static_cast<std::uint32_t>(function));
  return all[0];
}

Place ProgramWriter::gather(const Place& from, std::uint32_t size, const std::vector<std::int32_t>& places,
                            float fill) {
  const Place result = room(places.size());
  emit(Operation::gather, {number(places.size()), size}, {result, from, numbers(places), floats({fill})});
  return result;
}

Place ProgramWriter::dense(const Place& x, const Weights& weights) {
  return dense(x, 1, number(weights.cols), weights);
}

Place ProgramWriter::dense(const Place& tokens, std::uint32_t count, std::uint32_t step, const Weights& weights) {
  const Place result = room(count * rounded(static_cast<std::size_t>(weights.rows), kTile));
  emit(Operation::dense, {count, number(weights.rows), number(weights.cols), step},
       {result, tokens, matrix(weights), bias(weights)});
  return result;
}

Place ProgramWriter::reduce(Reduction reduction, const Place& x, std::uint32_t count, std::uint32_t length) {
  const Place result = room(count);
  emit(Operation::reduce, {count, length}, {result, x}, static_cast<std::uint32_t>(reduction));
  return result;
}

std::vector<std::uint8_t> ProgramWriter::finish() const {
  lram::ProgramHeader filled = header;
  filled.inputs = number(inputs_.size());
  filled.outputs = number(outputs_.size());
  filled.states = number(states_.size());
  filled.buffers = number(buffers_.size());
  filled.instructions = number(instructions_.size());
  filled.tensors = number(tensors_.size());
  std::vector<std::uint8_t> file(sizeof filled);
  for (const auto& fields : {inputs_, outputs_, states_}) append(file, fields);
  append(file, buffers_);
  append(file, instructions_);
  std::vector<lram::TensorEntry> tensors = tensors_;
  std::vector<std::vector<std::uint8_t>> data = data_;
  if (!said.empty()) {
    tensors.push_back({lram::kInterface, number(tensors.size()), 0, 1, 1, said.size() / 4, 0, said.size()});
    data.push_back(said);
    filled.tensors = number(tensors.size());
  }
  std::size_t end = rounded(file.size() + tensors.size() * sizeof tensors[0], lram::kAlignment);
  for (lram::TensorEntry& entry : tensors) {
    entry.offset = end;
    end = rounded(end + entry.bytes, lram::kAlignment);
  }
  append(file, tensors);
  file.resize(end);
  for (std::size_t i = 0; i < data.size(); ++i)
    std::copy(data[i].begin(), data[i].end(), file.begin() + static_cast<std::ptrdiff_t>(tensors[i].offset));
  filled.start.file_bytes = end;
  std::memcpy(file.data(), &filled, sizeof filled);
  seal(file);
  return file;
}

Tables::Tables(std::uint8_t* file)
    : header(*reinterpret_cast<lram::ProgramHeader*>(file)),
      fields(reinterpret_cast<lram::FieldEntry*>(file + sizeof header)),
      buffers(reinterpret_cast<lram::BufferEntry*>(fields + header.inputs + header.outputs + header.states)),
      instructions(reinterpret_cast<lram::InstructionEntry*>(buffers + header.buffers)),
      tensors(reinterpret_cast<lram::TensorEntry*>(instructions + header.instructions)) {}

// ---- programs of policies --------------------------------------------------------------------------------------

namespace {

// What a matrix of codes is multiplied with has whole vectors of inputs.
int columns_of(Layout layout, int width) { return layout == Layout::tiled_float32 ? width : lram::room_of(width); }

}  // namespace

Perceptron::Perceptron(Layout layout, int planes, int hidden, unsigned seed)
    : first(layout, hidden, columns_of(layout, 20), 20, seed),
      second(layout, hidden, columns_of(layout, hidden), hidden, seed + 1),
      third(layout, 5, columns_of(layout, hidden), hidden, seed + 2) {
  ProgramWriter w;
  w.header.planes = number(planes);
  Place x = w.input("observation", {20});
  for (const Weights* layer : {&first, &second}) {
    if (layer == &first && layer->cols != 20) x = w.gather(x, 20, neighbours(20, layer->cols));
    x = w.dense(x, *layer);  // what fills up whole tiles is 0
    x = w.apply(Function::hyperbolic_tangent, number(rounded(static_cast<std::size_t>(hidden), kTile)), {x}, 1);
  }
  w.output("action", {5}, w.dense(x, third));
  file = w.finish();
}

std::vector<double> Perceptron::action(const float* observation) const {
  std::vector<double> x(observation, observation + 20);
  for (const Weights* layer : {&first, &second}) {
    x.resize(static_cast<std::size_t>(layer->cols));
    x = hyperbolic_tangents(layer->times(x.data()));
  }
  x.resize(static_cast<std::size_t>(third.cols));
  return third.times(x.data());
}

Recurrent::Recurrent(Layout layout, int hidden_)
    : hidden(hidden_),
      inner(layout, hidden, lram::room_of(kImage + kProprio + 1 + hidden), kImage + kProprio + 1 + hidden, 5),
      head(layout, kLogits, lram::room_of(hidden), hidden, 6),
      initial(normal(static_cast<std::size_t>(hidden), 7)) {
  const std::uint32_t size = number(hidden);
  ProgramWriter w;
  const Place image = w.input("image", {2, 3, 4}, kUint8);
  const Place unread = w.input("unread", {2}, kFloat32, false);
  const Place proprio = w.input("proprio", {kProprio});
  const Place mode = w.input("mode", {}, kInt64);
  const Place first = w.input("is_first", {});
  const Place h = w.state("state.0.h", {size}, initial);
  const Place steps = w.state("state.1.steps", {1, 1}, 2.5F);
  static_cast<void>(unread);

  const Place start = w.floats(initial);
  const Place before = w.apply(Function::choose, size, {first, start, h}, 6);
  const Place steps_before = w.apply(Function::choose, 1, {first, w.floats({2.5F}), steps}, 0);

  const Place together = w.room(static_cast<std::size_t>(inner.cols));
  const Place share = w.floats({1.0F / 255});
  w.emit(Operation::pointwise, {1, kImage, 0, 0, 0, 1}, {together, image, share},
         static_cast<std::uint32_t>(Function::multiply));
  w.emit(Operation::copy, {kProprio}, {behind(together, kImage), proprio});
  w.emit(Operation::copy, {1}, {behind(together, kImage + kProprio), mode});
  const std::vector<std::int32_t> places = neighbours(hidden, inner.cols - kImage - kProprio - 1);
  w.emit(Operation::gather, {number(places.size()), size},
         {behind(together, kImage + kProprio + 1), before, w.numbers(places), w.floats({0})});

  const Place z = w.dense(together, inner);
  w.emit(Operation::pointwise, {1, size, 0, 0, 0, 1}, {z, z},
         static_cast<std::uint32_t>(Function::hyperbolic_tangent));  // in its place
  const Place logits = w.dense(w.gather(z, size, neighbours(hidden, head.cols)), head);
  w.output("action", {}, w.reduce(Reduction::place_of_largest, logits, 1, kLogits), kInt64);
  w.output("action_logits", {kLogits}, logits);
  w.output("seen", {2}, w.gather(image, kImage, {5, 0}), kUint8);
  w.next(z);
  w.next(w.apply(Function::add, 1, {steps_before, w.floats({1})}, 0));
  file = w.finish();
}

Recurrent::Memory Recurrent::start() const { return {{initial.begin(), initial.end()}, 2.5}; }

std::vector<double> Recurrent::step(Memory& memory, const std::uint8_t* image, const float* proprio,
                                    std::int64_t mode) const {
  std::vector<double> x;
  for (int i = 0; i < kImage; ++i) x.push_back(image[i] / 255.0);
  x.insert(x.end(), proprio, proprio + kProprio);
  x.push_back(static_cast<double>(mode));
  x.insert(x.end(), memory.h.begin(), memory.h.end());
  x.resize(static_cast<std::size_t>(inner.cols));
  memory.h = hyperbolic_tangents(inner.times(x.data()));
  memory.steps += 1;
  x = memory.h;
  x.resize(static_cast<std::size_t>(head.cols));
  return head.times(x.data());
}

Tokenwise::Tokenwise(Layout layout, int count_)
    : count(count_), layer(layout, kOutputs, columns_of(layout, kInputs), kInputs, 9) {
  ProgramWriter w;
  const std::uint32_t size = number(count * kInputs);
  const Place signal = w.input("signal", {number(count), kInputs});
  std::vector<std::int32_t> places;
  for (int token = 0; token < count; ++token)
    for (int i = 0; i < 16; ++i) places.push_back(i < kInputs ? token * kInputs + i : -1);
  const Place result = w.dense(w.gather(signal, size, places), number(count), 16, layer);
  std::vector<std::int32_t> features;
  for (int token = 0; token < count; ++token)
    for (int i = 0; i < kOutputs; ++i) features.push_back(token * 128 + i);
  w.output("features", {number(count), kOutputs}, w.gather(result, number(count * 128), features));
  file = w.finish();
}

std::vector<std::uint8_t> small_program(Layout layout) {
  ProgramWriter w;
  const Place observation = w.input("observation", {20});
  const Place first = w.input("is_first", {});
  w.input("unread", {3}, kFloat32, false);
  const std::vector<float> initial = normal(20, 11);
  const Place h = w.state("state.0.h", {4, 5}, initial);
  const Place steps = w.state("state.1.steps", {}, 0.5F);

  const Place chosen = w.apply(Function::choose, 20, {first, w.floats(initial), h}, 6);
  std::vector<std::int32_t> places;
  for (int token = 0; token < 2; ++token)
    for (int i = 0; i < 16; ++i) places.push_back(i < 10 ? token * 10 + i : -1);
  const Place tokens = w.gather(chosen, 20, places, 0.25F);
  const Place result = w.dense(observation, {layout, 40, 16, 16, 12});
  const Place choice = w.reduce(Reduction::place_of_largest, result, 1, 3);
  const Place products = w.room(6);
  w.emit(Operation::product, {2, 1, 3, 3}, {products, chosen, tokens});
  const Place copied = w.room(3);
  w.emit(Operation::copy, {3}, {copied, behind(products, 2)});
  const Place both = w.dense(tokens, 2, 16, {layout, 10, 16, 10, 13});
  const Place h_next = w.apply(Function::hyperbolic_tangent, 20, {both}, 1);
  const Place steps_next = w.apply(Function::add, 1, {steps, w.floats({1})}, 0);
  w.output("action", {3}, copied);
  w.output("choice", {}, choice, kInt64);
  w.next(h_next);
  w.next(steps_next);
  return w.finish();
}

std::vector<std::uint8_t> limited_program(const std::vector<std::uint8_t>& said, bool reads_first) {
  ProgramWriter w;
  w.said = said;
  const Place observation = w.input("observation", {2});
  const Place first = w.input("is_first", {}, kFloat32, reads_first);
  const Place before = w.state("state.0.sum", {2}, 0);
  const Place zeros = w.floats({0});
  const Place start = reads_first ? w.apply(Function::choose, 2, {first, zeros, before}, 4) : before;
  const Place sum = w.apply(Function::add, 2, {start, observation}, 3);
  w.output("action", {2}, w.apply(Function::clamp, 2, {observation, w.floats({-1}), w.floats({1})}, 1));
  w.output("sum", {2}, sum);
  w.output("action_unclamped", {2}, observation);
  w.next(sum);
  return w.finish();
}

std::vector<std::vector<std::uint8_t>> program_seeds() {
  std::vector<std::vector<std::uint8_t>> files;
  files.push_back(limited_program(interface_of(
      50,
      {{"observation", false, {element("", "rad", -9, 9)}},
       {"action", true, {element("hip", "N*m", -1, 1, 0.5F, 0.25F), element("knee", "N*m", -1, 1, 0.125F, 0)}, 2}})));
  for (const Layout layout : {Layout::tiled_float32, Layout::tiled_int8, Layout::tiled_int8g, Layout::tiled_int4}) {
    files.push_back(small_program(layout));
    files.push_back(Perceptron(layout, 1, 20).file);
    files.push_back(Recurrent(layout, 3).file);
    files.push_back(Tokenwise(layout, 5).file);
  }
  return files;
}

}  // namespace lram_testing
