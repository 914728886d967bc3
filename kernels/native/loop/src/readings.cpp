#include <lram/loop/readings.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lram::loop {
namespace {

bool equal(const Values& values, const void* others) noexcept {
  if (values.element != LRAM_FLOAT32)
    return std::memcmp(values.data, others, values.size * bytes_of(values.element)) == 0;
  const auto* floats = static_cast<const float*>(values.data);  // of which -0 and 0 are the same
  return std::equal(floats, floats + values.size, static_cast<const float*>(others));
}

}  // namespace

Readings::Readings(const Policy& policy, std::uint64_t frozen) : policy_(policy), frozen_(frozen) {
  constexpr std::size_t unit = sizeof(std::uint64_t);
  for (Copy& copy : copies_)
    for (const Observation& of : policy.observations()) {
      copy.memory.emplace_back((of.size * bytes_of(of.element) + unit - 1) / unit);
      copy.pointers.push_back(copy.memory.back().data());
    }
}

void Readings::start() noexcept {
  has_last_ = had_last_ = has_before_ = had_before_ = false;
  same_ = same_before_ = 0;
}

Trouble Readings::check(const Reading& reading) noexcept {
  if (reading.is_missing()) return {Fault::missing, "%s", reading.why()};
  const std::vector<Observation>& observations = policy_.observations();
  if (reading.size() != observations.size())
    return {Fault::unusable, "expected %zu observations, got %zu", observations.size(), reading.size()};
  for (std::size_t i = 0; i < observations.size(); ++i) {
    const Observation& of = observations[i];
    const Values& values = reading[i];
    if (values.size != of.size || values.element != of.element || values.data == nullptr)
      return {Fault::unusable,     "%s: expected %zu of %s, got %zu of %s",  of.name.c_str(),        of.size,
              name_of(of.element), values.data == nullptr ? 0 : values.size, name_of(values.element)};
  }
  for (std::size_t i = 0; i < observations.size(); ++i) {
    Trouble trouble = wrong(observations[i], reading[i]);
    if (trouble) return trouble;
  }
  if (is_frozen(reading))
    return {Fault::frozen, "the same to the bit %llu times in a row", static_cast<unsigned long long>(same_ + 1)};
  fill(*before_last_, reading);
  std::swap(last_, before_last_);
  had_last_ = has_last_;
  has_last_ = true;
  return {};
}

void Readings::take_back() noexcept {
  std::swap(last_, before_last_);
  has_last_ = had_last_;
  had_last_ = false;
  if (frozen_ == 0) return;
  std::swap(before_, before_that_);
  has_before_ = had_before_;
  same_ = same_before_;
}

Trouble Readings::wrong(const Observation& of, const Values& values) const noexcept {
  const float* floats = values.floats();
  if (floats == nullptr) return {};
  for (std::size_t i = 0; i < of.size; ++i)
    if (!std::isfinite(floats[i]))
      return {Fault::not_finite, "%s: expected finite values, got %g at element %zu", of.name.c_str(),
              static_cast<double>(floats[i]), i};
  for (std::size_t i = 0; i < of.low.size(); ++i) {
    if (floats[i] >= of.low[i] && floats[i] <= of.high[i]) continue;
    const ElementName name = policy_.element_of(of, i);
    return {Fault::out_of_limits,
            "%s: %s: expected %g to %g, got %g",
            of.name.c_str(),
            name.data(),
            static_cast<double>(of.low[i]),
            static_cast<double>(of.high[i]),
            static_cast<double>(floats[i])};
  }
  return {};
}

bool Readings::is_frozen(const Reading& reading) noexcept {
  if (frozen_ == 0) return false;
  bool alike = has_before_;
  for (std::size_t i = 0; alike && i < reading.size(); ++i) alike = equal(reading[i], before_->pointers[i]);
  same_before_ = same_;
  same_ = alike ? same_ + 1 : 0;
  fill(*before_that_, reading);
  std::swap(before_, before_that_);
  had_before_ = has_before_;
  has_before_ = true;
  return same_ >= frozen_;
}

void Readings::fill(Copy& copy, const Reading& reading) noexcept {
  for (std::size_t i = 0; i < reading.size(); ++i)
    if (reading[i].size > 0)
      std::memcpy(copy.memory[i].data(), reading[i].data, reading[i].size * bytes_of(reading[i].element));
}

}  // namespace lram::loop
