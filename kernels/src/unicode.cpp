#include "unicode.hpp"

#include <algorithm>
#include <vector>

#include "error.hpp"

namespace digseg {
namespace {

struct Range {
  char32_t low, high;
};
struct Mapping {
  char32_t from;
  char32_t to[4];
};
struct Pair {
  char32_t first, second, composed;
};
struct Mark {
  char32_t point;
  uint8_t level;
};

#include "unicode_tables.inc"

// Hangul syllables are composed by arithmetic (Unicode standard, section 3.12).
constexpr char32_t kS = 0xAC00, kL = 0x1100, kV = 0x1161, kT = 0x11A7;
constexpr char32_t kLCount = 19, kVCount = 21, kTCount = 28, kSCount = kLCount * kVCount * kTCount;

template <size_t N>
bool within(const Range (&table)[N], char32_t c) {
  const Range* found = std::upper_bound(table, table + N, c, [](char32_t value, const Range& r) { return value < r.low; });
  return found != table && c <= (found - 1)->high;
}

template <size_t N>
const Mapping* mapping(const Mapping (&table)[N], char32_t c) {
  const Mapping* found = std::lower_bound(table, table + N, c, [](const Mapping& m, char32_t value) { return m.from < value; });
  return found != table + N && found->from == c ? found : nullptr;
}

int level_of(char32_t c) {
  const Mark* end = kMarks + sizeof kMarks / sizeof *kMarks;
  const Mark* found = std::lower_bound(kMarks, end, c, [](const Mark& m, char32_t value) { return m.point < value; });
  return found != end && found->point == c ? found->level : 0;
}

void append_mapped(Points& out, const Mapping& entry) {
  for (const char32_t c : entry.to)
    if (c) out += c;
}

Points decompose(const Points& text) {
  Points out;
  for (const char32_t c : text) {
    if (c >= kS && c < kS + kSCount) {
      const char32_t index = c - kS;
      out += kL + index / (kVCount * kTCount);
      out += kV + index % (kVCount * kTCount) / kTCount;
      if (index % kTCount) out += kT + index % kTCount;
    } else if (const Mapping* entry = mapping(kDecomposed, c)) {
      append_mapped(out, *entry);
    } else {
      out += c;
    }
  }
  // Marks behind a base stand in the order of their class; equal classes keep their order.
  for (size_t i = 0; i < out.size();) {
    size_t end = i;
    while (end < out.size() && level_of(out[end]) > 0) ++end;
    std::stable_sort(out.begin() + static_cast<std::ptrdiff_t>(i), out.begin() + static_cast<std::ptrdiff_t>(end),
                     [](char32_t a, char32_t b) { return level_of(a) < level_of(b); });
    i = end + 1;
  }
  return out;
}

char32_t composed(char32_t a, char32_t b) {
  if (a >= kL && a < kL + kLCount && b >= kV && b < kV + kVCount) return kS + ((a - kL) * kVCount + (b - kV)) * kTCount;
  if (a >= kS && a < kS + kSCount && (a - kS) % kTCount == 0 && b > kT && b < kT + kTCount) return a + (b - kT);
  const Pair* end = kComposed + sizeof kComposed / sizeof *kComposed;
  const Pair* found = std::lower_bound(kComposed, end, Pair{a, b, 0}, [](const Pair& x, const Pair& y) {
    return x.first != y.first ? x.first < y.first : x.second < y.second;
  });
  return found != end && found->first == a && found->second == b ? found->composed : 0;
}

}  // namespace

Points from_utf8(const std::string& text) {
  Points out;
  for (size_t i = 0; i < text.size();) {
    const unsigned char lead = static_cast<unsigned char>(text[i]);
    const size_t extra = lead < 0x80 ? 0 : lead < 0xC2 ? 9 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : lead < 0xF5 ? 3 : 9;
    char32_t point = extra == 0 ? lead : lead & (0x3Fu >> extra);
    bool good = extra < 9 && i + extra < text.size();
    for (size_t k = 1; good && k <= extra; ++k) {
      const unsigned char next = static_cast<unsigned char>(text[i + k]);
      good = (next & 0xC0) == 0x80;
      point = point << 6 | (next & 0x3F);
    }
    static const char32_t least[] = {0, 0x80, 0x800, 0x10000};
    if (!good || point < least[extra] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000))
      fail(DIGSEG_INVALID_ARGUMENT, "a text is not UTF-8 at byte " + std::to_string(i) + "; convert it before the call");
    out += point;
    i += extra + 1;
  }
  return out;
}

void append_utf8(std::string& out, char32_t c) {
  const auto byte = [&](char32_t value) { out += static_cast<char>(value); };
  if (c < 0x80) return byte(c);
  if (c < 0x800) return byte(0xC0 | c >> 6), byte(0x80 | (c & 63));
  if (c < 0x10000) return byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63));
  byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 63)), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63));
}

std::string to_utf8(const Points& text) {
  std::string out;
  for (const char32_t c : text) append_utf8(out, c);
  return out;
}

bool is_letter(char32_t c) { return within(kLetters, c); }
bool is_number(char32_t c) { return within(kNumbers, c); }
bool is_space(char32_t c) { return within(kSpaces, c); }

Points lower(const Points& text) {
  Points out;
  for (const char32_t c : text) {
    if (const Mapping* entry = mapping(kLower, c)) append_mapped(out, *entry);
    else out += c;
  }
  return out;
}

Points compose(const Points& text) {
  if (std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x300; })) return text;
  const Points parts = decompose(text);
  Points out;
  size_t base = Points::npos;  // where the last base character stands in `out`
  int previous = 0;            // class of the mark before, 0 right behind the base
  for (const char32_t c : parts) {
    const int level = level_of(c);
    if (base != Points::npos && (previous < level || (previous == 0 && out.size() == base + 1))) {
      if (const char32_t joined = composed(out[base], c)) {
        out[base] = joined;
        continue;
      }
    }
    if (level == 0) base = out.size();
    previous = level;
    out += c;
  }
  return out;
}

}  // namespace digseg
