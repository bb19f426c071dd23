// One process or thread at a time makes what all of them will use; the others wait, and say for whom.
#pragma once
#include <functional>
#include <string>

namespace digseg {

// A lock file that says who has it (host, process, since when) for as long as this lives. The system's lock (flock) holds, not the
// file: it goes with its process, however that ends. Without such locks, or where the file cannot be made, nobody waits; so it is
// after ten minutes. What is made must be right without it.
class Turn {
 public:
  // waits: called once, with who has it in words, when somebody has.
  Turn(std::string path, const std::function<void(const std::string&)>& waits);
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  // Had somebody else the lock before? What is wanted may be there by now.
  bool waited() const { return waited_; }

 private:
  std::string path_;
  int file_ = -1;
  bool waited_ = false;
};

}  // namespace digseg
