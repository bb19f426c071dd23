// The kernels against their CPU forms on a GPU. Exit code 77 where there is none. Not run by us yet.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>

#include "digseg_cuda.h"
#include "on_cpu.hpp"

using namespace digseg_cuda;

namespace {

template <typename T>
T* device(const std::vector<T>& host) {
  T* out = nullptr;
  cudaMalloc(&out, host.size() * sizeof(T));
  cudaMemcpy(out, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
  return out;
}

double check_fit(bool nv12, int w, int h, const Target& t) {
  std::vector<uint8_t> pixels(static_cast<size_t>(w) * h * 3);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 37 + i / 11 * 5);
  const int64_t stride = nv12 ? w : 3 * w;
  const size_t chroma = static_cast<size_t>(w) * h;
  const std::vector<double> wanted = fit_on_cpu({pixels.data(), pixels.data() + chroma, w, h, stride, w, nv12}, t);
  std::vector<float> got(wanted.size());
  uint8_t* in = device(pixels);
  float* out = device(got);
  int status = digseg_cuda_fit(in, nv12 ? in + chroma : nullptr, stride, w, w, h, out, t.width, t.height, t.content_width, t.content_height, nullptr);
  cudaMemcpy(got.data(), out, got.size() * sizeof(float), cudaMemcpyDeviceToHost);
  cudaFree(in), cudaFree(out);
  double worst = status == 0 ? 0 : INFINITY;
  for (size_t i = 0; i < got.size(); ++i) worst = std::fmax(worst, std::fabs(static_cast<double>(got[i]) - wanted[i]));
  return worst;
}

long check_label(const Upsample& u) {
  std::vector<float> logits(static_cast<size_t>(u.count) * u.width * u.height);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(3 * std::sin(0.7 * static_cast<double>(i)) - 0.5);
  const std::vector<double> full = upsample_on_cpu(logits.data(), u);
  const size_t pixels = static_cast<size_t>(u.out_width) * u.out_height;
  std::vector<int32_t> labels(pixels);
  std::vector<uint8_t> masks(pixels * u.count);
  float* in = device(logits);
  int32_t* out = device(labels);
  uint8_t* set = device(masks);
  int status = digseg_cuda_label(in, u.count, u.width, u.height, u.right, u.bottom, out, set, u.out_width, u.out_height, u.threshold, nullptr);
  cudaMemcpy(labels.data(), out, pixels * 4, cudaMemcpyDeviceToHost);
  cudaMemcpy(masks.data(), set, masks.size(), cudaMemcpyDeviceToHost);
  cudaFree(in), cudaFree(out), cudaFree(set);
  long wrong = status != 0;
  for (size_t p = 0; p < pixels; ++p) {
    double best = u.threshold;
    for (int k = 0; k < u.count; ++k) {
      const double value = full[k * pixels + p];
      wrong += std::fabs(value - u.threshold) > 1e-4 && (value > u.threshold) != (masks[k * pixels + p] != 0);
      best = std::fmax(best, value);
    }
    const int32_t label = labels[p];
    const double chosen = label == 0 ? u.threshold : full[static_cast<size_t>(label - 1) * pixels + p];
    wrong += std::fabs(chosen - best) > 1e-4;
  }
  return wrong;
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return std::puts("no GPU: the kernels were not run"), 77;
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, 0);
  const double rgb = std::fmax(check_fit(false, 101, 67, {64, 48, 61, 41}), check_fit(false, 33, 20, {128, 80, 127, 77}));
  const double nv12 = check_fit(true, 102, 66, {64, 48, 61, 40});
  const long wrong = check_label({5, 64, 48, 61.5f, 41.f, 333, 222, 0.f}) + check_label({3, 200, 160, 200.f, 160.f, 90, 70, 0.3f});
  std::printf("%s: fit %.2e (RGB8) %.2e (NV12), %ld wrong pixels of labels and masks\n", properties.name, rgb, nv12, wrong);
  return !(rgb < 1e-4 && nv12 < 1e-4 && wrong == 0);
}
