// JSON of manifests, tokenizers and safetensors headers, read strictly (RFC 8259, UTF-8): at most 64 deep, no key twice in
// one object.
#pragma once
#include <string>
#include <vector>

namespace digseg {

struct Json {
  enum Type { Null, Bool, Number, String, Array, Object };
  Type type = Null;
  bool flag = false;
  double number = 0;
  std::string text;
  std::vector<Json> items;        // of an array, or the values of an object
  std::vector<std::string> keys;  // of an object

  bool is(Type t) const { return type == t; }
  const Json* find(const std::string& key) const;  // nullptr when absent or not an object

  // Members of a given type; Error(DIGSEG_CORRUPT) names `where` and the key otherwise.
  const Json& at(const std::string& key, Type wanted, const std::string& where) const;
  const std::string& string_at(const std::string& key, const std::string& where) const;
  double number_at(const std::string& key, const std::string& where) const;
  // A whole number in low..high.
  long long integer_at(const std::string& key, long long low, long long high, const std::string& where) const;
};

// Error(DIGSEG_CORRUPT) names `where` and what is wrong: the byte at which reading stopped, the depth or the key.
Json parse_json(const char* data, size_t size, const std::string& where);

std::string json_quote(const std::string& text);

}  // namespace digseg
