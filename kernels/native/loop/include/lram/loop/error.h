// What the loop's functions throw.
#ifndef LRAM_LOOP_ERROR_H
#define LRAM_LOOP_ERROR_H

#include <stdexcept>

namespace lram::loop {

// What was asked for cannot be had; why, in one line.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The robot had to be stopped; why, in one line.
class SafeStop : public Error {
 public:
  using Error::Error;
};

}  // namespace lram::loop

#endif
