// The safety envelope of a batch of episodes: what actions are held to beyond their limits, tick by tick, and an
// account of it (see lram.h). It is outside of the policy, whose state never knows of it: it comes after a step that
// succeeded.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "arena.h"
#include "engine.h"

namespace lram {

// Whether anything is counted of an output, or it is held to anything.
bool looked_after(const Field& output);

class Safety {
 public:
  // Throws Error: no memory, or it cannot be locked.
  Safety(const Engine& engine, int batch);
  Safety(const Safety& other);
  Safety& operator=(const Safety&) = delete;
  ~Safety() = default;

  // A row's episode is over: nothing stops it, and nobody knows what its robot holds.
  void restart(int row);
  void restart();
  // What the robots hold; throws Error: an output of no numbers, or values that are not finite.
  void hold(std::size_t output, const float* values);
  // Counts what a step of the episodes did, and holds its actions to what is said, where they are wanted. Allocates
  // nothing.
  void apply(const Episodes& episodes, const ChosenRows& rows, const void* const* inputs, void* const* outputs);

  // Of an output that is not looked after all is 0. `clamped` and `slowed`: (size of the output), or NULL.
  lram_account account(std::size_t output, int row, std::uint64_t* clamped, std::uint64_t* slowed) const;

 private:
  struct Row {
    std::uint64_t consecutive;
    std::uint64_t stopped;
    bool is_stopped;
    bool holds;  // whether `previous` is what the robot holds
    bool told;   // since the last step, which it survives to start an episode
  };
  // An output that is looked after; what it has per row lies in the arena.
  struct Action {
    const Field* field;
    std::size_t output;
    std::size_t size;
    bool held;                     // or only counted
    Row* rows = nullptr;           // [batch]
    float* most_change = nullptr;  // [size]
    float* safe = nullptr;         // [size]
    float* previous = nullptr;     // [batch][size], as the counts
    std::uint64_t* clamped = nullptr;
    std::uint64_t* slowed = nullptr;
  };

  void plan(Planner& planner);
  const Action* find(std::size_t output) const;
  void tick(const Action& action, std::size_t row, const float* chosen, const float* unclamped, float* given) const;

  const Engine& engine_;
  std::size_t batch_;
  std::size_t is_first_;  // which input it is; beyond them: none
  std::vector<Action> actions_;
  std::unique_ptr<Arena> arena_;  // none where nothing is looked after
};

}  // namespace lram
