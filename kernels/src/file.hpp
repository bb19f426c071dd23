// Files, shared libraries and cores, as the operating system has them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace digseg {

bool is_directory(const std::string& path);
// Size of a plain file; -1 when it is missing, a link or something else.
int64_t plain_file_size(const std::string& path);
// Size of a plain file or of the one that a link leads to; -1 when there is none.
int64_t file_size(const std::string& path);
// Whole file. Error(DIGSEG_NOT_FOUND) when it cannot be opened, Error(DIGSEG_CORRUPT) when over `limit` bytes.
std::vector<char> read_file(const std::string& path, uint64_t limit);
// What the system says of a file that changes whenever its bytes may have: device, number, size, times.
struct Seal {
  uint64_t device = 0, number = 0, size = 0;
  int64_t written = 0, written_ns = 0, changed = 0, changed_ns = 0;
  bool operator==(const Seal& other) const {
    return device == other.device && number == other.number && size == other.size && written == other.written &&
           written_ns == other.written_ns && changed == other.changed && changed_ns == other.changed_ns;
  }
};
// Of a plain file or of the one that a link leads to. Error(DIGSEG_NOT_FOUND) when there is none.
Seal seal_of(const std::string& path);
// seal: what the file was like while it was hashed; Error(DIGSEG_CORRUPT) when it was written to meanwhile.
std::string file_sha256(const std::string& path, Seal* seal = nullptr);
// The whole file, read once, where those bytes have this SHA-256. Error(DIGSEG_CORRUPT) otherwise.
std::vector<char> read_hashed(const std::string& path, uint64_t limit, const std::string& sha256);
// Made where it is missing (0700, like what is above it), closed to others. Why it cannot be used, "" when it can: it must be a
// folder, no link, of the user this process runs as.
std::string private_folder(const std::string& path);
// Written beside `path`, flushed, renamed into place, the folder flushed.
void write_file(const std::string& path, const std::vector<char>& data);

// Cores that this process may use: of those it is bound to, as many as its container pays for; 0 when the system does not say.
int usable_cores();

// What was freed goes back to the system, where this C library can: files that were read whole would stay in the heaps of threads.
void return_memory();

// A loaded library; never unloaded, because runtimes keep threads and static state.
void* open_library(const std::string& name, std::string& why);
void* library_symbol(void* library, const char* name);

}  // namespace digseg
