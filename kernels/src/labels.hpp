// Which mask a pixel of the label map shows where several meet. The same rules as digseg_engine/runtime/labels.py.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "tensor.hpp"

namespace digseg {

// The order in which K prompts are laid down, wholes before their parts, and who shows over whom however strong.
class Precedence {
 public:
  // logits [1, K, h', w'] of one picture, judged as they are, before they are enlarged; rule: one of DIGSEG_LABELS_*.
  Precedence(const Floats& logits, float threshold, int rule);

  const std::vector<size_t>& order() const { return order_; }
  // Whether prompt k shows over label l (0: none) wherever both masks are set.
  bool beats(size_t k, int32_t label) const { return !beats_.empty() && beats_[k * (order_.size() + 1) + static_cast<size_t>(label)] != 0; }

 private:
  std::vector<size_t> order_;
  std::vector<uint8_t> beats_;  // [K, K + 1]; empty where strength alone decides
};

}  // namespace digseg
