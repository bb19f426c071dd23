// read_json FILE: "fine", or the error, of one JSON file as the library reads it.
#include <cstdio>

#include "error.hpp"
#include "file.hpp"
#include "json.hpp"

int main(int argc, char** argv) try {
  if (argc != 2) return std::fprintf(stderr, "usage: %s FILE\n", argv[0]), 2;
  const std::vector<char> body = digseg::read_file(argv[1], 64 << 20);
  digseg::parse_json(body.data(), body.size(), "the file");
  return std::puts("fine"), 0;
} catch (const digseg::Error& error) {
  return std::puts(error.what()), 1;
}
