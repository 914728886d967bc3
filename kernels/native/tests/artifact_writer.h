// Small artifacts with random weights, made in memory: the tests need no Python.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "format.h"

namespace lram_testing {

struct Shape {
  int hidden = 64;
  int blocks = 3;
  int heads = 4;
  int inner = 128;  // of all heads
  int block = 0;    // of q, k and v
  int conv_kernel = 4;
  int slstm_heads = 4;
  std::vector<int> slstm_at = {1};
  lram::Layout layout = lram::Layout::tiled_float32;  // of the large matrices
  int planes = 2;
  bool images = false;
  int image = 12;  // height and width
  bool discrete = false;
  bool large_observation = false;  // its encoder counts among the large matrices
  std::string name =
      "r\xc3\xb6"
      "bot";                   // "" with a source of zeros: an artifact that does not say what it is
  std::uint8_t source = 0xab;  // every byte of its digest
  unsigned seed = 1;
  std::vector<lram::TokenEntry> tokens = {{2, 1}, {0, 0}, {1, 0}};  // reward, observation, return-to-go
  std::uint32_t read_token = 2;
  std::uint32_t kind = 0;  // not 0: all blocks are of this kind, with these plain tensors (role, size), not of xLSTM's
  std::vector<std::pair<std::uint32_t, int>> tensors;
  int steps = 0;           // not 0: a Decision Transformer's, which sees so many steps,
  int ffn = 0;             // with feed-forward layers so wide
  int size = 0;            // not 0: a Mamba's, each of whose channels remembers so many numbers,
  int rank = 0;            // with so many inputs of the projection to step sizes
  bool interface = false;  // observations are less 0.5, over `deviation`, within 1.5; every action is 7
  float deviation = 2;
  float limit = 0;                 // not 0: actions are 3 times their bins, clamped to this and its negative
  std::vector<std::uint8_t> said;  // of its robot, see interface_writer.h
  float state_format = -1;         // not -1: what it says of how states are kept
};

// A small Mamba, none of whose widths is a multiple of 16.
Shape mamba(lram::Layout layout);

// A small Decision Transformer, none of whose widths is a multiple of 16.
Shape transformer(bool cached, lram::Layout layout);

// Starts at a multiple of 64 for as long as it lives.
class Bytes {
 public:
  explicit Bytes(std::vector<std::uint8_t> content);
  std::uint8_t* data() { return begin_; }
  std::size_t size() const { return size_; }

 private:
  std::vector<std::uint8_t> memory_;
  std::uint8_t* begin_;
  std::size_t size_;
};

std::vector<std::uint8_t> make_artifact(const Shape& shape);

// A matrix in tiles as it lies in a file, of random weights; those of the inputs from `used` on are 0.
std::vector<std::uint8_t> random_tiles(lram::Layout layout, int rows, int cols, int used, unsigned seed);

// A file that is removed at the end.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::vector<std::uint8_t>& content);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Writes the checksum of what the bytes hold now.
void seal(std::vector<std::uint8_t>& artifact);

}  // namespace lram_testing
