// A control loop around a bundle: one step per tick, and an account of every deadline.
//
//     control_loop reach.lram/native/model.lrn [--rate 200] [--controller-rate 1000 [--between hold|linear]]
//                  [--seconds 10] [--threads 1] [--realtime] [--fault N]
//
// The rate is the bundle's, or 200 Hz where it says none; another one is warned of. A controller that is faster is told
// something at every tick of its own: the same action again, or on a straight line to the policy's next one.
//
// A tick's deadline is the next tick. After an overrun the loop goes on at the next tick that is still to come: missed
// ticks are skipped, never made up for in a bunch. Where a step fails, the last action is held, but not for more than
// 20 steps in a row: then the loop ends, and a robot would have to halt. Ctrl-C ends it, and so do the seconds; either
// way it says how it went. --realtime asks for SCHED_FIFO and locked memory (see docs/native.md). --fault makes every
// N-th observation NaN, to see the loop hold.
#include <lram.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "between.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostHeld = 20;       // steps in a row
constexpr double kRate = 200;       // Hz, where nobody says one
constexpr double kSame = 1e-6;      // how far rates may differ, relatively, and be the same
constexpr double kMostTicks = 1e4;  // of a controller per step

volatile std::sig_atomic_t stopping = 0;

extern "C" void stop(int) { stopping = 1; }

struct Options {
  std::string model;
  double rate = 0;             // Hz; 0: the bundle's
  double controller_rate = 0;  // Hz; 0: that of the policy
  std::string between;         // "hold" where it is empty
  double seconds = 10;
  int threads = 1;
  int fault = 0;
  bool realtime = false;
};

// Stands for your robot: joints that follow what they are told. Here is where sensors and motors go.
class Robot {
 public:
  Robot(std::size_t observed, int fault) : joints_(observed, 0.0F), fault_(fault) {}

  void read(std::vector<float>& observation) {
    observation = joints_;
    if (fault_ > 0 && ++reads_ % fault_ == 0) observation[0] = std::nanf("");
  }

  void command(const std::vector<float>& action) {
    for (std::size_t i = 0; i < std::min(action.size(), joints_.size()); ++i) joints_[i] += 0.01F * action[i];
  }

 private:
  std::vector<float> joints_;
  int fault_;
  std::int64_t reads_ = 0;  // an int would overflow within months
};

void check(lram_status status) {
  if (status != LRAM_OK) throw std::runtime_error(lram_last_error());
}

// One robot's model and state, with the return-to-go that the library leaves to its caller.
class Policy {
 public:
  Policy(const std::string& path, const lram_options& options) {
    lram_model* model = nullptr;
    check(lram_open(path.c_str(), &options, &model));
    model_.reset(model);
    check(lram_describe(model, &about_));
    if (about_.observation != LRAM_VECTOR || about_.action != LRAM_CONTINUOUS || about_.reward_scale <= 0)
      throw std::runtime_error(path + ": expected a bundle with vector observations and continuous actions");
    lram_state* state = nullptr;
    check(lram_state_create(model, 1, &state));  // one row, whatever batch was exported
    state_.reset(state);
    action_.resize(about_.action_size);
    start_episode();
  }

  const lram_description& about() const { return about_; }

  void start_episode() {
    is_first_ = 1;
    reward_ = 0;
    return_to_go_ = about_.target_return / about_.reward_scale;
  }

  // After a step, where its reward is known. Without, the return-to-go stays where it is.
  void reward(float value) {
    return_to_go_ -= value / about_.reward_scale;
    if (about_.feedback == LRAM_REWARD_OBSERVED) reward_ = value / about_.reward_scale;
  }

  // False where the step failed: then the action is the one before.
  bool act(const std::vector<float>& observation) {
    const lram_inputs inputs = {observation.data(), &return_to_go_, &reward_, &is_first_};
    const lram_outputs outputs = {action_.data(), nullptr};
    if (lram_step(state_.get(), &inputs, &outputs) != LRAM_OK) return false;
    is_first_ = 0;
    return true;
  }

  const std::vector<float>& action() const { return action_; }

 private:
  struct Close {
    void operator()(lram_model* model) const { lram_close(model); }
    void operator()(lram_state* state) const { lram_state_free(state); }
  };

  std::unique_ptr<lram_model, Close> model_;
  std::unique_ptr<lram_state, Close> state_;  // after the model, so that it is freed before
  lram_description about_ = {};
  std::vector<float> action_;
  float return_to_go_ = 0;
  float reward_ = 0;
  float is_first_ = 1;
};

// Counts durations in steps of 5 microseconds, up to 100 milliseconds, without allocating.
class Histogram {
 public:
  void add(Clock::duration duration) {
    const auto micros = std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
    const auto bucket = static_cast<std::size_t>(std::max<std::int64_t>(micros, 0) / kWidth);
    ++counts_[std::min(bucket, counts_.size() - 1)];
    ++total_;
    max_ = std::max(max_, duration);
  }

  void print(const char* what) const {
    std::printf("%-24s p50 %.3f ms, p99 %.3f ms, max %.3f ms\n", what, quantile(0.50), quantile(0.99),
                std::chrono::duration<double, std::milli>(max_).count());
  }

 private:
  // The upper edge of the bucket.
  double quantile(double share) const {
    std::uint64_t wanted = static_cast<std::uint64_t>(std::ceil(share * static_cast<double>(total_)));
    std::size_t bucket = 0;
    while (bucket + 1 < counts_.size() && wanted > counts_[bucket]) wanted -= counts_[bucket++];
    return static_cast<double>((bucket + 1) * kWidth) / 1000;
  }

  static constexpr std::size_t kWidth = 5;
  std::array<std::uint64_t, 20000> counts_ = {};
  std::uint64_t total_ = 0;
  Clock::duration max_{0};
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto number = [&] {
      char* end = nullptr;
      const double value = i + 1 < argc ? std::strtod(argv[++i], &end) : 0;
      if (end == nullptr || *end != '\0' || !(value >= 1e-3 && value <= 1e8))  // no time overflows
        throw std::runtime_error(name + ": expected a positive number, from 0.001 to 100000000");
      return value;
    };
    if (name == "--rate")
      options.rate = number();
    else if (name == "--controller-rate")
      options.controller_rate = number();
    else if (name == "--between")
      options.between = i + 1 < argc ? argv[++i] : "";
    else if (name == "--seconds")
      options.seconds = number();
    else if (name == "--threads")
      options.threads = static_cast<int>(number());
    else if (name == "--fault")
      options.fault = static_cast<int>(number());
    else if (name == "--realtime")
      options.realtime = true;
    else if (name.rfind("--", 0) == 0 || !options.model.empty())
      throw std::runtime_error(name + ": unknown argument");
    else
      options.model = name;
  }
  if (options.model.empty()) throw std::runtime_error("MODEL: expected the path of a native/model.lrn");
  if (!options.between.empty() && options.between != "hold" && options.between != "linear")
    throw std::runtime_error("--between: expected hold or linear, got " + options.between);
  if (!options.between.empty() && options.controller_rate == 0)
    throw std::runtime_error("--between: only with --controller-rate");
  return options;
}

// Before the model is opened: its threads inherit priority and processors from this one.
void ask_for_real_time() {
  sched_param priority = {};
  priority.sched_priority = 80;
  if (sched_setscheduler(0, SCHED_FIFO, &priority) != 0) std::perror("SCHED_FIFO, going on without");
  if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) std::perror("mlockall, going on without");
}

// How often the controller is told something per step of the policy.
std::int64_t ticks_per_step(const Options& options, double rate) {
  const double ratio = options.controller_rate > 0 ? options.controller_rate / rate : 1;
  const double ticks = std::round(ratio);
  if (!(ticks >= 1 && ticks <= kMostTicks) || std::abs(ratio - ticks) > kSame * ticks) {
    std::array<char, 160> text = {};
    std::snprintf(text.data(), text.size(),
                  "--controller-rate: expected a whole multiple of the policy's %g Hz, got %g Hz", rate,
                  options.controller_rate);
    throw std::runtime_error(text.data());
  }
  return static_cast<std::int64_t>(ticks);
}

int run(const Options& options) {
  if (options.realtime) ask_for_real_time();
  lram_options engine;
  lram_options_init(&engine);
  engine.threads = options.threads;
  Policy policy(options.model, engine);
  Robot robot(policy.about().observation_size, options.fault);
  std::vector<float> observation(policy.about().observation_size);
  const double trained = policy.about().rate;  // 0: the bundle does not say
  const double rate = options.rate > 0 ? options.rate : trained > 0 ? trained : kRate;
  Between between(ticks_per_step(options, rate), options.between == "linear", policy.about().action_size);
  const double ticks_per_second = rate * static_cast<double>(between.ticks());
  if (trained > 0 && std::abs(rate - trained) > kSame * trained)
    std::fprintf(stderr, "warning: %s was trained at %g Hz, controlled at %g Hz\n", options.model.c_str(), trained,
                 rate);
  std::printf("%s kernels, %d threads, %g Hz", policy.about().isa, policy.about().threads, rate);
  if (between.ticks() > 1)
    std::printf(", actions at %g Hz (%s)", ticks_per_second,
                options.between.empty() ? "hold" : options.between.c_str());
  std::printf("\n");

  Histogram awake;
  Histogram done;
  std::int64_t steps = 0;
  std::int64_t missed = 0;   // actions that came after the next tick
  std::int64_t skipped = 0;  // ticks without an action
  std::int64_t held = 0;
  int held_in_a_row = 0;
  bool acted = false;
  std::int64_t place = 0;  // of this tick among those of a step
  std::string problem;
  const auto period = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(1 / ticks_per_second));
  auto tick = Clock::now() + period;
  const auto end = tick + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.seconds));
  while (stopping == 0 && tick < end) {
    std::this_thread::sleep_until(tick);
    awake.add(Clock::now() - tick);
    if (place == 0) {
      ++steps;
      robot.read(observation);
      if (policy.act(observation)) {
        acted = true;
        held_in_a_row = 0;
      } else {
        if (held++ == 0) problem = lram_last_error();
        if (++held_in_a_row > kMostHeld)
          throw std::runtime_error(std::string("no action any more: ") + lram_last_error());
      }
      if (acted) between.aim(policy.action());  // after a failure the last one
    }
    if (acted) robot.command(between.at(place));  // before the first action none
    const auto took = Clock::now() - tick;
    if (place == 0) done.add(took);
    const std::int64_t late = took / period;
    missed += late > 0 ? 1 : 0;
    skipped += late;
    tick += period * (late + 1);
    place += late + 1;
    if (place >= between.ticks()) place = 0;  // also where a step's time is over: the next one is taken then
  }

  std::printf("%lld steps, %lld deadlines missed, %lld ticks skipped, %lld actions held\n",
              static_cast<long long>(steps), static_cast<long long>(missed), static_cast<long long>(skipped),
              static_cast<long long>(held));
  awake.print("from tick to awake");
  done.print("from tick to action");
  if (held > 0) std::printf("first held: %s\n", problem.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGINT, stop);
  std::signal(SIGTERM, stop);
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
