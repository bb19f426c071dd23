#include "turn.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <ctime>
#include <exception>
#include <thread>
#include <utility>

#include "error.hpp"
#include "file.hpp"
#include "json.hpp"

namespace digseg {
namespace {

constexpr auto kPatience = std::chrono::minutes(10);
constexpr auto kPause = std::chrono::milliseconds(50);

std::string me() {
  utsname system{};
  uname(&system);
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char since[32] = "";
  std::strftime(since, sizeof since, "%Y-%m-%d %H:%M:%S", &utc);
  return "{\"host\": " + json_quote(system.nodename) + ", \"pid\": " + std::to_string(getpid()) + ", \"since\": " + json_quote(since) + "}";
}

// What a lock file says of its holder.
std::string holder(const std::string& path) {
  try {
    const std::vector<char> body = read_file(path, 4096);
    const Json who = parse_json(body.data(), body.size(), path);
    const long long pid = who.integer_at("pid", 0, 1LL << 31, path);
    return "process " + std::to_string(pid) + " on " + who.string_at("host", path) + ", since " + who.string_at("since", path) + " UTC";
  } catch (const std::exception&) {  // not written yet, or gone
    return "another one";
  }
}

// Is the open file the one at the path still? Its holder removes it before it lets go.
bool is_still(int file, const std::string& path) {
  struct stat open_one, named;
  return fstat(file, &open_one) == 0 && lstat(path.c_str(), &named) == 0 && open_one.st_dev == named.st_dev && open_one.st_ino == named.st_ino;
}

void say_who(int file) {
  const std::string text = me();
  const bool written = ftruncate(file, 0) == 0 && pwrite(file, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size());
  (void)written;  // a full disk: the lock holds all the same
}

}  // namespace

Turn::Turn(std::string path, const std::function<void(const std::string&)>& waits) : path_(std::move(path)) {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < until) {
    if (file_ < 0) file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file_ < 0) return;
    if (flock(file_, LOCK_EX | LOCK_NB) == 0) {
      if (is_still(file_, path_)) {
        say_who(file_);
        return;
      }
    } else if (errno == EWOULDBLOCK) {
      if (!waited_) waits(holder(path_));
      waited_ = true;
      std::this_thread::sleep_for(kPause);
      continue;
    } else if (errno != EINTR) {  // a network file system without locks
      break;
    }
    close(file_);
    file_ = -1;
  }
  if (file_ >= 0) close(file_);
  file_ = -1;
}

Turn::~Turn() {
  if (file_ < 0) return;
  unlink(path_.c_str());
  close(file_);
}

}  // namespace digseg
