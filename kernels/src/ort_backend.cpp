// ONNX Runtime, loaded with dlopen: CPU, or its CUDA provider where the library has one.
//
// On the CPU a graph's float32 twin (`*.fp32.onnx`) over the same stored weights runs where the bundle has one, as in Python.
// The two graphs are opened side by side: optimising them is most of a start.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <system_error>

#include "backend.hpp"
#include "error.hpp"
#include "file.hpp"
#include "half.hpp"
#include "ort_api.hpp"

namespace digseg {
namespace {

const char* const kInstall = "install ONNX Runtime, or name its library in digseg_options.onnxruntime_library or $DIGSEG_ONNXRUNTIME";

// The library, found once per engine; the system keeps one copy of it per process.
class Runtime {
 public:
  explicit Runtime(const std::string& asked) {
    std::vector<std::string> names{"libonnxruntime.so.1", "libonnxruntime.so"};
    const char* variable = std::getenv("DIGSEG_ONNXRUNTIME");
    if (!asked.empty()) names = {asked};
    else if (variable != nullptr && *variable) names = {variable};
    std::string why;
    void* library = nullptr;
    for (const std::string& name : names)
      if (library == nullptr) library = open_library(name, why);
    if (library == nullptr) fail(DIGSEG_UNAVAILABLE, "ONNX Runtime cannot be loaded (" + why + "); " + kInstall);
    const auto entry = reinterpret_cast<const OrtApiBase* (*)()>(library_symbol(library, "OrtGetApiBase"));
    if (entry == nullptr) fail(DIGSEG_UNAVAILABLE, names.front() + " is not ONNX Runtime: it has no OrtGetApiBase; " + kInstall);
    version = entry()->GetVersionString();
    const int major = std::atoi(version.c_str());
    const size_t dot = version.find('.');
    const int minor = dot == std::string::npos ? 0 : std::atoi(version.c_str() + dot + 1);
    // An older runtime prints to the terminal when asked for an interface it does not have, so it is not asked.
    if (major == 1 && minor >= static_cast<int>(kOrtApi)) api = entry()->GetApi(kOrtApi);
    if (api == nullptr)
      fail(DIGSEG_INCOMPATIBLE, "ONNX Runtime " + version + " is too old or unknown; expected " + kOrtLeast + " or a newer 1.x; " + kInstall);
  }

  template <typename Slot, typename... Arguments>
  auto call(Arguments... arguments) const {
    return Slot::call(api, arguments...);
  }

  // A call that returns a status: throws its text.
  template <typename Slot, typename... Arguments>
  void check(const std::string& what, Arguments... arguments) const {
    OrtStatus* status = Slot::call(api, arguments...);
    if (status == nullptr) return;
    const std::string text = call<ort::GetErrorMessage>(static_cast<const OrtStatus*>(status));
    call<ort::ReleaseStatus>(status);
    fail(DIGSEG_RUNTIME, "onnxruntime " + version + ", " + what + ": " + text);
  }

  const void* api = nullptr;
  std::string version;
};

// An object of the runtime, released with its own function.
template <typename Object, typename ReleaseSlot>
class Owned {
 public:
  explicit Owned(const Runtime& runtime) : runtime_(&runtime) {}
  ~Owned() {
    if (object != nullptr) runtime_->call<ReleaseSlot>(object);
  }
  Owned(Owned&& other) noexcept : object(other.object), runtime_(other.runtime_) { other.object = nullptr; }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Object* object = nullptr;

 private:
  const Runtime* runtime_;
};
using Value = Owned<OrtValue, ort::ReleaseValue>;

struct Input {
  const char* name;
  const void* data;
  size_t bytes;
  const Shape* shape;
  int type;
};

std::vector<uint16_t> to_half(const Floats& from) {
  std::vector<uint16_t> out(from.data.size());
  std::transform(from.data.begin(), from.data.end(), out.begin(), float_to_half);
  return out;
}

// How many cores this process may use where it is bound to fewer than the machine has (taskset, a container's cpuset), else
// 0: ONNX Runtime counts the machine's and binds its threads to them, outside what taskset allows, or, where a container forbids
// that, more threads than cores, which wait for each other.
int cores_if_bound() {
  const int count = usable_cores();
  return count < static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)) ? count : 0;
}

class OrtBackend : public Backend {
 public:
  OrtBackend(const Bundle& bundle, const BackendSettings& settings, bool cuda)
      : runtime_(settings.onnxruntime_library), settings_(settings), cuda_(cuda), env_(runtime_), memory_(runtime_), text_(runtime_), segmenter_(runtime_) {
    if (cuda) expect_cuda();
    half_ = cuda && bundle.precision == "fp16";
    if (cuda && bundle.precision == "bf16")
      fail(DIGSEG_UNAVAILABLE, "a bf16 bundle does not run on onnxruntime-cuda here; export fp16 or fp32");
    const auto graph = [&](const std::string& file) { return !cuda && bundle.lists(twin(file)) ? twin(file) : file; };
    runtime_.check<ort::CreateEnv>("start", kOrtErrorSeverity, "digseg", &env_.object);
    runtime_.check<ort::CreateCpuMemoryInfo>("start", 1, 0, &memory_.object);  // arena allocator, default memory
    const std::string text_path = bundle.path(graph(bundle.text_encoder.file));
    // Its idle threads do not spin: they would take the cores from the segmenter, which runs next.
    const auto open_text = [this, text_path] { open(text_path, settings_.optimised.text_encoder, false, text_); };
    text_opened_ = std::async(std::launch::deferred, open_text).share();
    try {
      if (settings.text_at_once) text_opened_ = std::async(std::launch::async, open_text).share();
    } catch (const std::system_error&) {  // no thread to be had: opened with the first prompt
    }
    open(bundle.path(graph(bundle.segmenter.file)), settings_.optimised.segmenter, true, segmenter_);
    const bool wide = graph(bundle.text_encoder.file) != bundle.text_encoder.file;
    const std::string stored = wide ? bundle.precision + " weights widened to fp32" : bundle.precision;
    detail_ = "onnxruntime " + runtime_.version + (cuda ? ", CUDAExecutionProvider, " : ", CPUExecutionProvider, ") + stored;
  }

  FoldedText encode_text(const Ints& ids, const Flags& mask) override {
    std::shared_future<void>(text_opened_).get();
    const std::vector<Input> inputs{{"token_ids", ids.data.data(), ids.data.size() * 8, &ids.shape, kOrtInt64},
                                    {"token_mask", mask.data.data(), mask.data.size(), &mask.shape, kOrtBool}};
    std::vector<Floats> out = run(text_.object, inputs, {"text_keys", "text_values"});
    return {std::move(out[0]), std::move(out[1])};
  }

  Floats segment(const Floats& image, const Floats& keys, const Floats& values, const Flags& mask) override {
    std::vector<uint16_t> narrow_keys, narrow_values;
    const auto text = [&](const char* name, const Floats& wide, std::vector<uint16_t>& narrow) -> Input {
      if (!half_) return {name, wide.data.data(), wide.data.size() * 4, &wide.shape, kOrtFloat};
      narrow = to_half(wide);
      return {name, narrow.data(), narrow.size() * 2, &wide.shape, kOrtFloat16};
    };
    const std::vector<Input> inputs{{"image", image.data.data(), image.data.size() * 4, &image.shape, kOrtFloat},
                                    text("text_keys", keys, narrow_keys), text("text_values", values, narrow_values),
                                    {"token_mask", mask.data.data(), mask.data.size(), &mask.shape, kOrtBool}};
    return std::move(run(segmenter_.object, inputs, {"logits"})[0]);
  }

  const std::string& detail() const override { return detail_; }

 private:
  // File name of a graph's twin for the CPU.
  static std::string twin(std::string name) {
    const size_t dot = name.rfind(".onnx");
    return dot == std::string::npos ? name : name.insert(dot, ".fp32");
  }

  void expect_cuda() const {
    char** names = nullptr;
    int count = 0;
    runtime_.check<ort::GetAvailableProviders>("list providers", &names, &count);
    const bool found = std::any_of(names, names + count, [](const char* name) { return std::strcmp(name, "CUDAExecutionProvider") == 0; });
    if (OrtStatus* status = runtime_.call<ort::ReleaseAvailableProviders>(names, count)) runtime_.call<ort::ReleaseStatus>(status);
    if (!found) fail(DIGSEG_UNAVAILABLE, "this ONNX Runtime (" + runtime_.version + ") has no CUDA provider; install its GPU build");
  }

  void add_cuda(OrtSessionOptions* options) const {
    Owned<OrtCudaOptions, ort::ReleaseCUDAProviderOptions> cuda(runtime_);
    runtime_.check<ort::CreateCUDAProviderOptions>("CUDA options", &cuda.object);
    const std::string device = std::to_string(settings_.device);
    const char* const keys[] = {"device_id", "arena_extend_strategy", "use_tf32"};
    const char* const values[] = {device.c_str(), "kSameAsRequested", "0"};
    runtime_.check<ort::UpdateCUDAProviderOptions>("CUDA options", cuda.object, keys, values, size_t{3});
    try {
      runtime_.check<ort::SessionOptionsAppendExecutionProvider_CUDA_V2>("CUDA provider", options, static_cast<const OrtCudaOptions*>(cuda.object));
    } catch (const Error& error) {
      fail(DIGSEG_UNAVAILABLE, error.what());
    }
  }

  void open(const std::string& graph, const OptimisedGraph& optimised, bool spin, Owned<OrtSession, ort::ReleaseSession>& session) const {
    std::string path = graph;
    Owned<OrtSessionOptions, ort::ReleaseSessionOptions> options(runtime_);
    runtime_.check<ort::CreateSessionOptions>("options", &options.object);
    runtime_.check<ort::SetSessionLogSeverityLevel>("options", options.object, kOrtErrorSeverity);
    runtime_.check<ort::DisableMemPattern>("options", options.object);  // steadier memory when shapes vary
    const int threads = settings_.threads > 0 ? settings_.threads : cores_if_bound();
    if (threads > 0) runtime_.check<ort::SetIntraOpNumThreads>("options", options.object, threads);
    if (!spin) runtime_.check<ort::AddSessionConfigEntry>("options", options.object, "session.intra_op.allow_spinning", "0");
    if (cuda_) add_cuda(options.object);
    if (!cuda_ && !optimised.path.empty()) {
      if (settings_.optimise) {
        runtime_.check<ort::SetOptimizedModelFilePath>("options", options.object, optimised.path.c_str());
      } else if (file_sha256(optimised.path) == optimised.sha256) {
        runtime_.check<ort::SetSessionGraphOptimizationLevel>("options", options.object, kOrtNoOptimisation);
        path = optimised.path;
      } else {
        std::remove(optimised.path.c_str());  // the next start misses it and makes it again
      }
    }
    runtime_.check<ort::CreateSession>("cannot load " + path, static_cast<const OrtEnv*>(env_.object), path.c_str(), static_cast<const OrtSessionOptions*>(options.object), &session.object);
  }

  std::vector<Floats> run(OrtSession* session, const std::vector<Input>& inputs, const std::vector<const char*>& outputs) {
    std::vector<Value> values, results;
    std::vector<const char*> names;
    std::vector<const OrtValue*> feeds;
    for (const Input& input : inputs) {
      values.emplace_back(runtime_);
      // The runtime only reads inputs; its interface lacks the const.
      runtime_.check<ort::CreateTensorWithDataAsOrtValue>(input.name, static_cast<const OrtMemoryInfo*>(memory_.object), const_cast<void*>(input.data), input.bytes,
                                                          input.shape->data(), input.shape->size(), input.type, &values.back().object);
      names.push_back(input.name);
      feeds.push_back(values.back().object);
    }
    std::vector<OrtValue*> raw(outputs.size());
    OrtStatus* status = runtime_.call<ort::Run>(session, static_cast<const OrtRunOptions*>(nullptr), names.data(), feeds.data(), feeds.size(), outputs.data(), outputs.size(), raw.data());
    for (OrtValue* value : raw) {
      results.emplace_back(runtime_);
      results.back().object = value;
    }
    if (status != nullptr) {
      const std::string text = runtime_.call<ort::GetErrorMessage>(static_cast<const OrtStatus*>(status));
      runtime_.call<ort::ReleaseStatus>(status);
      fail(DIGSEG_RUNTIME, "onnxruntime " + runtime_.version + " failed while running: " + text + "; check the bundle with digseg_engine_verify");
    }
    std::vector<Floats> out;
    for (size_t i = 0; i < results.size(); ++i) out.push_back(read(results[i].object, outputs[i]));
    return out;
  }

  Floats read(OrtValue* value, const std::string& name) const {
    Owned<OrtTypeInfo, ort::ReleaseTensorTypeAndShapeInfo> info(runtime_);
    runtime_.check<ort::GetTensorTypeAndShape>(name, static_cast<const OrtValue*>(value), &info.object);
    const OrtTypeInfo* shape_info = info.object;
    int type = 0;
    size_t sides = 0;
    void* data = nullptr;
    runtime_.check<ort::GetTensorElementType>(name, shape_info, &type);
    runtime_.check<ort::GetDimensionsCount>(name, shape_info, &sides);
    Shape shape(sides);
    runtime_.check<ort::GetDimensions>(name, shape_info, shape.data(), sides);
    runtime_.check<ort::GetTensorMutableData>(name, value, &data);
    Floats out(shape);
    if (type == kOrtFloat) {
      std::copy_n(static_cast<const float*>(data), out.data.size(), out.data.begin());
    } else if (type == kOrtFloat16) {
      std::transform(static_cast<const uint16_t*>(data), static_cast<const uint16_t*>(data) + out.data.size(), out.data.begin(), half_to_float);
    } else {
      fail(DIGSEG_RUNTIME, "output " + name + " has element type " + std::to_string(type) + "; expected float or half; export the bundle again");
    }
    return out;
  }

  Runtime runtime_;
  BackendSettings settings_;
  bool cuda_, half_ = false;
  Owned<OrtEnv, ort::ReleaseEnv> env_;
  Owned<OrtMemoryInfo, ort::ReleaseMemoryInfo> memory_;
  Owned<OrtSession, ort::ReleaseSession> text_, segmenter_;
  std::string detail_;
  std::shared_future<void> text_opened_;  // last: its thread uses what stands above
};

}  // namespace

std::shared_future<std::shared_ptr<void>> start_onnxruntime(const BackendSettings& settings) try {
  struct Started {
    Runtime runtime;
    Owned<OrtEnv, ort::ReleaseEnv> env;
    explicit Started(const std::string& library) : runtime(library), env(runtime) {
      runtime.check<ort::CreateEnv>("start", kOrtErrorSeverity, "digseg", &env.object);
    }
  };
  return std::async(std::launch::async, [library = settings.onnxruntime_library]() -> std::shared_ptr<void> {
           try {
             return std::make_shared<Started>(library);
           } catch (const Error&) {  // the backend will say so
             return nullptr;
           }
         }).share();
} catch (const std::system_error&) {  // no thread to be had
  return {};
}

std::string onnxruntime_version(const BackendSettings& settings) try {
  return Runtime(settings.onnxruntime_library).version;
} catch (const Error&) {
  return "";
}

std::unique_ptr<Backend> create_onnxruntime(const Bundle& bundle, const BackendSettings& settings, bool cuda) {
  return std::make_unique<OrtBackend>(bundle, settings, cuda);
}

}  // namespace digseg
