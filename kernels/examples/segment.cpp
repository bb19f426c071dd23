// segment_cpp BUNDLE PICTURE PROMPT...: area and score of every mask, through the C++ header.
#include <digseg/digseg.hpp>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>

#include "pictures.h"

int main(int argc, char** argv) try {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s BUNDLE PICTURE PROMPT...\n", argv[0]);
    return 2;
  }
  int width = 0, height = 0;
  const char* why = "";
  const std::unique_ptr<unsigned char, void (*)(void*)> pixels(read_picture(argv[2], &width, &height, &why), std::free);
  if (!pixels) {
    std::fprintf(stderr, "%s: %s\n", argv[2], why);
    return 2;
  }
  digseg_api::Engine engine(argv[1]);
  if (!engine.verify().passed) std::fprintf(stderr, "warning: this machine does not reproduce the golden sample\n");
  const std::vector<std::string> prompts(argv + 3, argv + argc);
  const digseg_api::Result result = engine.segment(digseg_api::Image(pixels.get(), width, height), prompts);
  const size_t pixel_count = static_cast<size_t>(width) * static_cast<size_t>(height);
  for (int k = 0; k < result.count(); ++k) {
    const long set = std::accumulate(result.mask(k), result.mask(k) + pixel_count, 0L);
    std::printf("%s: %.1f %% of the picture, score %.2f\n", prompts[static_cast<size_t>(k)].c_str(), 100.0 * static_cast<double>(set) / static_cast<double>(pixel_count), static_cast<double>(result.score(k)));
  }
  return 0;
} catch (const digseg_api::Failure& failure) {
  std::fprintf(stderr, "%s: %s\n", digseg_status_string(failure.status), failure.what());
  return 1;
}
