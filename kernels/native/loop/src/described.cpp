#include "described.h"

#include <exception>

namespace lram::loop {

std::string described() {
  try {
    throw;
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an exception without a text";
  }
}

}  // namespace lram::loop
