#include "engine.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "error.hpp"
#include "file.hpp"
#include "labels.hpp"
#include "picture.hpp"
#include "safetensors.hpp"

namespace digseg {
namespace {

constexpr size_t kMostTextBytes = size_t{256} << 20;  // of folded prompts that are kept; the Python runtime's limit
constexpr const char* kVocabularyFile = "vocabulary.safetensors";

class Clock {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const std::chrono::duration<double> took = now - last_;
    last_ = now;
    return took.count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Copies [outer, have, inner] into a wider or narrower [outer, length, inner]; what is cut or added is padding.
void to_length(const Floats& from, size_t axis, size_t length, float* to) {
  size_t outer = 1, inner = 1;
  for (size_t i = 0; i < axis; ++i) outer *= static_cast<size_t>(from.shape[i]);
  for (size_t i = axis + 1; i < from.shape.size(); ++i) inner *= static_cast<size_t>(from.shape[i]);
  const size_t have = static_cast<size_t>(from.shape[axis]), take = std::min(have, length);
  for (size_t o = 0; o < outer; ++o) std::copy_n(&from.data[o * have * inner], take * inner, to + o * length * inner);
}

struct Folded {
  Floats keys, values;
  Flags mask;
};

Folded stack(const std::vector<std::shared_ptr<const PromptText>>& parts, size_t length) {
  const int64_t K = static_cast<int64_t>(parts.size()), L = static_cast<int64_t>(length);
  const Shape &k = parts[0]->keys.shape, &v = parts[0]->values.shape;
  Folded out{Floats({K, k[0], k[1], k[2], L}), Floats({K, v[0], v[1], L, v[3]}), Flags({K, L})};
  const size_t key_step = out.keys.data.size() / parts.size(), value_step = out.values.data.size() / parts.size();
  for (size_t i = 0; i < parts.size(); ++i) {
    to_length(parts[i]->keys, 3, length, &out.keys.data[i * key_step]);
    to_length(parts[i]->values, 2, length, &out.values.data[i * value_step]);
    std::fill_n(&out.mask.data[i * length], std::min(length, parts[i]->tokens), uint8_t{1});
  }
  return out;
}

size_t bytes_of(const PromptText& known) { return (known.keys.data.size() + known.values.data.size()) * sizeof(float); }

Floats one_of(const Floats& stacked, size_t index) {
  Floats out(Shape(stacked.shape.begin() + 1, stacked.shape.end()));
  std::copy_n(&stacked.data[index * out.data.size()], out.data.size(), out.data.begin());
  return out;
}

// A sum over many pixels of 1 / (1 + e^-x).
double probability(float logit) { return 1.0 / (1.0 + std::exp(-static_cast<double>(logit))); }

// Masks, scores and label map from one full-size plane at a time.
void add_plane(Result& out, size_t k, const float* plane, float threshold, const Precedence& precedence, std::vector<float>& best) {
  const size_t pixels = best.size();
  uint8_t* mask = &out.masks[k * pixels];
  double sum = 0;
  size_t inside = 0;
  for (size_t i = 0; i < pixels; ++i) {
    const float value = plane[i];
    if (!(value > threshold)) continue;
    mask[i] = 1;
    ++inside;
    sum += probability(value);
    if (out.label_map[i] == 0 || value > best[i] || precedence.beats(k, out.label_map[i])) {
      best[i] = value;
      out.label_map[i] = static_cast<int32_t>(k) + 1;
    }
  }
  out.scores[k] = inside ? static_cast<float>(sum / static_cast<double>(inside)) : 0.f;
}

BackendSettings settings_of(const digseg_options& options) {
  BackendSettings settings;
  settings.onnxruntime_library = options.onnxruntime_library ? options.onnxruntime_library : "";
  settings.threads = options.threads, settings.device = options.device;
  return settings;
}

bool with_onnxruntime(const digseg_options& options) { return options.backend == nullptr || std::string(options.backend) != "tensorrt"; }

std::string check_prompt(const std::string& text) {
  const Points points = from_utf8(text);
  if (std::all_of(points.begin(), points.end(), is_space))
    fail(DIGSEG_INVALID_ARGUMENT, "a prompt is empty; expected a few words, for example \"red circle\"");
  return text;
}

}  // namespace

Engine::Engine(const std::string& folder, const digseg_options& options)
    : log_(options.log), cancel_(options.cancel), user_(options.user), log_level_(options.log_level),
      settings_(settings_of(options)), started_(with_onnxruntime(options) ? start_onnxruntime(settings_) : decltype(started_)()), bundle_(folder),
      capacity_(options.cached_prompts > 0 ? static_cast<size_t>(options.cached_prompts) : 1) {
  cancel_check(nullptr)();
  settings_.text_at_once = options.vocabulary == nullptr && !bundle_.lists(kVocabularyFile);
  const std::string name = options.backend ? options.backend : "auto";
  const Log logged = [this](int level, const std::string& text) { log(level, text); };
  backend_ = name == "auto" ? choose_backend(bundle_, settings_, options.cache, logged) : named_backend(name, bundle_, settings_, options.cache, logged);
  if (options.vocabulary) load_vocabulary(options.vocabulary);
  else if (bundle_.lists(kVocabularyFile)) load_vocabulary(bundle_.path(kVocabularyFile));
  info_ = "{\"version\": \"" DIGSEG_VERSION "\", \"bundle\": " + json_quote(bundle_.folder) + ", \"sha256\": \"" + bundle_.digest() +
          "\", \"model\": " + json_quote(bundle_.model_name) + ", \"precision\": " + json_quote(bundle_.precision) +
          ", \"image_size\": " + std::to_string(bundle_.image_size) + ", \"stride\": " + std::to_string(bundle_.stride) +
          ", \"vocabulary\": " + std::to_string(vocabulary_.size()) + ", \"backend\": " + json_quote(backend_->detail()) + "}";
}

void Engine::log(int level, const std::string& text) const {
  if (log_ != nullptr && level >= log_level_) log_(user_, level, text.c_str());
}

Engine::Asked Engine::cancel_check(const digseg_run_options* options) const {
  const bool own = options != nullptr && options->cancel != nullptr;
  const digseg_cancel_fn asked = own ? options->cancel : cancel_;
  void* user = own ? options->user : user_;
  return [asked, user] {
    if (asked != nullptr && asked(user) != 0) fail(DIGSEG_CANCELLED, "cancelled by the caller's callback");
  };
}

const Tokenizer& Engine::tokenizer() {
  std::call_once(tokenizer_opened_, [&] { tokenizer_ = std::make_unique<Tokenizer>(bundle_.path("tokenizer.json")); });
  return *tokenizer_;
}

std::vector<int64_t> Engine::tokenize(const std::string& text, size_t max_tokens) { return tokenizer().encode(text, max_tokens); }

Engine::Known Engine::prompt(const std::string& text, bool truncate) {
  const auto fixed = vocabulary_.find(text);
  if (fixed != vocabulary_.end()) return fixed->second;
  const std::string key = (truncate ? "t" : "f") + text;
  {
    const std::lock_guard<std::mutex> guard(lock_);
    const auto found = places_.find(key);
    if (found != places_.end()) {
      recent_.splice(recent_.begin(), recent_, found->second);
      return found->second->second;
    }
  }
  const size_t most = bundle_.token_buckets.back();
  const std::vector<int64_t> row = tokenizer().encode(check_prompt(text), truncate ? most : SIZE_MAX);
  if (row.size() > most)
    fail(DIGSEG_INVALID_ARGUMENT, "prompt " + quoted(text, 40) + " has " + std::to_string(row.size()) + " tokens, at most " +
                                      std::to_string(most) + " fit (start and end included); shorten it");
  const int64_t length = static_cast<int64_t>(bundle_.token_bucket(row.size()));
  Ints ids({1, length});
  Flags mask({1, length});
  std::fill(ids.data.begin(), ids.data.end(), row.back());
  std::copy(row.begin(), row.end(), ids.data.begin());
  std::fill_n(mask.data.begin(), row.size(), uint8_t{1});
  const FoldedText folded = backend_->encode_text(ids, mask);
  if (folded.keys.shape.size() != 5 || folded.values.shape.size() != 5)
    fail(DIGSEG_RUNTIME, "the text encoder gave tensors of another rank than the contract; export the bundle again");
  auto known = std::make_shared<PromptText>();
  known->keys = one_of(folded.keys, 0), known->values = one_of(folded.values, 0), known->tokens = row.size();
  return remember(key, known);
}

Engine::Known Engine::remember(const std::string& key, Known known) {
  const std::lock_guard<std::mutex> guard(lock_);
  if (places_.count(key) == 0) {
    recent_.emplace_front(key, known);
    places_[key] = recent_.begin();
    kept_bytes_ += bytes_of(*known);
    while (recent_.size() > 1 && (recent_.size() > capacity_ || kept_bytes_ > kMostTextBytes)) {
      kept_bytes_ -= bytes_of(*recent_.back().second);
      places_.erase(recent_.back().first);
      recent_.pop_back();
    }
  }
  return known;
}

void Engine::prepare(const std::vector<std::string>& prompts) {
  for (const std::string& text : prompts) prompt(text, false);
}

Result Engine::segment(const digseg_image& image, const std::vector<std::string>& prompts, const digseg_run_options& options) {
  const Asked go_on = cancel_check(&options);
  Result out;
  Clock clock;
  // 1 check the input
  check_image(image);
  const int longer = options.size == 0 ? bundle_.usual_size(image.width, image.height) : options.size;
  if (longer < 2 * bundle_.stride || longer > 4096)
    fail(DIGSEG_INVALID_ARGUMENT, "working size must be " + std::to_string(2 * bundle_.stride) + " to 4096 pixels, got " + std::to_string(longer));
  go_on();
  // 2 fit the picture
  const Canvas canvas = fit(image, longer, bundle_);  // pixels [B, 3, H, W], the picture once or as often as the profile needs it
  out.seconds_fit = clock.lap();
  // 3 prompts, encoded once each
  std::vector<Known> parts;
  size_t longest = 0;
  for (const std::string& text : prompts) {
    go_on();
    parts.push_back(prompt(text, (options.flags & DIGSEG_TRUNCATE_PROMPTS) != 0));
    longest = std::max(longest, parts.back()->tokens);
  }
  out.seconds_text = clock.lap();
  // 4 the model: picture once, all prompts together
  out.logits = run_model(canvas.pixels, parts, longest, go_on);  // [1, K, h', w']
  const Shape& shape = out.logits.shape;
  out.seconds_model = clock.lap();
  go_on();
  // 5 back to the picture's own pixels, 6 masks, scores and label map
  out.count = static_cast<int>(prompts.size()), out.width = image.width, out.height = image.height;
  out.logits_height = static_cast<int>(shape[2]), out.logits_width = static_cast<int>(shape[3]);
  out.content_width = canvas.content_width, out.content_height = canvas.content_height;
  const size_t pixels = static_cast<size_t>(image.width) * static_cast<size_t>(image.height);
  out.masks.assign(prompts.size() * pixels, 0);
  out.label_map.assign(pixels, 0);
  out.scores.assign(prompts.size(), 0.f);
  std::vector<float> best(pixels);
  const Precedence precedence(out.logits, options.threshold, options.labels);
  unfit(out.logits.data.data(), precedence.order(), out.logits_width, out.logits_height, canvas, [&](size_t k, const float* plane) {
    go_on();
    add_plane(out, k, plane, options.threshold, precedence, best);
  });
  out.seconds_masks = clock.lap();
  out.backend = backend_->detail();
  return out;
}

// All prompts in one call, or in as many as the bundle's profile asks for; masks of different prompts are independent.
Floats Engine::run_model(const Floats& pixels, const std::vector<Known>& parts, size_t longest, const Asked& go_on) {
  const size_t length = std::max(bundle_.token_bucket(longest), static_cast<size_t>(bundle_.tokens.min));
  if (static_cast<int64_t>(longest) > bundle_.tokens.max)
    fail(DIGSEG_INVALID_ARGUMENT, "a prompt has " + std::to_string(longest) + " tokens, this bundle was exported for at most " +
                                      std::to_string(bundle_.tokens.max) + "; shorten it");
  const size_t most = static_cast<size_t>(bundle_.prompts.max), least = static_cast<size_t>(bundle_.prompts.min);
  Floats all;
  for (size_t from = 0; from < parts.size(); from += most) {
    go_on();
    const size_t count = std::min(most, parts.size() - from);
    std::vector<Known> now(parts.begin() + static_cast<std::ptrdiff_t>(from), parts.begin() + static_cast<std::ptrdiff_t>(from + count));
    now.resize(std::max(count, least), now.back());
    const Folded text = stack(now, std::min(length, static_cast<size_t>(bundle_.tokens.max)));  // [K, S, H, d, L], [K, S, H, L, Co], [K, L]
    const Floats some = backend_->segment(pixels, text.keys, text.values, text.mask);
    if (some.shape.size() != 4 || some.shape[0] != pixels.shape[0] || some.shape[1] != static_cast<int64_t>(now.size()) || some.shape[2] < 1 || some.shape[3] < 1)
      fail(DIGSEG_RUNTIME, "the segmenter gave logits of another shape than the contract; export the bundle again");
    const size_t plane = static_cast<size_t>(some.shape[2] * some.shape[3]);
    all.shape = {1, static_cast<int64_t>(parts.size()), some.shape[2], some.shape[3]};
    all.data.insert(all.data.end(), some.data.begin(), some.data.begin() + static_cast<std::ptrdiff_t>(count * plane));
  }
  return all;
}

void Engine::save_vocabulary(const std::vector<std::string>& prompts, const std::string& path) {
  std::vector<Known> parts;
  Ints tokens({static_cast<int64_t>(prompts.size())});
  size_t longest = 0;
  std::string names = "[";
  for (size_t i = 0; i < prompts.size(); ++i) {
    parts.push_back(prompt(prompts[i], false));
    tokens.data[i] = static_cast<int64_t>(parts[i]->tokens);
    longest = std::max(longest, parts[i]->tokens);
    names += (i ? ", " : "") + json_quote(prompts[i]);
  }
  const Folded text = stack(parts, bundle_.token_bucket(longest));
  const std::string& encoder = bundle_.file_hash(bundle_.text_encoder.file);
  write_file(path, safetensors_bytes({{"prompts", names + "]"}, {"text_encoder", encoder}},
                                     {{"text_keys", &text.keys}, {"text_values", &text.values}}, {{"tokens", &tokens}}));
}

void Engine::load_vocabulary(const std::string& path) {
  const Safetensors file(path);
  const auto text = [&](const char* key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  if (text("text_encoder") != bundle_.file_hash(bundle_.text_encoder.file))
    fail(DIGSEG_INCOMPATIBLE, path + " was made with another text encoder than this bundle's; save the vocabulary again");
  const std::string names = text("prompts");
  const Json prompts = parse_json(names.data(), names.size(), path);
  const Floats keys = file.floats("text_keys"), values = file.floats("text_values");
  const Ints tokens = file.ints("tokens");
  const size_t count = prompts.items.size();
  const bool fits = count > 0 && keys.shape.size() == 5 && values.shape.size() == 5 && tokens.data.size() == count &&
                    keys.shape[0] == static_cast<int64_t>(count) && values.shape[0] == keys.shape[0] && keys.shape[4] == values.shape[3] &&
                    keys.shape[1] == values.shape[1] && keys.shape[2] == values.shape[2];
  if (!fits) fail(DIGSEG_CORRUPT, path + ": tensors do not fit its " + std::to_string(count) + " prompts; save the vocabulary again");
  for (size_t i = 0; i < count; ++i) {
    if (tokens.data[i] < 1 || tokens.data[i] > keys.shape[4]) fail(DIGSEG_CORRUPT, path + ": token counts are wrong; save the vocabulary again");
    auto known = std::make_shared<PromptText>();
    known->keys = one_of(keys, i), known->values = one_of(values, i), known->tokens = static_cast<size_t>(tokens.data[i]);
    const auto placed = vocabulary_.emplace(prompts.items[i].text, known);
    if (placed.second) vocabulary_order_.push_back(placed.first->first.c_str());
  }
}

}  // namespace digseg
