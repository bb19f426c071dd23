// Which bytes of which file an ONNX graph asks for, read from its protobuf before any runtime sees it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace digseg {

// Error(DIGSEG_CORRUPT) where a graph asks for anything but bytes of the file `data`, `size` bytes long (-1: there is no such
// file), each of them once; the rules of `digseg_engine/graph_files.py`. path: how the graph is called in messages.
void check_weights(const std::vector<char>& graph, const std::string& path, const std::string& data, int64_t size);

}  // namespace digseg
