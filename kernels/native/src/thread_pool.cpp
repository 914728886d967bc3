#include "thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
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

static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t), "what the kernel looks at");

// Sleeps while the word has this value. Returns for no reason, too.
void sleep_while(const std::atomic<std::uint32_t>& word, std::uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<const std::uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(const std::atomic<std::uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<const std::uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

using Clock = std::chrono::steady_clock;

// At a barrier, before a thread sleeps, so that who needs this processor more gets it, be it the thread that it waits
// for. Where threads shall not spin it is less than it takes to wake one; with more threads than processors, one that
// is waited for always needs it.
std::chrono::microseconds patience_at_barrier(int threads, int spin_microseconds) {
  const unsigned processors = std::thread::hardware_concurrency();
  if (processors != 0 && static_cast<unsigned>(threads) > processors) return std::chrono::microseconds(0);
  return std::chrono::microseconds(spin_microseconds == 0 ? 20 : 300);
}

constexpr int kLooks = 64;               // between two looks at the clock
constexpr int kSpinsBeforeYield = 1000;  // of who waits for the last pieces of what was left over

}  // namespace

ThreadPool::ThreadPool(int threads, const std::vector<int>& cpus, int spin_microseconds)
    : threads_(threads),
      spin_microseconds_(spin_microseconds),
      patience_(patience_at_barrier(threads, spin_microseconds)),
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
  own.store(arrived);  // sequentially consistent with the count of who sleeps: nobody sleeps through an arrival
  if (dozing_.load() > 0) wake_all(own);
  for (int other = first; other < last; ++other) await(arrivals_[static_cast<std::size_t>(other)].count, arrived);
  lap(Stage::wait);
}

// Returns when a thread has arrived this often.
void ThreadPool::await(const std::atomic<std::uint32_t>& count, std::uint32_t arrived) {
  const auto lacks = [&](std::uint32_t seen) { return static_cast<std::int32_t>(seen - arrived) < 0; };
  const auto arrives = [&] {
    for (int i = 0; i < kLooks; ++i) {
      if (!lacks(count.load(std::memory_order_acquire))) return true;
      pause_briefly();
    }
    return false;
  };
  if (arrives()) return;
  for (const auto end = Clock::now() + patience_; Clock::now() < end;)
    if (arrives()) return;
  dozing_.fetch_add(1);
  for (std::uint32_t seen = count.load(); lacks(seen); seen = count.load()) sleep_while(count, seen);
  dozing_.fetch_sub(1);
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
    if (++spins < kSpinsBeforeYield)
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
  const auto deadline = Clock::now() + std::chrono::microseconds(spin_microseconds_);
  do {
    for (int i = 0; i < kLooks; ++i) {
      if (job_.load(std::memory_order_acquire) != last) return true;
      pause_briefly();
    }
    if (ending_.load(std::memory_order_relaxed)) return false;
  } while (Clock::now() < deadline);
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
