// A policy of lram.h as a loop needs it: one row, with what lram.h leaves to its caller.
#ifndef LRAM_LOOP_POLICY_H
#define LRAM_LOOP_POLICY_H

#include <lram.h>
#include <lram/loop/fault.h>
#include <lram/loop/values.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace lram::loop {

struct Engine;  // a model, a state, and room for a step

constexpr int kWarmUpSteps = 20;

using ElementName = std::array<char, sizeof(lram_element_facts::name)>;  // a text in memory of its own

// An input of a step that the robot reads. Return-to-go, reward and the start of an episode are the policy's own.
struct Observation {
  std::string name;
  lram_element element = LRAM_FLOAT32;
  std::size_t size = 0;     // elements
  std::size_t input = 0;    // its place among lram_input
  std::vector<float> low;   // what the sensor can read, one per element; empty: not known
  std::vector<float> high;  // likewise
};

// What limits and the safety envelope did to the action, in ticks, since the policy was opened; see lram_state_account.
struct Held {
  std::vector<std::uint64_t> clamped;  // one per element
  std::vector<std::uint64_t> slowed;
  std::uint64_t stopped = 0;
};

class Policy {
 public:
  // Opens an artifact, `native/model.lrn` of a bundle. `options` are those of lram_open; nullptr: its defaults.
  //
  // Networks of lram-export and modules alike; the action is the first output, and of floats or one choice. Throws
  // Error where lram_open fails, or where a step needs what nobody here can give it (a return or reward of a module's
  // own).
  explicit Policy(const std::string& path, const lram_options* options = nullptr);
  ~Policy();
  Policy(const Policy&) = delete;
  Policy& operator=(const Policy&) = delete;

  const lram_description& about() const noexcept;
  const std::vector<Observation>& observations() const noexcept;
  const lram_field& action() const noexcept;  // its name, type and extents
  const std::string& path() const noexcept;
  double rate() const noexcept { return about().rate; }  // Hz; 0: the artifact does not say
  // The name of an element of an observation or of the action, or its number where it has none.
  ElementName element_of(const Observation& observation, std::size_t element) const noexcept;
  ElementName element_of_action(std::size_t element) const noexcept;

  // The return to aim at from the next reset() on, in the environment's units. Throws Error where it is not finite or
  // the policy aims at none.
  void aim_at(float target_return);

  // Steps over zeros, and leaves no trace of it: the first steps of a process take many times as long as those that
  // follow. For a moment there are two states. Throws Error where it cannot be stepped.
  void warm_up(int steps = kWarmUpSteps);

  // An episode starts with the next step. Writes all of the state.
  void reset() noexcept;

  // A step. On success `chosen()` is the action and the state has gone on; else all is as it was, and the fault says
  // why (out_of_limits: an observation too large for float32; all else is no_result).
  //
  // observations  the values of each of observations(), finite, of its size.
  // reward        what the steps since the last one brought, in the environment's units; nullptr: not known. Needed
  //               after the first step of an episode where about().feedback is LRAM_REWARD_OBSERVED.
  Trouble act(const void* const* observations, const double* reward) noexcept;
  Action chosen() const noexcept;
  // Does what the last step left for the time after its action; see lram_settle.
  void settle() noexcept;

  // What the robot holds, from which the next action may differ by no more than it may; see lram_state_hold. Of an
  // action that is a choice it does nothing. False, and as it was, where a number is not finite.
  bool hold(const float* values) noexcept;
  // Whether limits or safety are said of the action, so that what the robot holds can matter.
  bool is_bounded() const noexcept;
  Held held() const;
  // The same in a line for a person, e.g. "action: clamped: hip 5; stopped for 3 steps"; "" where it is nothing.
  std::string held_back() const;

  // Where the run is, in one file: whole or not at all. Throws Error: a state that is lost, a disk that is full.
  void save(const std::string& file) const;
  // Goes on from there; false where there is no such file. Throws Error, and is as it was, where the file is of another
  // policy (other weights; the precision may differ), or damaged.
  bool load(const std::string& file);

  // Lets another artifact take over at the loop's next step, also the same path with another file in it. For a thread
  // beside the loop's: opens and warms it up here, waits until it was taken over, and closes the old one.
  //
  // Returns whether the run goes on where it was, if the weights are the same (the precision may differ); else an
  // episode starts, which aims at what this one did. Either way changes are bounded from what the robot was sent last,
  // and counts go on; how many ticks in a row a limit clamped begins anew.
  //
  // Throws Error, and the loop goes on with what it has: what the constructor throws; other inputs, outputs, rate or
  // elements; a row that its safety has stopped; no step within `seconds`.
  bool swap(const std::string& path, double seconds = 60);

  // What a Loop calls at the start of a step, so that a swap() can take place. True where one did.
  bool take_over() noexcept;

 private:
  struct Offer;  // another engine, which a swap() holds out

  enum class Taken { no, kept, restarted, refused };

  Taken exchange(Offer& offer) noexcept;

  lram_options options_;
  std::vector<int> cpus_;  // of the options
  std::unique_ptr<Engine> engine_;
  float target_ = 0;           // scaled, as everything below
  float return_to_go_ = 0;     // that the next step will start from
  bool is_first_ = true;       // the next step
  bool known_ = false;         // whether `before_` is
  std::vector<float> before_;  // what the next action's change is bounded from
  Held carried_;               // of engines that were swapped
  std::mutex swapping_;        // one at a time; the loop never takes it
  std::atomic<Offer*> offer_{nullptr};
};

}  // namespace lram::loop

#endif
