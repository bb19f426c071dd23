// Bilinear resizing with antialiasing, equal to Pillow's `Image.resize(size, BILINEAR, box)`: a triangle filter as wide
// as the step, columns first. 8-bit pixels use Pillow's fixed-point weights, floats double sums.
#pragma once
#include <cstdint>
#include <vector>

namespace digseg {

struct Box {  // the part of the source that is resized, in source pixels
  float left, top, right, bottom;
};

// [height, width, 3] -> [out_height, out_width, 3]
std::vector<uint8_t> resize_rgb(const uint8_t* pixels, int width, int height, int out_width, int out_height);
std::vector<float> resize_rgb(const float* pixels, int width, int height, int out_width, int out_height);

// One plane [height, width], the box of it -> out [out_height, out_width]. `room` is working memory that is reused.
void resize_plane(const float* plane, int width, int height, const Box& box, int out_width, int out_height,
                  std::vector<float>& room, std::vector<float>& out);

}  // namespace digseg
