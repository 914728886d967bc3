#include "arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <string>

#include "error.h"

#ifdef LRAM_GUARDS
#include <sanitizer/asan_interface.h>
#endif

namespace lram {
namespace {

constexpr std::size_t kAlign = 128;

// The number in a file that `format` finds first; `none` if there is no such file or number.
std::uint64_t read_number(const char* path, const char* format, std::uint64_t none) {
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return none;
  unsigned long long found = none;
  char line[128];
  bool read = false;
  while (!read && std::fgets(line, sizeof line, file) != nullptr) read = std::sscanf(line, format, &found) == 1;
  std::fclose(file);
  return read ? found : none;
}

}  // namespace

MachineMemory machine_memory() {
  const std::uint64_t limit = std::min(read_number("/sys/fs/cgroup/memory.max", "%llu", UINT64_MAX),
                                       read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", "%llu", UINT64_MAX));
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page = sysconf(_SC_PAGESIZE);
  const bool known = pages > 0 && page > 0;
  const std::uint64_t physical =
      known ? static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page) : UINT64_MAX;
  const std::uint64_t total = std::min(physical, limit);
  const std::uint64_t free = read_number("/proc/meminfo", "MemAvailable: %llu kB", total / 1024) * 1024;
  return {total, std::min(free, total)};
}

Arena::Arena(std::size_t bytes, bool lock) : bytes_(bytes) {
  // the kernel promises more than it has, and ends a process that takes it at its word
  const MachineMemory machine = machine_memory();
  if (bytes > machine.available)
    throw Error(LRAM_ERROR_MEMORY, "state: " + std::to_string(bytes) + " bytes do not fit the memory that is free, " +
                                       std::to_string(machine.available) + " bytes; use a smaller batch");
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

Arena::~Arena() {
#ifdef LRAM_GUARDS
  ASAN_UNPOISON_MEMORY_REGION(memory_, bytes_);
#endif
  munmap(memory_, bytes_);
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
