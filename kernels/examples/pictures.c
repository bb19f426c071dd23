/* Files to pixels and back with stb_image and stb_image_write (third_party/stb). */
#include "pictures.h"

#include <stdlib.h>

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_FAILURE_USERMSG
#define STBI_MAX_DIMENSIONS 32768
#include <stb/stb_image.h>
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#include <stb/stb_image_write.h>

/* Alpha over white with Pillow's rounding, in place: four bytes a pixel become three. */
static void over_white(unsigned char *pixels, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const unsigned alpha = pixels[4 * i + 3];
    for (size_t c = 0; c < 3; ++c) {
      const unsigned sum = (pixels[4 * i + c] * alpha + 255u * (255u - alpha)) * 128u + (0x80u << 7);
      pixels[3 * i + c] = (unsigned char)(((sum >> 8) + sum) >> 8 >> 7);
    }
  }
}

unsigned char *read_picture(const char *path, int *width, int *height, const char **why) {
  int channels = 0;
  unsigned char *pixels = NULL;
  if (stbi_info(path, width, height, &channels)) {
    const int clear = channels == 2 || channels == 4;
    pixels = stbi_load(path, width, height, &channels, clear ? 4 : 3);
    if (pixels != NULL && clear) over_white(pixels, (size_t)*width * (size_t)*height);
  }
  if (pixels == NULL) *why = stbi_failure_reason();
  return pixels;
}

int write_png(const char *path, const unsigned char *grey, int width, int height) {
  return stbi_write_png(path, width, height, 1, grey, width) ? 0 : -1;
}
