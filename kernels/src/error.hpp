// One exception type inside the library; it never leaves it. Text: what, expected, got, what to do next.
#pragma once
#include <stdexcept>
#include <string>

#include "digseg/digseg.h"

namespace digseg {

class Error : public std::runtime_error {
 public:
  Error(digseg_status status, const std::string& text) : std::runtime_error(text), status(status) {}
  digseg_status status;
};

[[noreturn]] inline void fail(digseg_status status, const std::string& text) { throw Error(status, text); }

// Text made safe and short for a message: control bytes become '?', at most `limit` bytes, cut at a character.
std::string quoted(const std::string& text, size_t limit = 60);

void set_last_error(const char* text) noexcept;
const char* last_error() noexcept;

}  // namespace digseg
