// The 16-bit floats of the graphs, IEEE half and bfloat16, to float and back: round to nearest even, no hardware needed.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace digseg {

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  uint32_t exponent = h >> 10 & 31u, fraction = h & 0x3FFu, bits;
  if (exponent == 31) {
    bits = sign | 0x7F800000u | fraction << 13;
  } else if (exponent == 0) {
    const float tiny = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&bits, &tiny, sizeof bits);
    bits |= sign;
  } else {
    bits = sign | (exponent + 112) << 23 | fraction << 13;
  }
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
  if (bits >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // rounds past the largest half
  if (bits < 0x38800000u) {                                               // subnormal: units of 2^-24
    float size;
    std::memcpy(&size, &bits, sizeof size);
    size += 0.5f;  // the float adder rounds at 2^-24 to even
    std::memcpy(&bits, &size, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3F000000u));
  }
  bits += 0xFFFu + (bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | (bits - 0x38000000u) >> 13);
}

inline float bfloat_to_float(uint16_t b) {
  const uint32_t bits = static_cast<uint32_t>(b) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline uint16_t float_to_bfloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);  // stays not-a-number
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

// What a graph's tensor may hold where the engine holds floats.
enum class Width { Float, Half, BFloat };

inline size_t bytes_of(Width width) { return width == Width::Float ? 4 : 2; }

inline void widen(Width width, const void* from, size_t count, float* to) {
  const uint16_t* narrow = static_cast<const uint16_t*>(from);
  if (width == Width::Float) std::memcpy(to, from, 4 * count);
  else std::transform(narrow, narrow + count, to, width == Width::Half ? half_to_float : bfloat_to_float);
}

inline std::vector<uint16_t> narrowed(Width width, const std::vector<float>& from) {
  std::vector<uint16_t> out(from.size());
  std::transform(from.begin(), from.end(), out.begin(), width == Width::Half ? float_to_half : float_to_bfloat);
  return out;
}

}  // namespace digseg
