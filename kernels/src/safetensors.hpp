// safetensors files: the golden sample and vocabularies. No code, bounded header, every range checked.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "tensor.hpp"

namespace digseg {

class Safetensors {
 public:
  // Error(DIGSEG_CORRUPT) when the header or a range is wrong.
  explicit Safetensors(const std::string& path);
  Safetensors(std::vector<char> body, const std::string& path);  // bytes of a file that is called `path` in messages

  Floats floats(const std::string& name) const;  // F32
  Ints ints(const std::string& name) const;      // I64
  Flags flags(const std::string& name) const;    // BOOL
  Labels labels(const std::string& name) const;  // U8 or U16
  bool holds(const std::string& name) const { return entries_.count(name) != 0; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  struct Entry {
    std::string dtype;
    Shape shape;
    size_t begin, end;
  };
  const Entry& entry(const std::string& name, const char* dtype) const;
  template <typename T>
  Tensor<T> copy(const std::string& name, const char* dtype) const;

  std::string path_;
  std::vector<char> body_;
  size_t start_ = 0;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

// The same format, written: F32 and I64 tensors and text metadata.
std::vector<char> safetensors_bytes(const std::map<std::string, std::string>& metadata,
                                    const std::map<std::string, const Floats*>& floats,
                                    const std::map<std::string, const Ints*>& ints);

}  // namespace digseg
