// A policy between the interfaces of ros2_control, without ROS: names, units, rates, and what a stop commands.
#ifndef LRAM_ROS_CONTROL_BRIDGE_HPP
#define LRAM_ROS_CONTROL_BRIDGE_HPP

#include <lram/loop.h>

#include <atomic>
#include <cstddef>
#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace lram_ros_control {

struct Settings {
  std::string bundle;                           // its folder, or an artifact `model.lrn`
  std::vector<std::string> state_interfaces;    // JOINT/position etc. of every element; empty: the bundle's names
  std::vector<std::string> command_interfaces;  // likewise, of the action
  double update_rate = 0;                       // at which update() is called, Hz
  double rate = 0;                              // of the policy, Hz; 0: the bundle's
  int threads = 1;
  std::string between = "hold";  // what is commanded between two steps: hold or linear
  std::string by = "coast";      // what is done at a fault: coast or hold
  int bridge = 10;               // how many steps in a row may have a fault
  int frozen = 0;                // how many readings in a row may be the same; 0: any number
  double target_return = std::numeric_limits<double>::quiet_NaN();  // NaN: the bundle's
  std::vector<double> safe_action;  // what a stop commands, in the policy's units; empty: the bundle's, if any
};

// A number of a joint: the policy's is ROS's times `factor`, since ROS has radians and metres.
struct Element {
  std::string joint;
  std::string quantity;  // position, velocity, effort, or whatever a hardware component offers
  double factor = 1;

  std::string interface() const { return joint + "/" + quantity; }
};

// Which element of a joint a name and a unit mean; `where` is named in the lram::loop::Error of those that mean none.
Element element_of(const std::string& where, const std::string& name, const std::string& unit);

class Bridge {
 public:
  // Opens the bundle, warms the policy up and has all memory. Throws lram::loop::Error: which setting, what was
  // expected, what came.
  explicit Bridge(const Settings& settings);

  // In this order their values are read and written.
  const std::vector<std::string>& states() const noexcept { return state_names_; }
  const std::vector<std::string>& commands() const noexcept { return command_names_; }

  // ---- the realtime thread: none of these allocates, locks, or throws

  // What the state interfaces say now, as ROS has it; NaN: not known. One for each of states().
  void read(std::size_t i, double value) noexcept { state_[i] = static_cast<float>(value * elements_[i].factor); }
  // An activation begins, and an episode with its next update; the first action is bounded from what the joints hold,
  // where it is known. Nothing was sent yet: of another activation no command is left.
  void begin() noexcept;
  enum class Result { send, nothing, stopped };
  // One tick of the controller manager, at `now` in seconds. `send`: command() is to be written; `nothing`: what was
  // written stays; `stopped`: the robot is to be stopped, command() is what to write, why() says why.
  Result update(double now) noexcept;
  // Makes command() what a stop writes: the safe action; where there is none, positions as they are measured (as they
  // were commanded last, where they are not measured), and 0 for everything else. Where nothing was sent since begin()
  // a stop sends nothing, either. Until begin() update() says stopped, and command() stays.
  void stop() noexcept;
  // ROS's units. What is not finite is not to be written: nothing was sent yet.
  const std::vector<double>& command() const noexcept { return command_; }
  const char* why() const noexcept { return loop_->why(); }

  // ---- any thread

  lram::loop::Policy& policy() noexcept { return *policy_; }
  // The next step begins an episode. False, and it does not, where there is none: before begin(), and after a stop.
  bool new_episode() noexcept;
  // For a thread beside, see lram::loop::Policy::swap. Throws lram::loop::Error at once where there is no step, and
  // soon where none comes.
  bool swap();
  // How it went, in a line. Allocates; not while updates are under way.
  std::string text() const;

 private:
  void start() noexcept;
  void write(const float* action) noexcept;

  std::string artifact_;
  std::unique_ptr<lram::loop::Policy> policy_;
  std::unique_ptr<lram::loop::Loop> loop_;
  std::vector<Element> elements_;  // of all observations, one after the other
  std::vector<Element> actions_;
  std::vector<std::string> state_names_;
  std::vector<std::string> command_names_;
  std::vector<int> measured_;  // of each command: its place among the states; -1: it is not among them
  std::vector<float> state_;
  std::vector<lram::loop::Values> values_;  // of each observation, in `state_`
  std::vector<float> held_;
  std::vector<double> safe_;
  std::vector<double> command_;
  bool is_sent_ = false;  // a command was, since begin()
  std::atomic<bool> runs_{false};
};

}  // namespace lram_ros_control

#endif
