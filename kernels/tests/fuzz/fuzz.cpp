// A reader of the library under libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer; $DIGSEG_FUZZ_READER says which. Whatever
// bytes are given, a reader answers or throws digseg::Error with one line of text; anything else that leaves it ends the program, and
// so does an answer that breaks what is asked of it below. Built and run by scripts/fuzz_native.py. With DIGSEG_REPLAY the same
// readers without libFuzzer, over files: replay READER FILE...
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "error.hpp"
#include "file.hpp"
#include "graph_file.hpp"
#include "json.hpp"
#include "labels.hpp"
#include "picture.hpp"
#include "safetensors.hpp"
#include "tokenizer.hpp"

namespace {

using Bytes = std::vector<char>;

[[noreturn]] void broken(const std::string& what) {
  std::fprintf(stderr, "broken promise: %s\n", what.c_str());
  std::abort();
}

void keep(bool holds, const char* what) {
  if (!holds) broken(what);
}

// Numbers from the front of the input; zeros when it is spent.
class Draw {
 public:
  explicit Draw(const Bytes& bytes) : bytes_(bytes) {}
  uint8_t byte() { return at_ < bytes_.size() ? static_cast<uint8_t>(bytes_[at_++]) : 0; }
  int64_t number(int size) {
    uint64_t value = 0;
    for (int i = 0; i < size; ++i) value = value << 8 | byte();
    return static_cast<int64_t>(value);
  }
  // The rest of the input, again and again, `size` bytes of it.
  Bytes rest(size_t size) {
    Bytes out(size);
    const size_t left = bytes_.size() - at_;
    for (size_t i = 0; i < size && left > 0; ++i) out[i] = bytes_[at_ + i % left];
    return out;
  }

 private:
  const Bytes& bytes_;
  size_t at_ = 0;
};

// Every text of a document comes back from its quoted form.
void quoted_texts_come_back(const digseg::Json& json) {
  const auto comes_back = [](const std::string& text) {
    const std::string quoted = digseg::json_quote(text);
    keep(digseg::parse_json(quoted.data(), quoted.size(), "quoted").text == text, "a quoted text comes back");
  };
  if (json.is(digseg::Json::String)) comes_back(json.text);
  for (const std::string& key : json.keys) comes_back(key);
  for (const digseg::Json& item : json.items) quoted_texts_come_back(item);
}

void read_json(const Bytes& bytes) { quoted_texts_come_back(digseg::parse_json(bytes.data(), bytes.size(), "document")); }

template <typename Read>
void taken(Read read) {
  try {
    const auto tensor = read();
    keep(tensor.data.size() == digseg::count_of(tensor.shape), "a tensor has as many numbers as its shape says");
  } catch (const digseg::Error&) {
  }
}

void read_safetensors(const Bytes& bytes) {
  const digseg::Safetensors file(bytes, "tensors");
  for (const char* name : {"a", "b", "image", "logits", "label_map", "token_ids", "token_mask", "tokens"}) {
    if (!file.holds(name)) continue;
    taken([&] { return file.floats(name); });
    taken([&] { return file.ints(name); });
    taken([&] { return file.flags(name); });
    taken([&] { return file.labels(name); });
  }
}

void encode(const digseg::Tokenizer& tokenizer, const std::string& text) {
  const std::vector<int64_t> all = tokenizer.encode(text), some = tokenizer.encode(text, 8);
  keep(all.size() >= 2 && some.size() == std::min<size_t>(all.size(), 8), "a limit of tokens is kept");
  keep(some.front() == all.front() && some.back() == all.back(), "start and end stay");
  keep(std::all_of(all.begin(), all.end(), [](int64_t id) { return id >= 0 && id <= 1'000'000'000; }), "tokens are numbers of the vocabulary");
}

// A tokenizer, a zero byte, a text; without a tokenizer the text goes to the bundled model's.
void read_tokenizer(const Bytes& bytes) {
  static const digseg::Tokenizer bundled(digseg::read_file(DIGSEG_FUZZ_BUNDLE "/tokenizer.json", 1 << 24), "bundled");
  const auto gap = std::find(bytes.begin(), bytes.end(), '\0');
  const std::string text = gap == bytes.end() ? "Red circle's 12" : std::string(gap + 1, bytes.end());
  if (gap == bytes.begin()) return encode(bundled, text);
  encode(digseg::Tokenizer(Bytes(bytes.begin(), gap), "tokenizer"), text);
}

// Pixels in a block of exactly the size that the picture's own description asks for.
void read_picture(const Bytes& bytes) {
  static digseg::Bundle bundle(DIGSEG_FUZZ_BUNDLE);
  Draw draw(bytes);
  const int longer = 1 + draw.byte(), profile = draw.byte();
  bundle.stride = 1 << profile % 7;
  bundle.rows = bundle.columns = profile < 128 ? digseg::AxisRange{} : digseg::AxisRange{1 + profile % 16, 64 + profile, 64};
  bundle.pictures.min = 1 + profile % 2;
  digseg_image image;
  digseg_image_init(&image, sizeof image);
  image.format = static_cast<int8_t>(draw.byte()), image.matrix = static_cast<int8_t>(draw.byte());
  image.width = static_cast<int32_t>(draw.number(draw.byte() % 8 ? 1 : 4)), image.height = static_cast<int32_t>(draw.number(draw.byte() % 8 ? 1 : 4));
  const uint8_t strides = draw.byte();
  if (strides & 1) image.stride = draw.number(strides & 2 ? 8 : 2);
  if (strides & 4) image.stride_uv = draw.number(strides & 8 ? 8 : 2);
  static char none = 0;
  image.data = strides & 16 ? nullptr : &none;
  digseg::check_image(image);  // may look at nothing behind the pointers
  const int64_t sizes[] = {3, 3, 4, 1, 12}, row = sizes[image.format] * image.width, rows = image.height;
  const int64_t stride = image.stride ? image.stride : row, stride_uv = image.stride_uv ? image.stride_uv : stride;
  const int64_t last = image.format == DIGSEG_NV12 ? 0 : row, luma = stride * (rows - (last ? 1 : 0)) + last;
  const int64_t chroma = image.format == DIGSEG_NV12 ? stride_uv * (rows / 2 - 1) + row : 0;
  if (luma + chroma > 1 << 18) return;
  const Bytes pixels = draw.rest(static_cast<size_t>(luma + chroma));
  image.data = pixels.data(), image.data_uv = nullptr;
  const digseg::Canvas canvas = digseg::fit(image, longer, bundle);
  const digseg::Frame& frame = canvas.frame;
  for (const float value : canvas.pixels.data) keep(image.format == DIGSEG_F32 || (value >= -1.f && value <= 1.f), "pixels lie in -1..1");
  const int high = (frame.input_height + 3) / 4, wide = (frame.input_width + 3) / 4;
  digseg::Floats logits({1, 2, high, wide});
  for (size_t i = 0; i < logits.data.size(); ++i) logits.data[i] = static_cast<float>(static_cast<int8_t>(pixels[i % pixels.size()])) / 8.f;
  const digseg::Precedence precedence(logits, 0.f, DIGSEG_LABELS_PARTS + profile % 3);
  digseg::unfit(logits.data.data(), precedence.order(), wide, high, frame, [&](size_t k, const float* plane) {
    keep(k < 2 && plane[static_cast<size_t>(frame.width) * static_cast<size_t>(frame.height) - 1] <= 16.f, "planes have the picture's size");
  });
}

void read_graph(const Bytes& bytes) { digseg::check_weights(bytes, "graph", "mask_decoder.data", bytes.size() % 5 == 0 ? -1 : 13824); }

// A folder that goes when the program ends.
struct Room {
  std::string path;
  Room() {
    const char* const place = std::getenv("DIGSEG_FUZZ_ROOM");
    path = (place == nullptr ? std::filesystem::temp_directory_path().string() : place) + "/digseg-fuzz-XXXXXX";
    if (mkdtemp(&path[0]) == nullptr) broken("no temporary folder");
  }
  ~Room() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

// The input as the manifest of a folder with two graphs, a tokenizer and a golden sample, all empty.
void read_manifest(const Bytes& bytes) {
  static const Room room;
  static const bool filled = [] {
    for (const char* graph : {"text_encoder", "presence"})
      for (const char* end : {".onnx", ".fp32.onnx", ".data"}) std::ofstream(room.path + "/" + graph + end);
    for (const char* name : {"tokenizer.json", "golden.safetensors"}) std::ofstream(room.path + "/" + name);
    return true;
  }();
  keep(filled, "its files are there");
  std::ofstream(room.path + "/manifest.json", std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  const digseg::Bundle bundle(room.path);
  keep(bundle.usual_size(640, 480) >= 0 && !bundle.graphs().empty() && bundle.digest().size() == 64, "a bundle answers for itself");
}

struct Reader {
  const char* name;
  void (*read)(const Bytes&);
};
const Reader kReaders[] = {{"json", read_json}, {"safetensors", read_safetensors}, {"tokenizer", read_tokenizer},
                           {"picture", read_picture}, {"graph", read_graph}, {"manifest", read_manifest}};

const Reader& reader_called(const char* name) {
  for (const Reader& reader : kReaders)
    if (name != nullptr && std::strcmp(reader.name, name) == 0) return reader;
  broken("no such reader; expected json, safetensors, tokenizer, picture, graph or manifest");
}

// False where the reader refused.
bool read_well(const Reader& reader, const Bytes& bytes) {
  try {
    reader.read(bytes);
    return true;
  } catch (const digseg::Error& error) {
    const std::string text = error.what();
    if (std::getenv("DIGSEG_FUZZ_SAY") != nullptr) std::fprintf(stderr, "%s\n", text.c_str());
    keep(text.size() >= 10 && text.size() < 1000, "an error says something, and not without end");
    for (const char c : text) keep(static_cast<unsigned char>(c) >= 32, "an error is one line without control characters");
    return false;
  }  // anything else that was thrown ends the program
}

}  // namespace

#ifdef DIGSEG_REPLAY
int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: %s READER FILE...\n", argv[0]), 2;
  int read = 0;
  for (int i = 2; i < argc; ++i) read += read_well(reader_called(argv[1]), digseg::read_file(argv[i], 1 << 24));
  std::printf("%d read, %d refused\n", read, argc - 2 - read);
}
#else
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Reader& reader = reader_called(std::getenv("DIGSEG_FUZZ_READER"));
  read_well(reader, Bytes(reinterpret_cast<const char*>(data), reinterpret_cast<const char*>(data) + size));
  return 0;
}
#endif
