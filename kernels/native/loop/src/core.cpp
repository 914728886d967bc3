#include <lram/loop/core.h>
#include <lram/loop/error.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>

#include "described.h"

namespace lram::loop {
namespace {

constexpr double kFastest = 1e6;  // Hz

Options checked(Options options, const Policy& policy) {
  if (options.rate == 0) options.rate = policy.rate();
  if (options.rate == 0) throw Error("rate: expected one, Hz: " + policy.path() + " says none");
  if (!(options.rate > 0 && options.rate <= kFastest))
    throw Error("rate: expected more than 0 and up to 1000000 Hz, got " + std::to_string(options.rate));
  return options;
}

}  // namespace

Loop::Loop(Policy& policy, const Options& options)
    : policy_(policy),
      options_(checked(options, policy)),
      between_(options.ticks, options.linear, policy.action().element, policy.action().size),
      readings_(policy, options.frozen),
      stale_after_(std::max((static_cast<double>(options.bridge) + 2) * period(), kLeastStale)),
      sent_(policy.action().element == LRAM_FLOAT32 ? policy.action().size : 0),
      sent_before_(sent_.size()),
      told_(sent_.size()),
      held_(sent_.size()) {}

void Loop::forget() noexcept {
  if (why_[0] != '\0') {  // who stopped the robot lets it go on
    why_[0] = '\0';
    in_a_row_ = 0;
  } else {
    finish();  // a stop that is due now, and that nobody heard of, is told at the next step
  }
  between_.reset();
  readings_.start();
  has_action_ = has_sent_ = had_sent_ = has_told_ = is_told_held_ = has_reward_ = false;
  is_unsure_ = true;
  now_ = {};
  place_ = 0;
  is_updated_ = false;
  ++account_.episodes;
}

void Loop::begin(const float* held) noexcept {
  forget();
  policy_.reset();
  if (held != nullptr) hold(held);
}

void Loop::resume(const float* held) noexcept {
  forget();
  has_reward_ = policy_.about().reads_reward != 0;  // what the last step brought, nobody knows any more
  reward_ = 0;
  if (held != nullptr) hold(held);
}

Loop::Told Loop::update(double now, const Reading& reading) noexcept {
  if (why_[0] != '\0') return {nullptr, true};
  const double late = is_updated_ ? std::round((now - last_update_) / period() * options_.ticks) - 1 : 0;
  if (late >= 1) {
    ++account_.missed;
    if (place_ > 0) place_ = late < options_.ticks - place_ ? place_ + static_cast<int>(late) : 0;
  }
  last_update_ = now;
  is_updated_ = true;
  if (place_ == 0 && !step(now, reading)) return {nullptr, true};
  Told told;
  told.action = send(now, place_);
  place_ = (place_ + 1) % options_.ticks;
  return told;
}

bool Loop::step(double read_at, const Reading& reading, Asked* robot) noexcept {
  if (!finish()) return false;
  policy_.take_over();
  fault_ = unsent_ = {};
  recovered_ = 0;
  is_asked_ = false;
  const double good_before = good_at_;
  fault_ = readings_.check(reading);
  if (!fault_) good_at_ = read_at;
  bool acted = false;
  if (readings_.last() != nullptr && (!fault_ || options_.by == By::coast)) {
    Trouble result = act(robot);
    if (!fault_ && result.kind == Fault::out_of_limits) {  // which only the step could tell
      fault_ = result;
      readings_.take_back();
      good_at_ = good_before;
      if (readings_.last() != nullptr && options_.by == By::coast) result = act(robot);
    }
    acted = !result;
    if (!fault_) fault_ = result;
  }
  if (!acted) between_.again();
  if (fault_ && !note(fault_)) return false;
  ++account_.steps;
  is_open_ = true;
  return true;
}

Trouble Loop::act(Asked* robot) noexcept {
  Trouble trouble;
  if (robot != nullptr && !is_asked_) trouble = ask(*robot);
  if (!is_told_held_) tell_what_was_sent();
  if (!trouble) trouble = policy_.act(readings_.last(), has_reward_ ? &reward_ : nullptr);
  if (trouble) {
    if (std::strncmp(trouble.text.data(), "reward", 6) == 0 || !std::isfinite(reward_)) has_reward_ = false;
    return trouble;
  }
  between_.aim(policy_.chosen().data);
  if (!told_.empty()) std::copy_n(policy_.chosen().floats(), told_.size(), told_.begin());
  has_told_ = true;
  is_told_held_ = false;
  chosen_at_ = good_at_;
  has_action_ = true;
  has_reward_ = false;
  return {};
}

// Foreign code, which may fail.
Trouble Loop::ask(Asked& robot) noexcept {
  is_asked_ = true;
  const char* method = "holds";
  try {
    if (is_unsure_ && policy_.is_bounded() && robot.holds(held_.data()) && !hold(held_.data()))
      return {Fault::no_result, "the robot's holds() failed: expected finite values"};
    method = "brought";
    const std::optional<double> brought = robot.brought();
    if (brought) reward(*brought);
    return {};
  } catch (...) {  // an action in hand is sent again: whichever the robot holds, it is near
    return {Fault::no_result, "the robot's %s() failed: %s", method, described().c_str()};
  }
}

bool Loop::hold(const float* held) noexcept {
  if (!policy_.hold(held)) return false;
  has_told_ = false;
  is_told_held_ = true;
  return true;
}

// The policy's bounds are from what the robot was really told, which may not be what it chose last.
void Loop::tell_what_was_sent() noexcept {
  if (!has_sent_ || (has_told_ && sent_ == told_)) return;
  policy_.hold(sent_.data());
  std::copy(sent_.begin(), sent_.end(), told_.begin());
  has_told_ = true;
}

const Action* Loop::send(double now, int tick) noexcept {
  now_ = {};
  if (!has_action_) return nullptr;
  const double age = now - chosen_at_;
  if (age > stale_after_) {
    ++account_.stale;
    unsent_ = {Fault::stale, "chosen by a reading of %.0f ms ago, at most %.0f", 1000 * age, 1000 * stale_after_};
    return nullptr;
  }
  now_ = between_.at(tick);
  if (sent_.empty()) return &now_;
  sent_.swap(sent_before_);
  had_sent_ = has_sent_;
  std::copy_n(now_.floats(), sent_.size(), sent_.begin());
  has_sent_ = true;
  is_unsure_ = is_told_held_ = false;
  return &now_;
}

void Loop::not_sent(const char* why) noexcept {
  if (now_.data == nullptr) return;  // nothing was to be sent
  now_ = {};
  between_.unsent();
  sent_.swap(sent_before_);
  has_sent_ = had_sent_;
  is_unsure_ = true;
  unsent_ = {Fault::not_sent, "%s", why};
}

void Loop::reward(double value) noexcept {
  reward_ = has_reward_ ? reward_ + value : value;
  has_reward_ = true;
}

bool Loop::finish() noexcept {
  if (!is_open_) return why_[0] == '\0';
  is_open_ = false;
  policy_.settle();
  if (fault_) return true;
  if (unsent_) {
    fault_ = unsent_;
    return note(fault_);
  }
  recovered_ = in_a_row_;
  in_a_row_ = 0;
  return true;
}

// Counts a fault; false where it is one too many.
bool Loop::note(const Trouble& trouble) noexcept {
  count(trouble.kind);
  ++in_a_row_;
  if (in_a_row_ <= options_.bridge) {
    ++account_.bridged;
    return true;
  }
  std::snprintf(why_.data(), why_.size(), "stopped: %llu step%s in a row with a fault, the last: %s%s%s",
                static_cast<unsigned long long>(in_a_row_), in_a_row_ == 1 ? "" : "s", name_of(trouble.kind),
                trouble.text[0] == '\0' ? "" : ": ", trouble.text.data());
  return false;
}

bool Loop::is_over() const noexcept { return is_ending() || (options_.steps > 0 && account_.steps >= options_.steps); }

}  // namespace lram::loop
