// An exception of somebody else's, in words.
#pragma once
#include <string>

namespace lram::loop {

// For a catch block: what is being thrown.
std::string described();

}  // namespace lram::loop
