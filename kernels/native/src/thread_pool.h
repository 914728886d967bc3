// Threads that run one function together and meet at barriers. They wait for work by spinning for a bounded time,
// then sleep. The caller of `run` is thread 0.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace lram {

class ThreadPool {
 public:
  // `cpus`: where the threads after the caller's are pinned, in turn; empty: not pinned. Throws Error if it cannot.
  ThreadPool(int threads, const std::vector<int>& cpus, int spin_microseconds);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Runs work(context, thread) on every thread; returns when all are done. The caller sets its own FloatingPointMode.
  void run(void (*work)(void* context, int thread), void* context);

  // Only inside `run`: returns when every thread has called it as often as this one.
  void barrier(int thread);

 private:
  struct alignas(128) Arrival {
    std::atomic<std::uint32_t> count{0};
  };

  void start(int thread);
  void serve(int thread);
  bool wait_for_job(std::uint32_t last) const;
  void stop();

  int threads_;
  int spin_microseconds_;
  int spins_before_yield_;  // at a barrier
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
  std::vector<Arrival> arrivals_;
  alignas(128) std::atomic<std::uint32_t> job_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> ending_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

// This thread's floating-point mode for its lifetime, whatever the caller has set: rounds to nearest, traps nothing,
// and flushes denormals to zero, which cost a hundred times as much and carry nothing.
class FloatingPointMode {
 public:
  FloatingPointMode();
  ~FloatingPointMode();
  FloatingPointMode(const FloatingPointMode&) = delete;
  FloatingPointMode& operator=(const FloatingPointMode&) = delete;

 private:
  std::uint64_t before_;
};

}  // namespace lram
