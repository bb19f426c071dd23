// The last error of each thread, in a fixed buffer: reporting an error needs no memory.
#include "error.hpp"

#include <cstring>

namespace digseg {
namespace {
thread_local char last_text[1024] = "";
}

std::string quoted(const std::string& text, size_t limit) {
  size_t end = text.size();
  if (end > limit) {
    end = limit;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  }
  std::string out = "'";
  for (size_t i = 0; i < end; ++i) out += static_cast<unsigned char>(text[i]) < 32 ? '?' : text[i];
  return out + (end < text.size() ? "...'" : "'");
}

void set_last_error(const char* text) noexcept {
  size_t n = std::strlen(text);
  if (n >= sizeof last_text) {
    n = sizeof last_text - 1;
    while (n > 0 && (static_cast<unsigned char>(text[n]) & 0xC0) == 0x80) --n;
  }
  std::memmove(last_text, text, n);
  last_text[n] = 0;
}

const char* last_error() noexcept { return last_text; }

}  // namespace digseg
