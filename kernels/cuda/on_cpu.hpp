// The same results on the CPU in plain double arithmetic, for tests: fit, and the label map.
#pragma once
#include <vector>

#include "sampling.hpp"

namespace digseg_cuda {

// [3, height, width]
inline std::vector<double> fit_on_cpu(const Source& source, const Target& target) {
  std::vector<double> out(static_cast<size_t>(3) * target.width * target.height);
  for (int y = 0; y < target.height; ++y)
    for (int x = 0; x < target.width; ++x) {
      const int cx = x < target.content_width ? x : target.content_width - 1, cy = y < target.content_height ? y : target.content_height - 1;
      const Window across = window(cx, source.width, 0.f, static_cast<float>(source.width), target.content_width);
      const Window down = window(cy, source.height, 0.f, static_cast<float>(source.height), target.content_height);
      double sum[3] = {0, 0, 0}, total = 0;
      for (int j = 0; j < down.count; ++j)
        for (int i = 0; i < across.count; ++i) {
          const double w = static_cast<double>(weight(down, j)) * weight(across, i);
          float rgb[3];
          rgb_at(source, across.first + i, down.first + j, rgb);
          for (int c = 0; c < 3; ++c) sum[c] += w * rgb[c];
          total += w;
        }
      for (int c = 0; c < 3; ++c)
        out[(static_cast<size_t>(c) * target.height + y) * target.width + x] = sum[c] / total / 127.5 - 1.0;
    }
  return out;
}

// Upsampled logits [count, out_height, out_width].
inline std::vector<double> upsample_on_cpu(const float* logits, const Upsample& u) {
  std::vector<double> out;
  for (int k = 0; k < u.count; ++k)
    for (int y = 0; y < u.out_height; ++y)
      for (int x = 0; x < u.out_width; ++x) {
        const Window across = window(x, u.width, 0.f, u.right, u.out_width), down = window(y, u.height, 0.f, u.bottom, u.out_height);
        double sum = 0, total = 0;
        for (int j = 0; j < down.count; ++j)
          for (int i = 0; i < across.count; ++i) {
            const double w = static_cast<double>(weight(down, j)) * weight(across, i);
            sum += w * logits[(static_cast<size_t>(k) * u.height + down.first + j) * u.width + across.first + i];
            total += w;
          }
        out.push_back(sum / total);
      }
  return out;
}

}  // namespace digseg_cuda
