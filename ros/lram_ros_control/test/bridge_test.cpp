// The bridge with a real engine: bridge_test ARM DEGREES MIXED, bundles whose policies do what they observe
// (tests/ros/arms.py), at 100 Hz.
//
// ARM observes the hip's position in rad and the knee's velocity in rad/s, up to 50; its action is a position of
// either, up to 8, that may change by 4 from step to step. The safe action is 0.5. DEGREES observes the positions of
// hip and knee in degrees; its action is those of knee and hip, in that order, that may change by 4 degrees. MIXED
// observes what ARM does, and its action is just that. Neither has a safe action.
#include "lram_ros_control/bridge.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using lram_ros_control::Bridge;
using lram_ros_control::Settings;
using Result = Bridge::Result;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kRadians = 0.017453292519943295;  // in a degree

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

std::string bundle;
std::string degrees;
std::string mixed;

Settings arm() {
  Settings settings;
  settings.bundle = bundle;
  settings.update_rate = 500;
  return settings;
}

Settings of(const std::string& other) {
  Settings settings = arm();
  settings.bundle = other;
  return settings;
}

bool near(double value, double expected) { return std::abs(value - expected) < 1e-5; }
bool commands(const Bridge& bridge, double first, double second) {
  return near(bridge.command()[0], first) && near(bridge.command()[1], second);
}
// Nothing is to be written.
bool commands_nothing(const Bridge& bridge) {
  return std::isnan(bridge.command()[0]) && std::isnan(bridge.command()[1]);
}

struct Clock {
  double now = 3;
  Result tick(Bridge& bridge, double hip, double knee) {
    bridge.read(0, hip);
    bridge.read(1, knee);
    const Result result = bridge.update(now);
    now += 0.002;
    return result;
  }
};

void refuses(const char* said, const std::function<void(Settings&)>& change) {
  Settings settings = arm();
  change(settings);
  try {
    const Bridge bridge(settings);
  } catch (const lram::loop::Error& error) {
    if (std::string(error.what()).find(said) != std::string::npos) return;
    std::fprintf(stderr, "expected '%s', got '%s'\n", said, error.what());
    std::exit(1);
  }
  std::fprintf(stderr, "not refused: %s\n", said);
  std::exit(1);
}

void names_are_the_bundles() {
  const Bridge bridge(arm());
  CHECK((bridge.states() == std::vector<std::string>{"hip/position", "knee/velocity"}));
  CHECK((bridge.commands() == std::vector<std::string>{"hip/position", "knee/position"}));
}

void a_step_is_taken_at_every_fifth_tick() {
  Bridge bridge(arm());
  Clock clock;
  bridge.begin();
  for (int i = 0; i < 20; ++i) {
    CHECK(clock.tick(bridge, 0.25 * i, -0.25) == Result::send);
    CHECK(bridge.command()[0] == 0.25 * (i / 5 * 5) && bridge.command()[1] == -0.25);
  }
}

void between_steps_may_be_a_line() {
  Settings settings = arm();
  settings.between = "linear";
  Bridge bridge(settings);
  Clock clock;
  bridge.begin();
  for (int i = 0; i < 5; ++i) CHECK(clock.tick(bridge, 1, 0) == Result::send && bridge.command()[0] == 1);
  for (int i = 1; i <= 5; ++i) {
    CHECK(clock.tick(bridge, 2, 0) == Result::send);
    CHECK(std::abs(bridge.command()[0] - (1 + i / 5.0)) < 1e-6);
  }
}

void what_is_not_known_is_bridged_then_stopped() {
  Settings settings = arm();
  settings.bridge = 3;
  Bridge bridge(settings);
  Clock clock;
  bridge.begin();
  CHECK(clock.tick(bridge, kNan, 0) == Result::nothing);
  for (int i = 1; i < 15; ++i) clock.tick(bridge, 1, 2);
  CHECK(bridge.command()[0] == 1 && bridge.command()[1] == 2);
  int bridged = 0;
  Result result = Result::send;
  while (result != Result::stopped) {
    result = clock.tick(bridge, kNan, 2);
    CHECK(++bridged < 100);
  }
  CHECK(bridged == 16);  // three steps of five ticks; the fourth stops
  CHECK(bridge.command()[0] == 0.5 && bridge.command()[1] == 0.5);
  CHECK(std::string(bridge.why()).find("not finite") != std::string::npos);
  CHECK(clock.tick(bridge, 1, 2) == Result::stopped);
  bridge.begin();
  CHECK(clock.tick(bridge, 1, 2) == Result::send && bridge.command()[1] == 2);
}

void the_first_action_is_bounded_from_what_the_joints_hold() {
  Settings settings = arm();
  settings.state_interfaces = {"hip/position", "knee/velocity"};
  settings.command_interfaces = {"hip/position", "hip/angle"};
  refuses("'hip/angle' is in rad, which is no unit of a joint's angle", [&](Settings& s) { s = settings; });
  Bridge unknown(arm());  // the knee's position is not observed
  Clock clock;
  unknown.read(0, 0);
  unknown.read(1, 0);
  unknown.begin();
  CHECK(clock.tick(unknown, 7, 7) == Result::send && unknown.command()[0] == 7);
}

void a_new_episode_begins_at_the_next_step() {
  Bridge bridge(arm());
  Clock clock;
  bridge.begin();
  for (int i = 0; i < 5; ++i) clock.tick(bridge, 0, 0);
  clock.tick(bridge, 7, 0);
  CHECK(bridge.command()[0] == 4);  // it may change by four
  for (int i = 1; i < 5; ++i) clock.tick(bridge, 7, 0);
  bridge.new_episode();
  clock.tick(bridge, -7, 0);
  CHECK(bridge.command()[0] == -7);  // nobody knows what it held
  CHECK(bridge.text().find("slowed: hip 1") != std::string::npos);
}

void a_stop_commands_what_is_told() {
  Settings settings = arm();
  settings.safe_action = {0.25, -0.25};
  Bridge bridge(settings);
  Clock clock;
  bridge.begin();
  CHECK(clock.tick(bridge, 1, 1) == Result::send);
  bridge.stop();
  CHECK(bridge.command()[0] == 0.25 && bridge.command()[1] == -0.25);
}

void a_stop_before_any_command_commands_nothing() {
  for (const Settings& settings : {arm(), of(mixed)}) {
    Bridge bridge(settings);
    bridge.stop();
    CHECK(commands_nothing(bridge));
    Clock clock;
    bridge.begin();
    Result result = Result::nothing;
    for (int i = 0; result != Result::stopped; ++i) {
      result = clock.tick(bridge, kNan, 0);
      CHECK(result != Result::send && commands_nothing(bridge) && i < 1000);
    }
    bridge.stop();
    CHECK(commands_nothing(bridge));
  }
}

void an_arm_in_degrees_whose_joints_are_in_another_order() {
  Bridge bridge(of(degrees));
  CHECK((bridge.states() == std::vector<std::string>{"hip/position", "knee/position"}));
  CHECK((bridge.commands() == std::vector<std::string>{"knee/position", "hip/position"}));
  Clock clock;
  bridge.read(0, 10 * kRadians);
  bridge.read(1, 50 * kRadians);
  bridge.begin();
  CHECK(clock.tick(bridge, 10 * kRadians, 50 * kRadians) == Result::send);
  CHECK(commands(bridge, 46 * kRadians, 14 * kRadians));  // the knee is to go to 10 degrees, the hip to 50
  bridge.stop();
  CHECK(commands(bridge, 50 * kRadians, 10 * kRadians));  // as they are measured
}

void a_safe_action_is_in_the_policys_units() {
  Settings settings = of(degrees);
  settings.safe_action = {90, -45};
  Bridge bridge(settings);
  Clock clock;
  bridge.begin();
  CHECK(clock.tick(bridge, 0, 0) == Result::send);
  bridge.stop();
  CHECK(commands(bridge, 90 * kRadians, -45 * kRadians));
}

void without_a_safe_action_a_stop_commands_where_joints_are_and_no_velocity() {
  Bridge bridge(of(mixed));
  CHECK((bridge.commands() == std::vector<std::string>{"hip/position", "knee/velocity"}));
  Clock clock;
  bridge.begin();
  CHECK(clock.tick(bridge, 1, 2) == Result::send && commands(bridge, 1, 2));
  bridge.read(0, 1.5);
  bridge.stop();
  CHECK(commands(bridge, 1.5, 0));
}

void what_is_not_measured_stays_as_it_was_commanded_in_this_activation() {
  Settings settings = of(degrees);
  settings.command_interfaces = {"elbow", "hip"};  // the elbow is not observed
  settings.bridge = 0;
  Bridge bridge(settings);
  Clock clock;
  bridge.begin();
  CHECK(clock.tick(bridge, 20 * kRadians, 30 * kRadians) == Result::send);
  CHECK(commands(bridge, 20 * kRadians, 30 * kRadians));
  for (int i = 1; i < 5; ++i) clock.tick(bridge, 20 * kRadians, 30 * kRadians);
  CHECK(clock.tick(bridge, kNan, 0) == Result::stopped);
  CHECK(commands(bridge, 20 * kRadians, 30 * kRadians));
  CHECK(clock.tick(bridge, -3 * kRadians, 0) == Result::stopped);  // it does not follow a joint that sags
  CHECK(commands(bridge, 20 * kRadians, 30 * kRadians));
  bridge.read(0, -5 * kRadians);
  bridge.stop();
  CHECK(commands(bridge, 20 * kRadians, -5 * kRadians));

  bridge.begin();  // it may be anywhere by now
  bridge.stop();
  CHECK(commands_nothing(bridge));
  bridge.begin();
  CHECK(clock.tick(bridge, 1 * kRadians, 2 * kRadians) == Result::send);
  for (int i = 1; i < 5; ++i) clock.tick(bridge, 1 * kRadians, 2 * kRadians);
  CHECK(bridge.new_episode());
  CHECK(clock.tick(bridge, kNan, kNan) == Result::stopped);  // the robot was told something before
  CHECK(commands(bridge, 1 * kRadians, 2 * kRadians));
}

void no_service_lets_a_stopped_robot_go_on() {
  Settings settings = arm();
  settings.bridge = 0;
  Bridge bridge(settings);
  CHECK(!bridge.new_episode());
  Clock clock;
  bridge.begin();
  for (int i = 0; i < 5; ++i) CHECK(clock.tick(bridge, 1, 1) == Result::send);
  CHECK(bridge.new_episode());
  for (int i = 0; i < 5; ++i) CHECK(clock.tick(bridge, 2, 2) == Result::send);
  CHECK(clock.tick(bridge, kNan, 1) == Result::stopped);
  CHECK(!bridge.new_episode());
  for (int i = 0; i < 20; ++i) CHECK(clock.tick(bridge, 1, 1) == Result::stopped);
  bridge.begin();
  CHECK(clock.tick(bridge, 1, 1) == Result::send && bridge.new_episode());
  bridge.stop();  // deactivated, before the episode begins
  CHECK(!bridge.new_episode());
  for (int i = 0; i < 20; ++i) CHECK(clock.tick(bridge, 1, 1) == Result::stopped);
}

std::string not_swapped(Bridge& bridge) {
  try {
    bridge.swap();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

void a_swap_that_nobody_can_take_up_is_refused_soon() {
  Bridge bridge(arm());
  CHECK(not_swapped(bridge).find("stopped or not active") != std::string::npos);
  bridge.begin();
  CHECK(not_swapped(bridge).find("no step was taken for 1 s") != std::string::npos);
  bridge.stop();
  CHECK(not_swapped(bridge).find("stopped or not active") != std::string::npos);
}

void what_cannot_be_is_refused_by_name() {
  refuses("bundle: not set", [](Settings& s) { s.bundle.clear(); });
  refuses("none.lram", [](Settings& s) { s.bundle = "none.lram"; });
  refuses("rate: the controller manager's", [](Settings& s) { s.update_rate = 130; });
  refuses("set update_rate of this controller, too", [](Settings& s) { s.update_rate = 0; });
  refuses("between: expected hold or linear, got 'cubic'", [](Settings& s) { s.between = "cubic"; });
  refuses("by: expected hold or coast, got ''", [](Settings& s) { s.by.clear(); });
  refuses("threads: expected 1 or more, got 0", [](Settings& s) { s.threads = 0; });
  refuses("bridge: expected 0 or more, got -1", [](Settings& s) { s.bridge = -1; });
  refuses("state_interfaces: expected 2 names, got 1", [](Settings& s) { s.state_interfaces = {"hip/position"}; });
  refuses("state_interfaces: 'hip/velocity' is in rad, which is no unit",
          [](Settings& s) { s.state_interfaces = {"hip/velocity", "knee/velocity"}; });
  refuses("command_interfaces: hip/position is there twice",
          [](Settings& s) { s.command_interfaces = {"hip", "hip/position"}; });
  refuses("safe_action: expected 2 numbers, got 1", [](Settings& s) { s.safe_action = {1}; });
  refuses("target_return: this policy aims at no return", [](Settings& s) { s.target_return = 1; });
}

bool is_no_unit(const char* name, const char* unit) {
  try {
    lram_ros_control::element_of("x", name, unit);
  } catch (const lram::loop::Error& error) {
    return std::string(error.what()).find("is no unit of a joint's") != std::string::npos;
  }
  return false;
}

void units_become_those_of_ros() {
  const auto hip = lram_ros_control::element_of("x", "hip", "deg");
  CHECK(hip.interface() == "hip/position" && std::abs(hip.factor * 3.14159265358979 - 180) < 1e-9);
  CHECK(lram_ros_control::element_of("x", "arm/hip/effort", "N*m").joint == "arm/hip");
  CHECK(lram_ros_control::element_of("x", "imu/angular_velocity.x", "kg").quantity == "angular_velocity.x");
  for (const char* unit : {"rad/s^2", "kg", "Pa"})
    for (const char* name : {"hip/position", "hip/velocity", "hip/effort"}) CHECK(is_no_unit(name, unit));
  CHECK(!is_no_unit("hip/effort", "1") && !is_no_unit("hip/velocity", "normalized"));
}

}  // namespace

int main(int count, char** arguments) {
  CHECK(count == 4);
  bundle = arguments[1];
  degrees = arguments[2];
  mixed = arguments[3];
  names_are_the_bundles();
  a_step_is_taken_at_every_fifth_tick();
  between_steps_may_be_a_line();
  what_is_not_known_is_bridged_then_stopped();
  the_first_action_is_bounded_from_what_the_joints_hold();
  a_new_episode_begins_at_the_next_step();
  a_stop_commands_what_is_told();
  a_stop_before_any_command_commands_nothing();
  an_arm_in_degrees_whose_joints_are_in_another_order();
  a_safe_action_is_in_the_policys_units();
  without_a_safe_action_a_stop_commands_where_joints_are_and_no_velocity();
  what_is_not_measured_stays_as_it_was_commanded_in_this_activation();
  no_service_lets_a_stopped_robot_go_on();
  a_swap_that_nobody_can_take_up_is_refused_soon();
  what_cannot_be_is_refused_by_name();
  units_become_those_of_ros();
  std::puts("all well");
  return 0;
}
