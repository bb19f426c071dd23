// A graph may keep its weights in a file beside it and name any path, offset and length there. Ours name one file, the graph's own
// `.data`, and every byte of it at most once. Field numbers are those of onnx.proto.
#include "graph_file.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "error.hpp"

namespace digseg {
namespace {

enum class Kind { None, Model, Training, Function, Graph, Node, Attribute, Sparse, Tensor };

constexpr int kDeepest = 64;  // messages within each other; ours have about 10
constexpr size_t kMostTensors = size_t{1} << 20;
constexpr uint64_t kExternal = 1;  // TensorProto.data_location

struct Refused {
  std::string why;
};

struct Field {
  uint64_t number, value;
  size_t begin, end;  // of bytes; 0, 0: it has none
};

struct Span {
  uint64_t begin, end;
  std::string tensor;
};

Kind inside(Kind kind, uint64_t number) {
  switch (kind) {
    case Kind::Model: return number == 7 ? Kind::Graph : number == 20 ? Kind::Training : number == 25 ? Kind::Function : Kind::None;
    case Kind::Training: return number == 1 || number == 2 ? Kind::Graph : Kind::None;
    case Kind::Function: return number == 7 ? Kind::Node : number == 11 ? Kind::Attribute : Kind::None;
    case Kind::Graph: return number == 1 ? Kind::Node : number == 5 ? Kind::Tensor : number == 15 ? Kind::Sparse : Kind::None;
    case Kind::Node: return number == 5 ? Kind::Attribute : Kind::None;
    case Kind::Attribute:
      if (number == 5 || number == 10) return Kind::Tensor;
      if (number == 6 || number == 11) return Kind::Graph;
      return number == 22 || number == 23 ? Kind::Sparse : Kind::None;
    case Kind::Sparse: return number == 1 || number == 2 ? Kind::Tensor : Kind::None;
    default: return Kind::None;
  }
}

// Bytes of one value of an element type; 0: of none that has whole bytes.
uint64_t item_size(uint64_t type) {
  static const uint64_t sizes[] = {0, 4, 1, 1, 2, 2, 4, 8, 0, 1, 2, 8, 4, 8, 0, 0, 2, 1, 1, 1, 1};
  return type < sizeof sizes / sizeof *sizes ? sizes[type] : 0;
}

class Reader {
 public:
  Reader(const std::vector<char>& body, const std::string& data, int64_t size) : body_(body), data_(data), size_(size) {}

  std::vector<Span> spans() const {
    struct Waiting {
      Kind kind;
      size_t begin, end;
      int depth;
    };
    std::vector<Waiting> waiting{{Kind::Model, 0, body_.size(), 0}};
    std::vector<Span> out;
    size_t tensors = 0;
    while (!waiting.empty()) {
      const Waiting at = waiting.back();
      waiting.pop_back();
      if (at.depth > kDeepest) throw Refused{"its messages lie more than 64 deep within each other"};
      for (size_t place = at.begin; place < at.end;) {
        const Field field = next(place, at.end);
        const Kind kind = field.end > 0 ? inside(at.kind, field.number) : Kind::None;
        if (kind == Kind::Tensor) {
          if (++tensors > kMostTensors) throw Refused{"it has too many tensors"};
          span(field.begin, field.end, out);
        } else if (kind != Kind::None) {
          waiting.push_back({kind, field.begin, field.end, at.depth + 1});
        }
      }
    }
    return out;
  }

 private:
  uint64_t varint(size_t& place, size_t end) const {
    uint64_t value = 0;
    for (int shift = 0; place < end && shift < 70; shift += 7) {
      const auto byte = static_cast<unsigned char>(body_[place++]);
      if (shift < 64) value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    throw Refused{"it is no ONNX graph, or cut short"};
  }

  Field next(size_t& place, size_t end) const {
    const uint64_t tag = varint(place, end);
    Field field{tag >> 3, 0, 0, 0};
    uint64_t skipped = 0;
    switch (tag & 7) {
      case 0: field.value = varint(place, end); break;
      case 1: skipped = 8; break;
      case 2: skipped = varint(place, end); break;
      case 5: skipped = 4; break;
      default: throw Refused{"it is no ONNX graph"};
    }
    if (field.number == 0 || skipped > end - place) throw Refused{"it is no ONNX graph, or cut short"};
    if ((tag & 7) == 2) field.begin = place, field.end = place + static_cast<size_t>(skipped);
    place += static_cast<size_t>(skipped);
    return field;
  }

  std::string text(const Field& field) const { return std::string(body_.data() + field.begin, field.end - field.begin); }

  // Where a tensor's bytes lie; nothing for one that has them in the graph.
  void span(size_t begin, size_t end, std::vector<Span>& out) const {
    std::string name;
    std::map<std::string, std::string> where;
    uint64_t type = 0, count = 1;
    bool external = false, countless = false;
    const auto side = [&](uint64_t number) { countless = __builtin_mul_overflow(count, number, &count) || countless; };
    for (size_t place = begin; place < end;) {
      const Field field = next(place, end);
      if (field.number == 1) {
        if (field.end == 0) side(field.value);
        for (size_t at = field.begin; at < field.end;) side(varint(at, field.end));
      } else if (field.number == 2) {
        type = field.value;
      } else if (field.number == 8 && field.end > 0) {
        name = text(field);
      } else if (field.number == 13 && field.end > 0) {
        std::string key, value;
        for (size_t at = field.begin; at < field.end;) {
          const Field part = next(at, field.end);
          if (part.end > 0 && part.number <= 2) (part.number == 1 ? key : value) = text(part);
        }
        if (!where.emplace(key, value).second) throw Refused{"the tensor " + quoted(name) + " says its " + quoted(key, 20) + " twice"};
      } else if (field.number == 14) {
        external = field.value == kExternal;
      }
    }
    if (!external && where.empty()) return;
    const std::string place = where.count("location") ? where["location"] : "";
    static const std::set<std::string> known{"location", "offset", "length", "checksum"};
    const bool odd = std::any_of(where.begin(), where.end(), [&](const auto& said) { return known.count(said.first) == 0; });
    if (place != data_ || size_ < 0 || odd)
      throw Refused{"the tensor " + quoted(name) + " lies in " + quoted(place) + "; expected " + (size_ < 0 ? "no other file" : quoted(data_))};
    const uint64_t first = where.count("offset") ? number(where["offset"], "offset", name) : 0;
    const uint64_t length = number(where.count("length") ? where["length"] : "", "length", name), all = static_cast<uint64_t>(size_);
    if (first > all || length > all - first)
      throw Refused{"the tensor " + quoted(name) + " leaves " + data_ + ", which has " + std::to_string(all) + " bytes"};
    if (countless || item_size(type) == 0 || __builtin_mul_overflow(count, item_size(type), &count) || count != length)
      throw Refused{"the tensor " + quoted(name) + " has a length that does not fit its shape"};
    out.push_back({first, first + length, name});
  }

  static uint64_t number(const std::string& text, const char* key, const std::string& name) {
    if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos)
      throw Refused{"the tensor " + quoted(name) + " has the " + key + " " + quoted(text, 30) + "; expected a whole number"};
    return std::stoull(text);
  }

  const std::vector<char>& body_;
  const std::string& data_;
  int64_t size_;
};

}  // namespace

void check_weights(const std::vector<char>& graph, const std::string& path, const std::string& data, int64_t size) {
  const auto refuse = [&](const std::string& why) { fail(DIGSEG_CORRUPT, path + " is refused: " + why + "; export the bundle again"); };
  try {
    std::vector<Span> spans = Reader(graph, data, size).spans();
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
    for (size_t i = 1; i < spans.size(); ++i)
      if (spans[i].begin < spans[i - 1].end)
        throw Refused{"the tensors " + quoted(spans[i - 1].tensor) + " and " + quoted(spans[i].tensor) + " share bytes of " + data};
  } catch (const Refused& refused) {
    refuse(refused.why);
  }
}

}  // namespace digseg
