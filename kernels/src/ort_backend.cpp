// ONNX Runtime, loaded with dlopen: CPU, or its CUDA provider where the library has one.
//
// On the CPU a graph's float32 form (`*.fp32.onnx`) over the same stored weights runs where the bundle has one, as in Python.
// The graphs are opened side by side: optimising them is most of a start.
#include <unistd.h>

#include <algorithm>
#include <array>
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

constexpr uint64_t kMostKept = 4ull << 30;
constexpr const char* kLibrary = "libonnxruntime.so.1";
const char* const kInstall = "install ONNX Runtime, or name its library in options.onnxruntime_library or $DIGSEG_ONNXRUNTIME";

// ONNX Runtime 1.29 and newer writes a device id into the user's cache folder and looks its vendor's host up, from the moment
// it starts; only this variable, set before it is loaded, prevents that. A value of the user's own is left as it is.
// Once per process: setenv and another thread's getenv must not meet, see docs/embedding.md.
void silence_telemetry() {
  static const int done = setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  (void)done;
}

// The library, found once per engine; the system keeps one copy of it per process.
class Runtime {
 public:
  explicit Runtime(const std::string& asked) {
    const char* variable = std::getenv("DIGSEG_ONNXRUNTIME");
    const std::string name = !asked.empty() ? asked : variable != nullptr && *variable ? variable : kLibrary;
    std::string why;
    silence_telemetry();
    void* library = open_library(name, why);
    if (library == nullptr) fail(DIGSEG_UNAVAILABLE, "ONNX Runtime cannot be loaded (" + why + "); " + kInstall);
    const auto entry = reinterpret_cast<const OrtApiBase* (*)()>(library_symbol(library, "OrtGetApiBase"));
    if (entry == nullptr) fail(DIGSEG_UNAVAILABLE, name + " is not ONNX Runtime: it has no OrtGetApiBase; " + kInstall);
    version = entry()->GetVersionString();
    const int major = std::atoi(version.c_str());
    const size_t dot = version.find('.');
    const int minor = dot == std::string::npos ? 0 : std::atoi(version.c_str() + dot + 1);
    // An older runtime prints to the terminal when asked for an interface it does not have, so it is not asked.
    if (major == 1 && minor >= kOrtLeastMinor) api = entry()->GetApi(kOrtTable);
    if (api == nullptr)
      fail(DIGSEG_INCOMPATIBLE, "ONNX Runtime " + version + " is too old or unknown; expected " + kOrtLeast + " or a newer 1.x; " + kInstall);
  }

  // Throws the text of a status that says no.
  void check(const std::string& what, OrtStatus* status) const {
    if (status != nullptr) fail(DIGSEG_RUNTIME, "onnxruntime " + version + ", " + what + ": " + text_of(status));
  }

  std::string text_of(OrtStatus* status) const {
    const std::string text = api->GetErrorMessage(status);
    api->ReleaseStatus(status);
    return text;
  }

  const OrtApi* api = nullptr;
  std::string version;
};

// An object of the runtime, released with its own function.
template <typename Object, auto Release>
class Owned {
 public:
  explicit Owned(const Runtime& runtime) : runtime_(&runtime) {}
  ~Owned() {
    if (object != nullptr) (runtime_->api->*Release)(object);
  }
  Owned(Owned&& other) noexcept : object(other.object), runtime_(other.runtime_) { other.object = nullptr; }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Object* object = nullptr;

 private:
  const Runtime* runtime_;
};
using Value = Owned<OrtValue, &OrtApi::ReleaseValue>;
using Session = Owned<OrtSession, &OrtApi::ReleaseSession>;

// Numbers of ours, or, where `kept` is set, an array of the runtime's.
struct Input {
  const char* name;
  const void* data;
  size_t bytes;
  const Shape* shape;
  ONNXTensorElementDataType type;
  const OrtValue* kept = nullptr;
};

Input input_of(const char* name, const Floats& floats) {
  return {name, floats.data.data(), floats.data.size() * 4, &floats.shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
}

Input input_of(const char* name, const Flags& flags) {
  return {name, flags.data.data(), flags.data.size(), &flags.shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
}

// In the graph's own element type, and on a GPU where the provider is there.
class OrtEncoded : public Encoded {
 public:
  OrtEncoded(Value value, size_t bytes) : value_(std::move(value)), bytes_(bytes) {}
  size_t bytes() const override { return bytes_; }
  Input input() const { return {contract::kEncoding, nullptr, 0, nullptr, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, value_.object}; }

 private:
  Value value_;
  size_t bytes_;
};

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
      : runtime_(settings.onnxruntime_library), bundle_(bundle), settings_(settings), cuda_(cuda), env_(runtime_), memory_(runtime_), device_memory_(runtime_) {
    if (cuda) expect_cuda();
    if (cuda && bundle.precision == "bf16")
      fail(DIGSEG_UNAVAILABLE, "a bf16 bundle does not run on onnxruntime-cuda here; export fp16 or fp32");
    runtime_.check("start", runtime_.api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "digseg", &env_.object));
    runtime_.check("start", runtime_.api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_.object));
    if (cuda) runtime_.check("start", runtime_.api->CreateMemoryInfo("Cuda", OrtDeviceAllocator, settings.device, OrtMemTypeDefault, &device_memory_.object));
    for (int graph = 0; graph < contract::kGraphs; ++graph) sessions_.emplace_back(runtime_);
    bool wide = false;
    for (const Graph graph : bundle.graphs()) {
      const contract::GraphFile& file = file_of(graph);
      const bool for_cpu = !cuda && bundle.lists(file.cpu_file);
      wide = wide || (for_cpu && graph == contract::kImageEncoder);
      start(graph, for_cpu ? file.cpu_file : file.file);
    }
    for (const Graph graph : bundle.graphs())
      if (graph != contract::kTextEncoder) session(graph);  // what cannot be opened is said now
    if (!bundle.folded()) text_width_ = input_width(session(contract::kMaskDecoder), contract::kTextKeys);
    if (bundle.folded()) folded_ = {contract::kLabelMap};
    if (bundle.folded() && !bundle.labels_only) folded_.push_back(contract::kLogits);
    if (bundle.folded() && bundle.has_presence) folded_.push_back(contract::kPresenceLogits);
    const std::string stored = wide ? bundle.precision + " weights widened to fp32" : bundle.precision;
    detail_ = "onnxruntime " + runtime_.version + (cuda ? ", CUDAExecutionProvider, " : ", CPUExecutionProvider, ") + stored;
  }

  FoldedText encode_text(const Ints& ids, const Flags& mask) override {
    const Input numbers{contract::kTokenIds, ids.data.data(), ids.data.size() * 8, &ids.shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64};
    const std::vector<Value> out = run(contract::kTextEncoder, {numbers, input_of(contract::kTokenMask, mask)}, {contract::kTextKeys, contract::kTextValues});
    return {read(out[0].object, contract::kTextKeys), read(out[1].object, contract::kTextValues), mask};
  }

  std::unique_ptr<Encoded> encode_image(const Floats& image) override {
    const Input input = input_of(contract::kImage, image);
    Value value = cuda_ ? run_on_device(contract::kImageEncoder, input, contract::kEncoding)
                        : std::move(run(contract::kImageEncoder, {input}, {contract::kEncoding})[0]);
    const Info info = info_of(value.object, contract::kEncoding);
    return std::make_unique<OrtEncoded>(std::move(value), count_of(info.shape) * bytes_of(info.width));
  }

  Floats presence(const Encoded& encoded, const FoldedText& text) override { return ask(contract::kPresence, encoded, text, contract::kPresenceLogits); }
  Floats decode(const Encoded& encoded, const FoldedText& text) override { return ask(contract::kMaskDecoder, encoded, text, contract::kLogits); }

  FoldedAnswer labels(const Encoded& encoded) override {
    const std::vector<Value> out = run(contract::kLabels, {static_cast<const OrtEncoded&>(encoded).input()}, folded_);
    FoldedAnswer answer;
    for (size_t i = 0; i < folded_.size(); ++i) {
      if (folded_[i] == contract::kLabelMap) answer.label_map = read_labels(out[i].object);
      else (folded_[i] == contract::kLogits ? answer.logits : answer.presence) = read(out[i].object, folded_[i]);
    }
    return answer;
  }

  const std::string& detail() const override { return detail_; }

 private:
  struct Info {
    Shape shape;
    Width width;
  };

  // Opens a graph on a thread of its own; the text encoder, where it may not be needed, with the first prompt.
  void start(Graph graph, const std::string& file) {
    const auto open_it = [this, graph, file] { open(graph, file); };
    opened_[graph] = std::async(std::launch::deferred, open_it).share();
    if (graph == contract::kTextEncoder && !settings_.text_at_once) return;
    try {
      opened_[graph] = std::async(std::launch::async, open_it).share();
    } catch (const std::system_error&) {  // no thread to be had: opened when it is needed
    }
  }

  OrtSession* session(Graph graph) {
    std::shared_future<void>(opened_[graph]).get();  // a copy of its own for each thread
    return sessions_[graph].object;
  }

  // One of the graphs that answer K prompts about encoded pictures.
  Floats ask(Graph graph, const Encoded& encoded, const FoldedText& text, const char* answer) {
    std::vector<uint16_t> rooms[2];
    const auto folded = [&](const char* name, const Floats& wide, std::vector<uint16_t>& narrow) -> Input {
      if (text_width_ == Width::Float) return input_of(name, wide);
      narrow = narrowed(text_width_, wide.data);
      return {name, narrow.data(), narrow.size() * 2, &wide.shape, text_width_ == Width::Half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16};
    };
    const std::vector<Input> inputs{static_cast<const OrtEncoded&>(encoded).input(), folded(contract::kTextKeys, text.keys, rooms[0]),
                                    folded(contract::kTextValues, text.values, rooms[1]), input_of(contract::kTokenMask, text.mask)};
    return read(run(graph, inputs, {answer})[0].object, answer);
  }

  void expect_cuda() const {
    char** names = nullptr;
    int count = 0;
    runtime_.check("list providers", runtime_.api->GetAvailableProviders(&names, &count));
    const bool found = std::any_of(names, names + count, [](const char* name) { return std::strcmp(name, "CUDAExecutionProvider") == 0; });
    if (OrtStatus* status = runtime_.api->ReleaseAvailableProviders(names, count)) runtime_.api->ReleaseStatus(status);
    if (!found) fail(DIGSEG_UNAVAILABLE, "this ONNX Runtime (" + runtime_.version + ") has no CUDA provider; install its GPU build");
  }

  void add_cuda(OrtSessionOptions* options) const {
    Owned<OrtCUDAProviderOptionsV2, &OrtApi::ReleaseCUDAProviderOptions> cuda(runtime_);
    runtime_.check("CUDA options", runtime_.api->CreateCUDAProviderOptions(&cuda.object));
    const std::string device = std::to_string(settings_.device);
    const char* const keys[] = {"device_id", "arena_extend_strategy", "use_tf32"};
    const char* const values[] = {device.c_str(), "kSameAsRequested", "0"};
    runtime_.check("CUDA options", runtime_.api->UpdateCUDAProviderOptions(cuda.object, keys, values, size_t{3}));
    try {
      runtime_.check("CUDA provider", runtime_.api->SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda.object));
    } catch (const Error& error) {
      fail(DIGSEG_UNAVAILABLE, error.what());
    }
  }

  void open(Graph number, const std::string& file) {
    Session& session = sessions_[number];
    const auto found = settings_.optimised.find(number);
    const OptimisedGraph optimised = found == settings_.optimised.end() ? OptimisedGraph{} : found->second;
    Owned<OrtSessionOptions, &OrtApi::ReleaseSessionOptions> options(runtime_);
    runtime_.check("options", runtime_.api->CreateSessionOptions(&options.object));
    runtime_.check("options", runtime_.api->SetSessionLogSeverityLevel(options.object, ORT_LOGGING_LEVEL_ERROR));
    runtime_.check("options", runtime_.api->DisableMemPattern(options.object));  // steadier memory when shapes vary
    const int threads = settings_.threads > 0 ? settings_.threads : cores_if_bound();
    if (threads > 0) runtime_.check("options", runtime_.api->SetIntraOpNumThreads(options.object, threads));
    // Every graph has threads of its own; idle ones that spin would take the cores from the graph that runs next.
    runtime_.check("options", runtime_.api->AddSessionConfigEntry(options.object, "session.intra_op.allow_spinning", "0"));
    if (cuda_) add_cuda(options.object);
    const bool kept = !cuda_ && !optimised.path.empty();
    if (kept && settings_.optimise)
      runtime_.check("options", runtime_.api->SetOptimizedModelFilePath(options.object, optimised.path.c_str()));
    if (kept && !settings_.optimise && open_kept(optimised, options.object, session)) return;
    open_as_hashed(file, options.object, session);
    return_memory();
  }

  // A session on the very bytes that were hashed, graph and weights. Weights too large to hold twice are opened by their path,
  // and refused when their seal is another one afterwards.
  void open_as_hashed(const std::string& file, OrtSessionOptions* options, Session& session) const {
    const std::string data = weights_of(file), path = bundle_.path(file), loading = "cannot load " + path;
    const int64_t size = bundle_.file_bytes(data);
    if (size > kLargestRead) {
      runtime_.check(loading, runtime_.api->CreateSession(env_.object, path.c_str(), options, &session.object));
      bundle_.unchanged(file);
      return bundle_.unchanged(data);
    }
    const std::vector<char> graph = bundle_.read(file);
    std::vector<char> weights;
    if (size > 0) {
      weights = bundle_.read(data);
      const char* name = data.c_str();
      char* bytes = weights.data();
      const size_t length = weights.size();
      runtime_.check(loading, runtime_.api->AddExternalInitializersFromFilesInMemory(options, &name, &bytes, &length, 1));
    }
    runtime_.check(loading, runtime_.api->CreateSessionFromArray(env_.object, graph.data(), graph.size(), options, &session.object));
  }

  // The graph that an earlier start optimised, from the very bytes whose hash was checked; false where it was changed.
  bool open_kept(const OptimisedGraph& optimised, OrtSessionOptions* options, Session& session) const {
    std::vector<char> bytes;
    try {
      bytes = read_hashed(optimised.path, kMostKept, optimised.sha256);
    } catch (const Error&) {
      std::remove(optimised.path.c_str());  // the next start misses it and makes it again
      return false;
    }
    runtime_.check("options", runtime_.api->SetSessionGraphOptimizationLevel(options, ORT_DISABLE_ALL));
    runtime_.check("cannot load " + optimised.path,
                   runtime_.api->CreateSessionFromArray(env_.object, bytes.data(), bytes.size(), options, &session.object));
    return true;
  }

  Value value_of(const Input& input) const {
    Value value(runtime_);
    // The runtime only reads inputs; its interface lacks the const.
    runtime_.check(input.name, runtime_.api->CreateTensorWithDataAsOrtValue(memory_.object, const_cast<void*>(input.data), input.bytes,
                                                                            input.shape->data(), input.shape->size(), input.type, &value.object));
    return value;
  }

  void check_run(OrtStatus* status) const {
    if (status != nullptr)
      fail(DIGSEG_RUNTIME, "onnxruntime " + runtime_.version + " failed while running: " + runtime_.text_of(status) + "; check the bundle with digseg_engine_verify");
  }

  std::vector<Value> run(Graph graph, const std::vector<Input>& inputs, const std::vector<const char*>& outputs) {
    OrtSession* opened = session(graph);
    std::vector<Value> values, results;
    std::vector<const char*> names;
    std::vector<const OrtValue*> feeds;
    for (const Input& input : inputs) {
      if (input.kept == nullptr) values.push_back(value_of(input));
      names.push_back(input.name);
      feeds.push_back(input.kept == nullptr ? values.back().object : input.kept);
    }
    std::vector<OrtValue*> raw(outputs.size());
    OrtStatus* status = runtime_.api->Run(opened, nullptr, names.data(), feeds.data(), feeds.size(), outputs.data(), outputs.size(), raw.data());
    for (OrtValue* value : raw) {
      results.emplace_back(runtime_);
      results.back().object = value;
    }
    check_run(status);
    return results;
  }

  // The one output of a graph, left on the GPU. Not run by us yet.
  Value run_on_device(Graph graph, const Input& input, const char* output) {
    OrtSession* opened = session(graph);
    Owned<OrtIoBinding, &OrtApi::ReleaseIoBinding> binding(runtime_);
    const Value fed = value_of(input);
    OrtAllocator* allocator = nullptr;
    OrtValue** found = nullptr;
    size_t count = 0;
    runtime_.check(output, runtime_.api->CreateIoBinding(opened, &binding.object));
    runtime_.check(output, runtime_.api->BindInput(binding.object, input.name, fed.object));
    runtime_.check(output, runtime_.api->BindOutputToDevice(binding.object, output, device_memory_.object));
    check_run(runtime_.api->RunWithBinding(opened, nullptr, binding.object));
    runtime_.check(output, runtime_.api->GetAllocatorWithDefaultOptions(&allocator));
    runtime_.check(output, runtime_.api->GetBoundOutputValues(binding.object, allocator, &found, &count));
    Value value(runtime_);
    value.object = found[0];  // one output is bound, so there is one
    runtime_.check(output, runtime_.api->AllocatorFree(allocator, found));
    return value;
  }

  static Width width_of(ONNXTensorElementDataType type, const std::string& name) {
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return Width::Float;
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) return Width::Half;
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16) return Width::BFloat;
    fail(DIGSEG_INCOMPATIBLE, "the graph's tensor " + name + " has element type " + std::to_string(static_cast<int>(type)) +
                                  "; expected float, half or bfloat16; export the bundle again");
  }

  // What a graph takes at one of its inputs: a bundle's own graphs and their float32 forms differ.
  Width input_width(const OrtSession* session, const std::string& wanted) const {
    size_t count = 0;
    runtime_.check("inputs", runtime_.api->SessionGetInputCount(session, &count));
    OrtAllocator* allocator = nullptr;
    runtime_.check("inputs", runtime_.api->GetAllocatorWithDefaultOptions(&allocator));
    for (size_t i = 0; i < count; ++i) {
      char* text = nullptr;
      runtime_.check("inputs", runtime_.api->SessionGetInputName(session, i, allocator, &text));
      const std::string name = text;
      runtime_.check("inputs", runtime_.api->AllocatorFree(allocator, text));
      if (name != wanted) continue;
      Owned<OrtTypeInfo, &OrtApi::ReleaseTypeInfo> info(runtime_);
      const OrtTensorTypeAndShapeInfo* tensor = nullptr;
      ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
      runtime_.check("inputs", runtime_.api->SessionGetInputTypeInfo(session, i, &info.object));
      runtime_.check("inputs", runtime_.api->CastTypeInfoToTensorInfo(info.object, &tensor));
      runtime_.check("inputs", runtime_.api->GetTensorElementType(tensor, &type));
      return width_of(type, name);
    }
    fail(DIGSEG_INCOMPATIBLE, "the mask decoder has no input " + wanted + "; export the bundle again");
  }

  std::pair<Shape, ONNXTensorElementDataType> form_of(const OrtValue* value, const char* name) const {
    Owned<OrtTensorTypeAndShapeInfo, &OrtApi::ReleaseTensorTypeAndShapeInfo> info(runtime_);
    runtime_.check(name, runtime_.api->GetTensorTypeAndShape(value, &info.object));
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    size_t sides = 0;
    runtime_.check(name, runtime_.api->GetTensorElementType(info.object, &type));
    runtime_.check(name, runtime_.api->GetDimensionsCount(info.object, &sides));
    Shape shape(sides);
    runtime_.check(name, runtime_.api->GetDimensions(info.object, shape.data(), sides));
    return {shape, type};
  }

  Info info_of(const OrtValue* value, const char* name) const {
    const auto form = form_of(value, name);
    return {form.first, width_of(form.second, name)};
  }

  // A label map of 8 or 16 bits.
  Labels read_labels(OrtValue* value) const {
    const auto form = form_of(value, contract::kLabelMap);
    void* data = nullptr;
    runtime_.check(contract::kLabelMap, runtime_.api->GetTensorMutableData(value, &data));
    Labels out(form.first);
    if (form.second == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) std::copy_n(static_cast<const uint8_t*>(data), out.data.size(), out.data.begin());
    else if (form.second == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16) std::copy_n(static_cast<const uint16_t*>(data), out.data.size(), out.data.begin());
    else fail(DIGSEG_INCOMPATIBLE, "the label map has element type " + std::to_string(static_cast<int>(form.second)) + "; expected 8 or 16 unsigned bits; export the bundle again");
    return out;
  }

  Floats read(OrtValue* value, const char* name) const {
    const Info info = info_of(value, name);
    void* data = nullptr;
    runtime_.check(name, runtime_.api->GetTensorMutableData(value, &data));
    Floats out(info.shape);
    widen(info.width, data, out.data.size(), out.data.data());
    return out;
  }

  Runtime runtime_;
  const Bundle bundle_;  // its own: encodings may keep a backend longer than the engine lives
  BackendSettings settings_;
  bool cuda_;
  Width text_width_ = Width::Float;
  Owned<OrtEnv, &OrtApi::ReleaseEnv> env_;
  Owned<OrtMemoryInfo, &OrtApi::ReleaseMemoryInfo> memory_, device_memory_;
  std::vector<Session> sessions_;  // by number of the graph
  std::string detail_;
  std::vector<const char*> folded_;  // outputs that are asked of a folded bundle
  std::array<std::shared_future<void>, contract::kGraphs> opened_;  // last: their threads use what stands above
};

}  // namespace

std::shared_future<std::shared_ptr<void>> start_onnxruntime(const BackendSettings& settings) try {
  silence_telemetry();  // on the caller's thread
  struct Started {
    Runtime runtime;
    Owned<OrtEnv, &OrtApi::ReleaseEnv> env;
    explicit Started(const std::string& library) : runtime(library), env(runtime) {
      runtime.check("start", runtime.api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "digseg", &env.object));
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
