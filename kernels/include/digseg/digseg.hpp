// digseg.hpp: the C interface as C++17 objects. Header only; digseg.h holds the rules. Errors are digseg_api::Failure.
#ifndef DIGSEG_HPP
#define DIGSEG_HPP

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "digseg.h"

namespace digseg_api {

class Failure : public std::runtime_error {
 public:
  Failure(digseg_status status, const char* text) : std::runtime_error(text), status(status) {}
  digseg_status status;
};

inline void check(digseg_status status) {
  if (status != DIGSEG_OK) throw Failure(status, digseg_last_error());
}

// Structs with their defaults.
struct Options : digseg_options {
  Options() { check(digseg_options_init(this, sizeof(digseg_options))); }
};

struct RunOptions : digseg_run_options {
  RunOptions() { check(digseg_run_options_init(this, sizeof(digseg_run_options))); }
};

struct Image : digseg_image {
  Image(const void* pixels, int32_t columns, int32_t rows, int32_t pixel_format = DIGSEG_RGB8, int64_t row_bytes = 0) {
    check(digseg_image_init(this, sizeof(digseg_image)));
    data = pixels;
    width = columns;
    height = rows;
    format = pixel_format;
    stride = row_bytes;
  }
};

// Masks of one picture; `view()` points into it.
class Result {
 public:
  explicit Result(digseg_result* result) : result_(result, digseg_result_free) {
    check(digseg_view_init(&view_, sizeof view_));
    check(digseg_result_view(result_.get(), &view_));
  }
  const digseg_view& view() const { return view_; }
  int count() const { return view_.count; }
  int width() const { return view_.width; }
  int height() const { return view_.height; }
  const uint8_t* mask(int k) const { return view_.masks + static_cast<size_t>(k) * view_.width * view_.height; }
  float score(int k) const { return view_.scores[k]; }
  float presence(int k) const { return view_.presence[k]; }
  bool there(int k) const { return view_.there[k] != 0; }

 private:
  std::unique_ptr<digseg_result, void (*)(digseg_result*)> result_;
  digseg_view view_;
};

// A picture to ask about, by any number of threads; freed with the last copy.
class Encoding {
 public:
  explicit Encoding(digseg_encoding* encoding) : encoding_(encoding, digseg_encoding_free) {}
  size_t bytes() const { return digseg_encoding_bytes(encoding_.get()); }
  const digseg_encoding* get() const { return encoding_.get(); }

 private:
  std::shared_ptr<digseg_encoding> encoding_;
};

// One engine, many threads.
class Engine {
 public:
  explicit Engine(const std::string& bundle, const digseg_options& options = Options()) : engine_(nullptr, digseg_engine_destroy) {
    digseg_engine* raw = nullptr;
    check(digseg_engine_create(bundle.c_str(), &options, &raw));
    engine_.reset(raw);
  }

  // No prompts: of a folded bundle, all of its names.
  Result segment(const digseg_image& image, const std::vector<std::string>& prompts = {}, const digseg_run_options& options = RunOptions()) {
    const std::vector<const char*> texts = pointers(prompts);
    digseg_result* raw = nullptr;
    check(digseg_segment(engine_.get(), &image, texts.data(), texts.size(), &options, &raw));
    return Result(raw);
  }

  Encoding encode(const digseg_image& image, const digseg_run_options& options = RunOptions()) {
    digseg_encoding* raw = nullptr;
    check(digseg_encode(engine_.get(), &image, &options, &raw));
    return Encoding(raw);
  }

  Result segment(const Encoding& encoding, const std::vector<std::string>& prompts = {}, const digseg_run_options& options = RunOptions()) {
    const std::vector<const char*> texts = pointers(prompts);
    digseg_result* raw = nullptr;
    check(digseg_segment_encoded(engine_.get(), encoding.get(), texts.data(), texts.size(), &options, &raw));
    return Result(raw);
  }

  digseg_verification verify() {
    digseg_verification out;
    check(digseg_verification_init(&out, sizeof out));
    check(digseg_engine_verify(engine_.get(), &out));
    return out;
  }

  void prepare(const std::vector<std::string>& prompts) {
    const std::vector<const char*> texts = pointers(prompts);
    check(digseg_engine_prepare(engine_.get(), texts.data(), texts.size()));
  }

  void save_vocabulary(const std::vector<std::string>& prompts, const std::string& path) {
    const std::vector<const char*> texts = pointers(prompts);
    check(digseg_engine_save_vocabulary(engine_.get(), texts.data(), texts.size(), path.c_str()));
  }

  std::vector<std::string> vocabulary() const {
    const char* const* prompts = nullptr;
    size_t count = 0;
    check(digseg_engine_vocabulary(engine_.get(), &prompts, &count));
    return std::vector<std::string>(prompts, prompts + count);
  }

  std::string info() const { return digseg_engine_info(engine_.get()); }
  digseg_engine* get() const { return engine_.get(); }

 private:
  static std::vector<const char*> pointers(const std::vector<std::string>& prompts) {
    std::vector<const char*> out;
    for (const std::string& prompt : prompts) out.push_back(prompt.c_str());
    return out;
  }

  std::unique_ptr<digseg_engine, void (*)(digseg_engine*)> engine_;
};

}  // namespace digseg_api

#endif  // DIGSEG_HPP
