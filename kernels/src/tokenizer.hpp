// CLIP's byte-pair encoding from a bundle's tokenizer.json, equal to the `tokenizers` library number for number.
// Other kinds of tokenizer.json are refused by name of what is not known.
#pragma once
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "json.hpp"
#include "unicode.hpp"

namespace digseg {

class Tokenizer {
 public:
  // Of the bytes of a tokenizer.json, which is called `path` in messages.
  Tokenizer(const std::vector<char>& body, const std::string& path);

  // Token numbers, start and end included. Over `limit` the middle is cut so that start and end stay.
  std::vector<int64_t> encode(const std::string& text, size_t limit = SIZE_MAX) const;

 private:
  struct Added {
    std::string content;
    int64_t id;
    bool normalized;
  };
  struct Merge {
    uint32_t rank;
    int64_t id;
  };
  enum class Step { Compose, Spaces, Lower };

  void read_model(const Json& model);
  void read_normalizer(const Json& normalizer);
  void read_pre_tokenizer(const Json& pre) const;
  void read_post_processor(const Json& post);
  void read_added(const Json& added);
  [[noreturn]] void unknown(const std::string& what) const;

  Points normalize(const Points& text) const;
  void encode_plain(const std::string& text, std::vector<int64_t>& out) const;
  void encode_normalized(const Points& text, std::vector<int64_t>& out) const;
  void encode_word(const std::string& bytes, std::vector<int64_t>& out) const;
  void merge(std::vector<int64_t>& symbols) const;
  int64_t id_of(const std::string& token) const;

  std::string path_, suffix_, spaces_to_;
  std::vector<Step> steps_;
  std::vector<Added> added_;
  std::unordered_map<std::string, int64_t> vocabulary_;
  std::unordered_map<uint64_t, Merge> merges_;
  std::string byte_names_[256];
  int64_t unknown_ = -1, start_ = 0, end_ = 0;
};

}  // namespace digseg
