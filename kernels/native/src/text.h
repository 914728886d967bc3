// Texts that others wrote and that programs print.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lram {

// Whether bytes are UTF-8 (RFC 3629) without control characters.
inline bool is_printable_utf8(const char* text, std::size_t size) {
  for (std::size_t i = 0; i < size;) {
    const std::uint32_t lead = static_cast<std::uint8_t>(text[i]);
    const std::size_t length = lead < 0x80         ? 1
                               : lead >> 5 == 0x6  ? 2
                               : lead >> 4 == 0xE  ? 3
                               : lead >> 3 == 0x1E ? 4
                                                   : 0;
    if (length == 0 || length > size - i) return false;
    std::uint32_t code = length == 1 ? lead : lead & (0x7FU >> length);
    for (std::size_t k = 1; k < length; ++k) {
      const std::uint32_t next = static_cast<std::uint8_t>(text[i + k]);
      if (next >> 6 != 0x2) return false;
      code = code << 6 | (next & 0x3FU);
    }
    constexpr std::uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < smallest[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return false;
    if (code < 0x20 || (code >= 0x7F && code < 0xA0)) return false;
    i += length;
  }
  return true;
}

}  // namespace lram
