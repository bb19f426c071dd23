// camera BUNDLE VOCABULARY FRAMES [PROMPT...]: the shape of a camera program. NV12 frames (here: generated) and a fixed
// vocabulary: with prompts, they are saved to the file VOCABULARY with their folded text; without, the file's own are asked
// and the text encoder is not needed. FRAMES 0: only save. Prints milliseconds.
// On a Jetson the frames come from the capture API; give their planes and strides to digseg_image as they are.
#include <digseg/digseg.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr int kWidth = 640, kHeight = 480;

// A moving gradient; a real program gets this from its camera.
void next_frame(std::vector<unsigned char>& frame, int number) {
  for (int y = 0; y < kHeight; ++y)
    for (int x = 0; x < kWidth; ++x) frame[static_cast<size_t>(y) * kWidth + x] = static_cast<unsigned char>(16 + (x + y + 4 * number) % 220);
  for (size_t i = static_cast<size_t>(kWidth) * kHeight; i < frame.size(); ++i) frame[i] = static_cast<unsigned char>(100 + i % 56);
}

void watch(digseg_api::Engine& engine, const std::vector<std::string>& prompts, int frames) {
  std::vector<unsigned char> frame(static_cast<size_t>(kWidth) * kHeight * 3 / 2);
  const digseg_api::Image image(frame.data(), kWidth, kHeight, DIGSEG_NV12);
  for (int i = 0; i < frames; ++i) {
    next_frame(frame, i);  // the last call has returned: the buffer may be filled again
    const auto began = std::chrono::steady_clock::now();
    const digseg_api::Result result = engine.segment(image, prompts);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    std::printf("frame %d: %.1f ms, scores", i, took.count());
    for (int k = 0; k < result.count(); ++k) std::printf(" %.2f", static_cast<double>(result.score(k)));
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s BUNDLE VOCABULARY FRAMES [PROMPT...]\n", argv[0]);
    return 2;
  }
  std::vector<std::string> prompts(argv + 4, argv + argc);
  if (!prompts.empty()) digseg_api::Engine(argv[1]).save_vocabulary(prompts, argv[2]);
  digseg_api::Options options;
  options.vocabulary = argv[2];
  digseg_api::Engine engine(argv[1], options);
  std::printf("%s\n", engine.info().c_str());
  if (prompts.empty()) prompts = engine.vocabulary();
  watch(engine, prompts, std::atoi(argv[3]));
  return 0;
} catch (const digseg_api::Failure& failure) {
  std::fprintf(stderr, "%s: %s\n", digseg_status_string(failure.status), failure.what());
  return 1;
}
