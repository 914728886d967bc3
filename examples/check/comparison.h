// How far what is computed here is from what was recorded: the figures, and the bounds, of `lram-export verify`
// (lram_export/spec/parity.py).
#ifndef CHECK_COMPARISON_H
#define CHECK_COMPARISON_H

#include <algorithm>
#include <cmath>
#include <limits>

#include "recording.h"

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The larger; NaN is larger than anything.
inline double larger(double largest, double found) {
  return found <= largest ? largest : std::isnan(found) ? kInfinity : found;
}

// The 2-norm.
inline double norm(const float* values, std::size_t count) {
  double squares = 0;
  for (std::size_t i = 0; i < count; ++i) squares += std::pow(static_cast<double>(values[i]), 2);
  return std::sqrt(squares);
}

// |actual - expected| / |expected|, or / `floor` if that is more; absolute where both are 0.
inline double relative_error(const float* expected, const float* actual, std::size_t count, double floor = 0) {
  double squares = 0;
  for (std::size_t i = 0; i < count; ++i)
    squares += std::pow(static_cast<double>(actual[i]) - static_cast<double>(expected[i]), 2);
  const double unit = std::max(norm(expected, count), floor);
  return larger(0, unit > 0 ? std::sqrt(squares) / unit : std::sqrt(squares));
}

// Where the largest error of a single number was.
struct Worst {
  std::size_t step = 0, row = 0, output = 0, element = 0;
  double expected = 0, actual = 0;
  double error = -1;  // none yet
};

class Comparison {
 public:
  explicit Comparison(const Recording& recording) : recording_(recording) {}

  // The outputs of a step: all rows of each, as they were recorded, and as they are here.
  void add_step(const std::vector<const void*>& expected, const std::vector<const void*>& actual) {
    const std::vector<Output>& outputs = recording_.outputs;
    for (std::size_t row = 0; row < recording_.rows; ++row)
      for (std::size_t i = 0; i < outputs.size(); ++i) {
        if (outputs[i].kind == Kind::values || outputs[i].kind == Kind::scores)
          add_values(i, row, row_of<float>(i, expected[i], row), row_of<float>(i, actual[i], row));
        else if (outputs[i].element == LRAM_INT64)
          add_choices<std::int64_t>(i, row, expected, actual);
        else
          add_choices<float>(i, row, expected, actual);
      }
    ++steps_;
  }

  // Samples of a tensor of the state after the last step.
  void add_state(const State& of, const std::vector<float>& expected, const std::vector<float>& actual) {
    const double error = relative_error(expected.data(), actual.data(), expected.size());
    if (state_error_ >= error) return;
    state_error_ = error;
    state_ = of.name;
  }

  bool passed() const {
    return steps_ > 0 && error() <= recording_.error_bound && state_error_ <= recording_.state_bound &&
           tie_ <= recording_.tie_bound;
  }

  // A line for each figure.
  void print() const {
    const char* unit = recording_.relative ? ", relative" : "";
    std::printf("steps    %zu with %zu row%s\n", steps_, recording_.rows, recording_.rows == 1 ? "" : "s");
    if (worst_.error >= 0) {
      std::printf("error    %.2g%s, at most %g\n", error(), unit, recording_.error_bound);
      std::printf("worst    step %zu, row %zu, %s[%zu]: recorded %.6g, here %.6g\n", worst_.step, worst_.row,
                  recording_.outputs[worst_.output].name.c_str(), worst_.element, worst_.expected, worst_.actual);
    }
    if (!state_.empty())
      std::printf("state    %.2g, relative, at most %g; the largest in %s\n", state_error_, recording_.state_bound,
                  state_.c_str());
    if (actions_ > 0) std::printf("actions  %zu of %zu differ%s\n", different_, actions_, ties().c_str());
    std::printf("verdict  %s\n", passed() ? "passed" : "FAILED");
  }

 private:
  // How far apart what was chosen from was, where choices differ.
  std::string ties() const {
    if (different_ == 0) return "";
    if (std::isinf(tie_)) return ", not all of them at a tie";
    std::array<char, 100> line = {};
    std::snprintf(line.data(), line.size(), ", at ties within %.2g%s, at most %g", tie_,
                  recording_.relative ? ", relative" : "", recording_.tie_bound);
    return line.data();
  }

  double error() const { return recording_.relative ? relative_ : std::max(worst_.error, 0.0); }

  template <class T>
  const T* row_of(std::size_t output, const void* values, std::size_t row) const {
    return static_cast<const T*>(values) + row * recording_.outputs[output].size;
  }

  // A row of floats that are computed as they are.
  void add_values(std::size_t output, std::size_t row, const float* expected, const float* actual) {
    const Output& of = recording_.outputs[output];
    const bool scores = of.kind == Kind::scores;
    for (std::size_t i = 0; i < of.size; ++i) {
      const double reference = static_cast<double>(expected[i]),
                   scale = scores ? 1 : std::max(of.typical, std::fabs(reference));
      const double error = larger(0, std::fabs(static_cast<double>(actual[i]) - reference) / scale);
      if (error > worst_.error) worst_ = {steps_, row, output, i, reference, static_cast<double>(actual[i]), error};
    }
    const double floor = scores ? 0 : of.typical * std::sqrt(static_cast<double>(of.size));
    relative_ = larger(relative_, relative_error(expected, actual, of.size, floor));
  }

  // A row of what was chosen, which may be another choice where the recorded scores of both are all but the same.
  template <class T>
  void add_choices(std::size_t output, std::size_t row, const std::vector<const void*>& expected,
                   const std::vector<const void*>& actual) {
    const Output& of = recording_.outputs[output];
    const T *recorded = row_of<T>(output, expected[output], row), *here = row_of<T>(output, actual[output], row);
    actions_ += of.size;
    for (std::size_t i = 0; i < of.size; ++i) {
      if (recorded[i] == here[i]) continue;
      ++different_;
      tie_ = larger(tie_, of.kind == Kind::chosen ? margin(of, i, row_of<float>(of.scores, expected[of.scores], row),
                                                           row_of<float>(of.scores, actual[of.scores], row))
                                                  : kInfinity);
    }
  }

  // How far apart the recorded scores of both choices are. The same choice made another action: that is no tie.
  double margin(const Output& of, std::size_t action, const float* expected, const float* actual) const {
    const std::size_t all = recording_.outputs[of.scores].size, share = all / of.size;
    const float* recorded = expected + action * share;
    const std::size_t best = largest(recorded, share), chosen = largest(actual + action * share, share);
    if (best == chosen) return kInfinity;
    const double apart = static_cast<double>(recorded[best]) - static_cast<double>(recorded[chosen]);
    return recording_.relative && apart > 0 ? apart / norm(expected, all) : apart;
  }

  // The first of the largest; NaN is none.
  static std::size_t largest(const float* values, std::size_t count) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < count; ++i)
      if (values[i] > values[best] || std::isnan(values[best])) best = i;
    return best;
  }

  const Recording& recording_;
  std::size_t steps_ = 0, actions_ = 0, different_ = 0;
  Worst worst_;
  double relative_ = 0, tie_ = 0;
  double state_error_ = -1;  // none yet
  std::string state_;
};

#endif
