// Which backend runs: created for real, right on the golden sample, then the fastest; known again at the next start.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "backend.hpp"
#include "error.hpp"
#include "safetensors.hpp"
#include "verdict.hpp"

namespace digseg {
namespace {

constexpr int kTimedRuns = 5;

struct Golden {
  Floats image, logits, presence;  // presence: of a bundle that has it; logits of a folded one: of the first names, if any
  Ints token_ids;
  Flags token_mask;
  Labels label_map;  // of a folded bundle

  explicit Golden(const Bundle& bundle) {
    const Safetensors file(bundle.read("golden.safetensors", kLargestTensors), bundle.path("golden.safetensors"));
    if (bundle.folded()) {
      read_folded(file, bundle);
      return;
    }
    image = file.floats(contract::kImage), logits = file.floats(contract::kLogits);
    token_ids = file.ints(contract::kTokenIds), token_mask = file.flags(contract::kTokenMask);
    if (bundle.has_presence) presence = file.floats(contract::kPresenceLogits);
    const bool fits = image.shape.size() == 4 && image.shape[1] == 3 && token_ids.shape.size() == 2 &&
                      token_mask.shape == token_ids.shape && logits.shape.size() == 4 && !logits.data.empty() && !token_ids.data.empty();
    if (!fits) fail(DIGSEG_CORRUPT, bundle.folder + "/golden.safetensors has tensors of other shapes; export the bundle again");
    const bool held = bundle.pictures.holds(image.shape[0]) && bundle.prompts.holds(token_ids.shape[0]) && bundle.tokens.holds(token_ids.shape[1]) &&
                      bundle.rows.holds(image.shape[2]) && bundle.columns.holds(image.shape[3]);
    if (!held)
      fail(DIGSEG_CORRUPT, bundle.folder + "/golden.safetensors does not fit the shapes in the manifest; export the bundle again");
  }

 private:
  void read_folded(const Safetensors& file, const Bundle& bundle) {
    image = file.floats(contract::kImage), label_map = file.labels(contract::kLabelMap);
    if (!bundle.labels_only) logits = file.floats(contract::kLogits);
    if (bundle.has_presence) presence = file.floats(contract::kPresenceLogits);
    const bool fits = image.shape.size() == 4 && image.shape[1] == 3 && label_map.shape == Shape{image.shape[0], image.shape[2], image.shape[3]} &&
                      (bundle.labels_only || (logits.shape.size() == 4 && logits.shape[0] == image.shape[0] && !logits.data.empty()));
    if (!fits) fail(DIGSEG_CORRUPT, bundle.folder + "/golden.safetensors has tensors of other shapes; export the bundle again");
    if (!bundle.pictures.holds(image.shape[0]) || !bundle.rows.holds(image.shape[2]) || !bundle.columns.holds(image.shape[3]))
      fail(DIGSEG_CORRUPT, bundle.folder + "/golden.safetensors does not fit the shapes in the manifest; export the bundle again");
  }
};

struct Answer {
  Floats logits, presence;
};

Answer answer(Backend& backend, const Golden& golden, const FoldedText& text) {
  const std::unique_ptr<Encoded> encoded = backend.encode_image(golden.image);
  Answer out{backend.decode(*encoded, text), {}};
  if (!golden.presence.data.empty()) out.presence = backend.presence(*encoded, text);
  return out;
}

double median_seconds(Backend& backend, const Golden& golden) {
  const bool folded = !golden.label_map.data.empty();
  const FoldedText text = folded ? FoldedText{} : backend.encode_text(golden.token_ids, golden.token_mask);
  std::vector<double> seconds;
  for (int i = 0; i < kTimedRuns + 1; ++i) {
    const auto began = std::chrono::steady_clock::now();
    if (folded) backend.labels(*backend.encode_image(golden.image));
    else answer(backend, golden, text);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    if (i > 0) seconds.push_back(took.count());  // the first run warms up
  }
  std::nth_element(seconds.begin(), seconds.begin() + kTimedRuns / 2, seconds.end());
  return seconds[kTimedRuns / 2];
}

}  // namespace

const std::vector<std::string>& backend_names() {
  static const std::vector<std::string> names{"tensorrt", "onnxruntime-cuda", "onnxruntime"};
  return names;
}

std::unique_ptr<Backend> create_backend(const std::string& name, const Bundle& bundle, const BackendSettings& settings) {
  if (name == "onnxruntime") return create_onnxruntime(bundle, settings, false);
  if (name == "onnxruntime-cuda") return create_onnxruntime(bundle, settings, true);
  if (name == "tensorrt" && bundle.folded()) fail(DIGSEG_UNAVAILABLE, "tensorrt does not run folded bundles here yet; take onnxruntime, or an open bundle");
  if (name == "tensorrt") return create_tensorrt(bundle, settings);
  fail(DIGSEG_INVALID_ARGUMENT, "unknown backend " + quoted(name) + "; expected auto, onnxruntime, onnxruntime-cuda or tensorrt");
}

namespace {

struct Difference {
  double largest = 0, relative = 0;  // of one number; L2 norm over that of the expected ones
};

// Infinite where an answer is not finite. least: a smaller norm of the expected numbers counts as this one.
Difference difference(const Floats& got, const Floats& wanted, double least) {
  Difference out;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < wanted.data.size(); ++i) {
    const double want = wanted.data[i], have = got.data[i];
    const double error = std::isfinite(have) ? std::fabs(have - want) : INFINITY;
    out.largest = std::max(out.largest, error);
    difference += error * error;
    norm += want * want;
  }
  out.relative = std::sqrt(difference) / std::max(std::sqrt(norm), least);
  return out;
}

// Mean over the planes of which one shows something: agreement on nothing says nothing.
double mask_iou(const Floats& got, const Floats& wanted) {
  double ious = 0;
  size_t telling = 0;
  const size_t plane = static_cast<size_t>(got.shape[2] * got.shape[3]), planes = got.data.size() / plane;
  for (size_t p = 0; p < planes; ++p) {
    size_t both = 0, either = 0;
    for (size_t i = p * plane; i < (p + 1) * plane; ++i) {
      both += wanted.data[i] > 0 && got.data[i] > 0;
      either += wanted.data[i] > 0 || got.data[i] > 0;
    }
    if (either > 0) ious += static_cast<double>(both) / static_cast<double>(either), ++telling;
  }
  return telling ? ious / static_cast<double>(telling) : 1.0;
}

}  // namespace

namespace {

// The first names of logits [B, K, h, w], as the golden sample has them.
Floats first_names(const Floats& all, int64_t names) {
  if (all.shape.size() != 4 || all.shape[1] < names) return all;
  Floats out({all.shape[0], names, all.shape[2], all.shape[3]});
  const size_t taken = out.data.size() / static_cast<size_t>(all.shape[0]), step = all.data.size() / static_cast<size_t>(all.shape[0]);
  for (size_t b = 0; b < static_cast<size_t>(all.shape[0]); ++b) std::copy_n(&all.data[b * step], taken, &out.data[b * taken]);
  return out;
}

// Of a folded bundle: `iou` is the share of the label map that is right.
Check check_folded(Backend& backend, const Bundle& bundle, const Golden& golden) {
  FoldedAnswer got = backend.labels(*backend.encode_image(golden.image));
  if (!golden.logits.data.empty()) got.logits = first_names(got.logits, golden.logits.shape[1]);
  if (got.label_map.shape != golden.label_map.shape || got.logits.shape != golden.logits.shape || got.presence.shape != golden.presence.shape)
    fail(DIGSEG_RUNTIME, "the golden sample gave a label map, logits or presence of another shape than expected; export the bundle again");
  const Difference masks = difference(got.logits, golden.logits, 1e-12), presence = difference(got.presence, golden.presence, 1.0);
  size_t same = 0;
  for (size_t i = 0; i < golden.label_map.data.size(); ++i) same += got.label_map.data[i] == golden.label_map.data[i];
  Check check{masks.largest, std::max(presence.relative, masks.relative), static_cast<double>(same) / static_cast<double>(golden.label_map.data.size()), false};
  check.passed = check.relative <= bundle.limit_relative && check.iou >= bundle.limit_labels;
  return check;
}

}  // namespace

Check check_golden(Backend& backend, const Bundle& bundle) {
  const Golden golden(bundle);
  if (bundle.folded()) return check_folded(backend, bundle, golden);
  const Answer got = answer(backend, golden, backend.encode_text(golden.token_ids, golden.token_mask));
  if (got.logits.shape != golden.logits.shape || got.presence.shape != golden.presence.shape)
    fail(DIGSEG_RUNTIME, "the golden sample gave logits of another shape than expected; export the bundle again");
  const Difference masks = difference(got.logits, golden.logits, 1e-12);
  const Difference presence = difference(got.presence, golden.presence, 1.0);  // a logit near 0 is not judged by its own size
  Check check{masks.largest, std::max(masks.relative, presence.relative), mask_iou(got.logits, golden.logits), false};
  check.passed = check.relative <= bundle.limit_relative && check.iou >= bundle.limit_iou;
  return check;
}

namespace {

struct Right {
  std::string name;
  std::unique_ptr<Backend> backend;
  double seconds = 0;
  Optimised graphs;
};

std::unique_ptr<Backend> create_right(const std::string& name, const Bundle& bundle, const BackendSettings& settings) {
  std::unique_ptr<Backend> backend = create_backend(name, bundle, settings);
  const Check check = check_golden(*backend, bundle);
  if (!check.passed)
    fail(DIGSEG_RUNTIME, backend->detail() + " is wrong on the golden sample: relative error " + std::to_string(check.relative) + (bundle.folded() ? ", share of the label map " : ", mask IoU ") +
                             std::to_string(check.iou) + ", allowed " + std::to_string(bundle.limit_relative) + " and " +
                             std::to_string(bundle.folded() ? bundle.limit_labels : bundle.limit_iou) + "; take another backend or export the bundle again");
  return backend;
}

// On a CPU the optimised graphs are kept, and what is returned runs them: they too were checked.
Right assess(const std::string& name, const Bundle& bundle, const BackendSettings& settings, const Verdicts& verdicts) {
  Right right{name, nullptr, 0, name == "onnxruntime" ? verdicts.draft(bundle) : Optimised{}};
  if (right.graphs.empty()) {
    right.backend = create_right(name, bundle, settings);
    return right;
  }
  BackendSettings changed = settings;
  changed.optimised = right.graphs, changed.optimise = true;
  try {
    right.backend = create_right(name, bundle, changed);
    changed.optimised = right.graphs = verdicts.keep(right.graphs), changed.optimise = false;
    if (!right.graphs.empty()) right.backend = create_right(name, bundle, changed);
  } catch (const Error&) {  // the graphs as they are decide
    Verdicts::drop(right.graphs);
    right.graphs = {};
    if (right.backend == nullptr) right.backend = create_right(name, bundle, settings);
  }
  return right;
}

std::vector<Right> all_right(const Bundle& bundle, const BackendSettings& settings, const Verdicts& verdicts, const Log& log) {
  std::vector<Right> right;
  std::string names, reason, refusals;  // backends in a row with one reason are said together
  digseg_status worst = DIGSEG_UNAVAILABLE;
  const auto refuse = [&](const std::string& name, const std::string& why) {
    log(DIGSEG_LOG_DEBUG, name + " is out: " + why);
    if (why != reason && !names.empty()) refusals += names + ": " + reason + " | ", names.clear();
    names += (names.empty() ? "" : ", ") + name, reason = why;
  };
  for (const std::string& name : backend_names()) {
    try {
      right.push_back(assess(name, bundle, settings, verdicts));
    } catch (const Error& error) {
      if (error.status != DIGSEG_UNAVAILABLE) worst = error.status;
      refuse(name, error.what());
    } catch (const std::exception& error) {  // out of memory, or a defect: another backend may still be right
      worst = DIGSEG_RUNTIME;
      refuse(name, error.what());
    }
  }
  if (right.empty()) fail(worst, "no backend can run here (" + refusals + names + ": " + reason + ")");
  return right;
}

}  // namespace

std::unique_ptr<Backend> named_backend(const std::string& name, const Bundle& bundle, const BackendSettings& settings, const char* cache, const Log& log) {
  const Verdicts verdicts(cache, bundle, settings, log);
  if (verdicts.was_right(name)) return create_backend(name, bundle, settings);
  std::unique_ptr<Backend> backend = create_right(name, bundle, settings);
  verdicts.write_right(name);
  log(DIGSEG_LOG_INFO, "backend " + backend->detail() + ", right on the golden sample");
  return backend;
}

namespace {

// The backend of the verdict; nullptr where none is known, or it does not work any more.
std::unique_ptr<Backend> known_backend(const Bundle& bundle, const BackendSettings& settings, const Verdicts& verdicts, const Log& log) {
  Known known;
  if (!verdicts.read(bundle, known)) return nullptr;
  try {
    BackendSettings changed = settings;
    changed.optimised = known.graphs;
    std::unique_ptr<Backend> backend = create_backend(known.backend, bundle, changed);
    log(DIGSEG_LOG_INFO, "backend " + backend->detail() + ", as chosen before");
    return backend;
  } catch (const Error& error) {
    log(DIGSEG_LOG_INFO, known.backend + " does not work any more, choosing again: " + error.what());
    return nullptr;
  }
}

}  // namespace

std::unique_ptr<Backend> choose_backend(const Bundle& bundle, const BackendSettings& settings, const char* cache, const Log& log) {
  const Verdicts verdicts(cache, bundle, settings, log);
  if (std::unique_ptr<Backend> backend = known_backend(bundle, settings, verdicts, log)) return backend;
  const std::unique_ptr<Turn> turn = verdicts.turn(log);
  if (turn != nullptr && turn->waited())
    if (std::unique_ptr<Backend> backend = known_backend(bundle, settings, verdicts, log)) return backend;
  std::vector<Right> right = all_right(bundle, settings, verdicts, log);
  if (right.size() > 1) {
    const Golden golden(bundle);
    for (Right& one : right) one.seconds = median_seconds(*one.backend, golden);
    std::stable_sort(right.begin(), right.end(), [](const Right& a, const Right& b) { return a.seconds < b.seconds; });
    for (const Right& one : right) log(DIGSEG_LOG_INFO, one.name + ": " + std::to_string(1e3 * one.seconds) + " ms on the golden sample");
  }
  for (size_t i = 1; i < right.size(); ++i) Verdicts::drop(right[i].graphs);
  verdicts.write({right.front().name, right.front().graphs});
  log(DIGSEG_LOG_INFO, "backend " + right.front().backend->detail());
  return std::move(right.front().backend);
}

}  // namespace digseg
