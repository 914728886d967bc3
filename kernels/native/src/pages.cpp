#include "pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "error.h"
#include "machine.h"

namespace lram {
namespace {

constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE of Linux 5.14, which older headers do not have

std::size_t page_bytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

std::size_t round_up(std::size_t value, std::size_t to) { return (value + to - 1) / to * to; }

[[noreturn]] void refuse(const std::string& what, std::size_t bytes, int error) {
  throw Error(LRAM_ERROR_MEMORY, what + ": " + std::to_string(bytes) + " bytes cannot be had: " + std::strerror(error));
}

// False with errno: there is not so much memory.
bool populate(std::uint8_t* begin, std::size_t bytes) {
  if (madvise(begin, bytes, kPopulateWrite) == 0) return true;
  if (errno == ENOMEM) return false;
  volatile std::uint8_t* pages = begin;  // the system does not know it
  for (std::size_t at = 0; at < bytes; at += page_bytes()) pages[at] = 0;
  return true;
}

}  // namespace

Pages::Pages(const std::string& what, std::size_t bytes, bool huge) : bytes_(bytes), mapped_bytes_(bytes) {
  const std::size_t alignment = huge ? huge_page_bytes() : 0;
  if (alignment != 0 && bytes >= alignment && map_aligned(alignment)) {
    if (!populate(begin_, bytes)) {
      const int failed = errno;
      munmap(mapped_, mapped_bytes_);
      refuse(what, bytes, failed);
    }
    // what is huge stays so; but nobody makes more of it later, behind the back of a step
    madvise(begin_, bytes, MADV_NOHUGEPAGE);
    return;
  }
  mapped_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (mapped_ == MAP_FAILED) refuse(what, bytes, errno);
  begin_ = static_cast<std::uint8_t*>(mapped_);
}

Pages::~Pages() { munmap(mapped_, mapped_bytes_); }

// Address space first, with a page on either side that stays empty: neighbours cannot become one mapping with it.
bool Pages::map_aligned(std::size_t alignment) {
  const std::size_t page = page_bytes();
  const std::size_t room = round_up(bytes_, page) + alignment + page;
  void* mapped = mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return false;
  const auto start = reinterpret_cast<std::uintptr_t>(mapped);
  auto* begin = static_cast<std::uint8_t*>(mapped) + (round_up(start + page, alignment) - start);
  // asked before it is writable, since mlockall(MCL_FUTURE) populates it then. Where it is refused, pages are small
  madvise(begin, bytes_, MADV_HUGEPAGE);
  if (mprotect(begin, bytes_, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapped, room);
    return false;
  }
  begin_ = begin;
  mapped_ = mapped;
  mapped_bytes_ = room;
  return true;
}

void Pages::protect() const { mprotect(begin_, bytes_, PROT_READ); }

}  // namespace lram
