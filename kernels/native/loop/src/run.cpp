#include <lram/loop/run.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <string>

#include "described.h"

namespace lram::loop {
namespace {

std::string counted(std::uint64_t number, const char* what) {
  return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}

class Run {
 public:
  Run(Loop& loop, Robot& robot, const Around& around, Clock& clock, Notifier& notifier, Log& log)
      : loop_(loop), robot_(robot), clock_(clock), notifier_(notifier), log_(log), resumed_(around.resumed) {}

  // Whatever fails, close() is called: robot, clock, notifier and log are foreign code.
  void go() {
    std::exception_ptr stopped;
    try {
      loop();
    } catch (...) {
      stopped = std::current_exception();
    }
    if (stopped) attempt("the robot's stop()", [this] { robot_.stop(); });
    attempt("the notifier's stopping()", [this] { notifier_.stopping(); });
    if (ticks_) {
      loop_.account().missed = ticks_->missed();
      loop_.account().overslept = ticks_->overslept();
    }
    std::exception_ptr unclosed;
    try {
      robot_.close();
    } catch (...) {
      unclosed = std::current_exception();
    }
    if (stopped || unclosed) throw SafeStop(said(stopped, unclosed));
  }

 private:
  void loop() {
    ticks_ = std::make_unique<Ticks>(clock_, loop_.period() / loop_.options().ticks);
    Reading reading = resumed_ ? resume() : reset();
    ticks_->start();
    notifier_.ready();
    while (!loop_.is_over()) {
      step(reading);
      notifier_.alive();
      reading = next();
    }
  }

  // Where it fails that is logged, or not even that.
  template <class Call>
  void attempt(const char* what, Call call) noexcept {
    try {
      try {
        call();
      } catch (...) {
        log_.warning((what + (" failed: " + described())).c_str());
      }
    } catch (...) {  // NOLINT(bugprone-empty-catch): close() is still to come
    }
  }

  static std::string said(const std::exception_ptr& stopped, const std::exception_ptr& unclosed) {
    std::string why = stopped ? said(stopped, "stopped: ") : "";
    if (!unclosed) return why;
    return (why.empty() ? "" : why + "; then ") + said(unclosed, "the robot's close() failed, its motors may run on: ");
  }

  // A stop of the loop's own speaks for itself.
  static std::string said(const std::exception_ptr& thrown, const std::string& what) {
    try {
      std::rethrow_exception(thrown);
    } catch (const SafeStop& stop) {
      return stop.what();
    } catch (...) {
      return what + described();
    }
  }

  Reading resume() {
    loop_.resume();
    return read();
  }

  Reading reset() {
    loop_.begin();
    if (loop_.is_ending()) return {};
    try {
      const Reading reading = robot_.reset();
      read_at_ = clock_.now();
      return reading;
    } catch (...) {
      throw SafeStop("the robot's reset() failed: " + described());
    }
  }

  // A robot's class is foreign code, and so is what it reads with.
  Reading read() {
    if (loop_.is_ending()) return {};
    try {
      const Reading reading = robot_.observe();
      read_at_ = clock_.now();
      return reading;
    } catch (...) {
      problem_ = described();
      return Reading::missing(problem_.c_str());
    }
  }

  void step(const Reading& reading) {
    const double started = clock_.now();
    const std::uint64_t number = loop_.account().steps;
    if (!loop_.step(read_at_, reading, &robot_)) throw SafeStop(loop_.why());
    const bool bridged = static_cast<bool>(loop_.fault());
    if (bridged) note(number);
    const int ticks = loop_.options().ticks;
    bool over = false;
    for (int tick = 0; tick < ticks;) {
      send(tick);
      if (tick == 0) loop_.took(clock_.now() - started);
      if (tick == ticks - 1) over = finish(bridged);  // before the wait, so that it takes none of the next step's time
      tick += ticks_->wait(ticks - tick);
    }
    if (!over) finish(bridged);  // its last tick was left out
  }

  // All actions of a step were sent, or could not be.
  bool finish(bool bridged) {
    if (!loop_.finish()) throw SafeStop(loop_.why());
    const std::uint64_t steps = loop_.account().steps;
    if (!bridged && loop_.fault()) note(steps);
    if (loop_.recovered() > 0)
      log_.info(("step " + std::to_string(steps) + ": good again, after " + counted(loop_.recovered(), "step") +
                 " with a fault")
                    .c_str());
    return true;
  }

  void send(int tick) {
    const Action* action = loop_.send(clock_.now(), tick);
    if (action == nullptr) return;
    std::optional<double> reward;
    try {
      reward = robot_.act(*action);
    } catch (...) {
      loop_.not_sent(described().c_str());
      return;
    }
    if (reward) loop_.reward(*reward);
  }

  // The first fault in a row is told.
  void note(std::uint64_t number) {
    if (loop_.faults_in_a_row() == 1)
      log_.warning(("step " + std::to_string(number) + ": " + loop_.fault().described() + "; bridged").c_str());
  }

  // The next reading, which may be an episode's first.
  Reading next() {
    Event event = ask();
    if (event == Event::done) event = idle();
    if (loop_.take_restart()) return reset();
    if (event == Event::new_episode) loop_.begin();
    return read();
  }

  // Does nothing until the next episode; the event that begins it.
  Event idle() {
    log_.info(
        ("step " + std::to_string(loop_.account().steps) + ": the episode is done; waiting for the next").c_str());
    Event event = Event::none;
    while (event != Event::new_episode && !loop_.is_restarting() && !loop_.is_ending()) {
      clock_.sleep_until(clock_.now() + std::min(loop_.period(), kLongestNap));
      notifier_.alive();
      event = ask();
    }
    ticks_->start();
    return event;
  }

  Event ask() {
    try {
      const Event event = robot_.event();
      event_fails_ = false;
      return event;
    } catch (...) {
      loop_.count(Fault::no_event);
      if (!event_fails_)
        log_.warning(
            ("step " + std::to_string(loop_.account().steps) + ": the robot's event() failed: " + described()).c_str());
      event_fails_ = true;
      return Event::none;
    }
  }

  Loop& loop_;
  Robot& robot_;
  Clock& clock_;
  Notifier& notifier_;
  Log& log_;
  bool resumed_;
  std::unique_ptr<Ticks> ticks_;  // made where it may fail, since it asks the clock
  double read_at_ = 0;
  std::string problem_;  // of the last reading
  bool event_fails_ = false;
};

}  // namespace

void Log::info(const char* line) { std::fprintf(stderr, "%s\n", line); }
void Log::warning(const char* line) { std::fprintf(stderr, "warning: %s\n", line); }

void run(Loop& loop, Robot& robot, const Around& around) {
  Clock clock;
  Notifier notifier;
  Log log;
  Run(loop, robot, around, around.clock == nullptr ? clock : *around.clock,
      around.notifier == nullptr ? notifier : *around.notifier, around.log == nullptr ? log : *around.log)
      .go();
}

}  // namespace lram::loop
