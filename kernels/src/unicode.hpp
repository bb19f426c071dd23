// Text as the `tokenizers` library sees it: UTF-8, canonical composition, lower case, character classes.
#pragma once
#include <cstdint>
#include <string>

namespace digseg {

using Points = std::u32string;

Points from_utf8(const std::string& text);  // Error(DIGSEG_INVALID_ARGUMENT) on bytes that are not UTF-8
void append_utf8(std::string& out, char32_t point);
std::string to_utf8(const Points& text);

bool is_letter(char32_t c);
bool is_number(char32_t c);
bool is_space(char32_t c);

Points lower(const Points& text);    // character by character
Points compose(const Points& text);  // NFC

}  // namespace digseg
