#include <lram/loop/account.h>

#include <algorithm>
#include <cstdio>
#include <numeric>

namespace lram::loop {
namespace {

// As "1,234".
std::string grouped(std::uint64_t number) {
  std::string digits = std::to_string(number);
  for (std::size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, ",");
  return digits;
}

std::string counted(std::uint64_t number, const char* what) {
  return grouped(number) + " " + what + (number == 1 ? "" : "s");
}

std::string milliseconds(double seconds) {
  std::array<char, 32> text = {};
  std::snprintf(text.data(), text.size(), "%.2f ms", 1000 * seconds);
  return text.data();
}

}  // namespace

void Account::add(double seconds) noexcept {
  last = seconds;
  largest = std::max(largest, seconds);
  seconds_[timed_++ % seconds_.size()] = seconds;
}

double Account::percentile(double percent) const {
  const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(timed_, seconds_.size()));
  if (count == 0) return 0;
  std::vector<double> sorted(seconds_.begin(), seconds_.begin() + static_cast<std::ptrdiff_t>(count));
  std::sort(sorted.begin(), sorted.end());
  const double place = percent / 100 * static_cast<double>(count - 1);
  const auto below = std::min(static_cast<std::size_t>(std::max(place, 0.0)), count - 1);
  const std::size_t above = std::min(below + 1, count - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

std::string Account::text() const {
  std::string line;
  if (timed_ > 0)
    line = "p50 " + milliseconds(percentile(50)) + ", p99 " + milliseconds(percentile(99)) +
           (timed_ > seconds_.size() ? " (of the last " + grouped(seconds_.size()) + ")" : "") + ", largest " +
           milliseconds(largest) + ", ";
  line += counted(missed, "missed deadline") + ", " + counted(bridged, "bridged step");
  std::array<std::size_t, kFaults> kinds = {};
  std::iota(kinds.begin(), kinds.end(), 0);
  std::sort(kinds.begin(), kinds.end(),
            [&](std::size_t a, std::size_t b) { return faults[a] != faults[b] ? faults[a] > faults[b] : a < b; });
  for (const std::size_t kind : kinds)
    if (faults[kind] > 0)
      line += (kind == kinds[0] ? ", faults: " : ", ") + std::string(name_of(static_cast<Fault>(kind))) + " " +
              grouped(faults[kind]);
  if (stale > 0) line += ", " + counted(stale, "stale action");
  return line;
}

}  // namespace lram::loop
