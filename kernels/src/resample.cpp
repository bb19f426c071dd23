#include "resample.hpp"

#include <algorithm>
#include <cmath>

namespace digseg {
namespace {

constexpr int kBits = 32 - 8 - 2;  // fraction bits of 8-bit weights: sums of 255 * weight fit 32 bits

// For every output position: the first source position it reads, how many, and their weights.
struct Weights {
  std::vector<int> first, count;
  std::vector<double> values;  // `width` per output position
  size_t width = 0;

  Weights(int in_size, float from, float to, int out_size) {
    const double scale = static_cast<double>(to - from) / out_size;
    const double wide = std::max(scale, 1.0);
    width = static_cast<size_t>(std::ceil(wide)) * 2 + 1;
    values.assign(width * static_cast<size_t>(out_size), 0);
    for (int i = 0; i < out_size; ++i) {
      const double center = static_cast<double>(from) + (i + 0.5) * scale;
      const int low = std::max(0, static_cast<int>(center - wide + 0.5));
      const int high = std::min(in_size, static_cast<int>(center + wide + 0.5));
      double* w = &values[static_cast<size_t>(i) * width];
      double sum = 0;
      for (int k = 0; k < high - low; ++k) {
        const double distance = std::fabs((k + low - center + 0.5) / wide);
        w[k] = distance < 1.0 ? 1.0 - distance : 0.0;
        sum += w[k];
      }
      for (int k = 0; k < high - low && sum != 0; ++k) w[k] /= sum;
      first.push_back(low);
      count.push_back(high - low);
    }
  }

  std::vector<int> fixed_point() const {
    std::vector<int> out(values.size());
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<int>(0.5 + values[i] * (1 << kBits));
    return out;
  }
};

uint8_t clip8(int sum) { return static_cast<uint8_t>(std::min(255, std::max(0, sum >> kBits))); }

// Rows of `channels` interleaved values.
template <int channels>
std::vector<uint8_t> columns8(const uint8_t* in, int width, int height, int out_width) {
  const Weights weights(width, 0, static_cast<float>(width), out_width);
  const std::vector<int> k = weights.fixed_point();
  std::vector<uint8_t> out(static_cast<size_t>(out_width) * height * channels);
  for (int y = 0; y < height; ++y) {
    const uint8_t* row = in + static_cast<size_t>(y) * width * channels;
    uint8_t* to = &out[static_cast<size_t>(y) * out_width * channels];
    for (int x = 0; x < out_width; ++x) {
      const int* w = &k[static_cast<size_t>(x) * weights.width];
      const uint8_t* from = row + static_cast<size_t>(weights.first[x]) * channels;
      int sums[channels];
      for (int c = 0; c < channels; ++c) sums[c] = 1 << (kBits - 1);
      for (int i = 0; i < weights.count[x]; ++i)
        for (int c = 0; c < channels; ++c) sums[c] += from[i * channels + c] * w[i];
      for (int c = 0; c < channels; ++c) to[x * channels + c] = clip8(sums[c]);
    }
  }
  return out;
}

std::vector<uint8_t> rows8(const uint8_t* in, int row_values, int height, int out_height) {
  const Weights weights(height, 0, static_cast<float>(height), out_height);
  const std::vector<int> k = weights.fixed_point();
  std::vector<uint8_t> out(static_cast<size_t>(row_values) * out_height);
  std::vector<int> sums(row_values);
  for (int y = 0; y < out_height; ++y) {
    std::fill(sums.begin(), sums.end(), 1 << (kBits - 1));
    for (int i = 0; i < weights.count[y]; ++i) {
      const int w = k[static_cast<size_t>(y) * weights.width + i];
      const uint8_t* row = in + static_cast<size_t>(weights.first[y] + i) * row_values;
      for (int x = 0; x < row_values; ++x) sums[x] += row[x] * w;
    }
    uint8_t* to = &out[static_cast<size_t>(y) * row_values];
    for (int x = 0; x < row_values; ++x) to[x] = clip8(sums[x]);
  }
  return out;
}

void columns(const float* in, int width, int height, int channels, const Weights& weights, int out_width, float* out) {
  for (int y = 0; y < height; ++y) {
    const float* row = in + static_cast<size_t>(y) * width * channels;
    for (int x = 0; x < out_width; ++x) {
      const double* w = &weights.values[static_cast<size_t>(x) * weights.width];
      for (int c = 0; c < channels; ++c) {
        const float* from = row + static_cast<size_t>(weights.first[x]) * channels + c;
        double sum = 0;
        for (int i = 0; i < weights.count[x]; ++i) sum += from[static_cast<size_t>(i) * channels] * w[i];
        *out++ = static_cast<float>(sum);
      }
    }
  }
}

void rows(const float* in, int row_values, const Weights& weights, int out_height, float* out) {
  std::vector<double> sums(row_values);
  for (int y = 0; y < out_height; ++y) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int i = 0; i < weights.count[y]; ++i) {
      const double w = weights.values[static_cast<size_t>(y) * weights.width + i];
      const float* row = in + static_cast<size_t>(weights.first[y] + i) * row_values;
      for (int x = 0; x < row_values; ++x) sums[x] += row[x] * w;
    }
    for (int x = 0; x < row_values; ++x) *out++ = static_cast<float>(sums[x]);
  }
}

}  // namespace

std::vector<uint8_t> resize_rgb(const uint8_t* pixels, int width, int height, int out_width, int out_height) {
  std::vector<uint8_t> now;
  if (out_width != width) now = columns8<3>(pixels, width, height, out_width);
  else now.assign(pixels, pixels + static_cast<size_t>(width) * height * 3);
  return out_height != height ? rows8(now.data(), out_width * 3, height, out_height) : now;
}

std::vector<float> resize_rgb(const float* pixels, int width, int height, int out_width, int out_height) {
  const Weights across(width, 0, static_cast<float>(width), out_width), down(height, 0, static_cast<float>(height), out_height);
  std::vector<float> room(static_cast<size_t>(out_width) * height * 3), out(static_cast<size_t>(out_width) * out_height * 3);
  columns(pixels, width, height, 3, across, out_width, room.data());
  rows(room.data(), out_width * 3, down, out_height, out.data());
  return out;
}

void resize_plane(const float* plane, int width, int height, const Box& box, int out_width, int out_height,
                  std::vector<float>& room, std::vector<float>& out) {
  out.resize(static_cast<size_t>(out_width) * out_height);
  const bool across = out_width != width || box.left != 0 || box.right != static_cast<float>(width);
  const bool down = out_height != height || box.top != 0 || box.bottom != static_cast<float>(height);
  const float* now = plane;
  if (across) {
    std::vector<float>& to = down ? room : out;
    to.resize(static_cast<size_t>(out_width) * height);
    columns(plane, width, height, 1, Weights(width, box.left, box.right, out_width), out_width, to.data());
    now = to.data();
  }
  if (down) rows(now, out_width, Weights(height, box.top, box.bottom, out_height), out_height, out.data());
  else if (!across) std::copy(plane, plane + out.size(), out.begin());
}

}  // namespace digseg
