#include "arena.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "error.h"

namespace lram {

Arena::Arena(std::size_t bytes, bool lock) : bytes_(bytes) {
  // populated here, so that no step meets a page fault
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED)
    throw Error(LRAM_ERROR_MEMORY, "state: " + std::to_string(bytes) + " bytes cannot be had: " + std::strerror(errno));
  memory_ = static_cast<std::uint8_t*>(memory);
  if (lock && mlock(memory_, bytes) != 0) {
    const int failed = errno;
    munmap(memory_, bytes_);
    throw Error(LRAM_ERROR_MEMORY, "state: " + std::to_string(bytes) + " bytes cannot be locked: " +
                                       std::strerror(failed) + "; raise the limit (ulimit -l) or do not lock");
  }
}

Arena::~Arena() { munmap(memory_, bytes_); }

}  // namespace lram
