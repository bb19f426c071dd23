#include "backend.hpp"
#include "error.hpp"
namespace digseg {
std::unique_ptr<Backend> create_tensorrt(const Bundle&, const BackendSettings&) {
  fail(DIGSEG_UNAVAILABLE, "this library was built without its TensorRT part; build it with -DDIGSEG_TENSORRT_INCLUDE=FOLDER");
}
}
