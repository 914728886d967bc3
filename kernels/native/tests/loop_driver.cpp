// Drives a loop over a script, and prints what it sent and how it went: what tests/targets/test_native_loop.py compares
// with the loop of Python. Of the installed library alone.
//
//     loop_driver MODEL RATE TICKS hold|linear STEPS BRIDGE coast|hold FROZEN < SCRIPT
//
// The script's lines, each kind in its order: `reading NUMBER ...`, `missing`, `throw`, `late SECONDS` (of the next
// reading), `event none|new|done`, `act SECONDS fine|fail [REWARD]`, `holds SECONDS NUMBER ...` (none: it
// fails), `brought REWARD` (NaN: it fails). Where there are no readings any more the loop is ended.
#include <lram/loop.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <iostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace {

using lram::loop::Event;

class FakeClock : public lram::loop::Clock {
 public:
  double now() override { return time; }
  void sleep_until(double when) override { time += when - time; }
  double time = 100;
};

struct Item {
  enum { reading, missing, thrown } kind;
  double late;
  std::vector<float> numbers;
};

struct Held {
  double late;
  std::vector<float> numbers;
};

struct Sent {
  double late;
  bool fails;
  std::optional<double> reward;
};

class Scripted : public lram::loop::Robot {
 public:
  explicit Scripted(FakeClock& clock) : clock_(clock) {}

  void parse(std::istream& script) {
    double late = 0;
    for (std::string line; std::getline(script, line);) {
      std::istringstream words(line);
      std::string what;
      words >> what;
      if (what == "late") {
        late = number(words);
      } else if (what == "event") {
        words >> what;
        events_.push_back(what == "new" ? Event::new_episode : what == "done" ? Event::done : Event::none);
      } else if (what == "act") {
        Sent sent = {number(words), (words >> what, what == "fail"), {}};
        if (words >> what) sent.reward = std::strtod(what.c_str(), nullptr);
        acts_.push_back(sent);
      } else if (what == "brought") {
        brought_.push_back(number(words));
      } else if (what == "holds") {
        const double seconds = number(words);
        held_.push_back({seconds, numbers(words)});
      } else {
        items_.push_back({what == "throw"     ? Item::thrown
                          : what == "missing" ? Item::missing
                                              : Item::reading,
                          std::exchange(late, 0), numbers(words)});
      }
    }
  }

  lram::loop::Reading reset() override {
    std::printf("reset\n");
    return observe();
  }
  lram::loop::Reading observe() override {
    if (items_.empty()) {
      loop->end();
      return {};
    }
    item_ = items_.front();
    items_.pop_front();
    clock_.time += item_.late;
    if (item_.kind == Item::thrown) throw std::runtime_error("encoder");
    if (item_.kind == Item::missing) return {};
    return item_.numbers;
  }
  std::optional<double> act(const lram::loop::Action& action) override {
    const Sent sent = acts_.front();
    acts_.pop_front();
    clock_.time += sent.late;
    std::printf("act %a", clock_.time);
    for (std::size_t i = 0; i < action.size; ++i) std::printf(" %a", static_cast<double>(action.floats()[i]));
    std::printf("\n");
    if (sent.fails) throw std::runtime_error("bus is busy");
    return sent.reward;
  }
  void stop() override { std::printf("stop\n"); }
  void close() override { std::printf("close\n"); }
  bool holds(float* action) override {
    const Held held = held_.front();
    held_.pop_front();
    clock_.time += held.late;
    if (held.numbers.empty()) throw std::runtime_error("encoder");
    std::copy(held.numbers.begin(), held.numbers.end(), action);
    return true;
  }
  std::optional<double> brought() override {
    if (brought_.empty()) return std::nullopt;
    const double reward = brought_.front();
    brought_.pop_front();
    if (std::isnan(reward)) throw std::runtime_error("camera");
    return reward;
  }
  Event event() override {
    if (events_.empty()) return Event::none;
    const Event event = events_.front();
    events_.pop_front();
    return event;
  }

  lram::loop::Loop* loop = nullptr;

 private:
  static double number(std::istream& words) {
    std::string word;
    words >> word;
    return std::strtod(word.c_str(), nullptr);
  }
  static std::vector<float> numbers(std::istream& words) {
    std::vector<float> found;
    for (std::string word; words >> word;) found.push_back(std::strtof(word.c_str(), nullptr));
    return found;
  }

  FakeClock& clock_;
  std::deque<Item> items_;
  std::deque<Event> events_;
  std::deque<Sent> acts_;
  std::deque<Held> held_;
  std::deque<double> brought_;
  Item item_ = {};
};

int drive(char** given) {
  lram::loop::Policy policy(given[1]);
  lram::loop::Options options;
  options.rate = std::atof(given[2]);
  options.ticks = std::atoi(given[3]);
  options.linear = std::strcmp(given[4], "linear") == 0;
  options.steps = std::strtoull(given[5], nullptr, 10);
  options.bridge = std::strtoull(given[6], nullptr, 10);
  options.by = std::strcmp(given[7], "hold") == 0 ? lram::loop::By::hold : lram::loop::By::coast;
  options.frozen = std::strtoull(given[8], nullptr, 10);
  policy.warm_up();
  lram::loop::Loop loop(policy, options);
  FakeClock clock;
  Scripted robot(clock);
  robot.loop = &loop;
  robot.parse(std::cin);
  lram::loop::Around around;
  around.clock = &clock;
  try {
    lram::loop::run(loop, robot, around);
  } catch (const lram::loop::SafeStop& stop) {
    std::printf("stopped %s\n", stop.what());
  }
  const lram::loop::Account& account = loop.account();
  const auto print = [](const char* name, auto number) {
    std::printf("%s %llu\n", name, static_cast<unsigned long long>(number));
  };
  print("steps", account.steps);
  print("episodes", account.episodes);
  print("missed", account.missed);
  print("bridged", account.bridged);
  print("stale", account.stale);
  for (std::size_t kind = 1; kind < lram::loop::kFaults; ++kind)
    if (account.faults[kind] > 0)
      print((std::string("fault ") + name_of(static_cast<lram::loop::Fault>(kind))).c_str(), account.faults[kind]);
  std::printf("text %s\n", account.text().c_str());
  const lram::loop::Held held = policy.held();
  for (const std::uint64_t count : held.clamped) print("clamped", count);
  for (const std::uint64_t count : held.slowed) print("slowed", count);
  return 0;
}

}  // namespace

int main(int count, char** given) {
  try {
    if (count == 9) return drive(given);
    std::fprintf(stderr, "error: expected 8 arguments\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
  }
  return 1;
}
