// camera BUNDLE VOCABULARY [FRAMES]: the shape of a camera program. NV12 frames (here: generated) and a fixed vocabulary:
// the first run saves the prompts with their folded text; later runs never load the text encoder. Prints milliseconds.
// On a Jetson the frames come from the capture API; give their planes and strides to digseg_image as they are.
#include <digseg/digseg.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace {

const std::vector<std::string> kPrompts{"road", "building", "water"};
constexpr int kWidth = 640, kHeight = 480;

// A moving gradient; a real program gets this from its camera.
void next_frame(std::vector<unsigned char>& frame, int number) {
  for (int y = 0; y < kHeight; ++y)
    for (int x = 0; x < kWidth; ++x) frame[static_cast<size_t>(y) * kWidth + x] = static_cast<unsigned char>(16 + (x + y + 4 * number) % 220);
  for (size_t i = static_cast<size_t>(kWidth) * kHeight; i < frame.size(); ++i) frame[i] = static_cast<unsigned char>(100 + i % 56);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s BUNDLE VOCABULARY [FRAMES]\n", argv[0]);
    return 2;
  }
  if (!std::ifstream(argv[2]).good()) digseg_api::Engine(argv[1]).save_vocabulary(kPrompts, argv[2]);
  digseg_api::Options options;
  options.vocabulary = argv[2];
  digseg_api::Engine engine(argv[1], options);
  std::printf("%s\n", engine.info().c_str());
  std::vector<unsigned char> frame(static_cast<size_t>(kWidth) * kHeight * 3 / 2);
  const digseg_api::Image image(frame.data(), kWidth, kHeight, DIGSEG_NV12);
  const int frames = argc > 3 ? std::atoi(argv[3]) : 5;
  for (int i = 0; i < frames; ++i) {
    next_frame(frame, i);
    const auto began = std::chrono::steady_clock::now();
    const digseg_api::Result result = engine.segment(image, kPrompts);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    std::printf("frame %d: %.1f ms, scores %.2f %.2f %.2f\n", i, took.count(), static_cast<double>(result.score(0)), static_cast<double>(result.score(1)), static_cast<double>(result.score(2)));
  }
  return 0;
} catch (const digseg_api::Failure& failure) {
  std::fprintf(stderr, "%s: %s\n", digseg_status_string(failure.status), failure.what());
  return 1;
}
