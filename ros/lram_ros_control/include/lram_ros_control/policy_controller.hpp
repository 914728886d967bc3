// A policy of lram-export as a controller of ros2_control. What it does is in bridge.hpp; this is its shell.
#ifndef LRAM_ROS_CONTROL_POLICY_CONTROLLER_HPP
#define LRAM_ROS_CONTROL_POLICY_CONTROLLER_HPP

#include <controller_interface/controller_interface.hpp>
#include <memory>
#include <rclcpp/service.hpp>
#include <rclcpp/time.hpp>
#include <rclcpp_lifecycle/state.hpp>
#include <std_srvs/srv/trigger.hpp>

#include "lram_ros_control/bridge.hpp"

namespace lram_ros_control {

class PolicyController : public controller_interface::ControllerInterface {
 public:
  controller_interface::CallbackReturn on_init() override;
  controller_interface::InterfaceConfiguration command_interface_configuration() const override;
  controller_interface::InterfaceConfiguration state_interface_configuration() const override;
  controller_interface::CallbackReturn on_configure(const rclcpp_lifecycle::State& previous) override;
  controller_interface::CallbackReturn on_activate(const rclcpp_lifecycle::State& previous) override;
  controller_interface::CallbackReturn on_deactivate(const rclcpp_lifecycle::State& previous) override;
  controller_interface::CallbackReturn on_cleanup(const rclcpp_lifecycle::State& previous) override;
  controller_interface::CallbackReturn on_error(const rclcpp_lifecycle::State& previous) override;
  controller_interface::return_type update(const rclcpp::Time& time, const rclcpp::Duration& period) override;

 private:
  using Trigger = std_srvs::srv::Trigger;

  Settings settings();
  void read();
  void write();

  std::shared_ptr<Bridge> bridge_;  // a service that is being answered has it, too
  rclcpp::Service<Trigger>::SharedPtr new_episode_;
  rclcpp::Service<Trigger>::SharedPtr swap_;
  double began_ = 0;  // seconds of the first update since activation; negative: it is still to come
};

}  // namespace lram_ros_control

#endif
