// The engine: a checked bundle, a backend, a prompt cache, and one function of numbered steps. Used by many threads.
#pragma once
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "backend.hpp"
#include "digseg/digseg.h"
#include "picture.hpp"
#include "tokenizer.hpp"

namespace digseg {

class Safetensors;

// Folded text of one prompt: keys [S, heads, d, L], values [S, heads, L, Co]; the first `tokens` of L are real.
struct PromptText {
  Floats keys, values;
  size_t tokens = 0;
};

// A picture between questions. It keeps the backend that made it, and so may outlive its engine.
struct Encoding {
  std::shared_ptr<Backend> backend;
  std::unique_ptr<Encoded> encoded;
  Frame frame;
  int size;  // that it was worked at: pixels of the longer side
};

// What is asked about a picture. Contrast prompts compete for its pixels and are not answered.
struct Question {
  std::vector<std::string> prompts, against;
  digseg_run_options options;
};

struct Result {
  int count = 0, width = 0, height = 0, logits_width = 0, logits_height = 0, content_width = 0, content_height = 0;
  std::vector<uint8_t> masks, there;
  std::vector<int32_t> label_map;
  std::vector<float> scores, presence;
  Floats logits;
  std::string backend;
  bool has_logits = true;  // false of a folded bundle that answers its label map alone
  double seconds_fit = 0, seconds_text = 0, seconds_model = 0, seconds_masks = 0;
};

class Engine {
 public:
  Engine(const std::string& folder, const digseg_options& options);

  Encoding encode(const digseg_image& image, const digseg_run_options& options);
  Result segment(const digseg_image& image, const Question& question);
  Result segment(const Encoding& encoding, const Question& question);
  std::vector<int64_t> tokenize(const std::string& text, size_t max_tokens);
  void prepare(const std::vector<std::string>& prompts);
  void save_vocabulary(const std::vector<std::string>& prompts, const std::string& path);
  Check verify() { return digseg::check_golden(*backend_, bundle_); }
  const std::string& info() const { return info_; }
  const std::vector<const char*>& vocabulary() const { return vocabulary_order_; }
  bool folded() const { return bundle_.folded(); }

 private:
  using Known = std::shared_ptr<const PromptText>;
  using Asked = std::function<void()>;  // throws when the caller wants to stop

  // Folded prompts: first the `asked` ones, then contrast prompts. All of them decide the length L, so that a prompt's answer
  // does not depend on which of the others are decoded.
  struct Text {
    std::vector<Known> parts;
    size_t asked, length;
  };

  Known prompt(const std::string& text, bool truncate);
  Known remember(const std::string& key, Known known);
  Canvas fit_picture(const digseg_image& image, const digseg_run_options& options) const;
  Encoding encode_canvas(const Canvas& canvas) const;
  Text fold(const Question& question, const Asked& go_on);
  Result answer(const Encoding& encoding, const Text& text, const digseg_run_options& options, const Asked& go_on);
  std::vector<float> presence_of(const Encoding& encoding, const Text& text, const Asked& go_on);
  Floats decode(const Encoding& encoding, const Text& text, const std::vector<size_t>& wanted, const Asked& go_on);
  std::vector<size_t> numbers_of(const Question& question) const;
  Result answer_folded(const Encoding& encoding, const Question& question, const Asked& go_on);
  void expect_open(const char* what) const;
  Floats ask(const Text& text, const std::vector<size_t>& wanted, const Asked& go_on, const std::function<Floats(const FoldedText&)>& graph);
  int pixels_a_cell();
  void load_vocabulary(const Safetensors& file, const std::string& path);
  const Tokenizer& tokenizer();
  void log(int level, const std::string& text) const;
  Asked cancel_check(const digseg_run_options* options) const;

  digseg_log_fn log_;
  digseg_cancel_fn cancel_;
  void* user_;
  int log_level_;
  BackendSettings settings_;
  std::shared_future<std::shared_ptr<void>> started_;  // ONNX Runtime starts while the bundle is checked
  Bundle bundle_;
  std::shared_ptr<Backend> backend_;
  std::string info_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::once_flag tokenizer_opened_, cell_read_;
  int cell_ = 0;

  std::mutex lock_;  // guards the prompt cache: most recent first, and where each prompt stands
  size_t capacity_, kept_bytes_ = 0;
  std::list<std::pair<std::string, Known>> recent_;
  std::unordered_map<std::string, std::list<std::pair<std::string, Known>>::iterator> places_;
  std::unordered_map<std::string, Known> vocabulary_;  // never changes after creation
  std::vector<const char*> vocabulary_order_;          // its keys, as the file has them
};

}  // namespace digseg
