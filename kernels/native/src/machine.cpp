#include "machine.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace lram {
namespace {

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

// The first line of a mapping in smaps: where it begins and ends.
bool read_range(const char* line, std::uintptr_t& from, std::uintptr_t& to) {
  char* end = nullptr;
  from = std::strtoul(line, &end, 16);
  if (end == line || *end != '-') return false;
  const char* second = end + 1;
  to = std::strtoul(second, &end, 16);
  return end != second && *end == ' ';
}

// What a line of smaps says of huge pages, in bytes; 0: nothing.
std::size_t read_huge(const char* line) {
  for (const char* key : {"AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:"})
    if (std::strncmp(line, key, std::strlen(key)) == 0)
      return std::size_t{1024} * std::strtoul(line + std::strlen(key), nullptr, 10);
  return 0;
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

std::size_t huge_page_bytes() { return read_number("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "%llu", 0); }

std::size_t bytes_in_huge_pages(const void* begin, std::size_t bytes) {
  std::FILE* file = std::fopen("/proc/self/smaps", "re");
  if (file == nullptr) return 0;
  const auto low = reinterpret_cast<std::uintptr_t>(begin);
  std::size_t found = 0;
  bool inside = false;
  bool whole = true;  // whether a line begins here: a file's name may be longer than `line`
  char line[256];
  while (std::fgets(line, sizeof line, file) != nullptr) {
    const bool begins = whole;
    whole = std::strchr(line, '\n') != nullptr;
    std::uintptr_t from = 0;
    std::uintptr_t to = 0;
    if (!begins) continue;
    if (read_range(line, from, to)) {
      if (from >= low + bytes) break;  // they come in order
      inside = to > low;
    } else if (inside) {
      found += read_huge(line);
    }
  }
  std::fclose(file);
  return std::min(found, bytes);
}

}  // namespace lram
