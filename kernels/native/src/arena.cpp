#include "arena.h"

#include <sys/mman.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <string>

#include "error.h"
#include "machine.h"

#ifdef LRAM_GUARDS
#include <sanitizer/asan_interface.h>
#endif

namespace lram {
namespace {

constexpr std::size_t kAlign = 128;

// The kernel promises more than it has, and ends a process that takes it at its word.
std::size_t checked(std::size_t bytes) {
  const MachineMemory machine = machine_memory();
  if (bytes > machine.available)
    throw Error(LRAM_ERROR_MEMORY, "state: " + std::to_string(bytes) + " bytes do not fit the memory that is free, " +
                                       std::to_string(machine.available) + " bytes; use a smaller batch");
  return bytes;
}

}  // namespace

Arena::Arena(std::size_t bytes, bool lock, bool huge_pages) : pages_("state", checked(bytes), huge_pages) {
  if (!lock || mlock(pages_.begin(), bytes) == 0) return;
  const int failed = errno;
  throw Error(LRAM_ERROR_MEMORY, "state: " + std::to_string(bytes) + " bytes cannot be locked: " +
                                     std::strerror(failed) + "; raise the limit (ulimit -l) or do not lock");
}

Arena::~Arena() {
#ifdef LRAM_GUARDS
  ASAN_UNPOISON_MEMORY_REGION(pages_.begin(), pages_.bytes());
#endif
}

std::uint8_t* Planner::take_bytes(std::size_t count, std::size_t size) {
  if (count > INT_MAX)
    throw Error(LRAM_ERROR_MEMORY, "state: a buffer of " + std::to_string(count) + " elements, expected at most " +
                                       std::to_string(INT_MAX) + "; use a smaller batch");
  const std::size_t at = used_;
  const std::size_t end = at + count * size;
  used_ = (end + kAlign - 1) / kAlign * kAlign;
  close_gap(end);
  return memory_ == nullptr ? nullptr : memory_ + at;
}

void Planner::guard() {
  guarded_ = true;
  close_gap(used_);
}

void Planner::close_gap([[maybe_unused]] std::size_t from) {
#ifdef LRAM_GUARDS
  if (!guarded_) return;
  used_ += kAlign;
  if (memory_ != nullptr) ASAN_POISON_MEMORY_REGION(memory_ + from, used_ - from);
#endif
}

}  // namespace lram
