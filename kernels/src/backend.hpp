// Ways to run the graphs of a bundle. A backend is thread-safe.
#pragma once
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "tensor.hpp"

namespace digseg {

struct FoldedText {
  Floats keys;    // [K, S, heads, d, L]
  Floats values;  // [K, S, heads, L, Co]
  Flags mask;     // [K, L]
};

// What a backend made of pictures, [B, M, H/s, W/s]: it stays where the backend keeps it, and must not outlive it.
class Encoded {
 public:
  virtual ~Encoded() = default;
  virtual size_t bytes() const = 0;
};

// What the graph of a folded bundle answers about B pictures, for all of its names; empty is what the bundle does not have.
struct FoldedAnswer {
  Labels label_map;         // [B, H, W] at the working size
  Floats logits, presence;  // [B, K, h', w'], [B, K]
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual FoldedText encode_text(const Ints& token_ids, const Flags& token_mask) = 0;   // [K, L] both
  virtual std::unique_ptr<Encoded> encode_image(const Floats& image) = 0;               // [B, 3, H, W]
  virtual Floats presence(const Encoded& encoded, const FoldedText& text) = 0;          // logits [B, K]; only where the bundle has the graph
  virtual Floats decode(const Encoded& encoded, const FoldedText& text) = 0;            // logits [B, K, h', w']
  virtual FoldedAnswer labels(const Encoded& encoded) = 0;                              // of a folded bundle
  virtual const std::string& detail() const = 0;                                        // what really runs, for people
};

// A graph as ONNX Runtime wrote it after optimising it for this processor.
struct OptimisedGraph {
  std::string path, sha256;
};
using Optimised = std::map<Graph, OptimisedGraph>;

struct BackendSettings {
  std::string onnxruntime_library;
  int threads = 0, device = 0;
  bool text_at_once = true;  // open the text encoder beside the other graphs, not with the first prompt
  Optimised optimised;       // on a CPU: opened instead of the bundle's graphs, or written where `optimise` is set
  bool optimise = false;
};

using Log = std::function<void(int level, const std::string& text)>;

// Creates one backend by name. Error(DIGSEG_UNAVAILABLE) when it cannot run here, INCOMPATIBLE for a too-old runtime.
std::unique_ptr<Backend> create_onnxruntime(const Bundle& bundle, const BackendSettings& settings, bool cuda);
std::unique_ptr<Backend> create_tensorrt(const Bundle& bundle, const BackendSettings& settings);
// Starts ONNX Runtime on a thread of its own, so that other work goes on meanwhile; hold it until a backend is created.
std::shared_future<std::shared_ptr<void>> start_onnxruntime(const BackendSettings& settings);
// What a choice depends on: the version of the runtime, "" where there is none; of TensorRT also which plans are stored.
std::string onnxruntime_version(const BackendSettings& settings);
std::string tensorrt_state(const Bundle& bundle);

// The names a caller may ask for, "auto" left out, in order of preference when speeds are equal.
const std::vector<std::string>& backend_names();
std::unique_ptr<Backend> create_backend(const std::string& name, const Bundle& bundle, const BackendSettings& settings);

struct Check {
  double max_error, relative, iou;
  bool passed;
};
Check check_golden(Backend& backend, const Bundle& bundle);

// Every backend that is present is created, checked against the golden sample, and, when several are right, timed; the
// fastest right one is returned, and remembered for the next start. Error(DIGSEG_UNAVAILABLE) lists why each was refused.
// cache: folder of what is remembered; nullptr for the user's cache folder, "" to remember nothing.
std::unique_ptr<Backend> choose_backend(const Bundle& bundle, const BackendSettings& settings, const char* cache, const Log& log);

// The backend asked for and no other. It too must be right on the golden sample: checked once, then remembered as above.
std::unique_ptr<Backend> named_backend(const std::string& name, const Bundle& bundle, const BackendSettings& settings, const char* cache, const Log& log);

}  // namespace digseg
