// The choice of a backend, kept between starts, with the graphs as ONNX Runtime optimised them for this processor (in its own
// format: as ONNX, weights inside a subgraph would still point to the bundle).
//
// In the folder native/ of the Python runtime's cache, 0700 and the user's own: one JSON file per key, written beside and
// renamed into place; what cannot be read or written only costs a new measurement. A graph is read once, and those bytes are
// run only when their SHA-256 is the one in the verdict.
#pragma once
#include <memory>
#include <string>

#include "backend.hpp"
#include "turn.hpp"

namespace digseg {

// $DIGSEG_CACHE, else this user's cache folder; "" for a user without a home.
std::string cache_folder();

struct Known {
  std::string backend;
  Optimised graphs;  // empty where none are kept
};

class Verdicts {
 public:
  // folder: nullptr for $DIGSEG_CACHE or the user's cache folder, "" to keep nothing. A folder of another user is logged and
  // nothing is kept.
  Verdicts(const char* folder, const Bundle& bundle, const BackendSettings& settings, const Log& log);

  bool on() const { return !folder_.empty(); }
  bool read(const Bundle& bundle, Known& known) const;
  // One at a time finds out what is not known; nullptr where nothing is kept. An optimisation: of two verdicts the last one stays.
  std::unique_ptr<Turn> turn(const Log& log) const;
  void write(const Known& known) const;
  // Backends asked for by name that were right before.
  bool was_right(const std::string& backend) const;
  void write_right(const std::string& backend) const;
  // Where graphs go while it is not known whether they are right; empty where none should be kept.
  Optimised draft(const Bundle& bundle) const;
  // Gives drafts that turned out right their names and hashes; empty when that fails. What is not kept is removed.
  Optimised keep(const Optimised& draft) const;
  static void drop(const Optimised& graphs);

 private:
  std::string right_path(const std::string& backend) const { return folder_ + "/right-" + backend + "-" + key_ + ".json"; }
  std::string graph_path(Graph graph) const { return folder_ + "/graph-" + key_ + "." + file_of(graph).name + ".ort"; }

  std::string folder_, key_;
};

}  // namespace digseg
