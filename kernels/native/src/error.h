// Errors of everything but the step itself, which cannot fail once its inputs are checked.
#pragma once
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

}  // namespace lram
