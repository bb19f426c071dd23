#include "file.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "error.hpp"
#include "sha256.hpp"

namespace digseg {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int number) : number(number) {}
  ~Descriptor() {
    if (number >= 0) close(number);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number;
};

ssize_t read_some(int file, char* to, size_t size, const std::string& path) {
  for (;;) {
    const ssize_t got = read(file, to, size);
    if (got >= 0) return got;
    if (errno != EINTR) fail(DIGSEG_CORRUPT, path + " cannot be read: " + std::strerror(errno) + "; check the disk");
  }
}

Seal sealed(const struct stat& info) {
  return {static_cast<uint64_t>(info.st_dev), static_cast<uint64_t>(info.st_ino), static_cast<uint64_t>(info.st_size),
          info.st_mtim.tv_sec, info.st_mtim.tv_nsec, info.st_ctim.tv_sec, info.st_ctim.tv_nsec};
}

int open_to_read(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe put there is not waited for
  if (file < 0) fail(DIGSEG_NOT_FOUND, path + " cannot be opened: " + std::strerror(errno) + "; check the path");
  return file;
}

// Whole cores that a container's CPU quota pays for (cgroup 2, then 1), at least 1; 0: no quota.
int cores_of_quota() {
  double quota = -1, period = 0;
  if (!(std::ifstream("/sys/fs/cgroup/cpu.max") >> quota >> period)) {
    quota = -1;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> quota;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? static_cast<int>(std::max(1.0, quota / period)) : 0;
}

}  // namespace

bool is_directory(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

int64_t plain_file_size(const std::string& path) {
  struct stat info;
  if (lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return -1;
  return static_cast<int64_t>(info.st_size);
}

int64_t file_size(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) ? static_cast<int64_t>(info.st_size) : -1;
}

std::vector<char> read_file(const std::string& path, uint64_t limit) {
  const Descriptor file(open_to_read(path));
  struct stat info;
  if (fstat(file.number, &info) != 0 || !S_ISREG(info.st_mode)) fail(DIGSEG_NOT_FOUND, path + " is not a plain file");
  const uint64_t size = static_cast<uint64_t>(info.st_size);
  if (size > limit)
    fail(DIGSEG_CORRUPT, path + " has " + std::to_string(size) + " bytes, at most " + std::to_string(limit) +
                             " are expected; export the bundle again");
  std::vector<char> data(size);
  size_t have = 0;
  while (have < data.size()) {
    const ssize_t got = read_some(file.number, data.data() + have, data.size() - have, path);
    if (got == 0) break;
    have += static_cast<size_t>(got);
  }
  data.resize(have);
  return data;
}

Seal seal_of(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) fail(DIGSEG_NOT_FOUND, path + " is not a plain file");
  return sealed(info);
}

std::string file_sha256(const std::string& path, Seal* seal) {
  const Descriptor file(open_to_read(path));
  struct stat info, after;
  if (fstat(file.number, &info) != 0 || !S_ISREG(info.st_mode)) fail(DIGSEG_NOT_FOUND, path + " is not a plain file");
  Sha256 digest;
  std::vector<char> chunk(1 << 20);
  while (const ssize_t got = read_some(file.number, chunk.data(), chunk.size(), path))
    digest.update(chunk.data(), static_cast<size_t>(got));
  if (fstat(file.number, &after) != 0 || !(sealed(after) == sealed(info)))
    fail(DIGSEG_CORRUPT, path + " is being written to; try again when that has ended");
  if (seal != nullptr) *seal = sealed(info);
  return digest.hex();
}

std::vector<char> read_hashed(const std::string& path, uint64_t limit, const std::string& sha256) {
  std::vector<char> data = read_file(path, limit);
  Sha256 digest;
  digest.update(data.data(), data.size());
  if (digest.hex() != sha256) fail(DIGSEG_CORRUPT, path + " is not what was written there (another SHA-256); make it again");
  return data;
}

std::string private_folder(const std::string& path) {
  std::error_code failed;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), failed);
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return std::strerror(errno);
  const Descriptor folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat info;
  if (folder.number < 0 || fstat(folder.number, &info) != 0) return std::strerror(errno);
  if (info.st_uid != geteuid()) return "it belongs to another user";
  if ((info.st_mode & 077) != 0 && fchmod(folder.number, 0700) != 0) return "others may read or write it";
  return "";
}

void write_file(const std::string& path, const std::vector<char>& data) {
  std::string room = path + ".tmp-XXXXXX";
  const Descriptor file(mkstemp(&room[0]));
  const auto stop = [&](const char* what) {
    const std::string reason = std::strerror(errno);
    if (file.number >= 0) unlink(room.c_str());
    fail(DIGSEG_NOT_FOUND, path + " cannot be " + what + ": " + reason + "; choose another path");
  };
  if (file.number < 0) stop("created");
  for (size_t done = 0; done < data.size();) {
    const ssize_t wrote = write(file.number, data.data() + done, data.size() - done);
    if (wrote < 0 && errno != EINTR) stop("written");
    if (wrote > 0) done += static_cast<size_t>(wrote);
  }
  if (fchmod(file.number, 0644) != 0 || fsync(file.number) != 0 || rename(room.c_str(), path.c_str()) != 0) stop("written");
  // The rename is on the disk when its folder is, where the file system lets folders be flushed.
  const size_t end = path.find_last_of('/');
  const Descriptor folder(open(end == std::string::npos ? "." : path.substr(0, end + 1).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.number >= 0) fsync(folder.number);
}

int usable_cores() {
  cpu_set_t cores;
  const int bound = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 0;
  const int paid = cores_of_quota();
  return paid > 0 && paid < bound ? paid : bound;
}

void return_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

void* open_library(const std::string& name, std::string& why) {
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* text = dlerror();
    why = text ? text : "unknown reason";
  }
  return library;
}

void* library_symbol(void* library, const char* name) { return dlsym(library, name); }

}  // namespace digseg
