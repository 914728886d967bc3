// What artifacts say of a robot, as the bytes of their interface (see InterfaceHeader).
#pragma once
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "format.h"

namespace lram_testing {

lram::ElementFacts element(const std::string& name, const std::string& unit, float low = -HUGE_VALF,
                           float high = HUGE_VALF, float most_change = HUGE_VALF, float safe = NAN);

// What is said of a field.
struct Said {
  std::string name;
  bool output;
  std::vector<lram::ElementFacts> elements;
  std::uint32_t most_clamps = 0;
};

std::vector<std::uint8_t> interface_of(double rate, const std::vector<Said>& fields);

}  // namespace lram_testing
