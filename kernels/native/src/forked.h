// Which process of a line of forks this is. A model notes it when it is opened: its threads are not in a child.
#pragma once
#include <cstdint>

namespace lram {

// How often a fork has led to this process, since the first call in the line. Throws std::bad_alloc at the first call.
std::uint32_t fork_generation();

}  // namespace lram
