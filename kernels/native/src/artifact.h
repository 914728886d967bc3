// The checked artifact of a network. Nothing in it is copied.
#pragma once
#include <string>
#include <vector>

#include "format.h"
#include "kernels/kernels.h"
#include "lram.h"
#include "mapped_file.h"

namespace lram {

class Artifact {
 public:
  // Throws Error: the file cannot be mapped, or is not what its header says.
  Artifact(MappedFile file, bool verify, bool lock, bool huge_pages = false);

  const FileHeader& header() const { return *header_; }
  int hidden() const { return static_cast<int>(header_->hidden); }
  int tokens() const { return static_cast<int>(header_->token_count); }
  int blocks() const { return static_cast<int>(header_->block_count); }
  const TokenEntry& token(int number) const { return tokens_[number]; }
  const BlockEntry& block(int number) const { return blocks_[number]; }
  std::size_t weight_bytes() const { return weight_bytes_; }

  // A plain tensor of exactly this many floats, or a tiled one of this shape; throws Error naming it.
  const float* plain(std::uint32_t role, int of, std::uint64_t count) const;
  // The same of a tensor that need not be there, NULL then, and whose numbers have to be finite.
  const float* finite(std::uint32_t role, int of, std::uint64_t count) const;
  // How states keep large matrices, if whoever opens it does not say.
  lram_state_format state_format() const;
  // What it says of its robot, to be read by read_interface; NULL: nothing.
  const TensorEntry* interface() const { return find(kInterface, 0); }
  const MappedFile& file() const { return file_; }
  std::vector<Matrix> matrices(std::uint32_t role, int of, int parts, int rows, int cols) const;

  [[noreturn]] void refuse(const std::string& problem) const { file_.refuse(problem); }

 private:
  void find_tables();
  void check_sizes() const;
  void check_tokens() const;
  void check_name() const;
  void check_tensors();
  const TensorEntry* find(std::uint32_t role, int of) const;
  const TensorEntry& entry(std::uint32_t role, int of) const;

  MappedFile file_;
  const FileHeader* header_ = nullptr;
  const TokenEntry* tokens_ = nullptr;
  const BlockEntry* blocks_ = nullptr;
  const TensorEntry* entries_ = nullptr;
  std::size_t weight_bytes_ = 0;
};

}  // namespace lram
