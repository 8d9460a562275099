/* See read_image.h. */
#include "read_image.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LARGEST_SIDE 32768

/* A number of a PPM header, after space and comments; -1 if there is none. */
static int header_number(FILE *file) {
  int c = getc(file), value = 0, digits = 0;
  while (c == '#' || isspace(c)) {
    if (c == '#')
      while (c != '\n' && c != EOF) c = getc(file);
    else
      c = getc(file);
  }
  for (; isdigit(c) && digits < 6; digits++, c = getc(file)) value = value * 10 + (c - '0');
  return digits ? value : -1;
}

static unsigned char *read_ppm(FILE *file, int *width, int *height) {
  if (getc(file) != 'P' || getc(file) != '6') return NULL;
  *width = header_number(file);
  *height = header_number(file);
  if (header_number(file) != 255 || *width < 1 || *height < 1 || *width > LARGEST_SIDE || *height > LARGEST_SIDE)
    return NULL;
  size_t size = (size_t)*width * (size_t)*height * 3;
  unsigned char *pixels = malloc(size);
  if (pixels && fread(pixels, 1, size, file) == size) return pixels;
  free(pixels);
  return NULL;
}

#ifdef CATS_EXAMPLE_JPEG
#include <jpeglib.h>
#include <setjmp.h>

typedef struct {
  struct jpeg_error_mgr base;
  jmp_buf escape;
} error_manager;

static void give_up(j_common_ptr info) { longjmp(((error_manager *)info->err)->escape, 1); }

static unsigned char *read_jpeg(FILE *file, int *width, int *height) {
  struct jpeg_decompress_struct decoder;
  error_manager errors;
  unsigned char *volatile pixels = NULL;
  decoder.err = jpeg_std_error(&errors.base);
  errors.base.error_exit = give_up;
  if (setjmp(errors.escape)) {
    jpeg_destroy_decompress(&decoder);
    free(pixels);
    return NULL;
  }
  jpeg_create_decompress(&decoder);
  jpeg_stdio_src(&decoder, file);
  jpeg_read_header(&decoder, TRUE);
  decoder.out_color_space = JCS_RGB;
  jpeg_start_decompress(&decoder);
  size_t line = (size_t)decoder.output_width * 3;
  pixels = malloc(line * decoder.output_height);
  while (pixels && decoder.output_scanline < decoder.output_height) {
    JSAMPROW row = pixels + line * decoder.output_scanline;
    jpeg_read_scanlines(&decoder, &row, 1);
  }
  *width = (int)decoder.output_width;
  *height = (int)decoder.output_height;
  if (pixels) jpeg_finish_decompress(&decoder);
  jpeg_destroy_decompress(&decoder);
  return pixels;
}
#endif

unsigned char *read_image(const char *path, int *width, int *height) {
  FILE *file = fopen(path, "rb");
  if (!file) {
    perror(path);
    return NULL;
  }
  unsigned char *pixels = read_ppm(file, width, height);
#ifdef CATS_EXAMPLE_JPEG
  if (!pixels) {
    rewind(file);
    pixels = read_jpeg(file, width, height);
  }
#endif
  fclose(file);
  if (!pixels) fprintf(stderr, "%s: not a PPM (P6) or JPEG file that this program reads\n", path);
  return pixels;
}
