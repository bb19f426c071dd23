// ask BUNDLE PICTURE: prompts about one picture from standard input, one a line. The picture is encoded once; every answer costs
// its prompt alone. Prints area, score and milliseconds.
#include <digseg/digseg.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <numeric>

#include "pictures.h"

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point began) { return std::chrono::duration<double, std::milli>(Clock::now() - began).count(); }

void answer(digseg_api::Engine& engine, const digseg_api::Encoding& encoding, const std::string& prompt) {
  const Clock::time_point began = Clock::now();
  const digseg_api::Result result = engine.segment(encoding, {prompt});
  const double took = milliseconds_since(began);
  const size_t pixels = static_cast<size_t>(result.width()) * static_cast<size_t>(result.height());
  const long set = std::accumulate(result.mask(0), result.mask(0) + pixels, 0L);
  if (!result.there(0)) std::printf("%s: not there, %.1f ms\n", prompt.c_str(), took);
  else std::printf("%s: %.1f %% of the picture, score %.2f, %.1f ms\n", prompt.c_str(), 100.0 * static_cast<double>(set) / static_cast<double>(pixels), static_cast<double>(result.score(0)), took);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) return std::fprintf(stderr, "usage: %s BUNDLE PICTURE < PROMPTS\n", argv[0]), 2;
  int width = 0, height = 0;
  const char* why = "";
  std::unique_ptr<unsigned char, void (*)(void*)> pixels(read_picture(argv[2], &width, &height, &why), std::free);
  if (!pixels) return std::fprintf(stderr, "%s: %s\n", argv[2], why), 2;
  digseg_api::Engine engine(argv[1]);
  const Clock::time_point began = Clock::now();
  const digseg_api::Encoding encoding = engine.encode(digseg_api::Image(pixels.get(), width, height));
  pixels.reset();  // not needed any more
  std::printf("encoded in %.1f ms, %zu KiB\n", milliseconds_since(began), encoding.bytes() / 1024);
  for (std::string prompt; std::getline(std::cin, prompt);) answer(engine, encoding, prompt);
  return 0;
} catch (const digseg_api::Failure& failure) {
  std::fprintf(stderr, "%s: %s\n", digseg_status_string(failure.status), failure.what());
  return 1;
}
