// A policy, a robot and a clock of which a test says everything, as tests/loop/robots.py has them.
#pragma once
#include <lram/loop.h>

#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "interface_writer.h"
#include "program_writer.h"
#include "testing.h"

namespace lram_testing {

using Numbers = std::vector<float>;

// Does what it observes, and tells how many steps it took: observation [2], action [2 + 1]. Sensors read -8 to 8 and
// -8 to 100; actions are within 50, and may change by `most_change`.
inline std::vector<std::uint8_t> follower(float most_change = HUGE_VALF, float most = 8, const char* second = "knee",
                                          double rate = 50) {
  ProgramWriter w;
  w.said = interface_of(
      rate, {{"observation", false, {element("hip", "", -8, most), element(second, "", -8, 100)}},
             {"action",
              true,
              {element("", "", -50, 50, most_change), element("", "", -50, 50, most_change), element("count", "")}}});
  const Place observation = w.input("observation", {2});
  const Place first = w.input("is_first", {});
  const Place before = w.state("state.0.count", {1}, 0);
  const Place start = w.apply(Function::choose, 1, {first, w.floats({0}), before}, 0);
  const Place count = w.apply(Function::add, 1, {start, w.floats({1})}, 0);
  const Place all = w.room(3);
  w.emit(lram::Operation::copy, {2}, {all, observation});
  w.emit(lram::Operation::copy, {1}, {behind(all, 2), count});
  w.output("action", {3}, all);
  w.next(count);
  return w.finish();
}

// A small network with a task: returns and rewards are divided by 2.
inline std::vector<std::uint8_t> network(lram_feedback feedback, const Shape& shape = {}, float target_return = 8) {
  std::vector<std::uint8_t> file = make_artifact(shape);
  lram::FileHeader header;
  std::memcpy(&header, file.data(), sizeof header);
  header.feedback = feedback;
  header.target_return = target_return;
  header.reward_scale = 2;
  std::memcpy(file.data(), &header, sizeof header);
  seal(file);
  return file;
}

// Time that passes in a loop's sleep alone, and where a test lets it.
class FakeClock : public lram::loop::Clock {
 public:
  double now() override { return time; }
  void sleep_until(double when) override { time = std::max(time, when) + oversleep; }

  double time = 100;
  double oversleep = 0;
};

// Reads what a test says, in its order: numbers, nothing, or what is thrown; then ends the loop.
class Scripted : public lram::loop::Robot {
 public:
  struct Item {
    Item(Numbers values) : numbers(std::move(values)) {}  // NOLINT(google-explicit-constructor)
    Item(const char* error) : thrown(error) {}            // NOLINT(google-explicit-constructor)
    static Item nothing() { return Item(Numbers{}); }
    Numbers numbers;
    std::string thrown;
  };

  Scripted(lram::loop::Loop& loop, FakeClock& clock, std::vector<Item> readings,
           std::vector<lram::loop::Event> events = {})
      : loop_(loop), clock_(clock), readings_(std::move(readings)), events_(std::move(events)) {}

  lram::loop::Reading reset() override {
    calls += "reset ";
    return observe();
  }

  lram::loop::Reading observe() override {
    if (next_ == readings_.size()) {
      loop_.end();
      return {};
    }
    const Item& item = readings_[next_++];
    if (before_reading) before_reading(next_);
    if (!item.thrown.empty()) throw std::runtime_error(item.thrown);
    if (item.numbers.empty()) return {};
    return item.numbers;
  }

  std::optional<double> act(const lram::loop::Action& action) override {
    const std::size_t tick = sent.size();
    if (delays.count(tick) > 0) clock_.time += delays[tick];
    sent.emplace_back(std::lround(1000 * (clock_.time - 100)), *action.floats());
    counts.push_back(action.floats()[2]);
    if (on_act) on_act();
    if (failing.count(tick) > 0) throw std::runtime_error("bus is busy");
    return reward;
  }

  bool holds(float* action) override {
    if (held.empty()) return false;
    std::copy(held.begin(), held.end(), action);
    return true;
  }

  lram::loop::Event event() override {
    if (next_event_ == bad_event) {
      ++next_event_;
      throw std::runtime_error("no bus");
    }
    return next_event_ < events_.size() ? events_[next_event_++] : lram::loop::Event::none;
  }

  void stop() override {
    calls += "stop ";
    if (!stop_fails.empty()) throw std::runtime_error(stop_fails);
  }
  void close() override {
    calls += "close ";
    if (!close_fails.empty()) throw std::runtime_error(close_fails);
  }

  // The first element of every action.
  Numbers actions() const {
    Numbers found;
    for (const auto& [when, action] : sent) found.push_back(action);
    return found;
  }
  // Milliseconds since the start.
  std::vector<long> times() const {
    std::vector<long> found;
    for (const auto& [when, action] : sent) found.push_back(when);
    return found;
  }

  std::vector<std::pair<long, float>> sent;
  Numbers counts;  // steps of the policy's episode, at each action
  std::string calls;
  std::optional<double> reward;
  std::map<std::size_t, double> delays;
  std::set<std::size_t> failing;
  std::string stop_fails;
  std::string close_fails;
  Numbers held;
  std::size_t bad_event = SIZE_MAX;
  std::function<void(std::size_t)> before_reading;
  std::function<void()> on_act;

 private:
  lram::loop::Loop& loop_;
  FakeClock& clock_;
  std::vector<Item> readings_;
  std::vector<lram::loop::Event> events_;
  std::size_t next_ = 0;
  std::size_t next_event_ = 0;
};

class Lines : public lram::loop::Log {
 public:
  void info(const char* line) override { text += std::string("info: ") + line + "\n"; }
  void warning(const char* line) override { text += std::string("warning: ") + line + "\n"; }

  std::string text;
};

}  // namespace lram_testing
