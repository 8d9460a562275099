/* Reading a picture for the examples: PPM (P6), and JPEG where CATS_EXAMPLE_JPEG is defined. */
#ifndef READ_IMAGE_H
#define READ_IMAGE_H

#ifdef __cplusplus
extern "C" {
#endif

/* RGB pixels, rows without gaps, to be freed; NULL after writing why to stderr. */
unsigned char *read_image(const char *path, int *width, int *height);

#ifdef __cplusplus
}
#endif

#endif
