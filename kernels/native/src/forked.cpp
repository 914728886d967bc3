#include "forked.h"

#include <pthread.h>

#include <atomic>
#include <new>

namespace lram {
namespace {

std::atomic<std::uint32_t> generation{0};

void count_fork() { generation.fetch_add(1, std::memory_order_relaxed); }

}  // namespace

// Counted at the fork instead of asking for the process: a step calls no kernel.
std::uint32_t fork_generation() {
  static const int failed = pthread_atfork(nullptr, nullptr, count_fork);
  if (failed != 0) throw std::bad_alloc();
  return generation.load(std::memory_order_relaxed);
}

}  // namespace lram
