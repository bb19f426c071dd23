// yyjson does the reading; what is ours is the limit of depth, the refusal of a key that stands twice, and the messages.
// Its functions are static here, so that no name of it meets a program's own copy.
#define yyjson_api static
#define YYJSON_DISABLE_WRITER 1
#define YYJSON_DISABLE_UTILS 1
#include <yyjson/yyjson.c>

#include "json.hpp"

#include <cmath>
#include <memory>
#include <string_view>
#include <unordered_set>

#include "error.hpp"

namespace digseg {
namespace {

constexpr int kDepth = 64;
const char* const kTypeNames[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};

[[noreturn]] void stop(const std::string& where, const std::string& what) {
  fail(DIGSEG_CORRUPT, where + " is not valid JSON: " + what + "; copy or export the bundle again");
}

std::string text_of(yyjson_val* value) { return std::string(yyjson_get_str(value), yyjson_get_len(value)); }

Json converted(yyjson_val* from, int depth, const std::string& where);

void take_object(yyjson_val* from, Json& to, int depth, const std::string& where) {
  std::unordered_set<std::string_view> seen;
  size_t i, count;
  yyjson_val *key, *value;
  yyjson_obj_foreach(from, i, count, key, value) {
    if (!seen.insert({yyjson_get_str(key), yyjson_get_len(key)}).second) stop(where, "the key " + quoted(text_of(key), 40) + " stands twice");
    to.keys.push_back(text_of(key));
    to.items.push_back(converted(value, depth + 1, where));
  }
}

void take_array(yyjson_val* from, Json& to, int depth, const std::string& where) {
  size_t i, count;
  yyjson_val* value;
  yyjson_arr_foreach(from, i, count, value) to.items.push_back(converted(value, depth + 1, where));
}

Json converted(yyjson_val* from, int depth, const std::string& where) {
  if (depth >= kDepth && yyjson_is_ctn(from)) stop(where, "nested more than " + std::to_string(kDepth) + " deep");
  Json to;
  switch (yyjson_get_type(from)) {
    case YYJSON_TYPE_OBJ: to.type = Json::Object, take_object(from, to, depth, where); break;
    case YYJSON_TYPE_ARR: to.type = Json::Array, take_array(from, to, depth, where); break;
    case YYJSON_TYPE_STR: to.type = Json::String, to.text = text_of(from); break;
    case YYJSON_TYPE_NUM: to.type = Json::Number, to.number = yyjson_get_num(from); break;
    case YYJSON_TYPE_BOOL: to.type = Json::Bool, to.flag = yyjson_get_bool(from); break;
    default: break;
  }
  return to;
}

}  // namespace

Json parse_json(const char* data, size_t size, const std::string& where) {
  yyjson_read_err error;
  // The data is copied by the reader, which does not write to it without YYJSON_READ_INSITU.
  const std::unique_ptr<yyjson_doc, void (*)(yyjson_doc*)> document(
      yyjson_read_opts(const_cast<char*>(data), size, YYJSON_READ_NOFLAG, nullptr, &error), yyjson_doc_free);
  if (!document) {
    if (error.code == YYJSON_READ_ERROR_MEMORY_ALLOCATION) throw std::bad_alloc();
    stop(where, std::string(error.msg) + " at byte " + std::to_string(error.pos));
  }
  return converted(yyjson_doc_get_root(document.get()), 0, where);
}

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
