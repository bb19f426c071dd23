#include "labels.hpp"

#include <algorithm>
#include <bitset>
#include <numeric>

#include "digseg/digseg.h"

namespace digseg {
namespace {

// Share of a mask that must lie in a larger one for it to count as its part, and how much smaller it has to be.
constexpr float kInside = 0.9f, kSmaller = 0.8f;

using Words = std::vector<uint64_t>;

// The cells of one plane that are over the threshold, one bit each.
Words cells_of(const float* plane, size_t size, float threshold) {
  Words out((size + 63) / 64);
  for (size_t i = 0; i < size; ++i) out[i / 64] |= static_cast<uint64_t>(plane[i] > threshold) << (i % 64);
  return out;
}

size_t shared(const Words& left, const Words& right) {
  size_t count = 0;
  for (size_t i = 0; i < left.size(); ++i) count += std::bitset<64>(left[i] & right[i]).count();
  return count;
}

}  // namespace

Precedence::Precedence(const Floats& logits, float threshold, int rule) : order_(static_cast<size_t>(logits.shape[1])) {
  const size_t count = order_.size(), size = static_cast<size_t>(logits.shape[2] * logits.shape[3]);
  std::iota(order_.begin(), order_.end(), size_t{0});
  if (rule == DIGSEG_LABELS_STRONGEST || count < 2) return;
  std::vector<Words> cells;
  std::vector<float> areas;
  for (size_t k = 0; k < count; ++k) {
    cells.push_back(cells_of(&logits.data[k * size], size, threshold));
    areas.push_back(static_cast<float>(shared(cells[k], cells[k])));
  }
  beats_.assign(count * (count + 1), 0);
  for (size_t k = 0; k < count; ++k)
    for (size_t l = 0; l < count && areas[k] > 0; ++l) {
      const bool small = rule == DIGSEG_LABELS_SMALLEST ? areas[k] < areas[l] : areas[k] <= kSmaller * areas[l];
      const bool inside = rule == DIGSEG_LABELS_SMALLEST || (small && static_cast<float>(shared(cells[k], cells[l])) >= kInside * areas[k]);
      beats_[k * (count + 1) + l + 1] = small && inside;
    }
  std::stable_sort(order_.begin(), order_.end(), [&](size_t left, size_t right) { return areas[left] > areas[right]; });
}

}  // namespace digseg
