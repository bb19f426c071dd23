// Dense arrays as the graphs take them.
#pragma once
#include <cstdint>
#include <vector>

namespace digseg {

using Shape = std::vector<int64_t>;

inline size_t count_of(const Shape& shape) {
  size_t n = 1;
  for (const int64_t side : shape) n *= static_cast<size_t>(side);
  return n;
}

template <typename T>
struct Tensor {
  Shape shape;
  std::vector<T> data;

  Tensor() = default;
  explicit Tensor(Shape s) : shape(std::move(s)), data(count_of(shape)) {}
};

using Floats = Tensor<float>;
using Ints = Tensor<int64_t>;
using Flags = Tensor<uint8_t>;  // bool
using Labels = Tensor<uint16_t>;

}  // namespace digseg
