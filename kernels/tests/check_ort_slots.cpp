// Compiles when the places in src/ort_api.hpp are those of the official header:
//   g++ -std=c++17 -fsyntax-only -I kernels/src -I FOLDER_OF_onnxruntime_c_api.h kernels/tests/check_ort_slots.cpp
#include <onnxruntime_c_api.h>

#include "ort_api.hpp"

#define DIGSEG_CHECK(place, name, ...) \
  static_assert(offsetof(OrtApi, name) == place * sizeof(void*), "another place for " #name);
DIGSEG_ORT_SLOTS(DIGSEG_CHECK)
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == digseg::kOrtFloat, "float");
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 == digseg::kOrtInt64, "int64");
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL == digseg::kOrtBool, "bool");
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 == digseg::kOrtFloat16, "float16");
static_assert(ORT_DISABLE_ALL == digseg::kOrtNoOptimisation, "optimisation level");
static_assert(ORT_LOGGING_LEVEL_ERROR == digseg::kOrtErrorSeverity, "severity");
