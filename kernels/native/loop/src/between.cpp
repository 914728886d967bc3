#include <lram/loop/between.h>
#include <lram/loop/error.h>

#include <algorithm>
#include <string>

namespace lram::loop {

Between::Between(int ticks, bool linear, lram_element element, std::size_t size)
    : ticks_(ticks), linear_(linear), element_(element), size_(size) {
  if (ticks < 1 || ticks > kMostTicks)
    throw Error("ticks: expected 1 to " + std::to_string(kMostTicks) + " per step, got " + std::to_string(ticks));
  if (linear && element != LRAM_FLOAT32)
    throw Error(std::string("linear: is for actions of float32, got ") + name_of(element) + ": hold it");
  if (element == LRAM_INT64) choice_.resize(size);
  if (element != LRAM_FLOAT32) return;
  for (std::vector<float>* floats : {&start_, &action_, &sent_, &before_}) floats->resize(size);
}

void Between::aim(const void* action) noexcept {
  if (element_ == LRAM_INT64) {
    std::copy_n(static_cast<const std::int64_t*>(action), size_, choice_.begin());
    return;
  }
  std::copy_n(static_cast<const float*>(action), size_, action_.begin());
  on_a_line_ = linear_ && started_;
  if (on_a_line_) std::copy(sent_.begin(), sent_.end(), start_.begin());
}

void Between::unsent() noexcept {
  if (!linear_) return;
  sent_.swap(before_);
  started_ = sent_before_;
}

Action Between::at(int tick) noexcept {
  if (element_ == LRAM_INT64) return {choice_.data(), size_};
  if (!linear_) return {action_.data(), size_};
  sent_.swap(before_);
  sent_before_ = started_;
  started_ = true;
  // a float times so few ticks is exact in double: no rounding leads beyond the two ends
  const double done = tick + 1;
  const double all = ticks_;
  for (std::size_t i = 0; i < size_; ++i)
    sent_[i] = !on_a_line_ || tick + 1 >= ticks_
                   ? action_[i]
                   : static_cast<float>((start_[i] * (all - done) + action_[i] * done) / all);
  return {sent_.data(), size_};
}

}  // namespace lram::loop
