// What the system says of its memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lram {

// Bytes a process may use here: of the machine, or of its container if that has less.
struct MachineMemory {
  std::uint64_t total;
  std::uint64_t available;
};
MachineMemory machine_memory();

// How large a huge page is; 0: the system knows none.
std::size_t huge_page_bytes();
// How much of a range that is mapped lies in huge pages now. Reads /proc/self/smaps, which takes milliseconds; 0 where
// there is none.
std::size_t bytes_in_huge_pages(const void* begin, std::size_t bytes);

}  // namespace lram
