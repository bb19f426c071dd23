// The part of ONNX Runtime's C interface that is used here. OrtApi is a table of function pointers whose order never
// changes (it only grows), so the functions are named by their place in it: no header of ONNX Runtime is needed to build,
// and one binary runs on every release from kOrtApi on. tests/check_ort_slots.cpp compares the places with the official
// header where there is one.
#pragma once
#include <cstddef>
#include <cstdint>

namespace digseg {

constexpr uint32_t kOrtApi = 22;  // the least version asked of the runtime: 1.22
constexpr const char* kOrtLeast = "1.22";

struct OrtEnv;
struct OrtStatus;
struct OrtSession;
struct OrtSessionOptions;
struct OrtValue;
struct OrtMemoryInfo;
struct OrtTypeInfo;
struct OrtCudaOptions;
struct OrtRunOptions;

struct OrtApiBase {
  const void* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// ONNXTensorElementDataType
constexpr int kOrtFloat = 1, kOrtInt64 = 7, kOrtBool = 9, kOrtFloat16 = 10;
constexpr int kOrtErrorSeverity = 3, kOrtNoOptimisation = 0;

template <size_t place, typename Signature>
struct OrtSlot;
template <size_t place, typename Result, typename... Arguments>
struct OrtSlot<place, Result(Arguments...)> {
  static constexpr size_t kPlace = place;
  static Result call(const void* api, Arguments... arguments) {
    using Function = Result (*)(Arguments...);
    return static_cast<const Function*>(api)[place](arguments...);
  }
};

#define DIGSEG_ORT_SLOTS(X)                                                                                             \
  X(1, GetErrorCode, int(const OrtStatus*))                                                                             \
  X(2, GetErrorMessage, const char*(const OrtStatus*))                                                                  \
  X(3, CreateEnv, OrtStatus*(int, const char*, OrtEnv**))                                                               \
  X(7, CreateSession, OrtStatus*(const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**))                   \
  X(9, Run, OrtStatus*(OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, size_t,           \
                       const char* const*, size_t, OrtValue**))                                                         \
  X(10, CreateSessionOptions, OrtStatus*(OrtSessionOptions**))                                                          \
  X(11, SetOptimizedModelFilePath, OrtStatus*(OrtSessionOptions*, const char*))                                         \
  X(17, DisableMemPattern, OrtStatus*(OrtSessionOptions*))                                                              \
  X(22, SetSessionLogSeverityLevel, OrtStatus*(OrtSessionOptions*, int))                                                \
  X(23, SetSessionGraphOptimizationLevel, OrtStatus*(OrtSessionOptions*, int))                                          \
  X(24, SetIntraOpNumThreads, OrtStatus*(OrtSessionOptions*, int))                                                      \
  X(49, CreateTensorWithDataAsOrtValue, OrtStatus*(const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**)) \
  X(51, GetTensorMutableData, OrtStatus*(OrtValue*, void**))                                                            \
  X(60, GetTensorElementType, OrtStatus*(const OrtTypeInfo*, int*))                                                     \
  X(61, GetDimensionsCount, OrtStatus*(const OrtTypeInfo*, size_t*))                                                    \
  X(62, GetDimensions, OrtStatus*(const OrtTypeInfo*, int64_t*, size_t))                                                \
  X(65, GetTensorTypeAndShape, OrtStatus*(const OrtValue*, OrtTypeInfo**))                                              \
  X(69, CreateCpuMemoryInfo, OrtStatus*(int, int, OrtMemoryInfo**))                                                     \
  X(92, ReleaseEnv, void(OrtEnv*))                                                                                      \
  X(93, ReleaseStatus, void(OrtStatus*))                                                                                \
  X(94, ReleaseMemoryInfo, void(OrtMemoryInfo*))                                                                        \
  X(95, ReleaseSession, void(OrtSession*))                                                                              \
  X(96, ReleaseValue, void(OrtValue*))                                                                                  \
  X(99, ReleaseTensorTypeAndShapeInfo, void(OrtTypeInfo*))                                                              \
  X(100, ReleaseSessionOptions, void(OrtSessionOptions*))                                                               \
  X(125, GetAvailableProviders, OrtStatus*(char***, int*))                                                              \
  X(126, ReleaseAvailableProviders, OrtStatus*(char**, int))                                                            \
  X(130, AddSessionConfigEntry, OrtStatus*(OrtSessionOptions*, const char*, const char*))                               \
  X(204, SessionOptionsAppendExecutionProvider_CUDA_V2, OrtStatus*(OrtSessionOptions*, const OrtCudaOptions*))          \
  X(205, CreateCUDAProviderOptions, OrtStatus*(OrtCudaOptions**))                                                       \
  X(206, UpdateCUDAProviderOptions, OrtStatus*(OrtCudaOptions*, const char* const*, const char* const*, size_t))        \
  X(208, ReleaseCUDAProviderOptions, void(OrtCudaOptions*))

namespace ort {
#define DIGSEG_ORT_SLOT(place, name, ...) using name = OrtSlot<place, __VA_ARGS__>;
DIGSEG_ORT_SLOTS(DIGSEG_ORT_SLOT)
#undef DIGSEG_ORT_SLOT
}  // namespace ort

}  // namespace digseg
