#include <lram/loop/values.h>

namespace lram::loop {

std::size_t bytes_of(lram_element element) noexcept {
  switch (element) {
    case LRAM_FLOAT32:
      return sizeof(float);
    case LRAM_UINT8:
      return sizeof(std::uint8_t);
    case LRAM_INT64:
      return sizeof(std::int64_t);
  }
  return 0;
}

const char* name_of(lram_element element) noexcept {
  switch (element) {
    case LRAM_FLOAT32:
      return "float32";
    case LRAM_UINT8:
      return "uint8";
    case LRAM_INT64:
      return "int64";
  }
  return "unknown type";
}

}  // namespace lram::loop
