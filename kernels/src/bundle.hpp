// A bundle directory: accepted only when the manifest is known and every file has its hash. What is parsed is what was hashed: a
// reader gets the very bytes (`read`), and of a file too large to hold the word that nobody touched it (`unchanged`). The same rules as
// digseg_engine/bundle.py; formats, files and tensors are those of contract.py, through contract.hpp.
#pragma once
#include <cmath>
#include <cstdint>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "contract.hpp"
#include "file.hpp"
#include "json.hpp"

namespace digseg {

using contract::Graph;
inline const contract::GraphFile& file_of(Graph graph) { return contract::kGraphFiles[graph]; }

constexpr int64_t kLargestTensors = int64_t{4} << 30;  // of golden samples and vocabularies
constexpr int64_t kLargestRead = int64_t{1} << 30;  // bytes of a file that are held in memory; of larger weights the seal is looked at
constexpr size_t kMostTokens = *(std::end(contract::kTokenBuckets) - 1);
size_t token_bucket(size_t length);  // smallest bucket that holds `length`, else the last

// What a bundle was exported for: an axis without a profile is free, and its `opt` 0.
struct AxisRange {
  int64_t min = 1, max = INT32_MAX, opt = 0;
  bool holds(int64_t size) const { return min <= size && size <= max; }
};

// The file that holds the weights of a graph and of the form of it that a CPU runs.
std::string weights_of(std::string graph);

class Bundle {
 public:
  // Reads and checks everything; Error names the first thing that is wrong.
  explicit Bundle(const std::string& folder);

  std::string folder, model_name, precision;
  int image_size = 0, image_size_max = 0, stride = 0;
  double limit_relative = 0, limit_iou = 0;
  bool has_presence = false;
  float presence_threshold = -INFINITY;  // a logit; a prompt below it is not in the picture
  std::vector<std::string> names;  // of a folded bundle, in the order of their labels; none of an open one
  bool labels_only = false;        // a folded bundle that answers its label map alone
  double limit_labels = 0;         // of a folded bundle: least share of its label map that must be right
  AxisRange pictures, prompts, tokens, rows, columns;  // the profile's B, K, L, H, W

  std::vector<Graph> graphs() const;  // those it has, in the order they are asked
  bool folded() const { return !names.empty(); }
  bool lists(const std::string& name) const { return files_.count(name) != 0; }
  std::string path(const std::string& name) const;  // Error(DIGSEG_CORRUPT) when not listed
  const std::string& file_hash(const std::string& name) const { return listed(name).sha256; }
  int64_t file_bytes(const std::string& name) const { return lists(name) ? listed(name).bytes : 0; }
  // All bytes of a file, read once. Error(DIGSEG_CORRUPT) when they are others by now, or more than `limit`.
  std::vector<char> read(const std::string& name, int64_t limit = kLargestRead) const;
  // Asked after a library has opened a file by its path. Error(DIGSEG_CORRUPT) when it is another one than that which was
  // hashed, or may have been written to since.
  void unchanged(const std::string& name) const;
  int64_t bytes() const { return bytes_; }           // of all files together
  std::string digest() const;                        // one hash over all files, as in Python
  // Pixels of the longer side that a picture is worked at where none are asked for: what the model was trained for, or what
  // the profile holds of its proportions, up to its usual size.
  int usual_size(int width, int height) const;

 private:
  struct Listed {
    std::string sha256;
    int64_t bytes;
    Seal seal;
  };
  const Listed& listed(const std::string& name) const;
  void read_manifest();
  void read_model(const Json& manifest);
  void read_vocabulary(const Json& manifest);
  AxisRange read_range(const Json& shapes, const char* axis) const;
  void check_file(const std::string& name, const Json& entry);
  void check_others() const;
  void check_graphs() const;

  std::string manifest_path_;
  std::map<std::string, Listed> files_;  // by name
  int64_t bytes_ = 0;
};

}  // namespace digseg
