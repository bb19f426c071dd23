// Files, shared libraries and cores, as the operating system has them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace digseg {

bool is_directory(const std::string& path);
// Size of a plain file; -1 when it is missing, a link or something else.
int64_t plain_file_size(const std::string& path);
// Whole file. Error(DIGSEG_NOT_FOUND) when it cannot be opened, Error(DIGSEG_CORRUPT) when over `limit` bytes.
std::vector<char> read_file(const std::string& path, uint64_t limit);
std::string file_sha256(const std::string& path);
// Written beside `path`, flushed, renamed into place.
void write_file(const std::string& path, const std::vector<char>& data);

// Cores that this process may use; 0 when the system does not say.
int usable_cores();

// A loaded library; never unloaded, because runtimes keep threads and static state.
void* open_library(const std::string& name, std::string& why);
void* library_symbol(void* library, const char* name);

}  // namespace digseg
