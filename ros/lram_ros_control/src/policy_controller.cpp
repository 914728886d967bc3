#include "lram_ros_control/policy_controller.hpp"

#include <cmath>
#include <limits>
#include <pluginlib/class_list_macros.hpp>
#include <string>
#include <vector>

namespace lram_ros_control {
namespace {

using controller_interface::CallbackReturn;
using controller_interface::return_type;

// Jazzy and later answer with an optional, Humble with a number.
template <class Interface>
auto value_of(const Interface& interface, int) -> decltype(interface.get_optional().value_or(0.0)) {
  return interface.get_optional().value_or(std::numeric_limits<double>::quiet_NaN());
}
template <class Interface>
double value_of(const Interface& interface, long) {  // NOLINT(google-runtime-int): it ranks behind int
  return interface.get_value();
}

controller_interface::InterfaceConfiguration individual(const std::vector<std::string>& names) {
  return {controller_interface::interface_configuration_type::INDIVIDUAL, names};
}

}  // namespace

CallbackReturn PolicyController::on_init() {
  const Settings usual;
  const std::vector<std::string> none;
  try {
    auto_declare<std::string>("bundle", usual.bundle);
    auto_declare<std::vector<std::string>>("state_interfaces", none);
    auto_declare<std::vector<std::string>>("command_interfaces", none);
    auto_declare<double>("rate", usual.rate);
    auto_declare<int>("threads", usual.threads);
    auto_declare<std::string>("between", usual.between);
    auto_declare<std::string>("by", usual.by);
    auto_declare<int>("bridge", usual.bridge);
    auto_declare<int>("frozen", usual.frozen);
    auto_declare<double>("target_return", usual.target_return);
    auto_declare<std::vector<double>>("safe_action", usual.safe_action);
  } catch (const std::exception& error) {
    RCLCPP_ERROR(get_node()->get_logger(), "%s", error.what());
    return CallbackReturn::ERROR;
  }
  return CallbackReturn::SUCCESS;
}

Settings PolicyController::settings() {
  const auto node = get_node();
  Settings found;
  found.bundle = node->get_parameter("bundle").as_string();
  found.state_interfaces = node->get_parameter("state_interfaces").as_string_array();
  found.command_interfaces = node->get_parameter("command_interfaces").as_string_array();
  found.update_rate = get_update_rate();
  found.rate = node->get_parameter("rate").as_double();
  found.threads = static_cast<int>(node->get_parameter("threads").as_int());
  found.between = node->get_parameter("between").as_string();
  found.by = node->get_parameter("by").as_string();
  found.bridge = static_cast<int>(node->get_parameter("bridge").as_int());
  found.frozen = static_cast<int>(node->get_parameter("frozen").as_int());
  found.target_return = node->get_parameter("target_return").as_double();
  found.safe_action = node->get_parameter("safe_action").as_double_array();
  return found;
}

CallbackReturn PolicyController::on_configure(const rclcpp_lifecycle::State&) {
  try {
    bridge_ = std::make_shared<Bridge>(settings());
  } catch (const std::exception& error) {
    RCLCPP_ERROR(get_node()->get_logger(), "%s", error.what());
    return CallbackReturn::FAILURE;
  }
  new_episode_ = get_node()->create_service<Trigger>(
      "~/new_episode",
      [bridge = bridge_](const Trigger::Request::SharedPtr, const Trigger::Response::SharedPtr response) {
        response->success = bridge->new_episode();
        response->message = response->success ? "an episode begins with the next step"
                                              : "the controller is stopped or not active: activate it anew";
      });
  swap_ = get_node()->create_service<Trigger>(
      "~/swap", [bridge = bridge_](const Trigger::Request::SharedPtr, const Trigger::Response::SharedPtr response) {
        try {
          response->message = bridge->swap() ? "runs now" : "runs now; of other weights, so an episode begins";
          response->success = true;
        } catch (const std::exception& error) {
          response->message = error.what();
        }
      });
  return CallbackReturn::SUCCESS;
}

controller_interface::InterfaceConfiguration PolicyController::command_interface_configuration() const {
  return individual(bridge_ ? bridge_->commands() : std::vector<std::string>());
}

controller_interface::InterfaceConfiguration PolicyController::state_interface_configuration() const {
  return individual(bridge_ ? bridge_->states() : std::vector<std::string>());
}

CallbackReturn PolicyController::on_activate(const rclcpp_lifecycle::State&) {
  if (state_interfaces_.size() != bridge_->states().size() ||
      command_interfaces_.size() != bridge_->commands().size()) {
    RCLCPP_ERROR(get_node()->get_logger(), "not all interfaces were given");
    return CallbackReturn::ERROR;
  }
  began_ = -1;
  read();
  bridge_->begin();
  return CallbackReturn::SUCCESS;
}

return_type PolicyController::update(const rclcpp::Time& time, const rclcpp::Duration&) {
  if (began_ < 0) began_ = time.seconds();
  read();
  switch (bridge_->update(time.seconds() - began_)) {
    case Bridge::Result::send:
      write();
      return return_type::OK;
    case Bridge::Result::nothing:
      return return_type::OK;
    case Bridge::Result::stopped:
      write();
      break;
  }
  RCLCPP_ERROR_THROTTLE(get_node()->get_logger(), *get_node()->get_clock(), 1000, "%s", bridge_->why());
  return return_type::ERROR;
}

CallbackReturn PolicyController::on_deactivate(const rclcpp_lifecycle::State&) {
  read();
  bridge_->stop();
  write();
  RCLCPP_INFO(get_node()->get_logger(), "%s", bridge_->text().c_str());
  return CallbackReturn::SUCCESS;
}

CallbackReturn PolicyController::on_cleanup(const rclcpp_lifecycle::State&) {
  new_episode_.reset();
  swap_.reset();
  bridge_.reset();
  return CallbackReturn::SUCCESS;
}

CallbackReturn PolicyController::on_error(const rclcpp_lifecycle::State& previous) { return on_cleanup(previous); }

void PolicyController::read() {
  for (std::size_t i = 0; i < state_interfaces_.size(); ++i) bridge_->read(i, value_of(state_interfaces_[i], 0));
}

void PolicyController::write() {
  for (std::size_t i = 0; i < command_interfaces_.size(); ++i)
    if (std::isfinite(bridge_->command()[i]))
      static_cast<void>(command_interfaces_[i].set_value(bridge_->command()[i]));
}

}  // namespace lram_ros_control

PLUGINLIB_EXPORT_CLASS(lram_ros_control::PolicyController, controller_interface::ControllerInterface)
