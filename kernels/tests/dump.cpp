// dump BUNDLE PICTURES_FOLDER FILE [SIZE]: logits and masks of every PNG in a folder for three prompts, or all names of a folded
// bundle, the model working at SIZE pixels (0: its own size), as one file of numbers.
// dump compare FILE FILE: largest difference of logits over the largest logit, and the share of mask pixels that differ; fails
// where one of them is over 1e-4.
#include <digseg/digseg.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>

#include "../examples/pictures.h"

namespace fs = std::filesystem;

namespace {

int dump(const char* bundle, const char* folder, const char* file, int size) {
  digseg_api::Options options;
  options.backend = "onnxruntime";
  options.threads = 1;
  digseg_api::Engine engine(bundle, options);
  digseg_api::RunOptions run;
  run.size = size;
  const bool folded = engine.info().find("\"folded\": true") != std::string::npos;
  const std::vector<std::string> prompts = folded ? std::vector<std::string>{} : std::vector<std::string>{"road", "nucleus", "something red"};
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".png") paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::ofstream out(file, std::ios::binary);
  for (const fs::path& path : paths) {
    int width = 0, height = 0;
    const char* why = "";
    const std::unique_ptr<unsigned char, void (*)(void*)> pixels(read_picture(path.c_str(), &width, &height, &why), std::free);
    if (!pixels) return std::fprintf(stderr, "%s: %s\n", path.c_str(), why), 1;
    const digseg_api::Result result = engine.segment(digseg_api::Image(pixels.get(), width, height), prompts, run);
    const digseg_view& v = result.view();  // of a bundle with its label map alone the logits are none
    const int64_t logits = int64_t{v.count} * v.logits_width * v.logits_height, masks = int64_t{v.count} * width * height;
    out.write(reinterpret_cast<const char*>(&logits), 8).write(reinterpret_cast<const char*>(v.logits), 4 * logits);
    out.write(reinterpret_cast<const char*>(&masks), 8).write(reinterpret_cast<const char*>(v.masks), masks);
  }
  std::printf("%zu pictures on %s\n", paths.size(), engine.info().c_str());
  return paths.empty();
}

template <typename T>
std::vector<T> block(std::ifstream& file) {
  int64_t count = 0;
  file.read(reinterpret_cast<char*>(&count), 8);
  std::vector<T> out(file ? static_cast<size_t>(count) : 0);
  file.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size() * sizeof(T)));
  return out;
}

int compare(const char* left, const char* right) {
  std::ifstream a(left, std::ios::binary), b(right, std::ios::binary);
  double difference = 0, largest = 1e-30;
  size_t different = 0, pixels = 0, pictures = 0;
  while (a.peek() != EOF && b.peek() != EOF) {
    const std::vector<float> x = block<float>(a), y = block<float>(b);
    const std::vector<unsigned char> m = block<unsigned char>(a), n = block<unsigned char>(b);
    if (x.size() != y.size() || m.size() != n.size()) return std::fprintf(stderr, "the files hold other pictures\n"), 1;
    for (size_t i = 0; i < x.size(); ++i) {
      difference = std::max(difference, std::fabs(static_cast<double>(x[i]) - y[i]));
      largest = std::max(largest, std::fabs(static_cast<double>(x[i])));
    }
    for (size_t i = 0; i < m.size(); ++i) different += m[i] != n[i];
    pixels += m.size();
    ++pictures;
  }
  std::printf("%zu pictures: largest difference of a logit %.3g (largest logit %.3g), %zu of %zu mask pixels differ\n", pictures, difference,
              largest, different, pixels);
  return !(pictures > 0 && difference <= 1e-4 * largest && static_cast<double>(different) <= 1e-4 * static_cast<double>(pixels));
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 4 && argc != 5) return std::fprintf(stderr, "usage: %s BUNDLE FOLDER FILE [SIZE] | compare FILE FILE\n", argv[0]), 2;
  return std::string(argv[1]) == "compare" ? compare(argv[2], argv[3]) : dump(argv[1], argv[2], argv[3], argc == 5 ? std::atoi(argv[4]) : 0);
} catch (const std::exception& error) {
  return std::fprintf(stderr, "dump: %s\n", error.what()), 1;
}
