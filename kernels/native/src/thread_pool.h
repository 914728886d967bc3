// Threads that run one function together and meet at barriers. They wait for work by spinning for a bounded time,
// then sleep. The caller of `run` is thread 0. What it need not wait for, they do after it.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "stages.h"

namespace lram {

class ThreadPool {
 public:
  // `cpus`: where the threads after the caller's are pinned, in turn; empty: not pinned. Throws Error if it cannot.
  ThreadPool(int threads, const std::vector<int>& cpus, int spin_microseconds);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // From the next `run` on, every thread's time is taken by stage. While no `run` is under way.
  void profile();
  const std::vector<StageClock>& stage_clocks() const { return stage_clocks_; }  // empty: without profile()

  // Runs work(context, thread) on every thread; returns when all are done. The caller sets its own FloatingPointMode.
  void run(void (*work)(void* context, int thread), void* context);

  // The same without the other threads, which are not woken.
  void run_alone(void (*work)(void* context, int thread), void* context);

  // Only inside `run`: returns when every thread has called it as often as this one.
  void barrier(int thread) { barrier(thread, 0, threads_); }
  // The same, but returns when those from `first` to before `last` have: as many calls of either kind, on every thread.
  void barrier(int thread, int first, int last);

  static constexpr int kMostPieces = 4096;
  // Only inside `run`, by one thread, and with nothing left over: `count` pieces of work, piece(context, number), which
  // the threads begin with when all are done with `run`; its caller does not wait for them.
  void leave(void (*piece)(void* context, int number), void* context, int count);
  // Does what is left over, if it was left with this context, together with the threads; returns when it is done. Any
  // thread, as many at once as like to, but not while a `run` is under way that leaves something with this context.
  void finish(const void* context);
  // The same, whoever left it; not while a `run` is under way.
  void finish_all();

 private:
  struct alignas(128) Arrival {
    std::atomic<std::uint32_t> count{0};
  };

  void await(const std::atomic<std::uint32_t>& count, std::uint32_t arrived);
  void start(int thread);
  void start_clock(int thread);
  void serve(int thread);
  bool wait_for_job(std::uint32_t last) const;
  void take_pieces(std::uint32_t work);
  void finish_work(std::uint64_t left);
  void stop();

  int threads_;
  int spin_microseconds_;
  std::chrono::microseconds patience_;  // at a barrier, before a thread sleeps
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
  void (*piece_)(void*, int) = nullptr;
  std::atomic<void*> piece_context_{nullptr};
  // In one word, so that who takes a piece takes one of the work that he saw: the number of the work (32 bits), how
  // many pieces it has (16), and the next to be taken (16).
  alignas(128) std::atomic<std::uint64_t> left_{0};
  std::atomic<std::uint32_t> finished_{0};  // pieces
  std::vector<Arrival> arrivals_;
  alignas(128) std::atomic<int> dozing_{0};  // threads that sleep at a barrier
  std::vector<StageClock> stage_clocks_;
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
