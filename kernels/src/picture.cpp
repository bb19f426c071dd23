#include "picture.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "error.hpp"
#include "resample.hpp"

namespace digseg {
namespace {

constexpr int kMinSide = 8;
constexpr int64_t kMaxPixels = 64'000'000, kMaxStride = int64_t{1} << 32;

struct Yuv {  // RGB = luma * (Y - offset) + chroma terms
  float offset, luma, red_v, green_u, green_v, blue_u;
};
const Yuv kMatrices[] = {
    {16.f, 1.164384f, 1.596027f, -0.391762f, -0.812968f, 2.017232f},
    {0.f, 1.f, 1.402f, -0.344136f, -0.714136f, 1.772f},
    {16.f, 1.164384f, 1.792741f, -0.213249f, -0.532909f, 2.112402f},
    {0.f, 1.f, 1.5748f, -0.187324f, -0.468124f, 1.8556f},
};

[[noreturn]] void refuse(const std::string& text) { fail(DIGSEG_INVALID_ARGUMENT, text); }

int64_t row_bytes(const digseg_image& image) {
  const int64_t width = image.width;
  switch (image.format) {
    case DIGSEG_RGBA8: return 4 * width;
    case DIGSEG_NV12: return width;
    case DIGSEG_F32: return 12 * width;
    default: return 3 * width;
  }
}

void check_stride(int64_t stride, int64_t least, const char* name) {
  if (stride != 0 && (stride < least || stride > kMaxStride))
    refuse(std::string(name) + " is " + std::to_string(stride) + " bytes; expected 0 or at least " + std::to_string(least) +
           ", the bytes of one row");
}

uint8_t byte_of(float value) { return static_cast<uint8_t>(std::min(255.f, std::max(0.f, value + 0.5f))); }

// Alpha over white, with the rounding of Pillow's alpha_composite.
uint8_t over_white(unsigned value, unsigned alpha) {
  const unsigned sum = (value * alpha + 255u * (255u - alpha)) * 128u + (0x80u << 7);
  return static_cast<uint8_t>(((sum >> 8) + sum) >> 8 >> 7);
}

void nv12_row(const digseg_image& image, const uint8_t* luma, int64_t luma_stride, int y, uint8_t* to) {
  const int64_t stride = image.stride_uv ? image.stride_uv : luma_stride;
  const uint8_t* base = image.data_uv ? static_cast<const uint8_t*>(image.data_uv) : luma + luma_stride * image.height;
  const uint8_t *row = luma + luma_stride * y, *chroma = base + stride * (y / 2);
  const Yuv& m = kMatrices[image.matrix];
  for (int x = 0; x < image.width; ++x, to += 3) {
    const float l = m.luma * (static_cast<float>(row[x]) - m.offset);
    const float u = static_cast<float>(chroma[x & ~1]) - 128.f, v = static_cast<float>(chroma[x | 1]) - 128.f;
    to[0] = byte_of(l + m.red_v * v);
    to[1] = byte_of(l + m.green_u * u + m.green_v * v);
    to[2] = byte_of(l + m.blue_u * u);
  }
}

// Any 8-bit format to packed RGB.
std::vector<uint8_t> to_rgb(const digseg_image& image) {
  const uint8_t* data = static_cast<const uint8_t*>(image.data);
  const int64_t stride = image.stride ? image.stride : row_bytes(image);
  std::vector<uint8_t> out(static_cast<size_t>(image.width) * image.height * 3);
  for (int y = 0; y < image.height; ++y) {
    const uint8_t* row = data + stride * y;
    uint8_t* to = &out[static_cast<size_t>(y) * image.width * 3];
    if (image.format == DIGSEG_NV12) {
      nv12_row(image, data, stride, y, to);
    } else if (image.format == DIGSEG_RGB8) {
      std::copy(row, row + 3 * static_cast<size_t>(image.width), to);
    } else if (image.format == DIGSEG_BGR8) {
      for (int x = 0; x < image.width; ++x, row += 3, to += 3) to[0] = row[2], to[1] = row[1], to[2] = row[0];
    } else {
      for (int x = 0; x < image.width; ++x, row += 4, to += 3)
        for (int c = 0; c < 3; ++c) to[c] = over_white(row[c], row[3]);
    }
  }
  return out;
}

std::vector<float> float_rows(const digseg_image& image) {
  const int64_t stride = image.stride ? image.stride : row_bytes(image);
  std::vector<float> out;
  out.reserve(static_cast<size_t>(image.width) * image.height * 3);
  for (int y = 0; y < image.height; ++y) {
    const float* row = reinterpret_cast<const float*>(static_cast<const char*>(image.data) + stride * y);
    for (int i = 0; i < image.width * 3; ++i) {
      if (!(row[i] >= 0.f && row[i] <= 1.f))
        refuse("a float pixel is " + std::to_string(row[i]) + " at row " + std::to_string(y) + "; expected 0..1");
      out.push_back(row[i]);
    }
  }
  return out;
}

// Interleaved rows to [B, 3, H, W], edges repeated, B times the same, value * scale - 1.
template <typename T>
void fill(const std::vector<T>& rgb, int width, int height, float divisor, Floats& canvas) {
  const int64_t H = canvas.shape[2], W = canvas.shape[3];
  float* to = canvas.data.data();
  for (int c = 0; c < 3; ++c)
    for (int64_t y = 0; y < H; ++y) {
      const T* row = &rgb[static_cast<size_t>(std::min<int64_t>(y, height - 1)) * width * 3];
      for (int64_t x = 0; x < W; ++x) *to++ = static_cast<float>(row[std::min<int64_t>(x, width - 1) * 3 + c]) / divisor - 1.f;
    }
  for (int64_t b = 1; b < canvas.shape[0]; ++b) to = std::copy_n(canvas.data.data(), 3 * H * W, to);
}

}  // namespace

void check_image(const digseg_image& image) {
  if (image.data == nullptr) refuse("image.data is NULL; expected a pointer to pixels");
  if (image.width < kMinSide || image.height < kMinSide)
    refuse("the picture is " + std::to_string(image.width) + "x" + std::to_string(image.height) + " pixels; expected at least 8x8");
  if (static_cast<int64_t>(image.width) * image.height > kMaxPixels)
    refuse("the picture is " + std::to_string(image.width) + "x" + std::to_string(image.height) + ", over 64 million pixels; cut it into tiles or reduce it");
  if (image.format < DIGSEG_RGB8 || image.format > DIGSEG_F32)
    refuse("image.format is " + std::to_string(image.format) + "; expected DIGSEG_RGB8, BGR8, RGBA8, NV12 or F32");
  if (image.memory < DIGSEG_HOST || image.memory > DIGSEG_CUDA_HOST_MAPPED)
    refuse("image.memory is " + std::to_string(image.memory) + "; expected DIGSEG_HOST, CUDA or CUDA_HOST_MAPPED");
  if (image.matrix < DIGSEG_BT601_VIDEO || image.matrix > DIGSEG_BT709_FULL)
    refuse("image.matrix is " + std::to_string(image.matrix) + "; expected one of DIGSEG_BT601_VIDEO to DIGSEG_BT709_FULL");
  check_stride(image.stride, row_bytes(image), "image.stride");
  if (image.format == DIGSEG_NV12) {
    if (image.width % 2 || image.height % 2) refuse("an NV12 picture needs even sides, got " + std::to_string(image.width) + "x" + std::to_string(image.height));
    check_stride(image.stride_uv, image.width, "image.stride_uv");
  }
  if (image.format == DIGSEG_F32 && (reinterpret_cast<uintptr_t>(image.data) % alignof(float) || image.stride % 4))
    refuse("float pixels must lie on 4-byte borders; align image.data and image.stride");
  if (image.memory == DIGSEG_CUDA)
    fail(DIGSEG_UNAVAILABLE, "image.memory is DIGSEG_CUDA, which this build cannot read; copy the pixels to host memory");
}

Canvas fit(const digseg_image& image, int longer, const Bundle& bundle) {
  const double scale = static_cast<double>(longer) / std::max(image.width, image.height);
  const int height = std::max(1, static_cast<int>(std::nearbyint(image.height * scale)));
  const int width = std::max(1, static_cast<int>(std::nearbyint(image.width * scale)));
  const auto whole = [&](int side, const AxisRange& range) {
    const int64_t padded = std::max<int64_t>((side + bundle.stride - 1) / bundle.stride * bundle.stride, range.min);
    if (padded > range.max)
      refuse("the model's input would have " + std::to_string(padded) + " pixels on a side, this bundle was exported for at most " +
             std::to_string(range.max) + "; use a smaller working size");
    return padded;
  };
  const int64_t rows = whole(height, bundle.rows), columns = whole(width, bundle.columns);
  Canvas canvas{Floats({bundle.pictures.min, 3, rows, columns}),
                {image.width, image.height, width, height, static_cast<int>(columns), static_cast<int>(rows)}};
  const bool same = width == image.width && height == image.height;
  if (image.format == DIGSEG_F32) {
    std::vector<float> rgb = float_rows(image);
    if (!same) rgb = resize_rgb(rgb.data(), image.width, image.height, width, height);
    fill(rgb, width, height, 0.5f, canvas.pixels);
  } else {
    std::vector<uint8_t> rgb = to_rgb(image);
    if (!same) rgb = resize_rgb(rgb.data(), image.width, image.height, width, height);
    fill(rgb, width, height, 127.5f, canvas.pixels);
  }
  return canvas;
}

void unfit(const float* logits, const std::vector<size_t>& order, int logits_width, int logits_height, const Frame& frame, const PlaneSink& sink) {
  const double ratio = static_cast<double>(frame.input_width) / logits_width;
  const Box box{0, 0, static_cast<float>(frame.content_width / ratio), static_cast<float>(frame.content_height / ratio)};
  std::vector<float> room, plane;
  for (const size_t k : order) {
    resize_plane(logits + k * static_cast<size_t>(logits_width) * logits_height, logits_width, logits_height, box, frame.width,
                 frame.height, room, plane);
    sink(k, plane.data());
  }
}

}  // namespace digseg
