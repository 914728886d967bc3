#include <lram/loop/fault.h>

#include <cstdarg>
#include <cstdio>

namespace lram::loop {

const char* name_of(Fault fault) noexcept {
  switch (fault) {
    case Fault::none:
      return "";
    case Fault::missing:
      return "missing";
    case Fault::unusable:
      return "unusable";
    case Fault::not_finite:
      return "not finite";
    case Fault::out_of_limits:
      return "out of limits";
    case Fault::frozen:
      return "frozen";
    case Fault::no_result:
      return "no result";
    case Fault::not_sent:
      return "not sent";
    case Fault::stale:
      return "stale";
    case Fault::no_event:
      return "no event";
  }
  return "unknown fault";
}

Trouble::Trouble(Fault fault, const char* format, ...) noexcept : kind(fault) {
  std::va_list values;
  va_start(values, format);
  std::vsnprintf(text.data(), text.size(), format, values);
  va_end(values);
  for (char& letter : text)  // one line, whatever an exception says
    if (letter != '\0' && static_cast<unsigned char>(letter) < ' ') letter = ' ';
}

std::string Trouble::described() const {
  return text[0] == '\0' ? name_of(kind) : std::string(name_of(kind)) + ": " + text.data();
}

}  // namespace lram::loop
