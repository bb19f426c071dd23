// SHA-256 (FIPS 180-4), streaming. Uses the x86 SHA instructions where the processor has them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace digseg {

class Sha256 {
 public:
  Sha256();
  void update(const void* data, size_t size);
  std::string hex();  // finishes; lower-case, 64 characters

 private:
  uint32_t state_[8];
  uint8_t block_[64];
  size_t filled_ = 0;
  uint64_t total_ = 0;
};

}  // namespace digseg
