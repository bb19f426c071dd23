// camera BUNDLE VOCABULARY FRAMES [PROMPT...]: the shape of a camera program. NV12 frames (here: generated) and a fixed
// vocabulary: with prompts, they are saved to the file VOCABULARY with their folded text; without, the file's own are asked
// and the text encoder is not needed. FRAMES 0: only save. Prints milliseconds.
// camera FOLDED_BUNDLE FRAMES: of a bundle exported with --vocabulary the names are its own; what is read is the label map.
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

// Of a folded bundle: no prompts, no masks, the share of the picture that the label map gives to every name.
int watch_folded(const char* bundle, int frames) {
  digseg_api::Engine engine(bundle);
  std::printf("%s\n", engine.info().c_str());
  if (engine.info().find("\"folded\": true") == std::string::npos)
    return std::fprintf(stderr, "%s is not folded; name a VOCABULARY file and prompts, or export it with --vocabulary\n", bundle), 2;
  const std::vector<std::string> names = engine.vocabulary();
  std::vector<unsigned char> frame(static_cast<size_t>(kWidth) * kHeight * 3 / 2);
  const digseg_api::Image image(frame.data(), kWidth, kHeight, DIGSEG_NV12);
  digseg_api::RunOptions run;
  run.flags = DIGSEG_NO_MASKS;
  for (int i = 0; i < frames; ++i) {
    next_frame(frame, i);
    const auto began = std::chrono::steady_clock::now();
    const digseg_api::Result result = engine.segment(image, {}, run);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    std::vector<long> pixels(names.size() + 1, 0);
    for (int p = 0; p < kWidth * kHeight; ++p) ++pixels[static_cast<size_t>(result.view().label_map[p])];
    std::printf("frame %d: %.1f ms,", i, took.count());
    for (size_t k = 0; k < names.size(); ++k)
      if (pixels[k + 1] > 0) std::printf(" %s %.1f %%", names[k].c_str(), 100.0 * static_cast<double>(pixels[k + 1]) / (kWidth * kHeight));
    std::printf("\n");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s BUNDLE VOCABULARY FRAMES [PROMPT...] | FOLDED_BUNDLE FRAMES\n", argv[0]);
    return 2;
  }
  if (argc == 3) return watch_folded(argv[1], std::atoi(argv[2]));
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
