#include "lram_ros_control/bridge.hpp"

#include <lram.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace lram_ros_control {
namespace {

using lram::loop::Error;

constexpr double kSame = 1e-6;                 // how far rates may differ, relatively, and be the same
constexpr double kMostTicks = 1e4;             // of a controller per step
constexpr double kDegree = 57.29577951308232;  // degrees in a radian
constexpr double kSwapSeconds = 1;             // that a swap waits for a step, at least,
constexpr double kSwapSteps = 3;               // and for as long as so many take
const char* const kArtifact = "model.lrn";

struct Unit {
  const char* name;
  const char* quantity;  // nullptr: any
  double factor;
};
constexpr std::array<Unit, 12> kUnits = {{{"", nullptr, 1},
                                          {"1", nullptr, 1},
                                          {"normalized", nullptr, 1},
                                          {"rad", "position", 1},
                                          {"m", "position", 1},
                                          {"deg", "position", kDegree},
                                          {"mm", "position", 1000},
                                          {"rad/s", "velocity", 1},
                                          {"m/s", "velocity", 1},
                                          {"deg/s", "velocity", kDegree},
                                          {"N*m", "effort", 1},
                                          {"N", "effort", 1}}};

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string artifact_of(const std::string& bundle) {
  if (bundle.empty()) throw Error("bundle: not set; expected the folder of a bundle");
  return ends_with(bundle, kArtifact) ? bundle : bundle + "/native/" + kArtifact;
}

template <class Number>
void check_least(const char* name, Number value, Number least) {
  if (!(value >= least))
    throw Error(std::string(name) + ": expected " + std::to_string(least) + " or more, got " + std::to_string(value));
}

bool chosen(const std::string& name, const std::string& value, const char* yes, const char* no) {
  if (value != yes && value != no) throw Error(name + ": expected " + no + " or " + yes + ", got '" + value + "'");
  return value == yes;
}

// A hardware component may offer other quantities, in any unit.
bool is_of_a_joint(const std::string& quantity) {
  return quantity == "position" || quantity == "velocity" || quantity == "effort";
}

int ticks_of(double update_rate, double rate) {
  if (!(update_rate > 0))
    throw Error("update_rate: expected more than 0 Hz, got " + std::to_string(update_rate) +
                "; set update_rate of this controller, too");
  const double ratio = update_rate / rate;
  const double ticks = std::round(std::min(ratio, kMostTicks));
  if (!(ticks >= 1) || std::abs(ratio - ticks) > kSame * ratio)
    throw Error("rate: the controller manager's " + std::to_string(update_rate) +
                " Hz are no whole multiple of the policy's " + std::to_string(rate) + " Hz");
  return static_cast<int>(ticks);
}

// Opens an artifact to see what it says of its elements.
class Facts {
 public:
  explicit Facts(const std::string& path) {
    lram_options options;
    lram_options_init(&options);
    options.verify = 0;  // the policy was
    if (lram_open(path.c_str(), &options, &model_) != LRAM_OK) throw Error(std::string("bundle: ") + lram_last_error());
  }
  ~Facts() { lram_close(model_); }
  Facts(const Facts&) = delete;
  Facts& operator=(const Facts&) = delete;

  lram_element_facts input(std::size_t input, std::size_t element) const {
    lram_element_facts facts = {};
    lram_input_element(model_, input, element, &facts);
    return facts;
  }
  lram_element_facts action(std::size_t element) const {
    lram_element_facts facts = {};
    lram_output_element(model_, 0, element, &facts);
    return facts;
  }

 private:
  lram_model* model_ = nullptr;
};

void check_count(const char* name, const std::vector<std::string>& given, std::size_t expected) {
  if (!given.empty() && given.size() != expected)
    throw Error(std::string(name) + ": expected " + std::to_string(expected) + " names, got " +
                std::to_string(given.size()));
}

Element named(const char* where, const std::vector<std::string>& given, std::size_t i,
              const lram_element_facts& facts) {
  const std::string name = given.empty() ? facts.name : given[i];
  if (name.empty()) throw Error(std::string(where) + ": the bundle does not name its elements; set them");
  return element_of(where, name, facts.unit);
}

std::vector<std::string> interfaces(const char* where, const std::vector<Element>& elements) {
  std::vector<std::string> names;
  for (const Element& element : elements) {
    names.push_back(element.interface());
    if (std::count(names.begin(), names.end(), names.back()) > 1)
      throw Error(std::string(where) + ": " + names.back() + " is there twice");
  }
  return names;
}

}  // namespace

Element element_of(const std::string& where, const std::string& name, const std::string& unit) {
  const auto* known = std::find_if(kUnits.begin(), kUnits.end(), [&](const Unit& one) { return unit == one.name; });
  const bool is_known = known != kUnits.end();
  const std::size_t slash = name.rfind('/');
  Element element;
  if (slash != std::string::npos && slash > 0 && slash + 1 < name.size()) {
    element.joint = name.substr(0, slash);
    element.quantity = name.substr(slash + 1);
  } else if (is_known && known->quantity != nullptr) {
    element.joint = name;
    element.quantity = known->quantity;
  } else {
    throw Error(where + ": '" + name + "': expected JOINT/position, JOINT/velocity or JOINT/effort");
  }
  const bool fits =
      is_known ? known->quantity == nullptr || element.quantity == known->quantity : !is_of_a_joint(element.quantity);
  if (!fits)
    throw Error(where + ": '" + name + "' is in " + unit + ", which is no unit of a joint's " + element.quantity);
  if (is_known) element.factor = known->factor;
  return element;
}

Bridge::Bridge(const Settings& settings) : artifact_(artifact_of(settings.bundle)) {
  check_least("threads", settings.threads, 1);
  check_least("bridge", settings.bridge, 0);
  check_least("frozen", settings.frozen, 0);
  lram_options opened;
  lram_options_init(&opened);
  opened.threads = settings.threads;
  policy_ = std::make_unique<lram::loop::Policy>(artifact_, &opened);
  if (policy_->action().element != LRAM_FLOAT32)
    throw Error("bundle: its action is a choice; commands are numbers of joints");
  if (policy_->about().feedback == LRAM_REWARD_OBSERVED)
    throw Error("bundle: it wants the reward of every step, which a controller does not know");

  lram::loop::Options options;
  options.rate = settings.rate != 0 ? settings.rate : policy_->rate();
  if (!(options.rate > 0)) throw Error("rate: the bundle says none; set it, Hz");
  options.ticks = ticks_of(settings.update_rate, options.rate);
  options.linear = chosen("between", settings.between, "linear", "hold");
  options.by = chosen("by", settings.by, "coast", "hold") ? lram::loop::By::coast : lram::loop::By::hold;
  options.bridge = static_cast<std::uint64_t>(settings.bridge);
  options.frozen = static_cast<std::uint64_t>(settings.frozen);

  const Facts facts(artifact_);
  std::size_t total = 0;
  for (const auto& observation : policy_->observations()) {
    if (observation.element != LRAM_FLOAT32)
      throw Error("bundle: " + observation.name + ": expected numbers of joints, it is of whole numbers or pixels");
    total += observation.size;
  }
  check_count("state_interfaces", settings.state_interfaces, total);
  for (const auto& observation : policy_->observations())
    for (std::size_t i = 0; i < observation.size; ++i)
      elements_.push_back(
          named("state_interfaces", settings.state_interfaces, elements_.size(), facts.input(observation.input, i)));
  const std::size_t size = policy_->action().size;
  check_count("command_interfaces", settings.command_interfaces, size);
  for (std::size_t i = 0; i < size; ++i)
    actions_.push_back(named("command_interfaces", settings.command_interfaces, i, facts.action(i)));
  state_names_ = interfaces("state_interfaces", elements_);
  command_names_ = interfaces("command_interfaces", actions_);
  for (const std::string& command : command_names_) {
    const auto found = std::find(state_names_.begin(), state_names_.end(), command);
    measured_.push_back(found == state_names_.end() ? -1 : static_cast<int>(found - state_names_.begin()));
  }
  if (!settings.safe_action.empty() && settings.safe_action.size() != size)
    throw Error("safe_action: expected " + std::to_string(size) + " numbers, got " +
                std::to_string(settings.safe_action.size()));
  std::vector<double> safe = settings.safe_action;
  if (safe.empty())
    for (std::size_t i = 0; i < size; ++i) safe.push_back(facts.action(i).safe);
  if (std::all_of(safe.begin(), safe.end(), [](double value) { return std::isfinite(value); })) {
    for (std::size_t i = 0; i < size; ++i) safe_.push_back(safe[i] / actions_[i].factor);
  } else if (!settings.safe_action.empty()) {
    throw Error("safe_action: expected finite numbers");
  }

  state_.assign(total, std::numeric_limits<float>::quiet_NaN());
  std::size_t at = 0;
  for (const auto& observation : policy_->observations()) {
    values_.emplace_back(state_.data() + at, observation.size);
    at += observation.size;
  }
  held_.resize(size);
  command_.assign(size, std::numeric_limits<double>::quiet_NaN());
  if (!std::isnan(settings.target_return)) policy_->aim_at(static_cast<float>(settings.target_return));
  policy_->warm_up();
  loop_ = std::make_unique<lram::loop::Loop>(*policy_, options);
}

void Bridge::begin() noexcept {
  std::fill(command_.begin(), command_.end(), std::numeric_limits<double>::quiet_NaN());
  is_sent_ = false;
  start();
  runs_.store(true);
}

void Bridge::start() noexcept {
  loop_->take_restart();
  bool known = true;
  for (std::size_t i = 0; i < held_.size(); ++i) {
    const int place = measured_[i];
    // in the action's units: the state's are its own
    held_[i] = place < 0 ? std::numeric_limits<float>::quiet_NaN()
                         : static_cast<float>(state_[place] / elements_[place].factor * actions_[i].factor);
    known = known && std::isfinite(held_[i]);
  }
  loop_->begin(known ? held_.data() : nullptr);
}

Bridge::Result Bridge::update(double now) noexcept {
  if (!runs_.load()) return Result::stopped;
  if (loop_->is_restarting() && loop_->is_due()) start();
  const auto told = loop_->update(now, lram::loop::Reading(values_.data(), values_.size()));
  if (told.stop) {
    stop();
    return Result::stopped;
  }
  if (told.action == nullptr) return Result::nothing;
  write(told.action->floats());
  return Result::send;
}

void Bridge::stop() noexcept {
  runs_.store(false);
  if (!is_sent_) return;  // nobody moved the robot
  for (std::size_t i = 0; i < command_.size(); ++i) {
    if (!safe_.empty()) {
      command_[i] = safe_[i];
    } else if (actions_[i].quantity == "position") {
      const int place = measured_[i];
      const double value = place < 0 ? command_[i] : static_cast<double>(state_[place]) / elements_[place].factor;
      if (std::isfinite(value)) command_[i] = value;
    } else {
      command_[i] = 0;
    }
  }
}

void Bridge::write(const float* action) noexcept {
  for (std::size_t i = 0; i < command_.size(); ++i) command_[i] = static_cast<double>(action[i]) / actions_[i].factor;
  is_sent_ = true;
}

bool Bridge::new_episode() noexcept {
  if (!runs_.load()) return false;
  loop_->new_episode();
  return true;
}

bool Bridge::swap() {
  if (!runs_.load()) throw Error("not swapped: the controller is stopped or not active, so no step is taken");
  return policy_->swap(artifact_, std::max(kSwapSeconds, kSwapSteps * loop_->period()));
}

std::string Bridge::text() const {
  const std::string held = policy_->held_back();
  return std::to_string(loop_->account().steps) + " steps: " + loop_->account().text() +
         (held.empty() ? "" : "; " + held);
}

}  // namespace lram_ros_control
