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
std::string file_sha256(const std::string& path);
// The whole file, read once, where those bytes have this SHA-256. Error(DIGSEG_CORRUPT) otherwise.
std::vector<char> read_hashed(const std::string& path, uint64_t limit, const std::string& sha256);
// Made where it is missing (0700, like what is above it), closed to others. Why it cannot be used, "" when it can: it must be a
// folder, no link, of the user this process runs as.
std::string private_folder(const std::string& path);
// Written beside `path`, flushed, renamed into place.
void write_file(const std::string& path, const std::vector<char>& data);

// Cores that this process may use: of those it is bound to, as many as its container pays for; 0 when the system does not say.
int usable_cores();

// A loaded library; never unloaded, because runtimes keep threads and static state.
void* open_library(const std::string& name, std::string& why);
void* library_symbol(void* library, const char* name);

}  // namespace digseg
