// Errors, and numbers as their texts show them.
#pragma once
#include <cstdio>
#include <stdexcept>
#include <string>

#include "lram.h"

namespace lram {

class Error : public std::runtime_error {
 public:
  Error(lram_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
  lram_status status() const { return status_; }

 private:
  lram_status status_;
};

inline std::string shown(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", static_cast<double>(value));
  return text;
}

}  // namespace lram
