// Where the time of a step goes, thread by thread, for those who make steps faster: `lram-export bench --profile`.
#pragma once
#include <array>
#include <chrono>
#include <cstddef>

namespace lram {

enum class Stage : std::size_t {
  dense,     // matrices
  memory,    // reading and updating what the backbone carries from step to step
  other,     // norms, convolutions, gates, sums
  wait,      // for other threads
  leftover,  // what is done after the action
};
constexpr std::size_t kStages = 5;

// Nanoseconds that a thread spent in each stage.
class StageClock {
 public:
  void start() { last_ = std::chrono::steady_clock::now(); }
  // What passed since the last lap was this.
  void lap(Stage stage) {
    const auto now = std::chrono::steady_clock::now();
    spent_[static_cast<std::size_t>(stage)] += std::chrono::duration<double, std::nano>(now - last_).count();
    last_ = now;
  }
  double spent(Stage stage) const { return spent_[static_cast<std::size_t>(stage)]; }

 private:
  std::chrono::steady_clock::time_point last_;
  std::array<double, kStages> spent_ = {};
};

// This thread's; nullptr where nobody asked for a profile, which is all that a step then pays for it.
extern thread_local StageClock* stage_clock;

inline void lap(Stage stage) {
  if (stage_clock != nullptr) stage_clock->lap(stage);
}

}  // namespace lram
