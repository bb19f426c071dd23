// Fused pre- and post-processing. One thread makes one output pixel, all channels or all prompts: the picture is read
// through the texture-like cache path, the logits (small) stay in L2, and nothing intermediate is written.
#include <cuda_runtime.h>

#include "digseg_cuda.h"
#include "sampling.hpp"

namespace digseg_cuda {
namespace {

constexpr int kBlockX = 32, kBlockY = 8;

dim3 grid(int width, int height) {
  return dim3(static_cast<unsigned>((width + kBlockX - 1) / kBlockX), static_cast<unsigned>((height + kBlockY - 1) / kBlockY));
}

__global__ void fit_kernel(Source source, Target target, float* out) {
  const int x = static_cast<int>(blockIdx.x) * kBlockX + static_cast<int>(threadIdx.x);
  const int y = static_cast<int>(blockIdx.y) * kBlockY + static_cast<int>(threadIdx.y);
  if (x >= target.width || y >= target.height) return;
  const Window across = window(min(x, target.content_width - 1), source.width, 0.f, static_cast<float>(source.width), target.content_width);
  const Window down = window(min(y, target.content_height - 1), source.height, 0.f, static_cast<float>(source.height), target.content_height);
  float sum[3] = {0.f, 0.f, 0.f}, total = 0.f;
  for (int j = 0; j < down.count; ++j) {
    const float wy = weight(down, j);
    for (int i = 0; i < across.count; ++i) {
      const float w = wy * weight(across, i);
      float rgb[3];
      rgb_at(source, across.first + i, down.first + j, rgb);
      for (int c = 0; c < 3; ++c) sum[c] += w * rgb[c];
      total += w;
    }
  }
  const int64_t plane = static_cast<int64_t>(target.width) * target.height, at = static_cast<int64_t>(y) * target.width + x;
  for (int c = 0; c < 3; ++c) out[c * plane + at] = sum[c] / total / 127.5f - 1.f;
}

__global__ void label_kernel(const float* logits, Upsample u, int32_t* label_map, uint8_t* masks) {
  const int x = static_cast<int>(blockIdx.x) * kBlockX + static_cast<int>(threadIdx.x);
  const int y = static_cast<int>(blockIdx.y) * kBlockY + static_cast<int>(threadIdx.y);
  if (x >= u.out_width || y >= u.out_height) return;
  const Window across = window(x, u.width, 0.f, u.right, u.out_width), down = window(y, u.height, 0.f, u.bottom, u.out_height);
  float total = 0.f;
  for (int j = 0; j < down.count; ++j)
    for (int i = 0; i < across.count; ++i) total += weight(down, j) * weight(across, i);
  const int64_t pixels = static_cast<int64_t>(u.out_width) * u.out_height, at = static_cast<int64_t>(y) * u.out_width + x;
  float best = u.threshold;
  int32_t label = 0;
  for (int k = 0; k < u.count; ++k) {
    const float* plane = logits + static_cast<int64_t>(k) * u.width * u.height;
    float sum = 0.f;
    for (int j = 0; j < down.count; ++j) {
      const float wy = weight(down, j);
      const float* row = plane + static_cast<int64_t>(down.first + j) * u.width + across.first;
      for (int i = 0; i < across.count; ++i) sum += wy * weight(across, i) * row[i];
    }
    const float value = sum / total;
    if (masks != nullptr) masks[k * pixels + at] = value > u.threshold;
    if (value > best) best = value, label = k + 1;
  }
  label_map[at] = label;
}

}  // namespace
}  // namespace digseg_cuda

extern "C" int digseg_cuda_fit(const uint8_t* data, const uint8_t* chroma, int64_t stride, int64_t chroma_stride, int picture_width,
                               int picture_height, float* out, int width, int height, int content_width, int content_height, void* stream) {
  using namespace digseg_cuda;
  if (data == nullptr || out == nullptr || picture_width < 1 || picture_height < 1 || content_width < 1 || content_height < 1 || width < content_width || height < content_height)
    return cudaErrorInvalidValue;
  const Source source{data, chroma, picture_width, picture_height, stride, chroma_stride, chroma != nullptr};
  fit_kernel<<<grid(width, height), dim3(kBlockX, kBlockY), 0, static_cast<cudaStream_t>(stream)>>>(
      source, Target{width, height, content_width, content_height}, out);
  return cudaGetLastError();
}

extern "C" int digseg_cuda_label(const float* logits, int count, int width, int height, float right, float bottom, int32_t* label_map,
                                 uint8_t* masks, int out_width, int out_height, float threshold, void* stream) {
  using namespace digseg_cuda;
  if (logits == nullptr || label_map == nullptr || count < 1 || width < 1 || height < 1 || out_width < 1 || out_height < 1 || !(right > 0.f) || !(bottom > 0.f))
    return cudaErrorInvalidValue;
  label_kernel<<<grid(out_width, out_height), dim3(kBlockX, kBlockY), 0, static_cast<cudaStream_t>(stream)>>>(
      logits, Upsample{count, width, height, right, bottom, out_width, out_height, threshold}, label_map, masks);
  return cudaGetLastError();
}
