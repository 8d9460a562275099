/* From pixels to model input, equal to cats.core.images.preprocess in Python. */
#ifndef CATS_IMAGE_H
#define CATS_IMAGE_H

#include "common.h"
#include "metadata.h"

/* Weights of the antialiased bilinear filter along one axis, in 1/2^22. */
typedef struct {
  int32_t from, to;   /* sizes they are for */
  int32_t *first;     /* first source sample of each of `to` results */
  int32_t *count;     /* number of source samples of each */
  int32_t *weights;   /* `taps` of each */
  size_t taps;
  size_t first_capacity, count_capacity, weight_capacity, double_capacity;
  double *exact;      /* weights of one result before rounding */
} cats_filter;

/* Buffers of one preprocessing at a time; zeroed memory is an empty one. */
typedef struct {
  cats_filter across, down;
  unsigned char *row; /* a source row as RGB */
  size_t row_capacity;
  unsigned char *narrow; /* the row at the model's width */
  size_t narrow_capacity;
  int32_t *sums; /* of the model's size, RGB */
  size_t sum_capacity;
} cats_resizer;

/* Normalised value of each grey level of R, G and B. */
typedef struct {
  float level[3][256];
} cats_levels;

void cats_levels_init(cats_levels *levels, const cats_metadata *metadata);

/* Checks a caller's image and copies it to *image. name: for messages. */
cats_status cats_image_check(const cats_image *given, int64_t max_pixels, const char *name, cats_image *image);

/* Writes a checked image as (3, height, width) floats. */
cats_status cats_image_to_tensor(cats_resizer *resizer, const cats_levels *levels, const cats_image *image, int width,
                                 int height, float *tensor);

void cats_resizer_free(cats_resizer *resizer);

#endif
