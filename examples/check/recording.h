// The steps that were recorded when a bundle was exported, as a kit in C has them; `lram_export/deploy/recording.py`
// writes them. Numbers are little endian; a text is its number of bytes, a uint32, then UTF-8.
//
//   char magic[8]                 "LRAMREF\n"
//   uint32 version                1
//   uint32 checksum               CRC-32, as zlib has it, of all that follows
//   text name, precision          of the policy
//   uint8 source[32]              SHA-256 of the checkpoint that it was exported from; all 0: not known
//   uint32 relative               not 0: errors and ties are relative to the 2-norm of what was recorded
//   double error, state, tie      the largest that are allowed, see comparison.h
//   uint32 steps, rows, inputs, outputs, states
//   per input     text name, uint32 element, uint64 size
//   per output    text name, uint32 element, uint64 size, uint32 kind, uint32 scores, double typical
//   per state     text name, uint64 size, uint64 stride
//   per step      every input, then every output: rows * size elements
//   per state     every `stride`-th of its rows * size floats after the last step, from the first on
//
// `element` is a lram_element; sizes are those of a row.
#ifndef CHECK_RECORDING_H
#define CHECK_RECORDING_H

#include <lram.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct Problem : std::runtime_error {  // what is wrong, in one line
  using std::runtime_error::runtime_error;
};

using Digest = std::array<unsigned char, 32>;

enum class Kind : std::uint32_t {
  values = 0,   // floats; their errors are relative to them, or to `typical` where that is more
  scores = 1,   // floats that another output is chosen from
  chosen = 2,   // each is the largest in its share of the output `scores`
  numbers = 3,  // whole numbers that come without scores: the same, or not
};

struct Field {
  std::string name;
  lram_element element = LRAM_FLOAT32;
  std::size_t size = 0;

  std::size_t bytes() const {
    return size * (element == LRAM_FLOAT32 ? sizeof(float) : element == LRAM_UINT8 ? 1 : sizeof(std::int64_t));
  }
};

struct Output : Field {
  Kind kind = Kind::values;
  std::size_t scores = 0;  // which output
  double typical = 1;
};

struct State {
  std::string name;
  std::size_t size = 0;
  std::size_t stride = 1;
};

// A file in memory, read from its start to its end.
class Reader {
 public:
  explicit Reader(std::string path) : path_(std::move(path)) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path_.c_str(), "rb"), std::fclose);
    if (file == nullptr) throw Problem(path_ + ": cannot be opened");
    std::array<unsigned char, 1 << 16> part = {};
    while (const std::size_t got = std::fread(part.data(), 1, part.size(), file.get()))
      data_.insert(data_.end(), part.data(), part.data() + got);
    if (std::ferror(file.get()) != 0) throw Problem(path_ + ": cannot be read");
  }

  [[noreturn]] void damaged() const { throw Problem(path_ + ": damaged: it is not what was written into the kit"); }
  [[noreturn]] void unexpected(const std::string& what) const { throw Problem(path_ + ": expected " + what); }

  bool is_over() const { return at_ == data_.size(); }
  const unsigned char* bytes(std::size_t count) {
    if (count > data_.size() - at_) damaged();
    at_ += count;
    return data_.data() + at_ - count;
  }
  template <class T>
  T number() {
    T value = 0;
    std::memcpy(&value, bytes(sizeof value), sizeof value);
    return value;
  }
  // A number that has bounds, so that products of them stay in range.
  template <class T>
  std::size_t whole(std::uint64_t least, std::uint64_t most) {
    const std::uint64_t found = number<T>();
    if (found < least || found > most) damaged();
    return static_cast<std::size_t>(found);
  }
  std::string text() {
    const std::size_t size = number<std::uint32_t>();
    return {reinterpret_cast<const char*>(bytes(size)), size};
  }

  // CRC-32 of what is left.
  std::uint32_t checksum() const {
    std::uint32_t sum = ~0U;
    for (std::size_t i = at_; i < data_.size(); ++i) {
      sum ^= data_[i];
      for (int bit = 0; bit < 8; ++bit) sum = (sum >> 1U) ^ (0xedb88320U & (0U - (sum & 1U)));
    }
    return ~sum;
  }

 private:
  std::string path_;
  std::vector<unsigned char> data_;
  std::size_t at_ = 0;
};

// What the file says before its steps; they come next in `reader`. Throws Problem where it is no such file.
struct Recording {
  explicit Recording(Reader& reader) {
    constexpr char kMagic[9] = "LRAMREF\n";
    constexpr std::uint32_t kVersion = 1;
    if (reader.is_over() || std::memcmp(reader.bytes(8), kMagic, 8) != 0)
      reader.unexpected("the recorded steps of a kit, got another file");
    const auto version = reader.number<std::uint32_t>();
    if (version != kVersion)
      reader.unexpected("version " + std::to_string(kVersion) + ", got " + std::to_string(version));
    if (reader.number<std::uint32_t>() != reader.checksum()) reader.damaged();
    name = reader.text();
    precision = reader.text();
    std::memcpy(source.data(), reader.bytes(source.size()), source.size());
    relative = reader.number<std::uint32_t>() != 0;
    for (double* bound : {&error_bound, &state_bound, &tie_bound}) *bound = reader.number<double>();
    steps = reader.whole<std::uint32_t>(1, kMostSteps);
    rows = reader.whole<std::uint32_t>(1, kMostRows);
    inputs.resize(reader.whole<std::uint32_t>(1, kMostFields));
    outputs.resize(reader.whole<std::uint32_t>(1, kMostFields));
    states.resize(reader.whole<std::uint32_t>(0, kMostStates));
    for (Field& input : inputs) read(reader, input);
    for (Output& output : outputs) {
      read(reader, output);
      output.kind = static_cast<Kind>(reader.number<std::uint32_t>());
      output.scores = reader.number<std::uint32_t>();
      output.typical = reader.number<double>();
    }
    for (State& state : states) {
      state.name = reader.text();
      state.size = reader.whole<std::uint64_t>(1, kMostElements);
      state.stride = reader.whole<std::uint64_t>(1, kMostElements);
    }
    if (!std::all_of(outputs.begin(), outputs.end(), [this](const Output& each) { return fits(each); }))
      reader.damaged();
  }

  std::string name, precision;
  Digest source = {};  // all 0: not known
  bool relative = false;
  double error_bound = 0, state_bound = 0, tie_bound = 0;
  std::size_t steps = 0, rows = 0;
  std::vector<Field> inputs;
  std::vector<Output> outputs;
  std::vector<State> states;

 private:
  static constexpr std::uint64_t kMostSteps = 1U << 20U, kMostRows = 1U << 12U, kMostFields = 16;
  static constexpr std::uint64_t kMostStates = 1U << 13U, kMostElements = std::uint64_t{1} << 36U;

  static void read(Reader& reader, Field& field) {
    field.name = reader.text();
    field.element = static_cast<lram_element>(reader.whole<std::uint32_t>(LRAM_FLOAT32, LRAM_INT64));
    field.size = reader.whole<std::uint64_t>(1, kMostElements);
  }

  bool fits(const Output& output) const {
    switch (output.kind) {
      case Kind::values:
      case Kind::scores:
        return output.element == LRAM_FLOAT32 && output.typical > 0;
      case Kind::chosen:
        return output.scores < outputs.size() && outputs[output.scores].kind == Kind::scores &&
               outputs[output.scores].size % output.size == 0;
      case Kind::numbers:
        return true;
    }
    return false;
  }
};

#endif
