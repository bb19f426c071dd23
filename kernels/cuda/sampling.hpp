// What the kernels and their CPU forms share: the triangle filter's window for one output position, and pixel formats.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define DIGSEG_BOTH __host__ __device__
#else
#define DIGSEG_BOTH
#endif

namespace digseg_cuda {

// Source positions first .. first + count - 1 weigh 1 - |position - center| / reach each, divided by their sum.
struct Window {
  float center, reach;
  int first, count;
};

DIGSEG_BOTH inline Window window(int at, int in_size, float from, float to, int out_size) {
  const float scale = (to - from) / static_cast<float>(out_size);
  Window w;
  w.reach = scale > 1.f ? scale : 1.f;
  w.center = from + (static_cast<float>(at) + 0.5f) * scale;
  const int low = static_cast<int>(w.center - w.reach + 0.5f), high = static_cast<int>(w.center + w.reach + 0.5f);
  w.first = low > 0 ? low : 0;
  w.count = (high < in_size ? high : in_size) - w.first;
  return w;
}

DIGSEG_BOTH inline float weight(const Window& w, int i) {
  const float distance = (static_cast<float>(w.first + i) - w.center + 0.5f) / w.reach;
  const float size = distance < 0.f ? -distance : distance;
  return size < 1.f ? 1.f - size : 0.f;
}

// RGB8: rows of r g b. NV12: rows of luma, then rows of u v pairs at half size, BT.601 video range.
struct Source {
  const uint8_t* data;
  const uint8_t* chroma;  // NV12 only
  int width, height;
  int64_t stride, chroma_stride;
  bool nv12;
};

DIGSEG_BOTH inline float clamp255(float v) { return v < 0.f ? 0.f : v > 255.f ? 255.f : v; }

DIGSEG_BOTH inline void rgb_at(const Source& s, int x, int y, float rgb[3]) {
  if (!s.nv12) {
    const uint8_t* p = s.data + s.stride * y + 3 * x;
    for (int c = 0; c < 3; ++c) rgb[c] = static_cast<float>(p[c]);
    return;
  }
  const uint8_t* uv = s.chroma + s.chroma_stride * (y / 2) + (x & ~1);
  const float l = 1.164384f * (static_cast<float>(s.data[s.stride * y + x]) - 16.f);
  const float u = static_cast<float>(uv[0]) - 128.f, v = static_cast<float>(uv[1]) - 128.f;
  rgb[0] = clamp255(l + 1.596027f * v);
  rgb[1] = clamp255(l - 0.391762f * u - 0.812968f * v);
  rgb[2] = clamp255(l + 2.017232f * u);
}

// The model's canvas: `content` pixels from the picture, the rest repeats the last row and column.
struct Target {
  int width, height, content_width, content_height;
};

// The part of the logits that is picture, and the size of the masks.
struct Upsample {
  int count, width, height;  // K planes of logits
  float right, bottom;       // end of the content in logit pixels
  int out_width, out_height;
  float threshold;
};

}  // namespace digseg_cuda
