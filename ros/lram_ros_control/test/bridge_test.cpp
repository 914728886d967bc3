// The bridge with a real engine: bridge_test BUNDLE, whose policy does what it observes (tests/ros/arms.py).
//
// It observes the hip's position in rad and the knee's velocity in rad/s, at 100 Hz, up to 50; its action is a position
// of either, up to 8, that may change by 4 from step to step. The safe action is 0.5.
#include "lram_ros_control/bridge.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace {

using lram_ros_control::Bridge;
using lram_ros_control::Settings;
using Result = Bridge::Result;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

std::string bundle;

Settings arm() {
  Settings settings;
  settings.bundle = bundle;
  settings.update_rate = 500;
  return settings;
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
  bridge.stop();
  CHECK(bridge.command()[0] == 0.25 && bridge.command()[1] == -0.25);
}

void what_cannot_be_is_refused_by_name() {
  refuses("bundle: not set", [](Settings& s) { s.bundle.clear(); });
  refuses("none.lram", [](Settings& s) { s.bundle = "none.lram"; });
  refuses("rate: the controller manager's", [](Settings& s) { s.update_rate = 130; });
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

void units_become_those_of_ros() {
  const auto degrees = lram_ros_control::element_of("x", "hip", "deg");
  CHECK(degrees.interface() == "hip/position" && std::abs(degrees.factor * 3.14159265358979 - 180) < 1e-9);
  CHECK(lram_ros_control::element_of("x", "arm/hip/effort", "N*m").joint == "arm/hip");
  CHECK(lram_ros_control::element_of("x", "imu/angular_velocity.x", "kg").quantity == "angular_velocity.x");
}

}  // namespace

int main(int count, char** arguments) {
  CHECK(count == 2);
  bundle = arguments[1];
  names_are_the_bundles();
  a_step_is_taken_at_every_fifth_tick();
  between_steps_may_be_a_line();
  what_is_not_known_is_bridged_then_stopped();
  the_first_action_is_bounded_from_what_the_joints_hold();
  a_new_episode_begins_at_the_next_step();
  a_stop_commands_what_is_told();
  what_cannot_be_is_refused_by_name();
  units_become_those_of_ros();
  std::puts("all well");
  return 0;
}
