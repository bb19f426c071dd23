#include "engine.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <iterator>
#include <numeric>

#include "error.hpp"
#include "file.hpp"
#include "labels.hpp"
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

FoldedText stack(const std::vector<std::shared_ptr<const PromptText>>& parts, size_t length) {
  const int64_t K = static_cast<int64_t>(parts.size()), L = static_cast<int64_t>(length);
  const Shape &k = parts[0]->keys.shape, &v = parts[0]->values.shape;
  FoldedText out{Floats({K, k[0], k[1], k[2], L}), Floats({K, v[0], v[1], L, v[3]}), Flags({K, L})};
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

// Marks a mask's pixels in a result that keeps its masks.
uint8_t* room_for(Result& out, size_t k, size_t pixels) { return out.masks.empty() ? nullptr : &out.masks[k * pixels]; }

// The label of every pixel from a map of the model's input, [H, W] of `width` columns: of the nearest, padding cut off.
// places: label of the map -> label of the result.
void add_labels(Result& out, const Frame& frame, const uint16_t* map, size_t width, const std::vector<int32_t>& places, size_t asked, bool masks) {
  const size_t pixels = static_cast<size_t>(frame.width) * static_cast<size_t>(frame.height);
  const auto nearest = [](int at, int have, int want) { return static_cast<size_t>((2 * int64_t{at} + 1) * have / (2 * int64_t{want})); };
  out.count = static_cast<int>(asked), out.width = frame.width, out.height = frame.height;
  out.content_width = frame.content_width, out.content_height = frame.content_height;
  out.label_map.assign(pixels, 0), out.scores.assign(asked, 0.f), out.masks.assign(masks ? asked * pixels : 0, 0);
  for (int y = 0; y < frame.height; ++y) {
    const uint16_t* row = map + nearest(y, frame.content_height, frame.height) * width;
    for (int x = 0; x < frame.width; ++x) {
      const int32_t label = places[row[nearest(x, frame.content_width, frame.width)]];
      if (label == 0) continue;
      const size_t at = static_cast<size_t>(y) * static_cast<size_t>(frame.width) + static_cast<size_t>(x), k = static_cast<size_t>(label) - 1;
      out.label_map[at] = label, out.scores[k] = -1.f;
      if (uint8_t* mask = room_for(out, k, pixels)) mask[at] = 1;
    }
  }
}

// Masks, scores and label map from one full-size plane at a time. floor: the logit that a pixel must pass; best: the logit of
// its label, at first the floor.
void add_plane(Result& out, size_t k, const float* plane, const std::vector<float>& floor, const Precedence& precedence, std::vector<float>& best) {
  const size_t pixels = best.size();
  uint8_t* mask = room_for(out, k, pixels);
  double sum = 0;
  size_t inside = 0;
  for (size_t i = 0; i < pixels; ++i) {
    const float value = plane[i];
    if (!(value > floor[i])) continue;
    if (mask != nullptr) mask[i] = 1;
    ++inside;
    sum += probability(value);
    if (value > best[i] || precedence.beats(k, out.label_map[i])) {
      best[i] = value;
      out.label_map[i] = static_cast<int32_t>(k) + 1;
    }
  }
  out.scores[k] = inside ? static_cast<float>(sum / static_cast<double>(inside)) : 0.f;
}

// Logits [1, K, h', w'] of which the first `asked` prompts are answered, the others compete, and those that are not `there`
// (numbers in order) do neither.
void add_masks(Result& out, const Frame& frame, size_t asked, const std::vector<size_t>& there, const digseg_run_options& options,
               const std::function<void()>& go_on) {
  out.count = static_cast<int>(asked), out.width = frame.width, out.height = frame.height;
  out.logits_height = static_cast<int>(out.logits.shape[2]), out.logits_width = static_cast<int>(out.logits.shape[3]);
  out.content_width = frame.content_width, out.content_height = frame.content_height;
  const size_t pixels = static_cast<size_t>(frame.width) * static_cast<size_t>(frame.height);
  const auto enlarge = [&](const std::vector<size_t>& order, const PlaneSink& sink) {
    unfit(out.logits.data.data(), order, out.logits_width, out.logits_height, frame, [&](size_t k, const float* plane) {
      go_on();
      sink(k, plane);
    });
  };
  std::vector<float> floor(pixels, options.threshold);
  const auto rivals = std::lower_bound(there.begin(), there.end(), asked);
  enlarge({rivals, there.end()}, [&](size_t, const float* plane) {
    for (size_t i = 0; i < pixels; ++i) floor[i] = std::max(floor[i], plane[i]);
  });
  out.logits.shape[1] = out.count;
  out.logits.data.resize(count_of(out.logits.shape));
  out.masks.assign(options.flags & DIGSEG_NO_MASKS ? 0 : asked * pixels, 0);
  out.label_map.assign(pixels, 0);
  out.scores.assign(asked, 0.f);
  out.there.assign(asked, 0);
  for (auto k = there.begin(); k != rivals; ++k) out.there[*k] = 1;
  const Precedence precedence(out.logits, options.threshold, options.labels);
  std::vector<size_t> order;
  std::copy_if(precedence.order().begin(), precedence.order().end(), std::back_inserter(order), [&](size_t k) { return out.there[k] != 0; });
  std::vector<float> best = floor;
  enlarge(order, [&](size_t k, const float* plane) { add_plane(out, k, plane, floor, precedence, best); });
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
  if (options.vocabulary) expect_open("options.vocabulary names text that was encoded before");
  settings_.text_at_once = options.vocabulary == nullptr && !bundle_.lists(kVocabularyFile);
  const std::string name = options.backend ? options.backend : "auto";
  const Log logged = [this](int level, const std::string& text) { log(level, text); };
  backend_ = name == "auto" ? choose_backend(bundle_, settings_, options.cache, logged) : named_backend(name, bundle_, settings_, options.cache, logged);
  if (options.vocabulary) load_vocabulary(Safetensors(options.vocabulary), options.vocabulary);
  else if (bundle_.lists(kVocabularyFile)) load_vocabulary(Safetensors(bundle_.read(kVocabularyFile, kLargestTensors), bundle_.path(kVocabularyFile)), bundle_.path(kVocabularyFile));
  for (const std::string& name : bundle_.names) vocabulary_order_.push_back(name.c_str());
  info_ = "{\"version\": \"" DIGSEG_VERSION "\", \"bundle\": " + json_quote(bundle_.folder) + ", \"sha256\": \"" + bundle_.digest() +
          "\", \"model\": " + json_quote(bundle_.model_name) + ", \"precision\": " + json_quote(bundle_.precision) +
          ", \"image_size\": " + std::to_string(bundle_.image_size) + ", \"image_size_max\": " + std::to_string(bundle_.image_size_max) + ", \"stride\": " + std::to_string(bundle_.stride) +
          ", \"presence\": " + (bundle_.has_presence ? "true" : "false") + ", \"vocabulary\": " + std::to_string(vocabulary_order_.size()) +
          ", \"folded\": " + (folded() ? "true" : "false") + ", \"backend\": " + json_quote(backend_->detail()) + "}";
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

// Throws for what needs the text of an open bundle.
void Engine::expect_open(const char* what) const {
  if (folded())
    fail(DIGSEG_INVALID_ARGUMENT, bundle_.folder + " is a folded bundle, which has neither tokenizer nor text encoder, and " + what +
                                      "; take the names of digseg_engine_vocabulary, or a bundle exported without --vocabulary");
}

const Tokenizer& Engine::tokenizer() {
  expect_open("text was to be read");
  std::call_once(tokenizer_opened_, [&] { tokenizer_ = std::make_unique<Tokenizer>(bundle_.read("tokenizer.json"), bundle_.path("tokenizer.json")); });
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
  const std::vector<int64_t> row = tokenizer().encode(check_prompt(text), truncate ? kMostTokens : SIZE_MAX);
  if (row.size() > kMostTokens)
    fail(DIGSEG_INVALID_ARGUMENT, "prompt " + quoted(text, 40) + " has " + std::to_string(row.size()) + " tokens, at most " +
                                      std::to_string(kMostTokens) + " fit (start and end included); shorten it");
  const int64_t length = static_cast<int64_t>(token_bucket(row.size()));
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
  if (folded()) {
    numbers_of({prompts, {}, {}});
    return;
  }
  for (const std::string& text : prompts) prompt(text, false);
}

// Checks a picture and fits it to the model's input.
Canvas Engine::fit_picture(const digseg_image& image, const digseg_run_options& options) const {
  check_image(image);
  const int longer = options.size == 0 ? bundle_.usual_size(image.width, image.height) : options.size;
  if (longer < 2 * bundle_.stride || longer > 4096)
    fail(DIGSEG_INVALID_ARGUMENT, "working size must be " + std::to_string(2 * bundle_.stride) + " to 4096 pixels, got " + std::to_string(longer));
  return fit(image, longer, bundle_);
}

Encoding Engine::encode_canvas(const Canvas& canvas) const {
  return {backend_, backend_->encode_image(canvas.pixels), canvas.frame, std::max(canvas.frame.content_width, canvas.frame.content_height)};
}

Encoding Engine::encode(const digseg_image& image, const digseg_run_options& options) {
  const Asked go_on = cancel_check(&options);
  go_on();
  const Canvas canvas = fit_picture(image, options);
  go_on();
  return encode_canvas(canvas);
}

Result Engine::segment(const digseg_image& image, const Question& question) {
  const Asked go_on = cancel_check(&question.options);
  Clock clock;
  go_on();
  const Canvas canvas = fit_picture(image, question.options);  // pixels [B, 3, H, W], the picture once or as often as the profile needs it
  const double seconds_fit = clock.lap();
  if (folded()) {
    numbers_of(question);  // what cannot be asked is said before the work
    const Encoding encoding = encode_canvas(canvas);
    const double seconds_encode = clock.lap();
    Result out = answer_folded(encoding, question, go_on);
    out.seconds_fit = seconds_fit, out.seconds_model += seconds_encode;
    return out;
  }
  const Text text = fold(question, go_on);
  const double seconds_text = clock.lap();
  const Encoding encoding = encode_canvas(canvas);  // [B, M, H/s, W/s]
  const double seconds_encode = clock.lap();
  Result out = answer(encoding, text, question.options, go_on);
  out.seconds_fit = seconds_fit, out.seconds_text = seconds_text, out.seconds_model += seconds_encode;
  return out;
}

Result Engine::segment(const Encoding& encoding, const Question& question) {
  const Asked go_on = cancel_check(&question.options);
  Clock clock;
  if (encoding.backend != backend_)
    fail(DIGSEG_INVALID_ARGUMENT, "the encoding was made by another engine; encode the picture with the one that is asked");
  if (question.options.size != 0 && question.options.size != encoding.size)
    fail(DIGSEG_INVALID_ARGUMENT, "options.size is " + std::to_string(question.options.size) + ", the picture was encoded at " + std::to_string(encoding.size) +
                                      "; give the size to digseg_encode, and 0 here");
  if (folded()) return answer_folded(encoding, question, go_on);
  const Text text = fold(question, go_on);
  const double seconds_text = clock.lap();
  Result out = answer(encoding, text, question.options, go_on);
  out.seconds_text = seconds_text;
  return out;
}

// Prompts, encoded once each; a contrast prompt that is also asked about, or stands twice, counts once.
Engine::Text Engine::fold(const Question& question, const Asked& go_on) {
  std::vector<std::string> texts = question.prompts;
  for (const std::string& rival : question.against)
    if (std::find(texts.begin(), texts.end(), rival) == texts.end()) texts.push_back(rival);
  Text out{{}, question.prompts.size(), 0};
  size_t longest = 0;
  for (const std::string& text : texts) {
    go_on();
    out.parts.push_back(prompt(text, (question.options.flags & DIGSEG_TRUNCATE_PROMPTS) != 0));
    longest = std::max(longest, out.parts.back()->tokens);
  }
  if (static_cast<int64_t>(longest) > bundle_.tokens.max)
    fail(DIGSEG_INVALID_ARGUMENT, "a prompt has " + std::to_string(longest) + " tokens, this bundle was exported for at most " +
                                      std::to_string(bundle_.tokens.max) + "; shorten it");
  const size_t least = static_cast<size_t>(bundle_.tokens.min), most = static_cast<size_t>(bundle_.tokens.max);
  out.length = std::min(std::max(token_bucket(longest), least), most);
  return out;
}

// The numbers of the names that are asked for, all of them where none is named. Throws for a name that is not in the list, and for
// what a folded bundle does not do.
std::vector<size_t> Engine::numbers_of(const Question& question) const {
  const char* const open = "; take a bundle exported without --vocabulary";
  if (!question.against.empty()) fail(DIGSEG_INVALID_ARGUMENT, std::string("the names of a folded bundle compete inside its graph, and contrast prompts cannot join them") + open);
  if (question.options.flags & DIGSEG_ALL_PROMPTS) fail(DIGSEG_INVALID_ARGUMENT, std::string("a folded bundle turns names that are not there away inside its graph, and DIGSEG_ALL_PROMPTS was given") + open);
  if (question.options.labels == DIGSEG_LABELS_SMALLEST) fail(DIGSEG_INVALID_ARGUMENT, std::string("the labels of a folded bundle are those of the strongest name, and DIGSEG_LABELS_SMALLEST was given") + open);
  if (bundle_.labels_only && question.options.threshold != 0.f) fail(DIGSEG_INVALID_ARGUMENT, "a bundle exported with --labels-only has no logits that a threshold could be held to; leave options.threshold at 0, or export without");
  std::vector<size_t> out(question.prompts.empty() ? bundle_.names.size() : 0);
  std::iota(out.begin(), out.end(), size_t{0});
  for (const std::string& name : question.prompts) {
    const auto found = std::find(bundle_.names.begin(), bundle_.names.end(), name);
    if (found == bundle_.names.end()) {
      std::string known;
      for (size_t i = 0; i < std::min<size_t>(bundle_.names.size(), 10); ++i) known += (i ? ", " : "") + bundle_.names[i];
      if (bundle_.names.size() > 10) known += " and " + std::to_string(bundle_.names.size() - 10) + " more";
      fail(DIGSEG_INVALID_ARGUMENT, quoted(name, 40) + " is not in this bundle's vocabulary; it answers for " + std::to_string(bundle_.names.size()) + " names: " + known + open);
    }
    out.push_back(static_cast<size_t>(found - bundle_.names.begin()));
  }
  return out;
}

Result Engine::answer_folded(const Encoding& encoding, const Question& question, const Asked& go_on) {
  const std::vector<size_t> numbers = numbers_of(question);
  const size_t asked = numbers.size();
  Result out;
  Clock clock;
  go_on();
  // 1 the map and what else the bundle has, of all names; what is not there is turned away already
  const FoldedAnswer found = backend_->labels(*encoding.encoded);
  const int64_t all = static_cast<int64_t>(bundle_.names.size());
  const Shape &map = found.label_map.shape, &logits = found.logits.shape, &presence = found.presence.shape;
  const bool fits = map.size() == 3 && map[1] == encoding.frame.input_height && map[2] == encoding.frame.input_width &&
                    (bundle_.labels_only || (logits.size() == 4 && logits[1] == all && logits[2] > 0 && logits[3] > 0)) &&
                    (!bundle_.has_presence || (presence.size() == 2 && presence[1] == all));
  if (!fits) fail(DIGSEG_RUNTIME, "the labels graph answered another shape than the contract; export the bundle again");
  out.presence.assign(asked, -1.f);
  std::vector<size_t> there;
  for (size_t k = 0; k < asked; ++k) {
    if (bundle_.has_presence) out.presence[k] = static_cast<float>(probability(found.presence.data[numbers[k]]));
    if (!bundle_.has_presence || !(found.presence.data[numbers[k]] < bundle_.presence_threshold)) there.push_back(k);
  }
  out.seconds_model = clock.lap();
  // 2 to the picture's own pixels: from the map, or from logits as for an open bundle
  if (bundle_.labels_only) {
    std::vector<int32_t> places(bundle_.names.size() + 1, 0);
    for (size_t k = asked; k-- > 0;) places[numbers[k] + 1] = static_cast<int32_t>(k) + 1;  // of a name that stands twice, the first
    for (size_t i = 0; i < static_cast<size_t>(map[1] * map[2]); ++i)
      if (found.label_map.data[i] >= places.size()) fail(DIGSEG_RUNTIME, "the label map holds a label over the number of names; export the bundle again");
    add_labels(out, encoding.frame, found.label_map.data.data(), static_cast<size_t>(map[2]), places, asked, (question.options.flags & DIGSEG_NO_MASKS) == 0);
    out.there.assign(asked, 0);
    for (const size_t k : there) out.there[k] = 1;
    out.has_logits = false;
  } else {
    const size_t plane = static_cast<size_t>(logits[2] * logits[3]);
    out.logits = Floats({1, static_cast<int64_t>(asked), logits[2], logits[3]});
    for (size_t k = 0; k < asked; ++k) std::copy_n(&found.logits.data[numbers[k] * plane], plane, &out.logits.data[k * plane]);
    digseg_run_options options = question.options;
    options.labels = DIGSEG_LABELS_STRONGEST;
    add_masks(out, encoding.frame, asked, there, options, go_on);
  }
  out.seconds_masks = clock.lap();
  out.backend = backend_->detail();
  return out;
}

Result Engine::answer(const Encoding& encoding, const Text& text, const digseg_run_options& options, const Asked& go_on) {
  Result out;
  Clock clock;
  // 1 which prompts are there
  const std::vector<float> presence = presence_of(encoding, text, go_on);  // logits [K], contrast prompts behind the others; or none
  const bool all = presence.empty() || (options.flags & DIGSEG_ALL_PROMPTS) != 0;
  std::vector<size_t> there;
  for (size_t k = 0; k < text.parts.size(); ++k)
    if (all || !(presence[k] < bundle_.presence_threshold)) there.push_back(k);
  out.presence.assign(text.asked, -1.f);
  for (size_t k = 0; k < text.asked && !presence.empty(); ++k) out.presence[k] = static_cast<float>(probability(presence[k]));
  // 2 those, decoded
  out.logits = decode(encoding, text, there, go_on);  // [1, K, h', w'], kAbsent where nothing was decoded
  out.seconds_model = clock.lap();
  // 3 back to the picture's own pixels: masks [K, H, W], scores [K], label map [H, W]
  add_masks(out, encoding.frame, text.asked, there, options, go_on);
  out.seconds_masks = clock.lap();
  out.backend = backend_->detail();
  return out;
}

// Logits [K] of all prompts; none where the bundle has no readout.
std::vector<float> Engine::presence_of(const Encoding& encoding, const Text& text, const Asked& go_on) {
  if (!bundle_.has_presence) return {};
  std::vector<size_t> all(text.parts.size());
  std::iota(all.begin(), all.end(), size_t{0});
  return ask(text, all, go_on, [&](const FoldedText& folded) {
           Floats found = backend_->presence(*encoding.encoded, folded);
           if (found.shape.size() != 2) fail(DIGSEG_RUNTIME, "the presence graph gave logits of another shape than the contract; export the bundle again");
           found.shape.insert(found.shape.end(), {1, 1});
           return found;
         }).data;
}

// Logits [1, K, h', w'] of all prompts, of which those not wanted are kAbsent everywhere.
Floats Engine::decode(const Encoding& encoding, const Text& text, const std::vector<size_t>& wanted, const Asked& go_on) {
  const Floats some = ask(text, wanted, go_on, [&](const FoldedText& folded) { return backend_->decode(*encoding.encoded, folded); });
  if (wanted.size() == text.parts.size()) return some;
  const int64_t cell = wanted.empty() ? pixels_a_cell() : 0;
  Floats out({1, static_cast<int64_t>(text.parts.size()), cell ? encoding.frame.input_height / cell : some.shape[2],
              cell ? encoding.frame.input_width / cell : some.shape[3]});
  std::fill(out.data.begin(), out.data.end(), contract::kAbsent);
  const size_t plane = out.data.size() / text.parts.size();
  for (size_t i = 0; i < wanted.size(); ++i) std::copy_n(&some.data[i * plane], plane, &out.data[wanted[i] * plane]);
  return out;
}

// Some of the prompts about the first of the encoded pictures, in one call of a graph or in as many as the bundle's profile asks
// for; fewer than its smallest K are filled up. Answers of different prompts are independent. -> [1, K, ?, ?]
Floats Engine::ask(const Text& text, const std::vector<size_t>& wanted, const Asked& go_on, const std::function<Floats(const FoldedText&)>& graph) {
  const size_t most = static_cast<size_t>(bundle_.prompts.max), least = static_cast<size_t>(bundle_.prompts.min);
  Floats all;
  for (size_t from = 0; from < wanted.size(); from += most) {
    go_on();
    const size_t count = std::min(most, wanted.size() - from);
    std::vector<Known> now;
    for (size_t i = from; i < from + count; ++i) now.push_back(text.parts[wanted[i]]);
    now.resize(std::max(count, least), now.back());
    const Floats some = graph(stack(now, text.length));  // [B, K, ?, ?]
    if (some.shape.size() != 4 || some.shape[0] != bundle_.pictures.min || some.shape[1] != static_cast<int64_t>(now.size()) || some.shape[2] < 1 || some.shape[3] < 1)
      fail(DIGSEG_RUNTIME, "a graph gave logits of another shape than the contract; export the bundle again");
    const size_t plane = static_cast<size_t>(some.shape[2] * some.shape[3]);
    all.shape = {1, static_cast<int64_t>(wanted.size()), some.shape[2], some.shape[3]};
    all.data.insert(all.data.end(), some.data.begin(), some.data.begin() + static_cast<std::ptrdiff_t>(count * plane));
  }
  return all;
}

// Pixels of the model's input along one cell of its logits; the golden sample knows.
int Engine::pixels_a_cell() {
  std::call_once(cell_read_, [&] {
    const Safetensors golden(bundle_.read("golden.safetensors", kLargestTensors), bundle_.path("golden.safetensors"));
    const Shape image = golden.floats(contract::kImage).shape, logits = golden.floats(contract::kLogits).shape;
    if (image.size() != 4 || logits.size() != 4 || logits[3] < 1 || image[3] < logits[3])
      fail(DIGSEG_CORRUPT, bundle_.folder + "/golden.safetensors has tensors of other shapes; export the bundle again");
    cell_ = static_cast<int>(image[3] / logits[3]);
  });
  return cell_;
}

void Engine::save_vocabulary(const std::vector<std::string>& prompts, const std::string& path) {
  expect_open("text was to be saved");
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
  const FoldedText text = stack(parts, token_bucket(longest));
  const std::string& encoder = bundle_.file_hash(file_of(contract::kTextEncoder).file);
  write_file(path, safetensors_bytes({{"prompts", names + "]"}, {file_of(contract::kTextEncoder).name, encoder}},
                                     {{contract::kTextKeys, &text.keys}, {contract::kTextValues, &text.values}}, {{"tokens", &tokens}}));
}

void Engine::load_vocabulary(const Safetensors& file, const std::string& path) {
  const auto text = [&](const char* key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  if (text(file_of(contract::kTextEncoder).name) != bundle_.file_hash(file_of(contract::kTextEncoder).file))
    fail(DIGSEG_INCOMPATIBLE, path + " was made with another text encoder than this bundle's; save the vocabulary again");
  const std::string names = text("prompts");
  const Json prompts = parse_json(names.data(), names.size(), path);
  const Floats keys = file.floats(contract::kTextKeys), values = file.floats(contract::kTextValues);
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
