/* segment BUNDLE PICTURE OUT_PREFIX PROMPT...: one mask per prompt, written as OUT_PREFIX.0.png, .1.png, ... */
#include <digseg/digseg.h>
#include <stdio.h>
#include <stdlib.h>

#include "pictures.h"

static int complain(const char *what) {
  fprintf(stderr, "segment: %s: %s\n", what, digseg_last_error());
  return 1;
}

static int save(const digseg_view *view, int k, const char *prefix, const char *prompt) {
  const size_t pixels = (size_t)view->width * (size_t)view->height;
  unsigned char *grey = malloc(pixels);
  char path[4096];
  size_t set = 0;
  int failed = grey == NULL;
  for (size_t i = 0; !failed && i < pixels; ++i) {
    grey[i] = view->masks[(size_t)k * pixels + i] ? 255 : 0;
    set += grey[i] != 0;
  }
  snprintf(path, sizeof path, "%s.%d.png", prefix, k);
  failed = failed || write_png(path, grey, view->width, view->height) != 0;
  free(grey);
  if (failed) return fprintf(stderr, "segment: %s cannot be written\n", path), 1;
  printf("%s: %.1f %% of the picture, score %.2f%s, %s\n", prompt, 100.0 * (double)set / (double)pixels, view->scores[k],
         view->there[k] ? "" : ", not there", path);
  return 0;
}

int main(int argc, char **argv) {
  digseg_engine *engine = NULL;
  digseg_result *result = NULL;
  digseg_image image;
  digseg_view view;
  const char *why = "";
  int failed = 0;
  if (argc < 5) return fprintf(stderr, "usage: %s BUNDLE PICTURE OUT_PREFIX PROMPT...\n", argv[0]), 2;
  digseg_image_init(&image, sizeof image);
  digseg_view_init(&view, sizeof view);
  unsigned char *pixels = read_picture(argv[2], &image.width, &image.height, &why);
  if (pixels == NULL) return fprintf(stderr, "segment: %s: %s\n", argv[2], why), 2;
  image.data = pixels;
  if (digseg_engine_create(argv[1], NULL, &engine) != DIGSEG_OK) failed = complain("no engine");
  else if (digseg_segment(engine, &image, (const char *const *)argv + 4, (size_t)argc - 4, NULL, &result) != DIGSEG_OK) failed = complain("no masks");
  else if (digseg_result_view(result, &view) != DIGSEG_OK) failed = complain("no view");
  for (int k = 0; !failed && k < view.count; ++k) failed = save(&view, k, argv[3], argv[4 + k]);
  if (!failed) printf("%s\n", view.backend);
  digseg_result_free(result);
  digseg_engine_destroy(engine);
  free(pixels);
  return failed;
}
