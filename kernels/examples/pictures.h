/* Just enough PNG for the examples: reads 8-bit grey, RGB, RGBA and palette pictures without interlace, writes grey. */
#ifndef DIGSEG_EXAMPLE_PICTURES_H
#define DIGSEG_EXAMPLE_PICTURES_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* RGB pixels (free() them) and their size; NULL and a reason in *why when the file cannot be read. */
unsigned char *read_png(const char *path, int *width, int *height, const char **why);

/* Grey values 0..255, stored uncompressed. 0 when written. */
int write_png(const char *path, const unsigned char *grey, int width, int height);

#ifdef __cplusplus
}
#endif
#endif
