// A file of the engine in memory: opened, told by how it begins, mapped, compared with its checksum.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "format.h"
#include "pages.h"

namespace lram {

class MappedFile {
 public:
  // Opens a file and reads its start; nothing is mapped. Throws Error: it cannot be read, or is too short for a start.
  explicit MappedFile(const std::string& path);
  // The same over bytes in memory, which must outlive it and start at a multiple of 64; for the fuzzer.
  MappedFile(const std::uint8_t* bytes, std::size_t size);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  bool starts_with(const char (&magic)[8]) const;

  // Checks the start against what a kind of file has there, then maps all of it, populated, so that no step meets a
  // page fault. Throws Error naming what is different, or that it does not fit the machine.
  // `oldest` and `version`: which versions of the format are read. `huge_pages`: it is copied into such, where the
  // system gives any.
  void map(const char (&magic)[8], std::uint32_t oldest, std::uint32_t version, std::size_t header_bytes,
           bool huge_pages);
  void check_checksum() const;
  // Locks what is mapped; throws Error if that is not allowed.
  void lock() const;

  // Of what is mapped. It is at least as long as its header.
  const std::uint8_t* bytes() const { return bytes_; }
  std::size_t size() const { return size_; }

  // Throw Error (ARTIFACT) naming the file: the problem, or that it is of no kind that the engine reads.
  [[noreturn]] void refuse(const std::string& problem) const;
  [[noreturn]] void refuse_kind() const;

 private:
  // Closes itself on every way out.
  struct Descriptor {
    explicit Descriptor(int opened) : number(opened) {}
    Descriptor(Descriptor&& other) noexcept : number(std::exchange(other.number, -1)) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    Descriptor& operator=(Descriptor&&) = delete;
    ~Descriptor() { close(); }
    void close();
    int number;
  };

  // False, and nothing is there: no huge pages, or too little memory for a copy.
  bool copy();
  void check_start(const char (&magic)[8], std::uint32_t oldest, std::uint32_t version, std::size_t header_bytes) const;

  std::string path_;
  Descriptor file_ = Descriptor(-1);  // until it is mapped
  FileStart start_ = {};
  const std::uint8_t* bytes_ = nullptr;
  std::size_t size_ = 0;
  bool mapped_ = false;
  std::unique_ptr<Pages> copy_;  // in place of a mapping
};

}  // namespace lram
