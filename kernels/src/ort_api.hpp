// What is used of ONNX Runtime's own header: the table of functions of kOrtTable, which every later 1.x has too (it only
// grows). Nothing is linked; the library is loaded when an engine is created.
#pragma once
#define ORT_API_MANUAL_INIT
#include <onnxruntime/onnxruntime_c_api.h>

namespace digseg {

constexpr uint32_t kOrtTable = ORT_API_VERSION;
constexpr int kOrtLeastMinor = 22;  // the oldest release that we test
constexpr const char* kOrtLeast = "1.22";
static_assert(kOrtTable <= kOrtLeastMinor, "the oldest release that is accepted has the whole table");

}  // namespace digseg
