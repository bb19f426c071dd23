// Every 16-bit number of both kinds goes to float and back unchanged; floats between two of them round to the nearer one,
// to even where both are as near.
#include <cmath>
#include <cstdio>

#include "half.hpp"

using namespace digseg;

namespace {

long wrong_of(Width width, uint16_t infinity) {
  long wrong = 0;
  for (uint32_t sign = 0; sign <= 0x8000u; sign += 0x8000u)
    for (uint32_t i = 0; i < 0x8000u; ++i) {
      const uint16_t bits = static_cast<uint16_t>(sign | i), next = static_cast<uint16_t>(bits + 1);
      float values[2];
      const uint16_t narrow[4] = {bits, next, 0, 0};
      widen(width, narrow, 2, values);
      const uint16_t back = narrowed(width, {values[0]})[0];
      wrong += i > infinity ? !std::isnan(values[0]) || (back & 0x7FFFu) <= infinity : back != bits;
      if (i + 1 >= infinity) continue;
      const float middle = values[0] / 2 + values[1] / 2;
      wrong += narrowed(width, {middle})[0] != (bits % 2 ? next : bits);
      wrong += narrowed(width, {std::nextafter(middle, values[0])})[0] != bits;
      wrong += narrowed(width, {std::nextafter(middle, values[1])})[0] != next;
    }
  return wrong;
}

}  // namespace

int main() {
  float one = 0;
  const uint16_t ones[4] = {0x3C00, 0x3F80, 0, 0};
  widen(Width::Half, &ones[0], 1, &one);
  bool right = one == 1.f && bytes_of(Width::Half) == 2 && bytes_of(Width::BFloat) == 2 && bytes_of(Width::Float) == 4;
  widen(Width::BFloat, &ones[1], 1, &one);
  right = right && one == 1.f;
  const long half = wrong_of(Width::Half, 0x7C00), bfloat = wrong_of(Width::BFloat, 0x7F80);
  std::printf("%ld wrong halves, %ld wrong bfloats\n", half, bfloat);
  return !(right && half == 0 && bfloat == 0);
}
