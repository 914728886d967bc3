// A checked, memory-mapped artifact. Nothing in it is copied.
#pragma once
#include <string>
#include <vector>

#include "format.h"
#include "kernels/kernels.h"

namespace lram {

class Artifact {
 public:
  // Throws Error: the file cannot be mapped, or is not what its header says.
  Artifact(const std::string& path, bool verify, bool lock);
  // The same over bytes in memory, which must outlive the artifact and start at a multiple of 64; for the fuzzer.
  Artifact(const std::uint8_t* bytes, std::size_t size, bool verify);
  ~Artifact();
  Artifact(const Artifact&) = delete;
  Artifact& operator=(const Artifact&) = delete;

  const FileHeader& header() const { return *header_; }
  bool is_slstm(int block) const { return (header_->slstm_blocks[block / 64] >> (block % 64) & 1) != 0; }
  std::size_t weight_bytes() const { return weight_bytes_; }

  // A plain tensor of exactly this many floats, or a tiled one of this shape; throws Error naming it.
  const float* plain(TensorId id, int block, std::uint64_t count) const;
  std::vector<Matrix> matrices(TensorId id, int block, int parts, int rows, int cols) const;

 private:
  void check_start(const FileHeader& header) const;
  void check(bool verify);
  void check_sizes() const;
  void check_name() const;
  const TensorEntry& entry(TensorId id, int block) const;
  [[noreturn]] void refuse(const std::string& problem) const;

  std::string path_;
  const std::uint8_t* bytes_ = nullptr;
  std::size_t size_ = 0;
  bool mapped_ = false;
  const FileHeader* header_ = nullptr;
  const TensorEntry* entries_ = nullptr;
  std::size_t weight_bytes_ = 0;
};

}  // namespace lram
