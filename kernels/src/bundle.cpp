#include "bundle.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "error.hpp"
#include "graph_file.hpp"
#include "sha256.hpp"

namespace digseg {
namespace {

constexpr uint64_t kManifestLimit = 64ull << 20;
const char* const kPlans[] = {".plan", ".engine", ".trt"};  // executable code: never part of a bundle, whoever wrote its hash
const char* const kAgain = "; copy or export the bundle again";

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool plain_name(const std::string& name) {
  if (name.empty() || name.size() > 255 || name[0] == '.' || name[0] == '-') return false;
  for (const char c : name) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!letter && c != '_' && c != '.' && c != '-') return false;
  }
  return true;
}

}  // namespace

std::string weights_of(std::string graph) {
  for (const char* end : {".onnx", ".fp32"})
    if (ends_with(graph, end)) graph.resize(graph.size() - 5);
  return graph + ".data";
}

Bundle::Bundle(const std::string& folder) : folder(folder), manifest_path_(folder + "/manifest.json") {
  if (!is_directory(folder))
    fail(DIGSEG_NOT_FOUND, "bundle " + folder + " not found; expected the path of a directory written by `digseg-export`, for example " +
                               contract::kShippedBundle + " of this project: names are not looked up");
  read_manifest();
}

void Bundle::read_manifest() {
  if (file_size(manifest_path_) < 0)
    fail(DIGSEG_CORRUPT, folder + " is not a complete bundle: manifest.json is missing" + kAgain);
  const std::vector<char> body = read_file(manifest_path_, kManifestLimit);
  const Json manifest = parse_json(body.data(), body.size(), manifest_path_);
  const std::string& format = manifest.string_at("format", manifest_path_);
  if (format != contract::kFormat)
    fail(DIGSEG_INCOMPATIBLE, folder + " has format " + quoted(format) + ", this library reads '" + contract::kFormat +
                                  "'; make it again with `digseg-export`, or use the release that wrote it");
  const long long version = manifest.at("contract", Json::Object, manifest_path_).integer_at("version", 0, 1 << 20, manifest_path_);
  if (version != contract::kVersion)
    fail(DIGSEG_INCOMPATIBLE, folder + " has contract version " + std::to_string(version) + ", this library reads " +
                                  std::to_string(contract::kVersion) + "; make it again with `digseg-export`");
  const Json& files = manifest.at("files", Json::Object, manifest_path_);
  has_presence = files.find(file_of(contract::kPresence).file) != nullptr;
  read_model(manifest);
  read_vocabulary(manifest);
  for (size_t i = 0; i < files.keys.size(); ++i) check_file(files.keys[i], files.items[i]);
  check_others();
  check_graphs();
}

void Bundle::read_model(const Json& manifest) {
  const Json& model = manifest.at("model", Json::Object, manifest_path_);
  model_name = model.string_at("name", manifest_path_);
  stride = static_cast<int>(model.integer_at("stride", 1, 1024, manifest_path_));
  image_size = image_size_max = static_cast<int>(model.integer_at("image_size", 1, 4096, manifest_path_));
  if (const Json* largest = model.find("image_size_max"); largest != nullptr && !largest->is(Json::Null))
    image_size_max = std::max(image_size, static_cast<int>(model.integer_at("image_size_max", 1, 4096, manifest_path_)));
  precision = manifest.at("precision", Json::Object, manifest_path_).string_at("name", manifest_path_);
  const Json& verified = manifest.at("verification", Json::Object, manifest_path_);
  const Json& limits = verified.at("limits", Json::Object, manifest_path_);
  limit_relative = limits.number_at("relative", manifest_path_);
  limit_iou = limits.number_at("iou", manifest_path_);
  const Json *presence = manifest.find("presence"), *threshold = presence == nullptr ? nullptr : presence->find("threshold");
  if (threshold != nullptr && !threshold->is(Json::Null))
    presence_threshold = static_cast<float>(presence->number_at("threshold", manifest_path_));
  if (const Json* shapes = manifest.find("shapes")) {
    pictures = read_range(*shapes, "B"), prompts = read_range(*shapes, "K"), tokens = read_range(*shapes, "L");
    rows = read_range(*shapes, "H"), columns = read_range(*shapes, "W");
  }
}

// The names of a folded bundle, whose graph reads presence by itself.
void Bundle::read_vocabulary(const Json& manifest) {
  const Json* vocabulary = manifest.find("vocabulary");
  if (vocabulary == nullptr || vocabulary->is(Json::Null)) return;
  const Json& listed = vocabulary->at("names", Json::Array, manifest_path_);
  std::set<std::string> seen;
  for (const Json& name : listed.items)
    if (!name.is(Json::String) || name.text.empty() || !seen.insert(name.text).second)
      fail(DIGSEG_CORRUPT, manifest_path_ + ": vocabulary.names holds what is no name, or a name twice" + kAgain);
    else names.push_back(name.text);
  if (names.empty() || names.size() > contract::kMostNames || vocabulary->string_at("rule", manifest_path_) != "strongest")
    fail(DIGSEG_CORRUPT, manifest_path_ + ": vocabulary has " + std::to_string(names.size()) + " names; expected 1 to " +
                             std::to_string(contract::kMostNames) + " and the rule 'strongest'" + kAgain);
  const Json* only = vocabulary->find("labels_only");
  labels_only = only != nullptr && only->flag;
  const Json* presence = manifest.find("presence");
  has_presence = presence != nullptr && !presence->is(Json::Null);
  limit_labels = manifest.at("verification", Json::Object, manifest_path_).at("limits", Json::Object, manifest_path_).number_at("labels", manifest_path_);
}

std::vector<Graph> Bundle::graphs() const {
  if (folded()) return {contract::kImageEncoder, contract::kLabels};
  std::vector<Graph> out{contract::kTextEncoder, contract::kImageEncoder};
  if (has_presence) out.push_back(contract::kPresence);
  out.push_back(contract::kMaskDecoder);
  return out;
}

// What the manifest does not list is refused. Hidden names are left alone: hub clients and Kubernetes put theirs everywhere.
void Bundle::check_others() const {
  std::error_code unreadable;
  for (const auto& entry : std::filesystem::directory_iterator(folder, unreadable)) {
    const std::string name = entry.path().filename().string();
    if (name[0] != '.' && name != "manifest.json" && name != "model.sig" && !lists(name))
      fail(DIGSEG_CORRUPT, folder + " holds " + quoted(name) + ", which its manifest does not list; a bundle holds what was hashed and "
                           "nothing else; move it away");
  }
}

// No graph names any file but its own weights.
void Bundle::check_graphs() const {
  for (const auto& file : files_) {
    if (!ends_with(file.first, ".onnx")) continue;
    const std::string full = folder + "/" + file.first, data = weights_of(file.first);
    check_weights(read(file.first), full, data, lists(data) ? file_bytes(data) : -1);
  }
}

AxisRange Bundle::read_range(const Json& shapes, const char* axis) const {
  const Json* range = shapes.find(axis);
  if (range == nullptr || !range->is(Json::Object)) return {};  // "dynamic"
  const auto end = [&](const char* name) { return range->integer_at(name, 1, INT32_MAX, manifest_path_); };
  const AxisRange out{end("min"), end("max"), end("opt")};
  if (!out.holds(out.opt)) fail(DIGSEG_CORRUPT, manifest_path_ + ": the shapes of " + axis + " are out of order" + kAgain);
  return out;
}

void Bundle::check_file(const std::string& name, const Json& entry) {
  if (!plain_name(name))
    fail(DIGSEG_CORRUPT, manifest_path_ + " lists the file name " + quoted(name) + "; expected plain names only" + kAgain);
  for (const char* end : kPlans)
    if (ends_with(name, end))
      fail(DIGSEG_CORRUPT, manifest_path_ + " lists " + quoted(name) + "; a plan is code for one machine and never part of a bundle" + kAgain);
  const std::string full = folder + "/" + name;
  const long long wanted = entry.integer_at("size", 0, 1ll << 50, manifest_path_);
  const std::string& hash = entry.string_at("sha256", manifest_path_);
  const int64_t size = file_size(full);  // a link is as good as its target: the hash protects what is read
  if (size < 0) fail(DIGSEG_CORRUPT, full + " is missing; expected a file; copy the whole bundle again");
  if (size != wanted)
    fail(DIGSEG_CORRUPT, full + " is damaged: " + std::to_string(wanted) + " bytes expected, got " + std::to_string(size) + kAgain);
  Seal seal;
  const std::string found = file_sha256(full, &seal);
  if (found != hash)
    fail(DIGSEG_CORRUPT, full + " is damaged: SHA-256 " + quoted(hash, 12) + " expected, got " + found.substr(0, 12) + "..." + kAgain);
  if (seal.size != static_cast<uint64_t>(wanted)) fail(DIGSEG_CORRUPT, full + " is being written to; try again when that has ended");
  files_[name] = {hash, wanted, seal};
  bytes_ += size;
}

std::string Bundle::path(const std::string& name) const {
  listed(name);
  return folder + "/" + name;
}

const Bundle::Listed& Bundle::listed(const std::string& name) const {
  const auto found = files_.find(name);
  if (found == files_.end()) fail(DIGSEG_CORRUPT, folder + " lists no file " + quoted(name) + "; export it again with `digseg-export`");
  return found->second;
}

std::vector<char> Bundle::read(const std::string& name, int64_t limit) const {
  const Listed& file = listed(name);
  if (file.bytes > limit)
    fail(DIGSEG_CORRUPT, folder + "/" + name + " has " + std::to_string(file.bytes) + " bytes, at most " + std::to_string(limit) + " are expected" + kAgain);
  try {
    return read_hashed(folder + "/" + name, static_cast<uint64_t>(file.bytes), file.sha256);
  } catch (const Error& error) {
    fail(DIGSEG_CORRUPT, folder + "/" + name + " has changed since the bundle was opened (" + error.what() + "); load it again");
  }
}

void Bundle::unchanged(const std::string& name) const {
  const Listed& file = listed(name);
  if (!(seal_of(folder + "/" + name) == file.seal))
    fail(DIGSEG_CORRUPT, folder + "/" + name + " has changed since the bundle was opened; load it again");
}

std::string Bundle::digest() const {
  Sha256 all;
  for (const auto& file : files_) {
    const std::string line = file.first + ":" + file.second.sha256;
    all.update(line.data(), line.size());
  }
  return all.hex();
}

int Bundle::usual_size(int width, int height) const {
  const int64_t longer = std::max(width, height);
  if (rows.opt == 0 || columns.opt == 0) return static_cast<int>(std::clamp<int64_t>(longer, image_size, image_size_max));
  return static_cast<int>(std::min({std::max(rows.opt, columns.opt), longer * rows.max / height, longer * columns.max / width}));
}

size_t token_bucket(size_t length) {
  for (const size_t bucket : contract::kTokenBuckets)
    if (length <= bucket) return bucket;
  return kMostTokens;
}

}  // namespace digseg
