// What the loop does on each fault, event and deadline: every row of the tables in docs/robot.md, as
// tests/loop/test_control.py has them.
#include <limits>

#include "loop_robots.h"

using namespace lram_testing;
using lram::loop::By;
using lram::loop::Event;
using lram::loop::Fault;
using lram::loop::Options;

namespace {

const Numbers kOne = {1, 0};
const Numbers kTwo = {2, 0};
const Numbers kThree = {3, 0};
const Numbers kFour = {4, 0};
const Numbers kNan = {std::numeric_limits<float>::quiet_NaN(), 0};
const Scripted::Item kNothing = Scripted::Item::nothing();

Options options(std::uint64_t bridge = 3, By by = By::coast) {
  Options chosen;
  chosen.bridge = bridge;
  chosen.by = by;
  return chosen;
}

Options faster(int ticks, bool linear = false, By by = By::coast) {
  Options chosen = options(3, by);
  chosen.ticks = ticks;
  chosen.linear = linear;
  return chosen;
}

// A loop over a follower.
struct Rig {
  explicit Rig(std::vector<Scripted::Item> readings, const Options& chosen = options(), std::vector<Event> events = {},
               const std::vector<std::uint8_t>& program = follower())
      : file(program),
        policy(file.path()),
        loop(policy, chosen),
        robot(loop, clock, std::move(readings), std::move(events)) {}

  // Why the robot was stopped; "" where it was not.
  std::string run() {
    lram::loop::Around around;
    around.clock = &clock;
    around.log = &lines;
    around.resumed = resumed;
    try {
      lram::loop::run(loop, robot, around);
      return "";
    } catch (const lram::loop::SafeStop& stop) {
      return stop.what();
    }
  }

  const lram::loop::Account& account() const { return loop.account(); }
  std::uint64_t of(Fault kind) const { return loop.account().of(kind); }
  std::uint64_t faults() const {
    std::uint64_t sum = 0;
    for (const std::uint64_t count : loop.account().faults) sum += count;
    return sum;
  }

  TemporaryFile file;
  lram::loop::Policy policy;
  FakeClock clock;
  lram::loop::Loop loop;
  Scripted robot;
  Lines lines;
  bool resumed = false;
};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

// ---- readings --------------------------------------------------------------------------------------------------

TEST(a_reading_that_fails_is_bridged_on_the_last_good_one) {
  const std::vector<std::pair<Fault, Scripted::Item>> faults = {{Fault::missing, kNothing},
                                                                {Fault::missing, "encoder 3"},
                                                                {Fault::not_finite, kNan},
                                                                {Fault::not_finite, Numbers{HUGE_VALF, 0}},
                                                                {Fault::out_of_limits, Numbers{9, 0}},
                                                                {Fault::unusable, Numbers{1, 2, 3}}};
  for (const auto& [kind, item] : faults) {
    Rig rig({kOne, item, item, kTwo});
    CHECK(rig.run().empty());
    CHECK((rig.robot.actions() == Numbers{1, 1, 1, 2}));
    CHECK((rig.robot.counts == Numbers{1, 2, 3, 4}));  // the policy's time goes on
    CHECK(rig.of(kind) == 2 && rig.faults() == 2 && rig.account().bridged == 2 && rig.account().steps == 4);
    CHECK(rig.robot.calls == "reset close ");
    CHECK(contains(rig.lines.text, std::string("warning: step 1: ") + name_of(kind)));
    CHECK(contains(rig.lines.text, "; bridged\ninfo: step 4: good again, after 2 steps with a fault\n"));
  }
}

TEST(what_is_wrong_is_said_with_its_place) {
  const auto said = [](const Scripted::Item& item) {
    Rig rig({kOne, item, kOne});
    rig.run();
    return rig.lines.text;
  };
  CHECK(contains(said(Numbers{1, 101}), "out of limits: observation: knee: expected -8 to 100, got 101;"));
  CHECK(contains(said(kNan), "not finite: observation: expected finite values, got nan at element 0;"));
  CHECK(contains(said(Numbers{1, 2, 3}), "unusable: observation: expected 2 of float32, got 3 of float32;"));
  CHECK(contains(said("encoder\n3"), "missing: encoder 3;"));
}

TEST(a_reading_of_another_type_or_number_is_unusable) {
  Rig rig({kOne});
  const std::vector<std::int64_t> whole = {1, 2};
  const lram::loop::Values both[] = {kOne, kTwo};
  rig.loop.begin();
  CHECK(rig.loop.step(0, whole) && rig.loop.fault().kind == Fault::unusable);
  CHECK(rig.loop.step(0, {both, 2}) && rig.loop.fault().described() == "unusable: expected 1 observations, got 2");
  CHECK(rig.loop.step(0, lram::loop::Reading(static_cast<const float*>(nullptr), 2)));
  CHECK(rig.loop.fault().kind == Fault::unusable);
}

TEST(the_policy_waits_instead_where_it_is_told_so) {
  Rig rig({kOne, kNothing, kNothing, kTwo}, options(3, By::hold));
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{1, 1, 1, 2}));
  CHECK((rig.robot.counts == Numbers{1, 1, 1, 2}));
}

TEST(one_fault_too_many_in_a_row_stops_the_robot) {
  for (const By by : {By::coast, By::hold}) {
    Rig rig({kOne, kNothing, kNan, kNothing, kOne}, options(2, by));
    CHECK(rig.run() == "stopped: 3 steps in a row with a fault, the last: missing");
    CHECK((rig.robot.actions() == Numbers{1, 1, 1}));
    CHECK(rig.robot.calls == "reset stop close ");
    CHECK(rig.of(Fault::missing) == 2 && rig.of(Fault::not_finite) == 1);
    CHECK(rig.account().bridged == 2 && rig.account().steps == 3);
  }
  Rig rig({kOne, kNan}, options(0));
  CHECK(contains(rig.run(), "stopped: 1 step in a row with a fault, the last: not finite: observation: expected"));
}

TEST(faults_that_are_not_in_a_row_are_bridged_for_ever) {
  Rig rig({kOne, kNothing, kTwo, kNothing, kOne, kNothing, kTwo}, options(1));
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{1, 1, 2, 2, 1, 1, 2}));
  CHECK(rig.account().bridged == 3);
}

TEST(where_there_never_was_a_reading_nothing_is_sent) {
  Rig rig({kNan, kNan, kNan, kNan}, options(2));
  CHECK(contains(rig.run(), "not finite"));
  CHECK(rig.robot.sent.empty());
}

TEST(a_sensor_that_is_frozen_is_found_out_where_that_is_asked_for) {
  const std::vector<Scripted::Item> readings = {kOne, kTwo, kTwo, kTwo, kTwo, kThree};
  Options chosen = options();
  chosen.frozen = 2;
  Rig rig(readings, chosen);
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{1, 2, 2, 2, 2, 3}));
  CHECK(rig.of(Fault::frozen) == 2 && rig.faults() == 2);
  CHECK(contains(rig.lines.text, "frozen: the same to the bit 3 times in a row"));
  Rig other(readings);
  CHECK(other.run().empty() && other.faults() == 0);
}

TEST(what_only_the_step_finds_too_large_is_out_of_limits) {
  const TemporaryFile file(network(LRAM_REWARD_NONE));
  lram::loop::Policy policy(file.path());
  Options chosen = options();
  chosen.rate = 50;
  lram::loop::Loop loop(policy, chosen);
  const Numbers good(policy.observations()[0].size, 0.5F);
  const Numbers large(good.size(), std::numeric_limits<float>::max());
  loop.begin();
  CHECK(loop.step(0, good) && !loop.fault());
  CHECK(loop.step(0, large) && loop.fault().kind == Fault::out_of_limits);
  CHECK(contains(loop.fault().text.data(), "observation: "));
  CHECK(loop.send(0, 0) != nullptr);  // by the good one
  CHECK(loop.step(0, good) && !loop.fault());
  loop.begin();
  CHECK(loop.step(0, large) && loop.fault().kind == Fault::out_of_limits && loop.send(0, 0) == nullptr);
}

TEST(what_only_the_step_finds_too_large_is_no_frozen_sensors) {
  const TemporaryFile file(network(LRAM_REWARD_NONE));
  lram::loop::Policy policy(file.path());
  Options chosen = options(10);
  chosen.rate = 50;
  chosen.frozen = 1;
  lram::loop::Loop loop(policy, chosen);
  const Numbers good(policy.observations()[0].size, 0.5F);
  const Numbers large(good.size(), std::numeric_limits<float>::max());
  loop.begin();
  CHECK(loop.step(0, good) && !loop.fault());
  for (int i = 0; i < 3; ++i) CHECK(loop.step(0, large) && loop.fault().kind == Fault::out_of_limits);
  CHECK(loop.step(0, good) && loop.fault().kind == Fault::frozen);  // since the last that was looked at
}

// ---- the robot -------------------------------------------------------------------------------------------------

TEST(a_robot_that_cannot_be_reset_is_stopped_at_once) {
  Rig rig({"no power"});
  CHECK(rig.run() == "the robot's reset() failed: no power");
  CHECK(rig.robot.calls == "reset stop close ");
}

TEST(a_stop_that_fails_does_not_keep_the_motors_running) {
  Rig rig({"no power"});
  rig.robot.stop_fails = "brake";
  CHECK(rig.run() == "the robot's reset() failed: no power");
  CHECK(rig.robot.calls == "reset stop close ");
  CHECK(contains(rig.lines.text, "stop() failed: brake"));
}

// Foreign code around the loop, that fails where the robot is to be stopped, or before there is a loop.
struct FailingLog : Lines {
  void warning(const char* line) override {
    Lines::warning(line);
    throw std::runtime_error("log is full");
  }
};
struct FailingNotifier : lram::loop::Notifier {
  void tell(const char* line) override {
    if (contains(line, "STOPPING")) throw std::runtime_error("no socket");
  }
};
struct FailingClock : FakeClock {
  double now() override { throw std::runtime_error("no clock"); }
};

TEST(motors_are_let_go_of_whatever_fails_around_the_loop) {
  const auto run = [](Rig& rig, const lram::loop::Around& around) -> std::string {
    try {
      lram::loop::run(rig.loop, rig.robot, around);
    } catch (const lram::loop::SafeStop& stop) {
      return stop.what();
    }
    return "";
  };
  FailingLog log;
  FailingNotifier notifier;
  FailingClock broken;
  Rig stopped({"no power"});
  stopped.robot.stop_fails = "brake";
  CHECK(run(stopped, {&stopped.clock, &notifier, &log}) == "the robot's reset() failed: no power");
  CHECK(stopped.robot.calls == "reset stop close " && contains(log.text, "stop() failed: brake"));
  Rig ended({kOne});
  CHECK(run(ended, {&ended.clock, &notifier, &ended.lines}).empty() && ended.robot.calls == "reset close ");
  CHECK(contains(ended.lines.text, "the notifier's stopping() failed: no socket"));
  Rig early({kOne});
  CHECK(run(early, {&broken, nullptr, &early.lines}) == "stopped: no clock" && early.robot.calls == "stop close ");
  Rig logged({kOne, kNan});
  CHECK(run(logged, {&logged.clock, nullptr, &log}) == "stopped: log is full");
  CHECK(logged.robot.calls == "reset stop close ");
}

TEST(motors_that_cannot_be_stopped_are_told_of) {
  Rig rig({kOne});
  rig.robot.close_fails = "bus is gone";
  CHECK(rig.run() == "the robot's close() failed, its motors may run on: bus is gone");
  Rig other({"no power"});
  other.robot.close_fails = "bus is gone";
  CHECK(other.run() ==
        "the robot's reset() failed: no power; then the robot's close() failed, its motors may run on: "
        "bus is gone");
}

TEST(an_action_that_cannot_be_sent_is_a_fault) {
  Rig rig({kOne, kTwo, kThree, kFour});
  rig.robot.failing = {1};
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{1, 2, 3, 4}));
  CHECK(rig.of(Fault::not_sent) == 1 && rig.faults() == 1);
  CHECK(contains(rig.lines.text, "warning: step 2: not sent: bus is busy; bridged"));
  Rig other({kOne, kTwo, kThree, kFour}, options(1));
  other.robot.failing = {1, 2};
  CHECK(other.run() == "stopped: 2 steps in a row with a fault, the last: not sent: bus is busy");
}

// ---- episodes --------------------------------------------------------------------------------------------------

TEST(an_episode_begins_anew_where_the_robot_says_so) {
  Rig rig({kOne, kTwo, kThree}, options(), {Event::none, Event::new_episode});
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{1, 2, 3}));
  CHECK((rig.robot.counts == Numbers{1, 2, 1}));
  CHECK(rig.account().episodes == 2 && rig.robot.calls == "reset close ");
}

TEST(nothing_is_sent_between_an_episode_and_the_next) {
  Rig rig({kOne, kTwo, kThree}, options(), {Event::done, Event::none, Event::none, Event::new_episode});
  CHECK(rig.run().empty());
  CHECK((rig.robot.counts == Numbers{1, 1, 2}));
  CHECK((rig.robot.times() == std::vector<long>{0, 80, 100}));  // and a period begins with it
  CHECK(rig.account().episodes == 2 && rig.account().missed == 0);
}

TEST(an_episode_begins_where_somebody_else_says_so) {
  for (const bool waiting : {false, true}) {
    Rig rig({kOne, kTwo, kThree}, options(), waiting ? std::vector<Event>{Event::done} : std::vector<Event>{});
    rig.robot.on_act = [&] {
      if (rig.robot.sent.size() == 1) rig.loop.new_episode();
    };
    CHECK(rig.run().empty());
    CHECK(rig.robot.calls == "reset reset close ");
    CHECK((rig.robot.counts == Numbers{1, 1, 2}));
  }
}

TEST(a_loop_that_waits_for_an_episode_can_be_ended) {
  Rig rig({kOne, kTwo}, options(), {Event::done});
  rig.robot.on_act = [&] { rig.loop.end(); };
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{1}) && rig.robot.calls == "reset close ");
}

TEST(the_last_reading_of_an_episode_bridges_nothing_in_the_next) {
  Rig rig({kOne, kNothing, kTwo}, options(), {Event::new_episode});
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{1, 2}));
}

TEST(an_event_that_fails_is_counted_and_is_none) {
  Rig rig({kOne, kTwo, kThree}, options(0));
  rig.robot.bad_event = 0;
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{1, 2, 3}));
  CHECK(rig.of(Fault::no_event) == 1 && rig.account().bridged == 0);
  CHECK(contains(rig.lines.text, "the robot's event() failed: no bus"));
}

TEST(it_ends_after_its_steps_or_where_it_is_told_to) {
  Options chosen = options();
  chosen.steps = 2;
  Rig rig({kOne, kTwo, kThree}, chosen);
  CHECK(rig.run().empty() && rig.account().steps == 2 && rig.robot.calls == "reset close ");
  Rig other({kOne, kTwo, kThree});
  other.loop.end();  // a signal before the robot was ready
  CHECK(other.run().empty() && other.account().steps == 0 && other.robot.calls == "close ");
}

// ---- deadlines -------------------------------------------------------------------------------------------------

TEST(steps_are_a_period_apart) {
  Rig rig({kOne, kTwo, kThree});
  CHECK(rig.run().empty());
  CHECK((rig.robot.times() == std::vector<long>{0, 20, 40}));
  CHECK(rig.account().missed == 0);
}

TEST(what_is_late_is_counted_and_nothing_is_made_up_for) {
  Rig rig({kOne, kTwo, kThree, kFour});
  rig.robot.delays = {{1, 0.05}};
  CHECK(rig.run().empty());
  CHECK((rig.robot.times() == std::vector<long>{0, 70, 70, 90}));
  CHECK(rig.account().missed == 1 && std::fabs(rig.account().largest - 0.05) < 1e-9);
}

TEST(an_overslept_tick_is_counted_and_followed_by_a_whole_period) {
  FakeClock clock;
  lram::loop::Ticks ticks(clock, 0.02);
  std::vector<long> times;
  ticks.start();
  for (const double oversleep : {0.045, 0.0, 0.0}) {
    clock.oversleep = oversleep;
    CHECK(ticks.wait(1) == 1);
    times.push_back(std::lround(1000 * (clock.time - 100)));
  }
  CHECK((times == std::vector<long>{65, 85, 105}));
  CHECK(ticks.missed() == 1 && std::fabs(ticks.overslept() - 0.045) < 1e-9);
}

TEST(ticks_of_a_faster_controller_that_are_over_are_left_out) {
  Rig rig({kOne, kTwo}, faster(4, true));
  rig.robot.delays = {{4, 0.012}};
  CHECK(rig.run().empty());
  CHECK((rig.robot.times() == std::vector<long>{0, 5, 10, 15, 32, 32, 35}));
  CHECK((rig.robot.actions() == Numbers{1, 1, 1, 1, 1.25F, 1.75F, 2}));
}

TEST(an_action_that_is_too_old_is_not_sent) {
  Rig rig({kOne, kTwo, kThree});
  rig.loop.begin();
  CHECK(rig.loop.step(100, kOne) && rig.loop.send(100.1, 0) != nullptr);  // five periods
  CHECK(rig.loop.send(100.11, 0) == nullptr);
  CHECK(rig.account().stale == 1);
  CHECK(rig.loop.finish() && rig.of(Fault::stale) == 1 && rig.account().bridged == 1);
  CHECK(rig.loop.fault().described() == "stale: chosen by a reading of 110 ms ago, at most 100");
  Options chosen = options(0);
  chosen.rate = 1000;
  lram::loop::Loop fast(rig.policy, chosen);
  fast.begin();
  CHECK(fast.step(0, kOne) && fast.send(0.05, 0) != nullptr && fast.send(0.051, 0) == nullptr);
}

TEST(what_a_reading_of_long_ago_says_is_not_sent) {
  Rig rig({kOne, kNothing, kNothing, kTwo});
  rig.robot.before_reading = [&](std::size_t number) {
    if (number == 2 || number == 3) rig.clock.time += 5;
  };
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{1, 2}));
  CHECK(rig.account().stale == 2);
}

TEST(a_loop_that_is_always_too_late_is_stopped) {
  Rig rig({kOne}, options(2));
  rig.loop.begin();
  for (int step = 0; step < 2; ++step) {
    CHECK(rig.loop.step(step, kOne) && rig.loop.send(step + 0.2, 0) == nullptr);
    CHECK(rig.loop.finish());
  }
  CHECK(rig.loop.step(2, kOne) && rig.loop.send(2.2, 0) == nullptr && !rig.loop.finish());
  CHECK(contains(rig.loop.why(), "3 steps in a row with a fault, the last: stale: chosen by a reading of"));
}

// ---- what reaches the robot ------------------------------------------------------------------------------------

TEST(a_line_is_not_gone_along_twice) {
  Rig rig({Numbers{0, 0}, kFour, kNothing, kFour}, faster(4, true, By::hold));
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{0, 0, 0, 0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4}));
}

TEST(a_line_begins_where_the_robot_is) {
  Rig rig({Numbers{0, 0}, kFour, Numbers{8, 0}}, faster(4, true));
  rig.robot.failing = {5, 6, 7};  // it is at 1
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{0, 0, 0, 0, 1, 2, 3, 4, 2.75F, 4.5F, 6.25F, 8}));
}

TEST(a_faster_controller_gets_each_action_again) {
  Rig rig({kOne, kTwo}, faster(3));
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{1, 1, 1, 2, 2, 2}));
}

TEST(changes_are_bounded_from_what_really_reached_the_robot) {
  Rig rig({Numbers{0, 0}, kThree, kThree, kThree, kThree, kThree}, options(5), {}, follower(1));
  rig.robot.failing = {1, 2, 3};
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{0, 1, 1, 1, 1, 2}));
}

TEST(a_robot_may_say_what_it_holds_where_an_episode_begins) {
  Rig rig({kThree, kThree, kThree, kThree}, options(), {Event::none, Event::new_episode}, follower(1));
  rig.robot.held = {0.5F, 0, 0};
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{1.5F, 2.5F, 1.5F, 2.5F}));
  Rig other({kThree}, options(), {}, follower(1));
  other.robot.held = {NAN, 0, 0};
  CHECK(other.run().empty() && other.robot.sent.empty());
  CHECK(contains(other.lines.text, "no result: the robot's holds() failed: expected finite values;"));
}

TEST(what_may_have_reached_the_robot_all_the_same_is_asked_for) {
  Rig rig({Numbers{0, 0}, kThree, kThree, kThree}, options(), {}, follower(1));
  rig.robot.failing = {1};
  rig.robot.on_act = [&] {
    if (rig.robot.sent.size() == 2) rig.robot.held = {2, 0, 0};
  };
  CHECK(rig.run().empty());
  CHECK((rig.robot.actions() == Numbers{0, 1, 3, 3}));
}

TEST(a_controller_may_say_itself_what_the_robot_holds) {
  Rig rig({kOne}, options(), {}, follower(1));
  const Numbers held = {0.5F, 0, 0};
  rig.loop.begin(held.data());
  CHECK(!rig.loop.wants_held());
  CHECK(*rig.loop.update(0, kThree).action->floats() == 1.5F);
  CHECK(*rig.loop.update(0.02, kThree).action->floats() == 2.5F && !rig.loop.wants_held());
  rig.loop.not_sent("bus is busy");
  CHECK(rig.loop.wants_held() && rig.loop.hold(held.data()) && !rig.loop.wants_held());
  CHECK(*rig.loop.update(0.04, kThree).action->floats() == 1.5F);
  rig.loop.not_sent("bus is busy");
  CHECK(*rig.loop.update(0.06, kThree).action->floats() == 2.5F);  // from what reached it last
  rig.loop.begin();
  CHECK(rig.loop.wants_held() && *rig.loop.update(0.08, kThree).action->floats() == 3);
  const Numbers nan = {NAN, 0, 0};
  CHECK(!rig.loop.hold(nan.data()));
}

TEST(a_robot_may_be_asked_what_a_step_brought) {
  const TemporaryFile file(network(LRAM_REWARD_OBSERVED));
  lram::loop::Policy policy(file.path());
  Options chosen = options();
  chosen.rate = 50;
  lram::loop::Loop loop(policy, chosen);
  struct Brings : lram::loop::Asked {
    std::optional<double> brought() override {
      ++asked;
      if (asked == 2) throw std::runtime_error("no camera");
      return asked;
    }
    int asked = 0;
  } robot;
  const Numbers good(policy.observations()[0].size, 0.5F);
  loop.begin();
  CHECK(loop.step(0, good, &robot) && !loop.fault());
  CHECK(loop.step(0, good, &robot));
  CHECK(loop.fault().described() == "no result: the robot's brought() failed: no camera");
  CHECK(loop.step(0, good, &robot) && !loop.fault() && robot.asked == 3);
}

// ---- a controller that somebody else calls ---------------------------------------------------------------------

TEST(a_controller_of_somebody_elses_gets_the_same) {
  Rig rig({kOne}, faster(4, true));
  rig.loop.begin();
  Numbers actions;
  double now = 0;
  for (const float reading : {0.0F, 4.0F, 8.0F})
    for (int tick = 0; tick < 4; ++tick, now += 0.005) {
      CHECK(rig.loop.is_due() == (tick == 0));
      const Numbers observation = {reading, 0};
      const auto told = rig.loop.update(now + (tick % 2 == 0 ? 0.002 : 0), observation);  // it trembles
      CHECK(!told.stop && told.action != nullptr);
      if (told.action != nullptr) actions.push_back(*told.action->floats());
    }
  CHECK((actions == Numbers{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}));
  CHECK(rig.account().steps == 3 && rig.account().missed == 0);
}

TEST(a_controller_of_somebody_elses_may_miss_ticks) {
  Rig rig({kOne}, faster(4, true));
  rig.loop.begin();
  const auto told = [&](double now, float reading) {
    const Numbers observation = {reading, 0};
    return *rig.loop.update(now, observation).action->floats();
  };
  for (int tick = 0; tick < 4; ++tick) told(0.005 * tick, 0);
  CHECK(told(0.020, 4) == 1);
  CHECK(told(0.035, 0) == 4);  // two are left out
  CHECK(told(0.040, 8) == 5 && rig.account().missed == 1);
  CHECK(told(0.075, 8) == 5.75F);  // all that is left of this step and more: the next one is due
  CHECK(rig.account().steps == 4 && rig.account().missed == 2);
}

TEST(a_controller_of_somebody_elses_is_stopped_until_it_begins_anew) {
  Rig rig({kOne}, options(1));
  rig.loop.begin();
  CHECK(!rig.loop.update(0, kOne).stop);
  CHECK(!rig.loop.update(0.02, kNan).stop);
  CHECK(rig.loop.faults_in_a_row() == 1);
  const auto told = rig.loop.update(0.04, lram::loop::Reading::missing("late"));
  CHECK(told.stop && told.action == nullptr);
  CHECK(rig.loop.why() == std::string("stopped: 2 steps in a row with a fault, the last: missing: late"));
  CHECK(rig.loop.update(0.06, kOne).stop);
  rig.loop.begin();
  CHECK(!rig.loop.update(0.08, kOne).stop && !rig.loop.update(0.1, kNan).stop && rig.loop.update(0.12, kNan).stop);
}

TEST(what_did_not_reach_the_robot_counts_at_the_next_step) {
  Rig rig({kOne}, options(0));
  rig.loop.begin();
  CHECK(rig.loop.update(0, kOne).action != nullptr);
  for (int again = 0; again < 2; ++again) rig.loop.not_sent("bus is off");
  CHECK(rig.loop.update(0.02, kOne).stop);
  CHECK(contains(rig.loop.why(), "not sent: bus is off"));
  rig.loop.begin();
  CHECK(!rig.loop.update(0.04, kOne).stop && rig.loop.update(0.06, kNan).action == nullptr);
  rig.loop.not_sent("nothing was to be sent");
  CHECK(rig.of(Fault::not_sent) == 1);
}

TEST(a_stop_that_is_due_is_told_though_an_episode_begins) {
  Rig rig({kOne}, options(0));
  rig.loop.begin();
  CHECK(rig.loop.update(0, kOne).action != nullptr);
  rig.loop.not_sent("bus is off");
  rig.loop.begin();
  CHECK(rig.loop.update(0.02, kOne).stop && contains(rig.loop.why(), "not sent: bus is off"));
  rig.loop.begin();  // now it was told
  CHECK(rig.loop.update(0.04, kOne).action != nullptr && rig.of(Fault::not_sent) == 1);
}

// ---- options, and what is said ---------------------------------------------------------------------------------

TEST(options_that_make_no_sense_are_refused) {
  const TemporaryFile file(follower());
  const TemporaryFile silent(follower(1, 8, "knee", 0));
  lram::loop::Policy policy(file.path());
  lram::loop::Policy without_rate(silent.path());
  const auto refused = [](lram::loop::Policy& of, const Options& chosen) -> std::string {
    try {
      const lram::loop::Loop loop(of, chosen);
    } catch (const lram::loop::Error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(refused(policy, {}).empty());
  CHECK(contains(refused(without_rate, {}), "rate: expected one, Hz"));
  for (const double rate : {-1.0, 2e6, std::nan("")}) {
    Options chosen;
    chosen.rate = rate;
    CHECK(contains(refused(policy, chosen), "rate: expected more than 0"));
  }
  CHECK(refused(policy, faster(0)) == "ticks: expected 1 to 10000 per step, got 0");
  CHECK(contains(refused(policy, faster(10001)), "got 10001"));
}

TEST(an_account_is_a_line) {
  lram::loop::Account account;
  CHECK(account.text() == "0 missed deadlines, 0 bridged steps" && account.percentile(50) == 0);
  for (int i = 1; i <= 4; ++i) account.add(0.001 * i);
  account.missed = 1;
  account.bridged = 1234567;
  account.faults[static_cast<std::size_t>(Fault::frozen)] = 2000;
  account.faults[static_cast<std::size_t>(Fault::stale)] = 3;
  account.stale = 3;
  CHECK(account.text() ==
        "p50 2.50 ms, p99 3.97 ms, largest 4.00 ms, 1 missed deadline, 1,234,567 bridged steps, faults: frozen 2,000, "
        "stale 3, 3 stale actions");
  for (int i = 0; i < 100'000; ++i) account.add(0.002);
  CHECK(contains(account.text(), "p50 2.00 ms, p99 2.00 ms (of the last 100,000), largest 4.00 ms"));
}

int main() { return run_all(); }
