#include <lram/loop/clock.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <ctime>

namespace lram::loop {

double Clock::now() {
  timespec time = {};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void Clock::sleep_until(double when) {
  const double whole = std::floor(when);
  timespec time = {};
  time.tv_sec = static_cast<std::time_t>(whole);
  time.tv_nsec = std::min(static_cast<long>(1e9 * (when - whole)), 999'999'999L);
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) == EINTR) {
  }
}

int Ticks::wait(int left) {
  due_ += period_;
  double now = clock_.now();
  if (now < due_) {
    clock_.sleep_until(due_);
    now = clock_.now();
    overslept_ = std::max(overslept_, now - due_);
    if (now < due_ + period_) return 1;
  }
  ++missed_;
  const int passed = static_cast<int>(std::min(1 + std::floor((now - due_) / period_), static_cast<double>(left)));
  due_ = passed == left ? now : due_ + (passed - 1) * period_;
  return passed;
}

}  // namespace lram::loop
