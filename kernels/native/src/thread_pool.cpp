#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <cstring>
#include <string>
#include <system_error>

#include "error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lram {

thread_local StageClock* stage_clock = nullptr;

namespace {

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// At a barrier: around 0.2 ms, after that another thread needs this processor more; with more threads than processors
// one that is waited for always does.
int spins_before_yield(int threads) {
  const unsigned processors = std::thread::hardware_concurrency();
  return processors != 0 && static_cast<unsigned>(threads) > processors ? 100 : 20000;
}

}  // namespace

ThreadPool::ThreadPool(int threads, const std::vector<int>& cpus, int spin_microseconds)
    : threads_(threads),
      spin_microseconds_(spin_microseconds),
      spins_before_yield_(spins_before_yield(threads)),
      arrivals_(static_cast<std::size_t>(threads)) {
  try {
    for (int thread = 1; thread < threads; ++thread) {
      start(thread);
      if (cpus.empty()) continue;
      const int cpu = cpus[static_cast<std::size_t>(thread - 1) % cpus.size()];
      cpu_set_t chosen;
      CPU_ZERO(&chosen);
      if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_SET(cpu, &chosen);
      const int failed = pthread_setaffinity_np(workers_.back().native_handle(), sizeof chosen, &chosen);
      if (failed != 0)
        throw Error(LRAM_ERROR_ARGUMENT,
                    "cpus: no thread can be pinned to CPU " + std::to_string(cpu) + ": " + std::strerror(failed));
    }
  } catch (...) {
    stop();
    throw;
  }
}

void ThreadPool::start(int thread) {
  try {
    workers_.emplace_back([this, thread] { serve(thread); });
  } catch (const std::system_error& error) {
    throw Error(LRAM_ERROR_MEMORY, "threads: thread " + std::to_string(thread + 1) + " of " + std::to_string(threads_) +
                                       " cannot be started: " + error.code().message() +
                                       "; use fewer, or raise the limit (ulimit -u)");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run(void (*work)(void*, int), void* context) {
  work_ = work;
  context_ = context;
  job_.fetch_add(1);
  if (sleeping_.load() > 0) {  // sequentially consistent with the count in serve: nobody sleeps through a job
    const std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  start_clock(0);
  work(context, 0);
  barrier(0);
  stage_clock = nullptr;
}

void ThreadPool::run_alone(void (*work)(void*, int), void* context) {
  start_clock(0);
  work(context, 0);
  lap(Stage::other);
  stage_clock = nullptr;
}

void ThreadPool::profile() { stage_clocks_.resize(static_cast<std::size_t>(threads_)); }

void ThreadPool::start_clock(int thread) {
  stage_clock = stage_clocks_.empty() ? nullptr : &stage_clocks_[static_cast<std::size_t>(thread)];
  if (stage_clock != nullptr) stage_clock->start();
}

void ThreadPool::barrier(int thread, int first, int last) {
  lap(Stage::other);
  if (threads_ == 1) return;
  auto& own = arrivals_[static_cast<std::size_t>(thread)].count;
  const std::uint32_t arrived = own.load(std::memory_order_relaxed) + 1;
  own.store(arrived, std::memory_order_release);
  for (int other = first; other < last; ++other) {
    const std::atomic<std::uint32_t>& count = arrivals_[static_cast<std::size_t>(other)].count;
    int spins = 0;
    while (static_cast<std::int32_t>(count.load(std::memory_order_acquire) - arrived) < 0) {
      if (++spins < spins_before_yield_)
        pause_briefly();
      else
        std::this_thread::yield();
    }
  }
  lap(Stage::wait);
}

namespace {

std::uint32_t work_of(std::uint64_t left) { return static_cast<std::uint32_t>(left >> 32U); }
std::uint32_t count_of(std::uint64_t left) { return static_cast<std::uint32_t>(left >> 16U) & 0xffffU; }
std::uint32_t next_of(std::uint64_t left) { return static_cast<std::uint32_t>(left) & 0xffffU; }

}  // namespace

void ThreadPool::leave(void (*piece)(void*, int), void* context, int count) {
  piece_ = piece;
  piece_context_.store(context);
  finished_.store(0);
  const std::uint32_t work = work_of(left_.load()) + 1;
  left_.store(static_cast<std::uint64_t>(work) << 32U | static_cast<std::uint64_t>(count) << 16U);
}

// Takes pieces of this work until there are none.
void ThreadPool::take_pieces(std::uint32_t work) {
  std::uint64_t left = left_.load();
  while (work_of(left) == work && next_of(left) < count_of(left)) {
    if (!left_.compare_exchange_weak(left, left + 1)) continue;
    piece_(piece_context_.load(), static_cast<int>(next_of(left)));
    lap(Stage::leftover);
    finished_.fetch_add(1);
    left = left_.load();
  }
}

// In a profile the time of who finishes counts as that of thread 0, whose caller it then is.
void ThreadPool::finish_work(std::uint64_t left) {
  const std::uint32_t work = work_of(left);
  if (finished_.load() >= count_of(left)) return;
  start_clock(0);
  take_pieces(work);
  int spins = 0;
  while (finished_.load() < count_of(left) && work_of(left_.load()) == work) {
    if (++spins < spins_before_yield_)
      pause_briefly();
    else
      std::this_thread::yield();
  }
  lap(Stage::wait);
  stage_clock = nullptr;
}

void ThreadPool::finish(const void* context) {
  const std::uint64_t left = left_.load();
  // where another context has taken its place, this one's work was finished before
  if (piece_context_.load() == context) finish_work(left);
}

void ThreadPool::finish_all() { finish_work(left_.load()); }

bool ThreadPool::wait_for_job(std::uint32_t last) const {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_microseconds_);
  do {
    for (int i = 0; i < 64; ++i) {
      if (job_.load(std::memory_order_acquire) != last) return true;
      pause_briefly();
    }
    if (ending_.load(std::memory_order_relaxed)) return false;
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

void ThreadPool::serve(int thread) {
  const FloatingPointMode mode;
  std::uint32_t last = 0;
  while (true) {
    if (!wait_for_job(last)) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_.fetch_add(1);
      wake_.wait(lock, [&] { return job_.load() != last || ending_.load(); });
      sleeping_.fetch_sub(1);
      if (job_.load() == last) return;
    }
    ++last;
    start_clock(thread);
    work_(context_, thread);
    barrier(thread);
    take_pieces(work_of(left_.load()));
  }
}

#if defined(__x86_64__)
FloatingPointMode::FloatingPointMode() : before_(_mm_getcsr()) { _mm_setcsr(0x9fc0U); }
FloatingPointMode::~FloatingPointMode() { _mm_setcsr(static_cast<unsigned>(before_)); }
#elif defined(__aarch64__)
FloatingPointMode::FloatingPointMode() {
  asm volatile("mrs %0, fpcr" : "=r"(before_));
  asm volatile("msr fpcr, %0" ::"r"(std::uint64_t{1} << 24));
}
FloatingPointMode::~FloatingPointMode() { asm volatile("msr fpcr, %0" ::"r"(before_)); }
#else
FloatingPointMode::FloatingPointMode() : before_(0) {}
FloatingPointMode::~FloatingPointMode() = default;
#endif

}  // namespace lram
