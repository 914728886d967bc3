// The loop without a clock: what a step does with a reading, and what is sent at each of its ticks.
#ifndef LRAM_LOOP_CORE_H
#define LRAM_LOOP_CORE_H

#include <lram/loop/account.h>
#include <lram/loop/asked.h>
#include <lram/loop/between.h>
#include <lram/loop/fault.h>
#include <lram/loop/policy.h>
#include <lram/loop/readings.h>
#include <lram/loop/values.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lram::loop {

constexpr double kLeastStale = 0.05;  // seconds that an action may be old, however fast the loop is meant to be

// What is done at a fault.
enum class By {
  coast,  // the policy steps on over the last good reading, so that its own time goes on
  hold    // it waits, and the last action is sent again
};

struct Options {
  double rate = 0;            // steps of the policy per second, Hz; 0: what the artifact says
  int ticks = 1;              // of a faster controller per step, 1 to kMostTicks
  bool linear = false;        // what it is sent between two steps: a straight line; false: the action again
  std::uint64_t steps = 0;    // after how many to end; 0: never
  std::uint64_t bridge = 10;  // how many steps in a row may have a fault; at the next the robot is to be stopped
  By by = By::coast;
  std::uint64_t frozen = 0;  // how many readings in a row may be the same; 0: any number
};

// The seconds of every `now` are those of one clock of the caller's, whose start does not matter.
class Loop {
 public:
  // `policy` must outlive the loop; it stands where it was reset or loaded. Throws Error, naming the option.
  Loop(Policy& policy, const Options& options);
  ~Loop() = default;
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  const Options& options() const noexcept { return options_; }  // with the rate that is kept
  double period() const noexcept { return 1 / options_.rate; }  // seconds between two steps
  Policy& policy() noexcept { return policy_; }
  const Account& account() const noexcept { return account_; }
  Account& account() noexcept { return account_; }

  // ---- episodes ------------------------------------------------------------------------------------------------

  // An episode begins with the next step. `held` is the action that the robot holds there, from which safety bounds
  // the first; nullptr: not known, so the first may be any. Writes all of the policy's state. A stop that was told is
  // over with it; one that is due and was not told yet, since the last step is not finished, is told by the next.
  void begin(const float* held = nullptr) noexcept;
  // Instead of begin(): the policy goes on where Policy::load put it, in the middle of an episode.
  void resume(const float* held = nullptr) noexcept;
  // What the robot holds, where it is known only after begin() or resume(), or a call of not_sent(). False, and as it
  // was, where a number is not finite.
  bool hold(const float* held) noexcept;
  // Whether that would bound the next action: nobody said it yet in this episode, or since not_sent().
  bool wants_held() const noexcept { return is_unsure_ && !is_told_held_ && policy_.is_bounded(); }

  // ---- a controller that somebody else calls -------------------------------------------------------------------

  struct Told {
    const Action* action = nullptr;  // what the robot is to be sent now, valid until the next call; nullptr: nothing
    bool stop = false;               // one fault too many in a row: stop the robot, why() says why
  };
  // One tick: a step of the policy at the first of options().ticks calls, what lies between at the others. `now` is
  // when `reading` was taken, which is looked at where a step is due only. A call that comes later than one and a half
  // ticks after the last is a missed deadline: so many ticks are left out, and nothing is made up for.
  //
  // What it gives counts as sent; not_sent() after it says that it was not, reward() what it brought. After a stop all
  // further calls say so, too, until begin() or resume(). Where nothing is to be done until the next episode, do not
  // call it.
  Told update(double now, const Reading& reading) noexcept;
  // Whether the next update() takes a step, and so looks at its reading; one that comes late may, too.
  bool is_due() const noexcept { return place_ == 0; }

  // ---- or step by step, as run() does --------------------------------------------------------------------------

  // A step of the policy over a reading that was taken at `read_at`, or over the last good one. `robot` is asked what
  // it holds and what the last step brought, where the policy takes a step and may want to know; nullptr: nobody is,
  // see hold() and reward(). False: stop the robot.
  bool step(double read_at, const Reading& reading, Asked* robot = nullptr) noexcept;
  // What the robot is to be sent at a tick of this step, 0 to options().ticks - 1 (ticks may be left out); nullptr:
  // nothing. It counts as sent.
  const Action* send(double now, int tick) noexcept;
  // What send() or update() gave last did not reach the robot; where that was nothing, nothing is done.
  void not_sent(const char* why) noexcept;
  // What it brought, in the environment's units; rewards of several ticks are added up. Not called: not known.
  void reward(double value) noexcept;
  // The time from a step's reading to its first action, seconds, for the account.
  void took(double seconds) noexcept { account_.add(seconds); }
  // The step's ticks are over. False: stop the robot. step() calls it where nobody did.
  bool finish() noexcept;

  // ---- what happened -------------------------------------------------------------------------------------------

  const Trouble& fault() const noexcept { return fault_; }  // of the last step; none where it went well
  std::uint64_t faults_in_a_row() const noexcept { return in_a_row_; }
  // After how many faults in a row the last step was good again; 0: it was not, or there was none.
  std::uint64_t recovered() const noexcept { return recovered_; }
  const char* why() const noexcept { return why_.data(); }  // the robot is to be stopped; "": it is not
  void count(Fault kind) noexcept { ++account_.faults[static_cast<std::size_t>(kind)]; }  // one that is not bridged

  // ---- from other threads, and from signal handlers ------------------------------------------------------------

  // run() ends after the step under way.
  void end() noexcept { ending_.store(true); }
  // run() begins an episode at the next step: the policy's, and the robot's by its reset().
  void new_episode() noexcept { restarting_.store(true); }
  bool is_over() const noexcept;
  bool is_ending() const noexcept { return ending_.load(); }
  bool is_restarting() const noexcept { return restarting_.load(); }
  bool take_restart() noexcept { return restarting_.exchange(false); }

 private:
  Trouble act(Asked* robot) noexcept;
  Trouble ask(Asked& robot) noexcept;
  void tell_what_was_sent() noexcept;
  bool note(const Trouble& trouble) noexcept;
  void forget() noexcept;

  Policy& policy_;
  Options options_;
  Between between_;
  Readings readings_;
  Account account_;
  double stale_after_;       // seconds
  double good_at_ = 0;       // when the last good reading was taken
  double chosen_at_ = 0;     // when the reading was taken by which the action in hand was chosen,
  bool has_action_ = false;  // if there is one
  bool has_sent_ = false;    // whether `sent_` is the last that reached the robot
  bool had_sent_ = false;    // the same of the one before
  std::vector<float> sent_;
  std::vector<float> sent_before_;
  bool has_told_ = false;      // whether `told_` is what the policy's bounds are from
  bool is_told_held_ = false;  // that is what hold() said last
  bool is_unsure_ = true;      // nothing was sent yet, or sending failed: it may have reached the robot all the same
  bool is_asked_ = false;      // the robot was, in this step
  std::vector<float> told_;
  std::vector<float> held_;  // room for what the robot holds
  Action now_;               // what send() gave last
  bool has_reward_ = false;
  double reward_ = 0;
  bool is_open_ = false;  // a step was taken and not finished
  Trouble fault_;
  Trouble unsent_;  // the last of this step
  std::uint64_t in_a_row_ = 0;
  std::uint64_t recovered_ = 0;
  std::array<char, 400> why_ = {};
  int place_ = 0;  // of the next update() among the ticks of a step
  double last_update_ = 0;
  bool is_updated_ = false;
  std::atomic<bool> ending_{false};
  std::atomic<bool> restarting_{false};
};

}  // namespace lram::loop

#endif
