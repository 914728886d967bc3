// A control loop around a bundle: one step per tick, what fails is bridged, and an account of every deadline.
//
//     control_loop reach.lram/native/model.lrn [--rate 200] [--controller-rate 1000 [--between hold|linear]]
//                  [--bridge 10] [--by coast|hold] [--frozen 0] [--state FILE [--resume]]
//                  [--seconds 10] [--threads 1] [--realtime] [--fault N]
//
// The loop is lram/loop.h, and does what docs/robot.md says; here is what lies around it: options, signals, a robot.
// The rate is the bundle's, or 200 Hz where it says none; another one is warned of. A controller that is faster is told
// something at every tick of its own: the same action again, or on a straight line to the policy's next one.
//
// Ctrl-C and SIGTERM end it, and so do the seconds; either way the motors stop, and it says how it went. SIGHUP lets
// the file at the same path take over between two steps. --state saves where the run is, --resume goes on from there.
// --realtime locks memory, and gives this loop alone a processor and SCHED_FIFO (see docs/native.md). --fault makes
// every N-th observation NaN, to see the loop bridge it.
#include <lram/loop.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace {

using lram::loop::Error;

constexpr double kRate = 200;   // Hz, where nobody says one
constexpr double kSame = 1e-6;  // how far rates may differ, relatively, and be the same

struct Options {
  std::string model;
  lram::loop::Options loop;
  double controller_rate = 0;  // Hz; 0: that of the policy
  std::string between;         // "hold" where it is empty
  std::string state;
  bool resume = false;
  double seconds = 10;
  int threads = 1;
  int fault = 0;
  bool realtime = false;
};

// Stands for your robot: joints that follow what they are told. Here is where sensors and motors go.
class Arm : public lram::loop::Robot {
 public:
  Arm(std::size_t observed, int fault) : joints_(observed, 0.0F), seen_(observed), fault_(fault) {}

  lram::loop::Reading reset() override {
    std::fill(joints_.begin(), joints_.end(), 0.0F);
    return observe();
  }
  lram::loop::Reading observe() override {
    seen_ = joints_;
    if (fault_ > 0 && ++reads_ % fault_ == 0) seen_[0] = std::nanf("");
    return seen_;
  }
  std::optional<double> act(const lram::loop::Action& action) override {
    for (std::size_t i = 0; i < std::min(action.size, joints_.size()); ++i) joints_[i] += 0.01F * action.floats()[i];
    return 0;  // a robot that knows no reward gives std::nullopt
  }
  void stop() override {}  // hold the brakes, go to a safe pose
  void close() override {}

 private:
  std::vector<float> joints_;
  std::vector<float> seen_;
  int fault_;
  std::int64_t reads_ = 0;  // an int would overflow within months
};

// ---- signals ---------------------------------------------------------------------------------------------------

std::atomic<lram::loop::Loop*> looping{nullptr};
std::atomic<bool> ending{false};

extern "C" void end(int) {
  ending = true;
  if (lram::loop::Loop* loop = looping) loop->end();
}

// Not std::signal: it sets SA_RESTART, with which a robot's read goes on waiting, and so does the loop that is to end.
void end_by(int number) {
  struct sigaction action = {};
  action.sa_handler = end;
  sigemptyset(&action.sa_mask);
  sigaction(number, &action, nullptr);
}

// SIGHUP alone.
sigset_t hangups() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGHUP);
  return set;
}

// A thread that lets the file at the policy's path take over where SIGHUP asks for it. Made before the loop gets its
// priority and its processor, so that it has neither.
class Swapper {
 public:
  explicit Swapper(lram::loop::Policy& policy) : policy_(policy), path_(policy.path()) {
    thread_ = std::thread([this] { wait(); });
  }
  ~Swapper() {
    over_ = true;
    pthread_kill(thread_.native_handle(), SIGHUP);
    while (!gone_) {  // a swap that waits for a step takes place all the same
      policy_.take_over();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    thread_.join();
  }
  Swapper(const Swapper&) = delete;
  Swapper& operator=(const Swapper&) = delete;

 private:
  void wait() {
    const sigset_t waited_for = hangups();
    int number = 0;
    while (sigwait(&waited_for, &number) == 0 && !over_) swap();
    gone_ = true;
  }
  void swap() {
    try {
      const bool kept = policy_.swap(path_);
      std::fprintf(stderr, "%s: runs now%s\n", path_.c_str(), kept ? "" : "; of other weights, so it starts anew");
    } catch (const std::exception& error) {
      std::fprintf(stderr, "warning: not swapped, the loop goes on as it was: %s\n", error.what());
    }
  }

  lram::loop::Policy& policy_;
  std::string path_;
  std::atomic<bool> over_{false};
  std::atomic<bool> gone_{false};
  std::thread thread_;
};

// ---- options ---------------------------------------------------------------------------------------------------

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto text = [&] {
      const std::string value = i + 1 < argc ? argv[++i] : "";
      if (value.empty() || value.rfind("--", 0) == 0)
        throw Error(name + ": expected a value" + (value.empty() ? "" : ", got " + value));
      return value;
    };
    const auto number = [&](double least, const char* expected) {
      char* after = nullptr;
      const double value = i + 1 < argc ? std::strtod(argv[++i], &after) : 0;
      if (after == nullptr || *after != '\0' || !(value >= least && value <= 1e8))  // no time overflows
        throw Error(name + ": expected " + expected + " to 100000000");
      return value;
    };
    const auto positive = [&] { return number(1e-3, "a positive number, from 0.001"); };
    const auto whole = [&](double least) {
      const std::string expected = "a whole number, from " + std::to_string(static_cast<int>(least));
      const double value = number(least, expected.c_str());
      if (value != std::floor(value)) throw Error(name + ": expected a whole number");
      return static_cast<int>(value);
    };
    const auto count = [&] { return static_cast<std::uint64_t>(whole(0)); };
    const auto one_of = [&](const std::string& one, const std::string& other) {
      const std::string value = text();
      if (value != one && value != other) throw Error(name + ": expected " + one + " or " + other + ", got " + value);
      return value;
    };
    if (name == "--rate")
      options.loop.rate = positive();
    else if (name == "--controller-rate")
      options.controller_rate = positive();
    else if (name == "--between")
      options.between = one_of("hold", "linear");
    else if (name == "--bridge")
      options.loop.bridge = count();
    else if (name == "--by")
      options.loop.by = one_of("coast", "hold") == "hold" ? lram::loop::By::hold : lram::loop::By::coast;
    else if (name == "--frozen")
      options.loop.frozen = count();
    else if (name == "--state")
      options.state = text();
    else if (name == "--resume")
      options.resume = true;
    else if (name == "--seconds")
      options.seconds = positive();
    else if (name == "--threads")
      options.threads = whole(1);
    else if (name == "--fault")
      options.fault = whole(1);
    else if (name == "--realtime")
      options.realtime = true;
    else if (name.rfind("--", 0) == 0 || !options.model.empty())
      throw Error(name + ": unknown argument");
    else
      options.model = name;
  }
  if (options.model.empty()) throw Error("MODEL: expected the path of a native/model.lrn");
  if (!options.between.empty() && options.controller_rate == 0) throw Error("--between: only with --controller-rate");
  if (options.resume && options.state.empty()) throw Error("--resume: only with --state, the file to go on from");
  return options;
}

// How often the controller is told something per step of the policy.
int ticks_per_step(double rate, double controller_rate) {
  const double ratio = controller_rate > 0 ? controller_rate / rate : 1;
  const double ticks = std::round(ratio);
  if (!(ticks >= 1 && ticks <= lram::loop::kMostTicks) || std::abs(ratio - ticks) > kSame * ticks) {
    std::array<char, 160> line = {};
    std::snprintf(line.data(), line.size(),
                  "--controller-rate: expected a whole multiple of the policy's %g Hz, got %g Hz", rate,
                  controller_rate);
    throw Error(line.data());
  }
  return static_cast<int>(ticks);
}

lram::loop::Options loop_options(const Options& options, const lram::loop::Policy& policy) {
  lram::loop::Options chosen = options.loop;
  const double trained = policy.rate();  // 0: the bundle does not say
  if (chosen.rate == 0) chosen.rate = trained > 0 ? trained : kRate;
  if (trained > 0 && std::abs(chosen.rate - trained) > kSame * trained)
    std::fprintf(stderr, "warning: %s was trained at %g Hz, controlled at %g Hz\n", options.model.c_str(), trained,
                 chosen.rate);
  chosen.ticks = ticks_per_step(chosen.rate, options.controller_rate);
  chosen.linear = options.between == "linear";
  return chosen;
}

// ---- the program -----------------------------------------------------------------------------------------------

// For the thread that calls, once all others are made: they inherit neither its processor nor its priority.
void ask_for_real_time() {
  if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) std::perror("mlockall, going on without");
  cpu_set_t here;
  CPU_ZERO(&here);
  CPU_SET(static_cast<std::size_t>(std::max(sched_getcpu(), 0)), &here);
  if (sched_setaffinity(0, sizeof here, &here) != 0) std::perror("sched_setaffinity, going on without");
  sched_param priority = {};
  priority.sched_priority = 80;
  if (sched_setscheduler(0, SCHED_FIFO, &priority) != 0) std::perror("SCHED_FIFO, going on without");
}

void end_after(double seconds) {
  itimerval timer = {};
  timer.it_value.tv_sec = static_cast<time_t>(seconds);
  timer.it_value.tv_usec = std::max<suseconds_t>(static_cast<suseconds_t>(1e6 * (seconds - std::floor(seconds))), 1);
  setitimer(ITIMER_REAL, &timer, nullptr);
}

// What would be found out only after the run. Throws Error.
void check_writable(const std::string& file) {
  const std::size_t slash = file.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : file.substr(0, slash + 1);
  struct stat facts = {};
  if (stat(folder.c_str(), &facts) != 0 || !S_ISDIR(facts.st_mode))
    throw Error("--state: " + file + ": expected a folder that exists, not " + folder);
  if (access(folder.c_str(), W_OK | X_OK) != 0) throw Error("--state: " + file + ": its folder cannot be written");
  if (stat(file.c_str(), &facts) == 0 && !S_ISREG(facts.st_mode))
    throw Error("--state: " + file + ": expected a file, got a folder or a device");
}

bool resumed(lram::loop::Policy& policy, const std::string& file) {
  const bool found = policy.load(file);
  if (!found) std::fprintf(stderr, "warning: --resume: %s: not there yet; an episode begins\n", file.c_str());
  return found;
}

void save(const lram::loop::Policy& policy, const std::string& file) {
  try {
    policy.save(file);
  } catch (const Error& error) {
    std::fprintf(stderr, "warning: --state: %s\n", error.what());
  }
}

int run(const Options& options) {
  if (!options.state.empty()) check_writable(options.state);
  lram_options engine;
  lram_options_init(&engine);
  engine.threads = options.threads;
  lram::loop::Policy policy(options.model, &engine);
  const lram_description& about = policy.about();
  if (about.observation != LRAM_VECTOR || policy.observations().size() != 1 || about.action != LRAM_CONTINUOUS)
    throw Error(options.model + ": expected a bundle with vector observations and continuous actions");
  const lram::loop::Options chosen = loop_options(options, policy);
  lram::loop::Loop loop(policy, chosen);
  policy.warm_up();
  lram::loop::Around around;
  if (options.resume) around.resumed = resumed(policy, options.state);
  std::array<char, 80> faster = {};
  if (chosen.ticks > 1)
    std::snprintf(faster.data(), faster.size(), ", actions at %g Hz (%s)", chosen.rate * chosen.ticks,
                  chosen.linear ? "linear" : "hold");
  std::printf("%s kernels, %d threads, %g Hz%s\n", about.isa, about.threads, chosen.rate, faster.data());

  std::string stopped;
  {
    const Swapper swapper(policy);
    if (options.realtime) ask_for_real_time();
    Arm robot(policy.observations()[0].size, options.fault);
    looping = &loop;
    end_after(options.seconds);
    if (ending) loop.end();
    try {
      lram::loop::run(loop, robot, around);
    } catch (const lram::loop::SafeStop& stop) {
      stopped = stop.what();
    }
    looping = nullptr;
  }
  if (!options.state.empty()) save(policy, options.state);  // the motors have stopped
  const lram::loop::Account& account = loop.account();
  std::printf("%llu steps: %s\n", static_cast<unsigned long long>(account.steps), account.text().c_str());
  std::printf("from tick to awake: at most %.3f ms\n", 1000 * account.overslept);
  const std::string held_back = policy.held_back();
  if (!held_back.empty()) std::printf("%s\n", held_back.c_str());
  if (stopped.empty()) return 0;
  std::fprintf(stderr, "error: %s\n", stopped.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  for (const int number : {SIGINT, SIGTERM, SIGALRM}) end_by(number);
  const sigset_t waited_for = hangups();
  pthread_sigmask(SIG_BLOCK, &waited_for, nullptr);  // in all threads, before there are others
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
