// IEEE half precision in integer arithmetic, for code that may use no vector instructions.
#pragma once
#include <cstdint>
#include <cstring>

namespace lram {

inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  std::uint32_t magnitude = half & 0x7fffU;
  float value = 0.0F;
  if (magnitude >= 0x7c00U) {  // infinity, NaN
    magnitude = 0x7f800000U | ((magnitude & 0x3ffU) << 13);
    std::memcpy(&value, &magnitude, sizeof value);
  } else if (magnitude >= 0x400U) {
    magnitude = (magnitude << 13) + ((127U - 15U) << 23);
    std::memcpy(&value, &magnitude, sizeof value);
  } else {
    value = static_cast<float>(magnitude) * 0x1p-24F;
  }
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  bits |= sign;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to nearest, ties to even; what is too large becomes infinity.
inline std::uint16_t float_to_half(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  bits &= 0x7fffffffU;
  if (bits > 0x7f800000U) return sign | 0x7e00U;
  if (bits >= 0x477ff000U) return sign | 0x7c00U;
  if (bits < 0x38800000U) {  // below the normal halves: adding 0.5 shifts the digits to where rounding takes place
    float magnitude = 0.0F;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5F;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return sign | static_cast<std::uint16_t>(bits - 0x3f000000U);
  }
  const std::uint32_t odd = (bits >> 13) & 1U;
  bits += 0xfffU + odd - ((127U - 15U) << 23);
  return sign | static_cast<std::uint16_t>(bits >> 13);
}

}  // namespace lram
