// The CPU forms against the library's own Pillow-equal resizing: within one grey level and 1e-4 of the logits.
// Needs no GPU; shows that what the kernels are compared with is the right thing.
#include <cmath>
#include <cstdio>

#include "../src/resample.hpp"
#include "on_cpu.hpp"

int main() {
  using namespace digseg_cuda;
  const int sizes[][4] = {{64, 48, 31, 23}, {30, 41, 90, 123}, {100, 7, 50, 9}, {17, 17, 17, 17}};
  double worst_fit = 0, worst_logit = 0;
  for (const auto& s : sizes) {
    const int w = s[0], h = s[1], ow = s[2], oh = s[3];
    std::vector<uint8_t> pixels(static_cast<size_t>(w) * h * 3);
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 37 + i / 11 * 5);
    const std::vector<uint8_t> wanted = digseg::resize_rgb(pixels.data(), w, h, ow, oh);
    const Target target{ow + 5, oh + 3, ow, oh};
    const std::vector<double> got = fit_on_cpu({pixels.data(), nullptr, w, h, 3 * w, 0, false}, target);
    for (int c = 0; c < 3; ++c)
      for (int y = 0; y < target.height; ++y)
        for (int x = 0; x < target.width; ++x) {
          const int cx = x < ow ? x : ow - 1, cy = y < oh ? y : oh - 1;
          const double grey = (got[(static_cast<size_t>(c) * target.height + y) * target.width + x] + 1) * 127.5;
          worst_fit = std::fmax(worst_fit, std::fabs(grey - wanted[(static_cast<size_t>(cy) * ow + cx) * 3 + c]));
        }
    std::vector<float> plane(static_cast<size_t>(w) * h), room, full;
    for (size_t i = 0; i < plane.size(); ++i) plane[i] = static_cast<float>(std::sin(0.7 * static_cast<double>(i)));
    const Upsample u{1, w, h, static_cast<float>(w) - 1.5f, static_cast<float>(h) - 0.5f, ow, oh, 0.f};
    digseg::resize_plane(plane.data(), w, h, {0, 0, u.right, u.bottom}, ow, oh, room, full);
    const std::vector<double> logits = upsample_on_cpu(plane.data(), u);
    for (size_t i = 0; i < full.size(); ++i) worst_logit = std::fmax(worst_logit, std::fabs(logits[i] - full[i]));
  }
  std::printf("largest difference: %.3f grey levels, %.2e logits\n", worst_fit, worst_logit);
  return !(worst_fit <= 1.01 && worst_logit <= 1e-4);
}
