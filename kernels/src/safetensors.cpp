#include "safetensors.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "error.hpp"
#include "file.hpp"
#include "json.hpp"

namespace digseg {
namespace {

constexpr uint64_t kFileLimit = 4ull << 30, kHeaderLimit = 100'000'000;

// Bytes of one number; 0: of a type that is not known.
size_t item_size(const std::string& dtype) {
  static const std::map<std::string, size_t> sizes{
      {"BOOL", 1}, {"U8", 1}, {"I8", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2}, {"BF16", 2},
      {"U32", 4}, {"I32", 4}, {"F32", 4}, {"U64", 8}, {"I64", 8}, {"F64", 8}, {"C64", 8}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

bool whole(const Json& number) { return number.is(Json::Number) && number.number >= 0 && number.number == std::floor(number.number); }

template <typename T>
void append(std::string& header, std::vector<char>& body, const std::map<std::string, const Tensor<T>*>& tensors, const char* dtype) {
  for (const auto& item : tensors) {
    const size_t begin = body.size(), bytes = item.second->data.size() * sizeof(T);
    body.resize(begin + bytes);
    if (bytes > 0) std::memcpy(body.data() + begin, item.second->data.data(), bytes);
    header += "," + json_quote(item.first) + ":{\"dtype\":\"" + dtype + "\",\"shape\":[";
    for (size_t i = 0; i < item.second->shape.size(); ++i) header += (i ? "," : "") + std::to_string(item.second->shape[i]);
    header += "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(body.size()) + "]}";
  }
}

}  // namespace

Safetensors::Safetensors(const std::string& path) : Safetensors(read_file(path, kFileLimit), path) {}

Safetensors::Safetensors(std::vector<char> body, const std::string& path) : path_(path), body_(std::move(body)) {
  const auto bad = [&](const std::string& what) {
    fail(DIGSEG_CORRUPT, path + " is not a sound safetensors file: " + what + "; copy or export it again");
  };
  uint64_t length = 0;
  if (body_.size() < 8) bad("shorter than 8 bytes");
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(body_[static_cast<size_t>(i)]);
  if (length > kHeaderLimit || length > body_.size() - 8) bad("its header reaches past the end");
  start_ = 8 + static_cast<size_t>(length);
  const Json header = parse_json(body_.data() + 8, static_cast<size_t>(length), path);
  if (!header.is(Json::Object)) bad("its header is not an object");
  std::vector<std::pair<size_t, size_t>> places;
  for (size_t i = 0; i < header.keys.size(); ++i) {
    const Json& value = header.items[i];
    if (header.keys[i] == "__metadata__") {
      for (size_t k = 0; k < value.keys.size(); ++k) metadata_[value.keys[k]] = value.items[k].text;
      continue;
    }
    Entry entry{value.string_at("dtype", path), {}, 0, 0};
    const Json& offsets = value.at("data_offsets", Json::Array, path);
    const double space = static_cast<double>(body_.size() - start_);
    if (offsets.items.size() != 2) bad("data_offsets of " + quoted(header.keys[i]));
    const double begin = offsets.items[0].number, end = offsets.items[1].number;
    if (!whole(offsets.items[0]) || !whole(offsets.items[1]) || begin > end || end > space) bad("data_offsets of " + quoted(header.keys[i]) + " leave the file");
    entry.begin = static_cast<size_t>(begin), entry.end = static_cast<size_t>(end);
    size_t count = item_size(entry.dtype);
    for (const Json& side : value.at("shape", Json::Array, path).items) {
      if (!whole(side) || side.number > 1e9) bad("shape of " + quoted(header.keys[i]));
      entry.shape.push_back(static_cast<int64_t>(side.number));
      if (__builtin_mul_overflow(count, static_cast<size_t>(side.number), &count)) bad("shape of " + quoted(header.keys[i]));
    }
    if (item_size(entry.dtype) == 0) bad("the type " + quoted(entry.dtype) + " of " + quoted(header.keys[i]));
    if (count != entry.end - entry.begin) bad("size of " + quoted(header.keys[i]) + " does not fit its shape");
    entries_[header.keys[i]] = entry;
    places.emplace_back(entry.begin, entry.end);
  }
  std::sort(places.begin(), places.end());  // one after the other, without holes, to the end
  size_t at = 0;
  for (const auto& place : places)
    if (place.first != at) bad("its tensors overlap or leave holes");
    else at = place.second;
  if (at != body_.size() - start_) bad("its tensors do not fill it");
}

const Safetensors::Entry& Safetensors::entry(const std::string& name, const char* dtype) const {
  const auto found = entries_.find(name);
  if (found == entries_.end() || found->second.dtype != dtype)
    fail(DIGSEG_CORRUPT, path_ + ": expected the tensor " + name + " of type " + dtype + ", got " +
                             (found == entries_.end() ? "none" : quoted(found->second.dtype)) + "; export the bundle again");
  return found->second;
}

template <typename T>
Tensor<T> Safetensors::copy(const std::string& name, const char* dtype) const {
  const Entry& from = entry(name, dtype);
  Tensor<T> out(from.shape);
  if (out.data.size() * sizeof(T) != from.end - from.begin)
    fail(DIGSEG_CORRUPT, path_ + ": the tensor " + name + " has other bytes than its shape says; export the bundle again");
  if (!out.data.empty()) std::memcpy(out.data.data(), body_.data() + start_ + from.begin, from.end - from.begin);
  return out;
}

Floats Safetensors::floats(const std::string& name) const { return copy<float>(name, "F32"); }
Ints Safetensors::ints(const std::string& name) const { return copy<int64_t>(name, "I64"); }
Flags Safetensors::flags(const std::string& name) const {
  Flags out = copy<uint8_t>(name, "BOOL");
  for (uint8_t& flag : out.data) flag = flag != 0;
  return out;
}

Labels Safetensors::labels(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end() || found->second.dtype != "U8") return copy<uint16_t>(name, "U16");
  const Tensor<uint8_t> narrow = copy<uint8_t>(name, "U8");
  Labels out(narrow.shape);
  std::copy(narrow.data.begin(), narrow.data.end(), out.data.begin());
  return out;
}

std::vector<char> safetensors_bytes(const std::map<std::string, std::string>& metadata,
                                    const std::map<std::string, const Floats*>& floats,
                                    const std::map<std::string, const Ints*>& ints) {
  std::string header = "{\"__metadata__\":{";
  bool first = true;
  for (const auto& item : metadata) {
    header += (first ? "" : ",") + json_quote(item.first) + ":" + json_quote(item.second);
    first = false;
  }
  header += "}";
  std::vector<char> body;
  append(header, body, ints, "I64");  // widest items first: every tensor stays aligned
  append(header, body, floats, "F32");
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::vector<char> out(8 + header.size());
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i));
  std::memcpy(out.data() + 8, header.data(), header.size());
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

}  // namespace digseg
