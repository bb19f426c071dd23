// The C functions: arguments checked, exceptions turned into status and text.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "digseg/digseg.h"
#include "engine.hpp"
#include "error.hpp"

struct digseg_engine {
  digseg::Engine engine;
};
struct digseg_encoding {
  digseg::Encoding encoding;
};
struct digseg_result {
  digseg::Result result;
};

namespace {

using digseg::fail;

constexpr size_t kMostPrompts = 1024, kMostStruct = 4096;

template <typename Body>
digseg_status guard(Body body) noexcept {
  digseg::set_last_error("");
  try {
    body();
    return DIGSEG_OK;
  } catch (const digseg::Error& error) {
    digseg::set_last_error(error.what());
    return error.status;
  } catch (const std::bad_alloc&) {
    digseg::set_last_error("out of memory; use a smaller picture, working size or fewer prompts");
    return DIGSEG_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    digseg::set_last_error(error.what());
    return DIGSEG_INTERNAL;
  } catch (...) {
    digseg::set_last_error("an unknown exception; this is a defect of the library");
    return DIGSEG_INTERNAL;
  }
}

template <typename T>
void expect(const T* pointer, const char* name) {
  if (pointer == nullptr) fail(DIGSEG_INVALID_ARGUMENT, std::string(name) + " is NULL; expected a pointer");
}

// The caller's struct laid over the defaults: shorter (older) ones leave the rest at its default, longer (newer) ones
// must be zero where this library knows no field. Whole 8-byte words only, so that no pointer is half copied.
template <typename T>
T taken(const T* given, const T& defaults, size_t least, const char* name) {
  if (given == nullptr) return defaults;
  const size_t size = given->struct_size;
  if (size < least || size > kMostStruct)
    fail(DIGSEG_INVALID_ARGUMENT, std::string(name) + ".struct_size is " + std::to_string(size) + "; call " + name + "_init with sizeof first");
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(given);
  if (size > sizeof(T) && std::any_of(bytes + sizeof(T), bytes + size, [](unsigned char b) { return b != 0; }))
    fail(DIGSEG_INVALID_ARGUMENT, std::string(name) + " sets fields this library (" DIGSEG_VERSION ") does not know; update the library");
  T out = defaults;
  std::memcpy(static_cast<void*>(&out), given, std::min(size, sizeof(T)) / 8 * 8);
  out.struct_size = sizeof(T);
  return out;
}

template <typename T>
digseg_status initialise(T* target, size_t size, const T& defaults, const char* name) {
  return guard([&] {
    expect(target, name);
    if (size < sizeof(size_t) || size > kMostStruct)
      fail(DIGSEG_INVALID_ARGUMENT, std::string(name) + ": size is " + std::to_string(size) + "; expected sizeof the struct");
    std::memset(static_cast<void*>(target), 0, size);
    std::memcpy(static_cast<void*>(target), &defaults, std::min(size, sizeof(T)));
    target->struct_size = size;
  });
}

digseg_options default_options() {
  digseg_options options{};
  options.struct_size = sizeof options;
  options.cached_prompts = 4096;
  options.log_level = DIGSEG_LOG_INFO;
  return options;
}

template <typename T>
T zero() {
  T value{};
  value.struct_size = sizeof value;
  return value;
}

std::vector<std::string> texts(const char* const* list, size_t count, const char* name) {
  if (count > 0) expect(list, name);
  std::vector<std::string> out;
  for (size_t i = 0; i < count; ++i) {
    if (list[i] == nullptr) fail(DIGSEG_INVALID_ARGUMENT, std::string(name) + "[" + std::to_string(i) + "] is NULL; expected UTF-8 text");
    out.emplace_back(list[i]);
  }
  return out;
}

// A folded bundle answers for all of its names where none is given.
std::vector<std::string> prompt_list(const char* const* prompts, size_t count, const digseg::Engine& engine) {
  if (engine.folded() && count == 0) return {};
  if (engine.folded() && count <= engine.vocabulary().size()) return texts(prompts, count, "prompts");
  if (count < 1 || count > kMostPrompts)
    fail(DIGSEG_INVALID_ARGUMENT, std::to_string(count) + " prompts given; expected 1 to 1024");
  return texts(prompts, count, "prompts");
}

digseg_run_options run_options(const digseg_run_options* options) {
  const digseg_run_options run = taken(options, zero<digseg_run_options>(), sizeof(size_t), "digseg_run_options");
  if (run.flags & ~(DIGSEG_TRUNCATE_PROMPTS | DIGSEG_ALL_PROMPTS | DIGSEG_NO_MASKS))
    fail(DIGSEG_INVALID_ARGUMENT, "options.flags holds unknown bits; expected some of DIGSEG_TRUNCATE_PROMPTS, DIGSEG_ALL_PROMPTS and DIGSEG_NO_MASKS, or 0");
  if (run.labels < DIGSEG_LABELS_PARTS || run.labels > DIGSEG_LABELS_SMALLEST)
    fail(DIGSEG_INVALID_ARGUMENT, "options.labels is " + std::to_string(run.labels) + "; expected DIGSEG_LABELS_PARTS, STRONGEST or SMALLEST");
  if (!std::isfinite(run.threshold)) fail(DIGSEG_INVALID_ARGUMENT, "options.threshold is not a finite number");
  if (run.against_count > kMostPrompts)
    fail(DIGSEG_INVALID_ARGUMENT, std::to_string(run.against_count) + " contrast prompts given in options.against; expected at most 1024");
  return run;
}

digseg_image image_of(const digseg_image* image) {
  expect(image, "image");
  return taken(image, zero<digseg_image>(), offsetof(digseg_image, matrix), "digseg_image");
}

digseg::Question question(const digseg::Engine& engine, const char* const* prompts, size_t count, const digseg_run_options* options) {
  const digseg_run_options run = run_options(options);
  return {prompt_list(prompts, count, engine), texts(run.against, run.against_count, "options.against"), run};
}

// Results are written as far as the caller's struct reaches.
template <typename T>
void give(const T& from, T* to, const char* name) {
  const size_t size = to->struct_size;
  if (size < 2 * sizeof(size_t) || size > kMostStruct)
    fail(DIGSEG_INVALID_ARGUMENT, std::string(name) + ".struct_size is " + std::to_string(size) + "; call " + name + "_init with sizeof first");
  const size_t head = sizeof(size_t), end = std::min(size, sizeof(T)) / 8 * 8;
  std::memcpy(reinterpret_cast<char*>(to) + head, reinterpret_cast<const char*>(&from) + head, end - head);
}

}  // namespace

extern "C" {

const char* digseg_version(void) { return DIGSEG_VERSION; }
int32_t digseg_api_version(void) { return DIGSEG_API_VERSION; }
const char* digseg_last_error(void) { return digseg::last_error(); }

const char* digseg_status_string(digseg_status status) {
  static const char* const names[] = {"ok", "invalid argument", "not found", "corrupt", "incompatible", "out of memory",
                                      "cancelled", "runtime error", "unavailable", "internal error"};
  const int number = static_cast<int>(status);
  return number >= 0 && number < static_cast<int>(sizeof names / sizeof *names) ? names[number] : "unknown status";
}

digseg_status digseg_options_init(digseg_options* options, size_t size) { return initialise(options, size, default_options(), "digseg_options"); }
digseg_status digseg_image_init(digseg_image* image, size_t size) { return initialise(image, size, zero<digseg_image>(), "digseg_image"); }
digseg_status digseg_run_options_init(digseg_run_options* options, size_t size) {
  return initialise(options, size, zero<digseg_run_options>(), "digseg_run_options");
}
digseg_status digseg_view_init(digseg_view* view, size_t size) { return initialise(view, size, zero<digseg_view>(), "digseg_view"); }
digseg_status digseg_verification_init(digseg_verification* verification, size_t size) {
  return initialise(verification, size, zero<digseg_verification>(), "digseg_verification");
}

digseg_status digseg_engine_create(const char* bundle, const digseg_options* options, digseg_engine** engine) {
  return guard([&] {
    expect(engine, "engine");
    *engine = nullptr;
    expect(bundle, "bundle");
    const digseg_options taken_options = taken(options, default_options(), sizeof(size_t), "digseg_options");
    if (taken_options.threads < 0 || taken_options.threads > 1024)
      fail(DIGSEG_INVALID_ARGUMENT, "options.threads is " + std::to_string(taken_options.threads) + "; expected 0 to 1024");
    if (taken_options.device < 0) fail(DIGSEG_INVALID_ARGUMENT, "options.device is negative; expected a GPU number");
    *engine = new digseg_engine{digseg::Engine(bundle, taken_options)};
  });
}

void digseg_engine_destroy(digseg_engine* engine) { delete engine; }

digseg_status digseg_engine_verify(digseg_engine* engine, digseg_verification* verification) {
  return guard([&] {
    expect(engine, "engine");
    expect(verification, "verification");
    const digseg::Check check = engine->engine.verify();
    digseg_verification out = zero<digseg_verification>();
    out.passed = check.passed, out.max_error = check.max_error, out.relative = check.relative, out.iou = check.iou;
    give(out, verification, "digseg_verification");
  });
}

const char* digseg_engine_info(digseg_engine* engine) { return engine == nullptr ? nullptr : engine->engine.info().c_str(); }

digseg_status digseg_engine_tokenize(digseg_engine* engine, const char* text, size_t max_tokens, int64_t* ids, size_t capacity, size_t* count) {
  return guard([&] {
    expect(engine, "engine");
    expect(text, "text");
    expect(count, "count");
    if (capacity > 0) expect(ids, "ids");
    if (max_tokens == 1) fail(DIGSEG_INVALID_ARGUMENT, "max_tokens is 1; expected 0 (77) or at least 2, for start and end");
    const std::vector<int64_t> row = engine->engine.tokenize(text, max_tokens == 0 ? 77 : max_tokens);
    std::copy_n(row.begin(), std::min(capacity, row.size()), ids);
    *count = row.size();
  });
}

digseg_status digseg_engine_prepare(digseg_engine* engine, const char* const* prompts, size_t count) {
  return guard([&] {
    expect(engine, "engine");
    engine->engine.prepare(prompt_list(prompts, count, engine->engine));
  });
}

digseg_status digseg_engine_save_vocabulary(digseg_engine* engine, const char* const* prompts, size_t count, const char* path) {
  return guard([&] {
    expect(engine, "engine");
    expect(path, "path");
    engine->engine.save_vocabulary(prompt_list(prompts, count, engine->engine), path);
  });
}

digseg_status digseg_engine_vocabulary(digseg_engine* engine, const char* const** prompts, size_t* count) {
  return guard([&] {
    expect(engine, "engine");
    expect(prompts, "prompts");
    expect(count, "count");
    *prompts = engine->engine.vocabulary().data(), *count = engine->engine.vocabulary().size();
  });
}

digseg_status digseg_segment(digseg_engine* engine, const digseg_image* image, const char* const* prompts, size_t count,
                             const digseg_run_options* options, digseg_result** result) {
  return guard([&] {
    expect(result, "result");
    *result = nullptr;
    expect(engine, "engine");
    const digseg_image picture = image_of(image);
    *result = new digseg_result{engine->engine.segment(picture, question(engine->engine, prompts, count, options))};
  });
}

digseg_status digseg_encode(digseg_engine* engine, const digseg_image* image, const digseg_run_options* options, digseg_encoding** encoding) {
  return guard([&] {
    expect(encoding, "encoding");
    *encoding = nullptr;
    expect(engine, "engine");
    const digseg_image picture = image_of(image);
    *encoding = new digseg_encoding{engine->engine.encode(picture, run_options(options))};
  });
}

digseg_status digseg_segment_encoded(digseg_engine* engine, const digseg_encoding* encoding, const char* const* prompts, size_t count,
                                     const digseg_run_options* options, digseg_result** result) {
  return guard([&] {
    expect(result, "result");
    *result = nullptr;
    expect(engine, "engine");
    expect(encoding, "encoding");
    *result = new digseg_result{engine->engine.segment(encoding->encoding, question(engine->engine, prompts, count, options))};
  });
}

size_t digseg_encoding_bytes(const digseg_encoding* encoding) { return encoding == nullptr ? 0 : encoding->encoding.encoded->bytes(); }

void digseg_encoding_free(digseg_encoding* encoding) { delete encoding; }

digseg_status digseg_result_view(const digseg_result* result, digseg_view* view) {
  return guard([&] {
    expect(result, "result");
    expect(view, "view");
    const digseg::Result& r = result->result;
    digseg_view out = zero<digseg_view>();
    out.count = r.count, out.width = r.width, out.height = r.height;
    out.logits_width = r.logits_width, out.logits_height = r.logits_height;
    out.content_width = r.content_width, out.content_height = r.content_height;
    out.masks = r.masks.empty() ? nullptr : r.masks.data(), out.label_map = r.label_map.data(), out.scores = r.scores.data();
    out.logits = r.has_logits ? r.logits.data.data() : nullptr, out.backend = r.backend.c_str();
    out.seconds_fit = r.seconds_fit, out.seconds_text = r.seconds_text, out.seconds_model = r.seconds_model, out.seconds_masks = r.seconds_masks;
    out.presence = r.presence.data(), out.there = r.there.data();
    give(out, view, "digseg_view");
  });
}

void digseg_result_free(digseg_result* result) { delete result; }

}  // extern "C"
