// A caller's picture, checked, and its way to the model's canvas and back. The same steps as digseg_engine/images.py.
#pragma once
#include <functional>
#include <vector>

#include "bundle.hpp"
#include "digseg/digseg.h"
#include "tensor.hpp"

namespace digseg {

// Where a picture lies in the model's input.
struct Frame {
  int width = 0, height = 0;                  // of the picture as given
  int content_width = 0, content_height = 0;  // of the picture in the input
  int input_width = 0, input_height = 0;      // with padding
};

struct Canvas {
  Floats pixels;  // [B, 3, H, W] in -1..1: the picture, B times where the profile knows no single one
  Frame frame;
};

// Error(DIGSEG_INVALID_ARGUMENT) for anything that cannot be read safely.
void check_image(const digseg_image& image);

// Resize so that the longer side is `longer`, pad right and bottom by repetition to the stride, and to the bundle's least
// size where it has one. Error(DIGSEG_INVALID_ARGUMENT) over its largest.
Canvas fit(const digseg_image& image, int longer, const Bundle& bundle);

// Logits [K, h', w'] of a canvas, one plane after another, in the order given, at the picture's own size.
using PlaneSink = std::function<void(size_t k, const float* plane)>;
void unfit(const float* logits, const std::vector<size_t>& order, int logits_width, int logits_height, const Frame& frame, const PlaneSink& sink);

}  // namespace digseg
