// stress MODE BUNDLE COUNT [THREADS|SEED]: what must hold under load and abuse. Exit code 0 when it does.
//   threads  COUNT runs on each of THREADS threads on one engine, in one step and about one encoding: all results identical to the first
//   create   COUNT times create and destroy: memory after the first tenth does not grow
//   kept     COUNT starts of "auto" over one cache folder whose files are damaged in between: masks stay the same
//   flips    COUNT times one bit of a copy of the bundle turned, at seeded places of all its bytes: refused each time
//   soak     COUNT pictures of changing sizes with changing prompts: every hundredth of the way what is resident, open and running, and
//            the seconds of all calls, as one line of JSON for benchmarks/soak.py
//   hostile  COUNT calls with one thing wrong: no crash, and every failure has a status and a text
#include <digseg/digseg.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace fs = std::filesystem;

namespace {

int stop(const std::string& text) {
  std::fprintf(stderr, "stress: %s\n", text.c_str());
  std::exit(1);
}

void expect_ok(digseg_status status, const char* what) {
  if (status != DIGSEG_OK) stop(std::string(what) + ": " + digseg_last_error());
}

digseg_options settings() {
  digseg_options options;
  expect_ok(digseg_options_init(&options, sizeof options), "options");
  options.backend = "onnxruntime";
  options.threads = 1;
  return options;
}

digseg_engine* create(const char* bundle) {
  const digseg_options options = settings();
  digseg_engine* engine = nullptr;
  expect_ok(digseg_engine_create(bundle, &options, &engine), "create");
  return engine;
}

std::vector<unsigned char> ramp(int width, int height) {
  std::vector<unsigned char> pixels(static_cast<size_t>(width) * height * 3);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<unsigned char>(i * 7 + i / 97);
  return pixels;
}

digseg_image picture(const std::vector<unsigned char>& pixels, int width, int height) {
  digseg_image image;
  expect_ok(digseg_image_init(&image, sizeof image), "image");
  image.data = pixels.data();
  image.width = width, image.height = height;
  return image;
}

long resident_kib() {
  std::ifstream file("/proc/self/statm");
  long total = 0, resident = 0;
  file >> total >> resident;
  return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

uint64_t fingerprint(const digseg_result* result) {
  digseg_view view;
  expect_ok(digseg_view_init(&view, sizeof view), "view");
  expect_ok(digseg_result_view(result, &view), "view");
  uint64_t hash = 1469598103934665603ull;
  const auto mix = [&](const void* data, size_t size) {
    const unsigned char* bytes = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 1099511628211ull;
  };
  const size_t pixels = static_cast<size_t>(view.width) * static_cast<size_t>(view.height), k = static_cast<size_t>(view.count);
  mix(view.masks, k * pixels);
  mix(view.label_map, 4 * pixels);
  mix(view.logits, 4 * k * static_cast<size_t>(view.logits_width) * static_cast<size_t>(view.logits_height));
  return hash;
}

const char* const kPrompts[] = {"road", "red circle"};

digseg_run_options small_run() {
  digseg_run_options run;
  expect_ok(digseg_run_options_init(&run, sizeof run), "run options");
  run.size = 32;
  return run;
}

uint64_t taken(digseg_result* result) {
  const uint64_t hash = fingerprint(result);
  digseg_result_free(result);
  return hash;
}

// One call on a small picture; what came out, as one number.
uint64_t run_once(digseg_engine* engine) {
  const std::vector<unsigned char> pixels = ramp(48, 40);
  const digseg_image image = picture(pixels, 48, 40);
  const digseg_run_options run = small_run();
  digseg_result* result = nullptr;
  expect_ok(digseg_segment(engine, &image, kPrompts, 2, &run, &result), "segment");
  return taken(result);
}

// The same picture, encoded once for many questions.
digseg_encoding* encode_once(digseg_engine* engine) {
  const std::vector<unsigned char> pixels = ramp(48, 40);
  const digseg_image image = picture(pixels, 48, 40);
  const digseg_run_options run = small_run();
  digseg_encoding* encoding = nullptr;
  expect_ok(digseg_encode(engine, &image, &run, &encoding), "encode");
  return encoding;
}

uint64_t ask_once(digseg_engine* engine, const digseg_encoding* encoding) {
  digseg_result* result = nullptr;
  expect_ok(digseg_segment_encoded(engine, encoding, kPrompts, 2, nullptr, &result), "segment_encoded");
  return taken(result);
}

int threads(const char* bundle, int count, int workers) {
  digseg_engine* engine = create(bundle);
  const uint64_t wanted = run_once(engine);
  digseg_encoding* encoding = encode_once(engine);
  std::atomic<int> different{0};
  std::vector<std::thread> pool;
  for (int t = 0; t < workers; ++t)
    pool.emplace_back([&] {
      for (int i = 0; i < count; ++i) different += (i % 2 == 0 ? run_once(engine) : ask_once(engine, encoding)) != wanted;
    });
  for (std::thread& worker : pool) worker.join();
  digseg_engine_destroy(engine);
  digseg_encoding_free(encoding);  // the engine may go first
  std::printf("%d threads x %d runs: %d differ\n", workers, count, different.load());
  return different != 0;
}

int create_destroy(const char* bundle, int count) {
  long early = 0;
  for (int i = 0; i < count; ++i) {
    digseg_engine* engine = create(bundle);
    digseg_encoding* encoding = i % 10 == 0 ? encode_once(engine) : nullptr;
    digseg_engine_destroy(engine);
    digseg_encoding_free(encoding);
    if (i == count / 10) early = resident_kib();
  }
  const long late = resident_kib(), grown = late - early;
  std::printf("%d x create and destroy: resident %ld KiB after a tenth, %ld KiB at the end\n", count, early, late);
#ifdef __SANITIZE_ADDRESS__
  return 0;  // what is freed stays in quarantine, and what is lost LeakSanitizer finds
#endif
  // An engine of the bundled model holds over 10 MiB: were one in ten left behind, this would be passed many times over.
  const long allowed = 8 * 1024 + count * 4;
  if (grown > allowed) std::fprintf(stderr, "memory grew by %ld KiB, expected at most %ld\n", grown, allowed);
  return grown > allowed;
}

// Cuts a file, flips one of its bits or removes it.
void damage(const fs::path& file, std::mt19937& random) {
  const auto size = fs::file_size(file);
  switch (random() % 3) {
    case 0: fs::resize_file(file, random() % size); break;
    case 1: fs::remove(file); break;
    default: {
      std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
      const auto at = static_cast<std::streamoff>(random() % size);
      bytes.seekg(at);
      const char old = static_cast<char>(bytes.get());
      bytes.seekp(at);
      bytes.put(static_cast<char>(old ^ (1 << random() % 8)));
    }
  }
}

int kept(const char* bundle, int count) {
  std::string room = (fs::temp_directory_path() / "digseg-kept-XXXXXX").string();
  if (mkdtemp(&room[0]) == nullptr) stop("no temporary folder");
  std::mt19937 random(1);
  uint64_t wanted = 0;
  int known = 0;
  for (int i = 0; i < count; ++i) {
    digseg_options options = settings();
    options.backend = "auto", options.cache = room.c_str(), options.user = &known;
    options.log = [](void* user, int32_t, const char* text) { *static_cast<int*>(user) += std::strstr(text, "as chosen before") != nullptr; };
    digseg_engine* engine = nullptr;
    expect_ok(digseg_engine_create(bundle, &options, &engine), "create");
    const uint64_t got = run_once(engine);
    if (i > 0 && got != wanted) stop("other masks after start " + std::to_string(i));
    wanted = got;
    digseg_engine_destroy(engine);
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(room + "/native")) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    // A verdict and three graphs, four with presence; a start that finds a graph changed removes it, and the next one makes it again.
    if (files.size() < 3 || files.size() > 5) stop(std::to_string(files.size()) + " files are kept");
    if (i % 2 == 1) damage(files[random() % files.size()], random);
  }
  fs::remove_all(room);
  std::printf("%d starts over damaged caches: the same masks, %d knew the choice\n", count, known);
  return count > 1 && known == 0;
}

// One engine, one good call, and ways to spoil it.
class Hostile {
 public:
  Hostile(const char* bundle, unsigned seed) : bundle_(bundle), random_(seed), engine_(create(bundle)), other_(create(bundle)), encoding_(encode_once(other_)), pixels_(ramp(64, 64)) {
    std::string room = (fs::temp_directory_path() / "digseg-stress-XXXXXX").string();
    if (mkdtemp(&room[0]) == nullptr) stop("no temporary folder");
    copy_ = room;
    for (const auto& entry : fs::directory_iterator(bundle)) {
      fs::copy_file(entry.path(), copy_ / entry.path().filename());
      files_.push_back(entry.path().filename().string());
    }
  }
  ~Hostile() {
    digseg_engine_destroy(engine_);
    digseg_engine_destroy(other_);
    digseg_encoding_free(encoding_);
    fs::remove_all(copy_);
  }

  void call(int number) {
    switch (number % 100 == 0 ? 0 : 1 + pick(8)) {
      case 0: return damaged_bundle();
      case 1: case 2: return bad_image();
      case 3: return bad_prompts();
      case 4: return bad_run();
      case 5: return bad_struct_sizes();
      case 6: return bad_text();
      case 7: return bad_encoding();
      default: return nulls();
    }
  }

  long refused = 0, accepted = 0;

 private:
  int pick(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }
  int32_t wild() {
    static const int32_t values[] = {0, 1, -1, 2, 5, 7, 100, -100, INT32_MAX, INT32_MIN, 65536, 4097};
    return pick(3) ? values[pick(12)] : static_cast<int32_t>(random_());
  }
  // What reaches C from a script's NaN.
  int64_t wild_stride() {
    static const double values[] = {std::numeric_limits<double>::quiet_NaN(), -1.0, 1.0, 1e300, -1e300, 191.0};
    const double value = values[pick(6)];
    return std::isnan(value) ? INT64_MIN : value > 9e18 ? INT64_MAX : value < -9e18 ? INT64_MIN : static_cast<int64_t>(value);
  }

  void note(digseg_status status) {
    const char* text = digseg_last_error();
    if (status == DIGSEG_OK) {
      ++accepted;
      return;
    }
    ++refused;
    if (text == nullptr || std::strlen(text) < 10) stop("a failure without a text");
    if (status == DIGSEG_INTERNAL) stop(std::string("an internal error: ") + text);
    if (std::strcmp(digseg_status_string(status), "unknown status") == 0) stop("an unknown status");
  }

  void segment(const digseg_image* image, const char* const* prompts, size_t count, const digseg_run_options* run) {
    digseg_result* result = nullptr;
    const digseg_status status = digseg_segment(engine_, image, prompts, count, run, &result);
    note(status);
    if ((status == DIGSEG_OK) != (result != nullptr)) stop("status and result disagree");
    digseg_result_free(result);
  }

  void ask(digseg_engine* engine, const digseg_encoding* encoding, const digseg_run_options* run) {
    digseg_result* result = nullptr;
    const digseg_status status = digseg_segment_encoded(engine, encoding, kPrompts, 2, run, &result);
    note(status);
    if ((status == DIGSEG_OK) != (result != nullptr)) stop("status and result disagree");
    digseg_result_free(result);
  }

  void bad_encoding() {
    digseg_run_options run = small_run();
    digseg_encoding* encoding = nullptr;
    const digseg_image image = good();
    switch (pick(8)) {
      case 0: return ask(engine_, encoding_, nullptr);
      case 1: return ask(nullptr, encoding_, nullptr);
      case 2: return ask(other_, nullptr, nullptr);
      case 3: run.size = pick(2) ? 33 : wild(); return ask(other_, encoding_, &run);
      case 4: run.against_count = pick(2) ? 1025 : 1; return ask(other_, encoding_, &run);
      case 5: note(digseg_encode(pick(2) ? engine_ : nullptr, nullptr, nullptr, &encoding)); break;
      case 6: note(digseg_encode(engine_, &image, nullptr, nullptr)); break;
      default:
        run.size = pick(2) ? 4097 : -1;
        note(digseg_encode(engine_, &image, &run, &encoding));
    }
    if (encoding != nullptr) stop("an encoding in spite of a failure");
    digseg_encoding_free(nullptr);
  }

  digseg_image good() const { return picture(pixels_, 64, 64); }

  void bad_image() {
    digseg_image image = good();
    const char* const prompts[] = {"road"};
    switch (pick(9)) {
      case 0: image.data = nullptr; break;
      case 1: image.width = wild() > 64 ? INT32_MAX : -1; break;
      case 2: image.height = pick(2) ? 0 : INT32_MIN; break;
      case 3: image.format = 5 + std::abs(wild() % 1000); break;
      case 4: image.memory = 1 + 2 * pick(1000); break;
      case 5: image.stride = wild_stride(); image.stride = image.stride >= 192 ? INT64_MAX : image.stride; break;
      case 6: image.matrix = wild(); break;
      case 7: image.format = DIGSEG_NV12; image.width = 63; break;
      default: {
        std::vector<float> floats(64 * 64 * 3, 0.5f);
        floats[static_cast<size_t>(pick(12288))] = pick(2) ? std::numeric_limits<float>::quiet_NaN() : -3.f;
        image.data = floats.data(), image.format = DIGSEG_F32;
        return segment(&image, prompts, 1, nullptr);
      }
    }
    segment(&image, prompts, 1, nullptr);
  }

  void bad_prompts() {
    const digseg_image image = good();
    std::string longest(static_cast<size_t>(1 + pick(100000)), pick(2) ? 'a' : '.');
    std::string bytes;
    for (int i = pick(40); i >= 0; --i) bytes += static_cast<char>(1 + pick(255));
    const std::string many = "red " + std::string(400, '7');
    const char* const prompts[] = {pick(2) ? "" : " \t\n", nullptr, bytes.c_str(), "\xC3\x28", longest.c_str(), many.c_str(), "\xED\xA0\x80"};
    static const size_t counts[] = {0, SIZE_MAX, 1025};
    if (pick(8) == 0) segment(&image, pick(2) ? nullptr : prompts, counts[pick(3)], nullptr);
    else segment(&image, prompts + pick(7), 1, nullptr);
  }

  void bad_run() {
    const digseg_image image = good();
    const char* const prompts[] = {"road"};
    digseg_run_options run;
    expect_ok(digseg_run_options_init(&run, sizeof run), "run options");
    const char* const rivals[] = {pick(2) ? "" : "\n", nullptr};
    switch (pick(5)) {
      case 0: run.size = pick(2) ? -(wild() % 31) - 1 : 4097 + pick(1000000); break;
      case 1: run.flags = 4 << pick(28); break;
      case 2: run.threshold = pick(2) ? std::numeric_limits<float>::quiet_NaN() : INFINITY; break;
      case 3: run.against = pick(3) ? rivals + pick(2) : nullptr, run.against_count = pick(3) ? 1 : SIZE_MAX; break;
      default: run.cancel = [](void*) -> int32_t { return 1; };
    }
    segment(&image, prompts, 1, &run);
  }

  void bad_struct_sizes() {
    static const size_t sizes[] = {0, 1, 7, SIZE_MAX, 4097, 1u << 20};
    const size_t size = sizes[pick(6)];
    digseg_image image = good();
    const char* const prompts[] = {"road"};
    digseg_view view;
    digseg_verification verification{};
    digseg_options options = settings();
    digseg_engine* engine = nullptr;
    switch (pick(5)) {
      case 0: image.struct_size = pick(2) ? size : 8 + static_cast<size_t>(pick(32)); return segment(&image, prompts, 1, nullptr);
      case 1: return note(digseg_view_init(&view, size));
      case 2: options.struct_size = size; note(digseg_engine_create(bundle_, &options, &engine)); return digseg_engine_destroy(engine);
      case 3: verification.struct_size = size; return note(digseg_engine_verify(engine_, &verification));
      default: return note(digseg_image_init(&image, size == 7 ? 0 : size));
    }
  }

  void bad_text() {
    int64_t ids[8];
    size_t count = 0;
    std::string bytes;
    for (int i = pick(200); i >= 0; --i) bytes += static_cast<char>(1 + pick(255));
    note(digseg_engine_tokenize(engine_, pick(10) ? bytes.c_str() : nullptr, static_cast<size_t>(pick(100)), pick(10) ? ids : nullptr, static_cast<size_t>(pick(9)), pick(10) ? &count : nullptr));
  }

  void nulls() {
    const digseg_image image = good();
    const char* const prompts[] = {"road"};
    digseg_result* result = nullptr;
    digseg_view view;
    digseg_engine* engine = nullptr;
    expect_ok(digseg_view_init(&view, sizeof view), "view");
    switch (pick(9)) {
      case 0: return note(digseg_segment(nullptr, &image, prompts, 1, nullptr, &result));
      case 1: return note(digseg_segment(engine_, nullptr, prompts, 1, nullptr, &result));
      case 2: return note(digseg_segment(engine_, &image, prompts, 1, nullptr, nullptr));
      case 3: return note(digseg_result_view(nullptr, &view));
      case 4: return note(digseg_engine_create(nullptr, nullptr, &engine));
      case 5: return note(digseg_engine_create(bundle_, nullptr, nullptr));
      case 6: return note(digseg_engine_create("/nowhere/at/all", nullptr, &engine));
      case 7: digseg_engine_destroy(nullptr); digseg_result_free(nullptr); return note(digseg_options_init(nullptr, sizeof(digseg_options)));
      default: {
        digseg_options options = settings();
        options.backend = pick(2) ? "no such backend" : "onnxruntime";
        options.onnxruntime_library = pick(2) ? "/nowhere/libonnxruntime.so" : "libm.so.6";
        note(digseg_engine_create(bundle_, &options, &engine));
        if (engine != nullptr) stop("an engine from a library that is none");
      }
    }
  }

  // Cuts, flips or removes one file of a copy; the engine must refuse it; then the file is put back.
  void damaged_bundle() {
    const std::string& name = files_[static_cast<size_t>(pick(static_cast<int>(files_.size())))];
    const fs::path file = copy_ / name;
    damage(file, random_);
    const digseg_options options = settings();
    digseg_engine* engine = nullptr;
    const digseg_status status = digseg_engine_create(copy_.c_str(), &options, &engine);
    note(status);
    // A flipped bit of the manifest may fall on a note that nothing depends on; every other file is covered by its hash.
    if (status == DIGSEG_OK && name != "manifest.json") stop("damaged " + name + " was accepted");
    digseg_engine_destroy(engine);
    fs::copy_file(fs::path(bundle_) / name, file, fs::copy_options::overwrite_existing);
  }

  const char* bundle_;
  std::mt19937 random_;
  digseg_engine *engine_, *other_;
  digseg_encoding* encoding_;  // of the other engine
  std::vector<unsigned char> pixels_;
  fs::path copy_;
  std::vector<std::string> files_;
};

// The manifest's own notes and the signature are not covered by a hash; what is let through must be one of those.
int flips(const char* bundle, int count, unsigned seed) {
  std::string room = (fs::temp_directory_path() / "digseg-flips-XXXXXX").string();
  if (mkdtemp(&room[0]) == nullptr) stop("no temporary folder");
  std::vector<std::pair<fs::path, uintmax_t>> files;
  uintmax_t all = 0;
  for (const auto& entry : fs::directory_iterator(bundle)) {
    const fs::path copy = fs::path(room) / entry.path().filename();
    fs::copy_file(entry.path(), copy);
    files.emplace_back(copy, fs::file_size(copy));
    all += files.back().second;
  }
  std::sort(files.begin(), files.end());
  std::mt19937_64 random(seed);
  int refused = 0, unhashed = 0;
  for (int i = 0; i < count; ++i) {
    uintmax_t at = random() % all;
    size_t file = 0;
    while (at >= files[file].second) at -= files[file++].second;
    const fs::path& path = files[file].first;
    const int bit = static_cast<int>(random() % 8);
    const auto turn = [&] {
      std::fstream bytes(path, std::ios::in | std::ios::out | std::ios::binary);
      bytes.seekg(static_cast<std::streamoff>(at));
      const char old = static_cast<char>(bytes.get());
      bytes.seekp(static_cast<std::streamoff>(at));
      bytes.put(static_cast<char>(old ^ (1 << bit)));
    };
    turn();
    const digseg_options options = settings();
    digseg_engine* engine = nullptr;
    const digseg_status status = digseg_engine_create(room.c_str(), &options, &engine);
    const std::string name = path.filename().string(), text = digseg_last_error();
    digseg_engine_destroy(engine);
    turn();
    if (status == DIGSEG_OK && name != "manifest.json" && name != "model.sig") stop("a turned bit of " + name + " at " + std::to_string(at) + " was taken");
    if (status != DIGSEG_OK && text.size() < 10) stop("a failure without a text");
    ++(status == DIGSEG_OK ? unhashed : refused);
  }
  fs::remove_all(room);
  std::printf("%d turned bits: %d refused, %d of notes that no hash covers\n", count, refused, unhashed);
  return 0;
}

size_t entries(const char* folder) {
  size_t count = 0;
  for (const auto& entry : fs::directory_iterator(folder)) count += !entry.path().empty();
  return count;
}

int soak(const char* bundle, int count, unsigned seed) {
  digseg_engine* engine = create(bundle);
  std::mt19937 random(seed);
  const auto pick = [&](int low, int high) { return low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1)); };
  const std::vector<unsigned char> pixels = ramp(96, 96);
  std::vector<float> seconds;
  seconds.reserve(static_cast<size_t>(count));
  std::string rows;
  const int step = std::max(1, count / 100);
  for (int i = 0; i < count; ++i) {
    std::vector<std::string> words;
    for (int k = pick(1, 4); k > 0; --k) words.push_back("thing " + std::to_string(pick(0, 999)));  // more than are kept
    std::vector<const char*> prompts;
    for (const std::string& word : words) prompts.push_back(word.c_str());
    const digseg_image image = picture(pixels, pick(16, 96), pick(16, 96));
    digseg_run_options run = small_run();
    run.size = 16 * pick(2, 6);
    digseg_result* result = nullptr;
    const auto began = std::chrono::steady_clock::now();
    expect_ok(digseg_segment(engine, &image, prompts.data(), prompts.size(), &run, &result), "segment");
    seconds.push_back(std::chrono::duration<float>(std::chrono::steady_clock::now() - began).count());
    digseg_result_free(result);
    if ((i + 1) % step == 0)
      rows += (rows.empty() ? "" : ", ") + ("[" + std::to_string(i + 1) + ", " + std::to_string(resident_kib()) + ", " +
              std::to_string(entries("/proc/self/fd")) + ", " + std::to_string(entries("/proc/self/task")) + "]");
  }
  digseg_engine_destroy(engine);
  std::printf("{\"rows\": [%s], \"seconds\": [", rows.c_str());
  for (size_t i = 0; i < seconds.size(); ++i) std::printf(i ? ",%.5f" : "%.5f", static_cast<double>(seconds[i]));
  std::printf("]}\n");
  return 0;
}

int hostile(const char* bundle, int count, unsigned seed) {
  Hostile calls(bundle, seed);
  for (int i = 0; i < count; ++i) calls.call(i);
  std::printf("%d hostile calls: %ld refused with a status and a text, %ld harmless and accepted\n", count, calls.refused, calls.accepted);
  return calls.refused < count / 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return std::fprintf(stderr, "usage: %s threads|create|kept|flips|soak|hostile BUNDLE COUNT [THREADS|SEED]\n", argv[0]), 2;
  const std::string mode = argv[1];
  const int count = std::atoi(argv[3]), extra = argc > 4 ? std::atoi(argv[4]) : 4;
  if (mode == "threads") return threads(argv[2], count, extra);
  if (mode == "create") return create_destroy(argv[2], count);
  if (mode == "kept") return kept(argv[2], count);
  if (mode == "soak") return soak(argv[2], count, static_cast<unsigned>(extra));
  if (mode == "flips") return flips(argv[2], count, static_cast<unsigned>(extra));
  if (mode == "hostile") return hostile(argv[2], count, static_cast<unsigned>(extra));
  return std::fprintf(stderr, "stress: unknown mode %s\n", argv[1]), 2;
}
