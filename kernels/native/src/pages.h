// Anonymous memory that steps read and write, in huge pages where the system gives them to those that ask.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace lram {

class Pages {
 public:
  // Zeros, populated, so that no step meets a page fault. With `huge`, every whole huge page that fits into `bytes` is
  // asked for as one, and the rest lies in small ones, so that it is no more memory than without. Where the system
  // gives none all of it does. Throws Error that names `what`: it cannot be had.
  Pages(const std::string& what, std::size_t bytes, bool huge);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  std::uint8_t* begin() const { return begin_; }
  std::size_t bytes() const { return bytes_; }

  // From here on nobody writes to it.
  void protect() const;

 private:
  bool map_aligned(std::size_t alignment);

  std::uint8_t* begin_ = nullptr;
  std::size_t bytes_;
  void* mapped_ = nullptr;  // `begin_`, or address space around it
  std::size_t mapped_bytes_;
};

}  // namespace lram
