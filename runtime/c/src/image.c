/* See image.h. The filter is Pillow's: triangle weights over the source span of a result, rounded to 22 bits, and an
 * image rounded to 8 bits after the horizontal pass. */
#include "image.h"

#include <math.h>
#include <string.h>

#define BITS 22
#define HALF (1 << (BITS - 1))

static const int samples[] = {0, 3, 3, 4, 4, 1};

void cats_levels_init(cats_levels *levels, const cats_metadata *metadata) {
  for (int c = 0; c < 3; c++)
    for (int v = 0; v < 256; v++)
      levels->level[c][v] = ((float)v / 255.0f - metadata->mean[c]) / metadata->std[c];
}

cats_status cats_image_check(const cats_image *given, int64_t max_pixels, const char *name, cats_image *image) {
  cats_status status = cats_read_struct(given, image, sizeof *image, sizeof *image, "cats_image", name);
  if (status != CATS_OK) return status;
  if (image->format < CATS_RGB || image->format > CATS_GREY)
    return cats_fail(CATS_ERROR_ARGUMENT, "%s.format is %u: use CATS_RGB, CATS_BGR, CATS_RGBA, CATS_BGRA or CATS_GREY",
                     name, image->format);
  if (image->reserved) return cats_fail(CATS_ERROR_ARGUMENT, "%s.reserved must be 0", name);
  if (image->width < CATS_MIN_SIDE || image->height < CATS_MIN_SIDE)
    return cats_fail(CATS_ERROR_ARGUMENT, "%s is %dx%d: at least %dx%d pixels are needed", name, image->width,
                     image->height, CATS_MIN_SIDE, CATS_MIN_SIDE);
  if (image->width > CATS_MAX_SIDE || image->height > CATS_MAX_SIDE)
    return cats_fail(CATS_ERROR_ARGUMENT, "%s is %dx%d: at most %d pixels a side", name, image->width, image->height,
                     CATS_MAX_SIDE);
  if ((int64_t)image->width * image->height > max_pixels)
    return cats_fail(CATS_ERROR_ARGUMENT, "%s is %dx%d, over the limit of %lld pixels: raise cats_options.max_pixels",
                     name, image->width, image->height, (long long)max_pixels);
  if (!image->data) return cats_fail(CATS_ERROR_ARGUMENT, "%s.data is NULL", name);
  int64_t packed = (int64_t)image->width * samples[image->format];
  if (image->stride == 0) image->stride = packed;
  int64_t limit = PTRDIFF_MAX / image->height;
  if (image->stride > limit || image->stride < -limit || (image->stride < packed && image->stride > -packed))
    return cats_fail(CATS_ERROR_ARGUMENT, "%s.stride is %lld bytes: a row of %d pixels of this format has %lld", name,
                     (long long)image->stride, image->width, (long long)packed);
  return CATS_OK;
}

/* Fills the weights for resizing `from` samples to `to`. */
static cats_status filter_prepare(cats_filter *filter, int32_t from, int32_t to) {
  if (filter->from == from && filter->to == to) return CATS_OK;
  double scale = (double)from / to;
  double support = scale > 1 ? scale : 1;
  size_t taps = (size_t)ceil(support) * 2 + 1;
  filter->from = filter->to = 0;
  cats_status status = cats_reserve((void **)&filter->first, &filter->first_capacity, (size_t)to, sizeof(int32_t));
  if (status == CATS_OK)
    status = cats_reserve((void **)&filter->count, &filter->count_capacity, (size_t)to, sizeof(int32_t));
  if (status == CATS_OK)
    status = cats_reserve((void **)&filter->weights, &filter->weight_capacity, (size_t)to * taps, sizeof(int32_t));
  if (status == CATS_OK) status = cats_reserve((void **)&filter->exact, &filter->double_capacity, taps, sizeof(double));
  if (status != CATS_OK) return status;
  for (int32_t i = 0; i < to; i++) {
    double centre = (i + 0.5) * scale, total = 0, inverse = 1.0 / support;
    int32_t first = (int32_t)(centre - support + 0.5), end = (int32_t)(centre + support + 0.5);
    if (first < 0) first = 0;
    if (end > from) end = from;
    int32_t *weights = filter->weights + (size_t)i * taps;
    for (int32_t k = 0; k < end - first; k++) {
      double distance = fabs((k + first - centre + 0.5) * inverse);
      filter->exact[k] = distance < 1 ? 1 - distance : 0;
      total += filter->exact[k];
    }
    for (int32_t k = 0; k < end - first; k++) {
      double weight = total != 0 ? filter->exact[k] / total : filter->exact[k];
      weights[k] = (int32_t)(0.5 + weight * (1 << BITS));
    }
    filter->first[i] = first;
    filter->count[i] = end - first;
  }
  filter->taps = taps;
  filter->from = from;
  filter->to = to;
  return CATS_OK;
}

static unsigned char over_white(unsigned value, unsigned alpha) {
  unsigned sum = 255 * (255 - alpha) + value * alpha + 128;
  return (unsigned char)(((sum >> 8) + sum) >> 8);
}

/* A source row as RGB: itself where it is, else converted into `row`. */
static const unsigned char *rgb_row(const unsigned char *source, uint32_t format, int32_t width, unsigned char *row) {
  if (format == CATS_RGB) return source;
  int step = samples[format];
  int red = format == CATS_BGR || format == CATS_BGRA ? 2 : 0;
  int green = format == CATS_GREY ? 0 : 1;
  int blue = format == CATS_GREY ? 0 : 2 - red;
  unsigned char *out = row;
  for (int32_t x = 0; x < width; x++, source += step, out += 3) {
    out[0] = source[red];
    out[1] = source[green];
    out[2] = source[blue];
    if (step == 4 && source[3] != 255)
      for (int c = 0; c < 3; c++) out[c] = over_white(out[c], source[3]);
  }
  return row;
}

static unsigned char rounded(int32_t sum) {
  int32_t value = sum >> BITS;
  return (unsigned char)(value < 0 ? 0 : value > 255 ? 255 : value);
}

static void resize_row(const cats_filter *filter, const unsigned char *row, unsigned char *out) {
  for (int32_t x = 0; x < filter->to; x++, out += 3) {
    const unsigned char *source = row + (size_t)filter->first[x] * 3;
    const int32_t *weights = filter->weights + (size_t)x * filter->taps;
    int32_t red = HALF, green = HALF, blue = HALF;
    for (int32_t k = 0; k < filter->count[x]; k++, source += 3) {
      red += source[0] * weights[k];
      green += source[1] * weights[k];
      blue += source[2] * weights[k];
    }
    out[0] = rounded(red);
    out[1] = rounded(green);
    out[2] = rounded(blue);
  }
}

/* An image of the model's size already: every weight is 1 or 0. */
static void look_up(cats_resizer *resizer, const cats_levels *levels, const cats_image *image, float *tensor) {
  size_t width = (size_t)image->width, plane = width * (size_t)image->height;
  const unsigned char *source = image->data;
  for (int32_t y = 0; y < image->height; y++, source += y < image->height ? (ptrdiff_t)image->stride : 0) {
    const unsigned char *row = rgb_row(source, image->format, image->width, resizer->row);
    for (size_t c = 0; c < 3; c++) {
      float *out = tensor + c * plane + (size_t)y * width;
      for (size_t x = 0; x < width; x++) out[x] = levels->level[c][row[3 * x + c]];
    }
  }
}

cats_status cats_image_to_tensor(cats_resizer *resizer, const cats_levels *levels, const cats_image *image, int width,
                                 int height, float *tensor) {
  size_t line = (size_t)width * 3, plane = (size_t)width * (size_t)height;
  cats_status status = filter_prepare(&resizer->across, image->width, width);
  if (status == CATS_OK) status = filter_prepare(&resizer->down, image->height, height);
  if (status == CATS_OK)
    status = cats_reserve((void **)&resizer->row, &resizer->row_capacity, (size_t)image->width * 3, 1);
  if (status == CATS_OK && image->width == width && image->height == height) {
    look_up(resizer, levels, image, tensor);
    return CATS_OK;
  }
  if (status == CATS_OK) status = cats_reserve((void **)&resizer->narrow, &resizer->narrow_capacity, line, 1);
  if (status == CATS_OK)
    status = cats_reserve((void **)&resizer->sums, &resizer->sum_capacity, plane * 3, sizeof(int32_t));
  if (status != CATS_OK) return status;
  for (size_t i = 0; i < plane * 3; i++) resizer->sums[i] = HALF;
  const cats_filter *down = &resizer->down;
  const unsigned char *source = image->data;
  int32_t done = 0; /* results above this one need no further rows */
  for (int32_t y = 0; y < image->height; y++, source += y < image->height ? (ptrdiff_t)image->stride : 0) {
    const unsigned char *row = rgb_row(source, image->format, image->width, resizer->row);
    const unsigned char *narrow = row;
    if (image->width != width) {
      resize_row(&resizer->across, row, resizer->narrow);
      narrow = resizer->narrow;
    }
    while (done < height && down->first[done] + down->count[done] <= y) done++;
    for (int32_t r = done; r < height && down->first[r] <= y; r++) {
      int32_t weight = down->weights[(size_t)r * down->taps + (size_t)(y - down->first[r])];
      int32_t *sums = resizer->sums + (size_t)r * line;
      for (size_t i = 0; i < line; i++) sums[i] += narrow[i] * weight;
    }
  }
  for (size_t c = 0; c < 3; c++)
    for (size_t i = 0; i < plane; i++) tensor[c * plane + i] = levels->level[c][rounded(resizer->sums[i * 3 + c])];
  return CATS_OK;
}

static void filter_free(cats_filter *filter) {
  cats_free(filter->first);
  cats_free(filter->count);
  cats_free(filter->weights);
  cats_free(filter->exact);
}

void cats_resizer_free(cats_resizer *resizer) {
  filter_free(&resizer->across);
  filter_free(&resizer->down);
  cats_free(resizer->row);
  cats_free(resizer->narrow);
  cats_free(resizer->sums);
}
