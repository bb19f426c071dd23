/* Pictures for the examples: reads JPEG, PNG and BMP (8 bits; a JPEG's EXIF orientation is not applied), writes grey PNG. */
#ifndef DIGSEG_EXAMPLE_PICTURES_H
#define DIGSEG_EXAMPLE_PICTURES_H

#ifdef __cplusplus
extern "C" {
#endif

/* RGB pixels (free() them) and their size; NULL and a reason in *why when the file cannot be read. */
unsigned char *read_picture(const char *path, int *width, int *height, const char **why);
/* One byte per pixel. 0, or -1 when the file cannot be written. */
int write_png(const char *path, const unsigned char *grey, int width, int height);

#ifdef __cplusplus
}
#endif
#endif
