#include "verdict.hpp"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "error.hpp"
#include "file.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace digseg {
namespace {

namespace fs = std::filesystem;

constexpr size_t kKeptVerdicts = 200, kKeptGraphs = 32;
constexpr int64_t kMostWeights = 256 << 20;  // larger bundles spend their start on reading weights, and a copy is dear

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The first `size` bytes of a file of the kernel; "" when it is not there.
std::string head(const std::string& path, size_t size) {
  std::ifstream file(path, std::ios::binary);
  std::string text(size, '\0');
  file.read(&text[0], static_cast<std::streamsize>(size));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(0, file.gcount())));
  return text;
}

// Name and features of the first processor: an optimised graph is laid out for them.
std::string processor() {
  std::string text = head("/proc/cpuinfo", 8192), out;
  for (const char* name : {"model name", "flags", "Features", "CPU implementer", "CPU part"}) {
    const size_t at = text.find(std::string(name) + "\t");
    if (at != std::string::npos) out += text.substr(at, text.find('\n', at) - at) + "\n";
  }
  return out;
}

std::string gpus() {
  std::string out = head("/proc/driver/nvidia/version", 256) + head("/proc/device-tree/model", 128);
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/proc/driver/nvidia/gpus", ignored)) {
    const std::string text = head(entry.path().string() + "/information", 4096);
    const size_t at = text.find("Model");
    if (at != std::string::npos) out += text.substr(at, text.find('\n', at) - at) + "\n";
  }
  return out;
}

// Everything that may change the choice.
std::string key_of(const Bundle& bundle, const BackendSettings& settings) {
  utsname system{};
  uname(&system);
  Sha256 all;
  std::string shapes;
  for (const AxisRange& axis : {bundle.pictures, bundle.prompts, bundle.tokens, bundle.rows, bundle.columns})
    shapes += std::to_string(axis.min) + " " + std::to_string(axis.opt) + " " + std::to_string(axis.max) + " ";
  for (const std::string& part :
       {std::string("digseg " DIGSEG_VERSION), bundle.digest(), shapes, onnxruntime_version(settings), tensorrt_state(bundle), std::string(system.machine),
        processor(), gpus(), std::to_string(usable_cores()), std::to_string(settings.threads), std::to_string(settings.device),
        variable("CUDA_VISIBLE_DEVICES")})
    all.update(part.c_str(), part.size() + 1);
  return all.hex();
}

void tidy(const std::string& folder, const std::string& prefix, size_t kept) {
  std::vector<std::pair<fs::file_time_type, fs::path>> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (entry.path().filename().string().rfind(prefix, 0) == 0) found.emplace_back(entry.last_write_time(ignored), entry.path());
  std::sort(found.rbegin(), found.rend());
  for (size_t i = kept; i < found.size(); ++i) fs::remove(found[i].second, ignored);
}

}  // namespace

std::string cache_folder() {
  const std::string given = variable("DIGSEG_CACHE"), cache = variable("XDG_CACHE_HOME"), home = variable("HOME");
  if (!given.empty()) return given;
  if (!cache.empty()) return cache + "/digseg";
  return home.empty() ? "" : home + "/.cache/digseg";
}

Verdicts::Verdicts(const char* folder, const Bundle& bundle, const BackendSettings& settings, const Log& log)
    : folder_(folder == nullptr ? cache_folder() : folder) {
  if (!on()) return;
  folder_ += "/native";
  const std::string why = private_folder(folder_);
  if (why.empty()) {
    key_ = key_of(bundle, settings);
  } else {
    log(DIGSEG_LOG_INFO, "nothing is kept in " + folder_ + ": " + why);
    folder_.clear();
  }
}

bool Verdicts::was_right(const std::string& backend) const { return on() && plain_file_size(right_path(backend)) >= 0; }

void Verdicts::write_right(const std::string& backend) const try {
  const std::string body = "{\"backend\": " + json_quote(backend) + "}\n";
  if (on()) write_file(right_path(backend), {body.begin(), body.end()});
  tidy(folder_, "right-", kKeptVerdicts);
} catch (const std::exception&) {  // a folder that cannot be written
}

bool Verdicts::read(const Bundle& bundle, Known& known) const try {
  const std::string path = folder_ + "/choice-" + key_ + ".json";
  if (!on() || plain_file_size(path) < 0) return false;
  const std::vector<char> body = read_file(path, 1 << 16);
  const Json verdict = parse_json(body.data(), body.size(), path);
  known.backend = verdict.string_at("backend", path);
  for (const Graph graph : bundle.graphs()) {
    const char* name = file_of(graph).name;
    if (verdict.find(name) == nullptr) continue;
    known.graphs[graph] = {graph_path(graph), verdict.string_at(name, path)};
    // A graph that is gone costs a new measurement, which makes it again.
    if (plain_file_size(known.graphs[graph].path) < 0) return false;
  }
  return true;
} catch (const Error&) {
  return false;
}

std::unique_ptr<Turn> Verdicts::turn(const Log& log) const {
  if (!on()) return nullptr;
  return std::make_unique<Turn>(folder_ + "/turn-" + key_, [&](const std::string& who) {
    log(DIGSEG_LOG_INFO, who + ", is choosing a backend for this model; waiting for its answer");
  });
}

void Verdicts::write(const Known& known) const try {
  if (!on()) return;
  std::string body = "{\"backend\": " + json_quote(known.backend);
  for (const auto& graph : known.graphs) body += std::string(", \"") + file_of(graph.first).name + "\": " + json_quote(graph.second.sha256);
  body += "}\n";
  write_file(folder_ + "/choice-" + key_ + ".json", {body.begin(), body.end()});
  tidy(folder_, "choice-", kKeptVerdicts);
  tidy(folder_, "graph-", kKeptGraphs);
} catch (const std::exception&) {  // a folder that cannot be written, or that others tidy at the same time
}

Optimised Verdicts::draft(const Bundle& bundle) const {
  if (!on() || bundle.bytes() > kMostWeights || access(folder_.c_str(), W_OK) != 0) return {};
  static std::atomic<int> number{0};
  const std::string name = folder_ + "/graph-draft-" + std::to_string(getpid()) + "-" + std::to_string(number++);
  Optimised out;
  for (const Graph graph : bundle.graphs()) out[graph].path = name + "." + file_of(graph).name + ".ort";
  return out;
}

Optimised Verdicts::keep(const Optimised& draft) const {
  Optimised kept = draft;
  try {
    for (auto& graph : kept) {
      graph.second.sha256 = file_sha256(graph.second.path);
      fs::rename(graph.second.path, graph_path(graph.first));
      graph.second.path = graph_path(graph.first);
    }
    return kept;
  } catch (const std::exception&) {  // not written, or not movable
  }
  drop(draft);
  return {};
}

void Verdicts::drop(const Optimised& graphs) {
  std::error_code ignored;
  for (const auto& graph : graphs) fs::remove(graph.second.path, ignored);
}

}  // namespace digseg
