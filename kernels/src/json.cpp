#include "json.hpp"

#include <charconv>
#include <cmath>
#include <cstring>

#include "error.hpp"

namespace digseg {
namespace {

constexpr int kDepth = 64;
const char* const kTypeNames[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};

void append_utf8(std::string& out, unsigned c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | (c >> 6));
    out += static_cast<char>(0x80 | (c & 63));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | (c >> 12));
    out += static_cast<char>(0x80 | ((c >> 6) & 63));
    out += static_cast<char>(0x80 | (c & 63));
  } else {
    out += static_cast<char>(0xF0 | (c >> 18));
    out += static_cast<char>(0x80 | ((c >> 12) & 63));
    out += static_cast<char>(0x80 | ((c >> 6) & 63));
    out += static_cast<char>(0x80 | (c & 63));
  }
}

class Parser {
 public:
  Parser(const char* data, size_t size, const std::string& where) : at_(data), begin_(data), end_(data + size), where_(where) {}

  Json document() {
    Json value = read(0);
    space();
    if (at_ != end_) stop("something after the end");
    return value;
  }

 private:
  [[noreturn]] void stop(const char* what) const {
    fail(DIGSEG_CORRUPT, where_ + " is not valid JSON: " + what + " at byte " + std::to_string(at_ - begin_) +
                             "; copy or export the bundle again");
  }

  void space() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
  }

  char peek() {
    if (at_ == end_) stop("unexpected end");
    return *at_;
  }

  void word(const char* text) {
    size_t n = std::strlen(text);
    if (static_cast<size_t>(end_ - at_) < n || std::memcmp(at_, text, n) != 0) stop("unknown word");
    at_ += n;
  }

  Json read(int depth) {
    if (depth > kDepth) stop("nested too deeply");
    space();
    Json value;
    switch (peek()) {
      case '{': object(value, depth); break;
      case '[': array(value, depth); break;
      case '"':
        value.type = Json::String;
        value.text = string();
        break;
      case 't': word("true"); value.type = Json::Bool; value.flag = true; break;
      case 'f': word("false"); value.type = Json::Bool; break;
      case 'n': word("null"); break;
      default: value.type = Json::Number; value.number = number();
    }
    return value;
  }

  void object(Json& value, int depth) {
    value.type = Json::Object;
    ++at_;
    space();
    if (peek() == '}') { ++at_; return; }
    for (;;) {
      space();
      if (peek() != '"') stop("expected a key");
      value.keys.push_back(string());
      space();
      if (peek() != ':') stop("expected ':'");
      ++at_;
      value.items.push_back(read(depth + 1));
      space();
      const char c = peek();
      ++at_;
      if (c == '}') return;
      if (c != ',') { --at_; stop("expected ',' or '}'"); }
    }
  }

  void array(Json& value, int depth) {
    value.type = Json::Array;
    ++at_;
    space();
    if (peek() == ']') { ++at_; return; }
    for (;;) {
      value.items.push_back(read(depth + 1));
      space();
      const char c = peek();
      ++at_;
      if (c == ']') return;
      if (c != ',') { --at_; stop("expected ',' or ']'"); }
    }
  }

  unsigned hex4() {
    unsigned value = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      value <<= 4;
      if (c >= '0' && c <= '9') value |= static_cast<unsigned>(c - '0');
      else if (c >= 'a' && c <= 'f') value |= static_cast<unsigned>(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F') value |= static_cast<unsigned>(c - 'A' + 10);
      else stop("bad \\u escape");
      ++at_;
    }
    return value;
  }

  void escape(std::string& out) {
    const char c = peek();
    ++at_;
    switch (c) {
      case '"': case '\\': case '/': out += c; return;
      case 'b': out += '\b'; return;
      case 'f': out += '\f'; return;
      case 'n': out += '\n'; return;
      case 'r': out += '\r'; return;
      case 't': out += '\t'; return;
      case 'u': break;
      default: stop("unknown escape");
    }
    unsigned code = hex4();
    if (code >= 0xD800 && code < 0xDC00) {
      word("\\u");
      const unsigned low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) stop("half a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code < 0xE000) {
      stop("half a surrogate pair");
    }
    append_utf8(out, code);
  }

  std::string string() {
    std::string out;
    ++at_;
    for (;;) {
      const char c = peek();
      ++at_;
      if (c == '"') return out;
      if (c == '\\') escape(out);
      else if (static_cast<unsigned char>(c) < 32) stop("control character in a string");
      else out += c;
    }
  }

  // from_chars, because strtod reads numbers by the program's locale.
  double number() {
    double value = 0;
    if (*at_ != '-' && !(*at_ >= '0' && *at_ <= '9')) stop("expected a value");
    const auto read = std::from_chars(at_, end_, value);
    if (read.ec != std::errc() || !std::isfinite(value)) stop("expected a value");
    at_ = read.ptr;
    return value;
  }

  const char* at_;
  const char* begin_;
  const char* end_;
  const std::string& where_;
};

}  // namespace

Json parse_json(const char* data, size_t size, const std::string& where) { return Parser(data, size, where).document(); }

const Json* Json::find(const std::string& key) const {
  for (size_t i = keys.size(); i-- > 0;)
    if (keys[i] == key) return &items[i];
  return nullptr;
}

const Json& Json::at(const std::string& key, Type wanted, const std::string& where) const {
  const Json* value = find(key);
  if (value == nullptr || value->type != wanted)
    fail(DIGSEG_CORRUPT, where + ": expected '" + key + "' to be " + kTypeNames[wanted] + ", got " +
                             (value == nullptr ? "nothing" : kTypeNames[value->type]) + "; export the bundle again");
  return *value;
}

const std::string& Json::string_at(const std::string& key, const std::string& where) const {
  return at(key, String, where).text;
}

double Json::number_at(const std::string& key, const std::string& where) const { return at(key, Number, where).number; }

long long Json::integer_at(const std::string& key, long long low, long long high, const std::string& where) const {
  const double value = number_at(key, where);
  if (!(value >= static_cast<double>(low) && value <= static_cast<double>(high)) || value != std::floor(value))
    fail(DIGSEG_CORRUPT, where + ": expected '" + key + "' to be a whole number " + std::to_string(low) + ".." +
                             std::to_string(high) + ", got " + std::to_string(value) + "; export the bundle again");
  return static_cast<long long>(value);
}

std::string json_quote(const std::string& text) {
  static const char digits[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 32) {
      out += "\\u00";
      out += digits[static_cast<unsigned char>(c) >> 4];
      out += digits[c & 15];
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace digseg
