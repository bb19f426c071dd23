// TensorRT, loaded with dlopen, over plans built on this machine. Written against the headers of TensorRT 10.3 and 11 and
// compiled against both; not run by us yet.
//
// A plan is executable code. It is looked for in the engines/<key>/ folders of this user's cache only, never in a bundle,
// with the sidecar JSON that the Python builder writes (`digseg.engine/1`): its key must name this bundle's graph and precision,
// this TensorRT, driver and GPU, and the bytes that are deserialised are those whose SHA-256 fits.
#include "backend.hpp"
#include "error.hpp"

#ifndef DIGSEG_WITH_TENSORRT

namespace digseg {

std::unique_ptr<Backend> create_tensorrt(const Bundle&, const BackendSettings&) {
  fail(DIGSEG_UNAVAILABLE, "built without it; see -DDIGSEG_TENSORRT_INCLUDE");
}

std::string tensorrt_state(const Bundle&) { return ""; }

}  // namespace digseg

#else

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <mutex>

#include "file.hpp"
#include "half.hpp"
#include "sha256.hpp"
#include "verdict.hpp"

namespace digseg {
namespace {

// Where plans are kept: this user's alone (0700), or nothing is taken from it.
std::string plans_folder() {
  const std::string cache = cache_folder(), folder = cache + "/engines";
  if (cache.empty()) fail(DIGSEG_UNAVAILABLE, "this user has no cache folder for plans; let DIGSEG_CACHE name one");
  const std::string why = private_folder(folder);
  if (!why.empty()) fail(DIGSEG_UNAVAILABLE, folder + " cannot hold plans: " + why + "; let DIGSEG_CACHE name a folder of your own");
  return folder;
}

template <typename Function>
Function symbol(void* library, const char* name) {
  void* found = library_symbol(library, name);
  if (found == nullptr) fail(DIGSEG_UNAVAILABLE, std::string("a library lacks ") + name + "; install TensorRT and CUDA of one release");
  return reinterpret_cast<Function>(found);
}

void* first_library(const std::vector<std::string>& names) {
  std::string why;
  for (const std::string& name : names)
    if (void* library = open_library(name, why)) return library;
  fail(DIGSEG_UNAVAILABLE, names.front() + " cannot be loaded (" + why + "); install TensorRT and CUDA");
}

// The few functions of the CUDA runtime that move memory.
struct Cuda {
  void* library = first_library({"libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so"});
  int (*set_device)(int) = symbol<int (*)(int)>(library, "cudaSetDevice");
  int (*attribute)(int*, int, int) = symbol<int (*)(int*, int, int)>(library, "cudaDeviceGetAttribute");
  int (*allocate)(void**, size_t) = symbol<int (*)(void**, size_t)>(library, "cudaMalloc");
  int (*release)(void*) = symbol<int (*)(void*)>(library, "cudaFree");
  int (*copy)(void*, const void*, size_t, int, cudaStream_t) = symbol<int (*)(void*, const void*, size_t, int, cudaStream_t)>(library, "cudaMemcpyAsync");
  int (*stream_create)(cudaStream_t*) = symbol<int (*)(cudaStream_t*)>(library, "cudaStreamCreate");
  int (*stream_destroy)(cudaStream_t) = symbol<int (*)(cudaStream_t)>(library, "cudaStreamDestroy");
  int (*stream_wait)(cudaStream_t) = symbol<int (*)(cudaStream_t)>(library, "cudaStreamSynchronize");
  const char* (*text)(int) = symbol<const char* (*)(int)>(library, "cudaGetErrorString");

  void check(int status, const char* what) const {
    if (status != 0) fail(DIGSEG_RUNTIME, std::string("CUDA, ") + what + ": " + text(status));
  }

  // What a plan's key says about the GPU.
  struct Device {
    std::string name, capability, cuda;
  };
  Device describe(int device) const {
    char name[128] = "";
    int major = 0, minor = 0, version = 0;
    void* driver = first_library({"libcuda.so.1"});
    const auto device_name = symbol<int (*)(char*, int, int)>(driver, "cuDeviceGetName");
    const auto driver_version = symbol<int (*)(int*)>(driver, "cuDriverGetVersion");
    if (set_device(device) != 0 || attribute(&major, 75, device) != 0 || attribute(&minor, 76, device) != 0 ||
        device_name(name, sizeof name, device) != 0 || driver_version(&version) != 0)
      fail(DIGSEG_UNAVAILABLE, "no CUDA device " + std::to_string(device) + "; check nvidia-smi");
    return {name, std::to_string(major) + "." + std::to_string(minor), std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10)};
  }
};

// Keeps the last error for the exception text. TensorRT may log from several threads.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      const std::lock_guard<std::mutex> guard(lock_);
      last_ = message;
    } catch (...) {
    }
  }
  std::string last() {
    const std::lock_guard<std::mutex> guard(lock_);
    return last_.empty() ? "no reason given" : last_;
  }

 private:
  std::mutex lock_;
  std::string last_;
};

// Device memory that grows and is reused.
class Room {
 public:
  explicit Room(const Cuda& cuda) : cuda_(&cuda) {}
  ~Room() {
    if (data_ != nullptr) cuda_->release(data_);
  }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  void* of(size_t bytes) {
    if (bytes > size_) {
      if (data_ != nullptr) cuda_->release(data_);
      data_ = nullptr, size_ = 0;
      cuda_->check(cuda_->allocate(&data_, bytes), "allocate");
      size_ = bytes;
    }
    return data_;
  }
  void* data() const { return data_; }

 private:
  const Cuda* cuda_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

struct Fed {
  const char* name;
  const Shape* shape;
  const void* data;
  size_t bytes;
  void* kept = nullptr;  // where it lies on the device already
};

// An encoding on the device, in the plan's own element type.
class TensorRtEncoded : public Encoded {
 public:
  explicit TensorRtEncoded(const Cuda& cuda) : room_(cuda) {}
  size_t bytes() const override { return bytes_; }
  void* of(const Shape& shape, size_t bytes) {
    shape_ = shape, bytes_ = bytes;
    return room_.of(bytes);
  }
  Fed fed() const { return {contract::kEncoding, &shape_, nullptr, bytes_, room_.data()}; }

 private:
  Room room_;
  Shape shape_;
  size_t bytes_ = 0;
};

// One plan with one execution context; calls take turns, because a context serves one stream at a time.
class Plan {
 public:
  Plan(const Cuda& cuda, nvinfer1::IRuntime& runtime, Logger& logger, const std::vector<char>& bytes) : cuda_(cuda), logger_(logger) {
    engine_.reset(runtime.deserializeCudaEngine(bytes.data(), bytes.size()));
    if (!engine_) fail(DIGSEG_RUNTIME, "TensorRT cannot read a plan: " + logger.last() + "; build it again on this machine");
    context_.reset(engine_->createExecutionContext());
    if (!context_) fail(DIGSEG_OUT_OF_MEMORY, "TensorRT cannot create a context: " + logger.last() + "; free GPU memory");
    cuda_.check(cuda_.stream_create(&stream_), "create a stream");
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) rooms_.push_back(std::make_unique<Room>(cuda_));
  }
  ~Plan() {
    if (stream_ != nullptr) cuda_.stream_destroy(stream_);
  }

  // Plans of bf16 bundles give and take bfloat16 at the borders, those of fp16 bundles half.
  Width width_of(const char* name) const {
    switch (engine_->getTensorDataType(name)) {
      case nvinfer1::DataType::kFLOAT: return Width::Float;
      case nvinfer1::DataType::kHALF: return Width::Half;
      case nvinfer1::DataType::kBF16: return Width::BFloat;
      default: fail(DIGSEG_INCOMPATIBLE, std::string("the plan's tensor ") + name + " is none of float, half or bfloat16; build the plan again");
    }
  }

  std::vector<Floats> run(const std::vector<Fed>& inputs, const std::vector<const char*>& outputs) {
    const std::lock_guard<std::mutex> guard(lock_);
    size_t room = feed(inputs);
    std::vector<Floats> out;
    std::vector<std::vector<char>> narrow(outputs.size());
    std::vector<void*> devices;
    for (const char* name : outputs) {
      out.emplace_back(shape_of(name));
      devices.push_back(rooms_.at(room++)->of(out.back().data.size() * bytes_of(width_of(name))));
      bind(name, devices.back());
    }
    if (!context_->enqueueV3(stream_)) fail(DIGSEG_RUNTIME, "TensorRT failed while running: " + logger_.last());
    for (size_t i = 0; i < outputs.size(); ++i) {
      const size_t bytes = out[i].data.size() * bytes_of(width_of(outputs[i]));
      narrow[i].resize(bytes);
      cuda_.check(cuda_.copy(narrow[i].data(), devices[i], bytes, 2, stream_), "copy out");
    }
    cuda_.check(cuda_.stream_wait(stream_), "wait");
    for (size_t i = 0; i < outputs.size(); ++i) widen(width_of(outputs[i]), narrow[i].data(), out[i].data.size(), out[i].data.data());
    return out;
  }

  // The one output of the plan, written to memory of its own and left there.
  void run_into(const Fed& input, const char* output, TensorRtEncoded& encoded) {
    const std::lock_guard<std::mutex> guard(lock_);
    feed({input});
    const Shape shape = shape_of(output);
    bind(output, encoded.of(shape, count_of(shape) * bytes_of(width_of(output))));
    if (!context_->enqueueV3(stream_)) fail(DIGSEG_RUNTIME, "TensorRT failed while running: " + logger_.last());
    cuda_.check(cuda_.stream_wait(stream_), "wait");
  }

 private:
  // Inputs to the device; how many rooms they took.
  size_t feed(const std::vector<Fed>& inputs) {
    size_t room = 0;
    for (const Fed& input : inputs) {
      nvinfer1::Dims dims{};
      dims.nbDims = static_cast<int32_t>(input.shape->size());
      std::copy(input.shape->begin(), input.shape->end(), dims.d);
      void* device = input.kept;
      if (device == nullptr) {
        device = rooms_.at(room++)->of(std::max<size_t>(input.bytes, 1));
        cuda_.check(cuda_.copy(device, input.data, input.bytes, 1, stream_), "copy in");
      }
      if (!context_->setInputShape(input.name, dims) || !context_->setTensorAddress(input.name, device))
        fail(DIGSEG_RUNTIME, std::string("TensorRT refuses the shape of ") + input.name + ": " + logger_.last() + "; build the plan with a wider shape profile");
    }
    return room;
  }

  Shape shape_of(const char* output) const {
    const nvinfer1::Dims dims = context_->getTensorShape(output);
    if (dims.nbDims < 1) fail(DIGSEG_RUNTIME, std::string("TensorRT does not know the shape of ") + output + "; build the plan again");
    return Shape(dims.d, dims.d + dims.nbDims);
  }

  void bind(const char* output, void* device) {
    if (!context_->setTensorAddress(output, device)) fail(DIGSEG_RUNTIME, "TensorRT refuses an output: " + logger_.last());
  }

  const Cuda& cuda_;
  Logger& logger_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  cudaStream_t stream_ = nullptr;
  std::vector<std::unique_ptr<Room>> rooms_;
  std::mutex lock_;
};

std::string version_text(int32_t version) {  // 10.3.0 is 100300; 8.6.1 was 8601
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

void* tensorrt_library() { return first_library({"libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR), "libnvinfer.so"}); }

const char* const kNoFolded = "tensorrt does not run folded bundles here yet";

class TensorRtBackend : public Backend {
 public:
  TensorRtBackend(const Bundle& bundle, const BackendSettings& settings)
      : device_(cuda_.describe(settings.device)), number_(settings.device), prompts_(bundle.prompts), tokens_(bundle.tokens) {
    void* library = tensorrt_library();
    const int32_t version = symbol<int32_t (*)()>(library, "getInferLibVersion")();
    if (version / 10000 != NV_TENSORRT_MAJOR)
      fail(DIGSEG_INCOMPATIBLE, "TensorRT " + version_text(version) + " found; this library was built for " + std::to_string(NV_TENSORRT_MAJOR) + ".x");
    version_ = version_text(version);
    const auto create = symbol<void* (*)(void*, int32_t)>(library, "createInferRuntime_INTERNAL");
    runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(&logger_, NV_TENSORRT_VERSION)));
    if (!runtime_) fail(DIGSEG_UNAVAILABLE, "TensorRT " + version_ + " does not start: " + logger_.last());
    for (const Graph graph : bundle.graphs()) plans_[graph] = open(bundle, file_of(graph));
    if (plans_[contract::kImageEncoder]->width_of(contract::kImage) != Width::Float)
      fail(DIGSEG_INCOMPATIBLE, "the plan's picture is not float; build the plan again");
    for (const Graph graph : bundle.graphs())
      if (graph != contract::kTextEncoder && plans_[graph]->width_of(contract::kEncoding) != plans_[contract::kImageEncoder]->width_of(contract::kEncoding))
        fail(DIGSEG_INCOMPATIBLE, "the plans' encodings are of two element types; build the plans again");
    detail_ = "tensorrt " + version_ + " on " + device_.name + ", " + bundle.precision;
  }

  FoldedText encode_text(const Ints& token_ids, const Flags& token_mask) override {
    cuda_.check(cuda_.set_device(number_), "choose the device");  // a thread starts on device 0
    const Ints ids = fitted(token_ids, false);
    const Flags mask = fitted(token_mask, true);
    const Fed numbers{contract::kTokenIds, &ids.shape, ids.data.data(), ids.data.size() * 8};
    std::vector<Floats> out = plans_[contract::kTextEncoder]->run({numbers, fed(mask)}, {contract::kTextKeys, contract::kTextValues});
    return {std::move(out[0]), std::move(out[1]), mask};
  }

  std::unique_ptr<Encoded> encode_image(const Floats& image) override {
    cuda_.check(cuda_.set_device(number_), "choose the device");
    auto encoded = std::make_unique<TensorRtEncoded>(cuda_);
    plans_[contract::kImageEncoder]->run_into({contract::kImage, &image.shape, image.data.data(), image.data.size() * 4}, contract::kEncoding, *encoded);
    return encoded;
  }

  Floats presence(const Encoded& encoded, const FoldedText& text) override { return ask(contract::kPresence, encoded, text, contract::kPresenceLogits); }
  Floats decode(const Encoded& encoded, const FoldedText& text) override { return ask(contract::kMaskDecoder, encoded, text, contract::kLogits); }

  FoldedAnswer labels(const Encoded&) override { fail(DIGSEG_UNAVAILABLE, kNoFolded); }
  const std::string& detail() const override { return detail_; }

 private:
  // Token rows [K, L], or their mask, brought into the profile: the last row repeated up to the smallest K, rows cut or filled
  // up with padding to a known L. A text plan takes no other shapes.
  template <typename T>
  Tensor<T> fitted(const Tensor<T>& rows, bool mask) const {
    const int64_t have = rows.shape[1], length = std::min(std::max(have, tokens_.min), tokens_.max);
    Tensor<T> out({std::max(rows.shape[0], prompts_.min), length});
    for (int64_t k = 0; k < out.shape[0]; ++k) {
      const T* row = &rows.data[static_cast<size_t>(std::min(k, rows.shape[0] - 1) * have)];
      for (int64_t l = 0; l < length; ++l) out.data[static_cast<size_t>(k * length + l)] = l < have ? row[l] : mask ? T{0} : row[have - 1];
    }
    return out;
  }

  static Fed fed(const Flags& mask) { return {contract::kTokenMask, &mask.shape, mask.data.data(), mask.data.size()}; }

  // One of the graphs that answer K prompts about encoded pictures.
  Floats ask(Graph graph, const Encoded& encoded, const FoldedText& text, const char* answer) {
    cuda_.check(cuda_.set_device(number_), "choose the device");
    Plan& plan = *plans_[graph];
    std::vector<uint16_t> rooms[2];
    const auto folded = [&](const char* name, const Floats& wide, std::vector<uint16_t>& narrow) -> Fed {
      const Width width = plan.width_of(name);
      if (width == Width::Float) return {name, &wide.shape, wide.data.data(), wide.data.size() * 4};
      narrow = narrowed(width, wide.data);
      return {name, &wide.shape, narrow.data(), narrow.size() * 2};
    };
    const Fed keys = folded(contract::kTextKeys, text.keys, rooms[0]), values = folded(contract::kTextValues, text.values, rooms[1]);
    return std::move(plan.run({static_cast<const TensorRtEncoded&>(encoded).fed(), keys, values, fed(text.mask)}, {answer})[0]);
  }

  // The stored plan whose key fits this graph and this machine.
  std::unique_ptr<Plan> open(const Bundle& bundle, const contract::GraphFile& graph) {
    const std::string stem = graph.name;
    std::error_code ignored;
    std::string missed = "none is stored";
    for (const auto& entry : std::filesystem::directory_iterator(plans_folder(), ignored)) {
      const std::string note = (entry.path() / (stem + ".json")).string(), path = (entry.path() / (stem + ".plan")).string();
      if (plain_file_size(note) < 0) continue;
      const std::vector<char> body = read_file(note, 1 << 20);
      const Json json = parse_json(body.data(), body.size(), note);
      missed = difference(bundle, graph, json, note);
      if (!missed.empty()) continue;
      if (plain_file_size(path) < 0) fail(DIGSEG_CORRUPT, path + " is missing or a link; build it again on this machine");
      return std::make_unique<Plan>(cuda_, *runtime_, logger_, read_hashed(path, 16ull << 30, json.string_at("sha256", note)));
    }
    fail(DIGSEG_UNAVAILABLE, plans_folder() + " holds no plan of " + graph.file + " for this machine (" + missed + "); build it here with `python -m digseg_export.to_tensorrt`");
  }

  // The first field of a plan's key that does not fit, "" when all do.
  std::string difference(const Bundle& bundle, const contract::GraphFile& graph, const Json& json, const std::string& note) const {
    if (json.string_at("format", note) != "digseg.engine/1") return "another sidecar format";
    const Json& key = json.at("key", Json::Object, note);
    std::string files = std::string(graph.file) + ":" + bundle.file_hash(graph.file);
    if (bundle.lists(graph.data_file)) files += std::string("|") + graph.data_file + ":" + bundle.file_hash(graph.data_file);
    Sha256 digest;
    digest.update(files.data(), files.size());
    const std::string built = key.string_at("tensorrt", note);
    if (key.string_at("graph", note) != digest.hex()) return "built from another graph";
    if (built != version_ && built.compare(0, version_.size() + 1, version_ + ".") != 0) return "built by TensorRT " + built + ", here " + version_;
    for (const auto& field : {std::make_pair("gpu", device_.name), std::make_pair("compute_capability", device_.capability),
                              std::make_pair("cuda", device_.cuda), std::make_pair("precision", bundle.precision)})
      if (key.string_at(field.first, note) != field.second) return std::string(field.first) + " " + key.string_at(field.first, note) + ", here " + field.second;
    return "";
  }

  Cuda cuda_;
  Logger logger_;  // outlives the runtime, which outlives the plans
  Cuda::Device device_;
  int number_;
  AxisRange prompts_, tokens_;
  std::string version_, detail_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<Plan> plans_[contract::kGraphs];
};

}  // namespace

std::unique_ptr<Backend> create_tensorrt(const Bundle& bundle, const BackendSettings& settings) {
  return std::make_unique<TensorRtBackend>(bundle, settings);
}

std::string tensorrt_state(const Bundle&) try {
  std::vector<std::string> plans;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(plans_folder(), ignored))
    plans.push_back(entry.path().filename().string());
  std::sort(plans.begin(), plans.end());
  std::string state = version_text(symbol<int32_t (*)()>(tensorrt_library(), "getInferLibVersion")());
  for (const std::string& plan : plans) state += " " + plan;
  return state;
} catch (const Error&) {
  return "";
}

}  // namespace digseg

#endif
