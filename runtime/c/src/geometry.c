/* See geometry.h. */
#include "geometry.h"

double cats_pixel_to_cell(double pixel, int size, int grid) { return (pixel + 0.5) * grid / size - 0.5; }

double cats_cell_to_pixel(double cell, int size, int grid) { return (cell + 0.5) * size / grid - 0.5; }

/* Where a clamped position lies between two cells. */
typedef struct {
  int low, high;
  double share; /* of `high` */
} between;

static between locate(double position, int grid) {
  double clamped = position < 0 ? 0 : position > grid - 1 ? grid - 1 : position;
  int low = (int)clamped;
  if (low > grid - 2) low = grid > 1 ? grid - 2 : 0;
  between place = {low, low + 1 < grid ? low + 1 : low, clamped - low};
  return place;
}

static double blend(const float *map, int grid, between x, between y) {
  const float *top = map + (size_t)y.low * (size_t)grid, *bottom = map + (size_t)y.high * (size_t)grid;
  double upper = (double)top[x.low] * (1 - x.share) + (double)top[x.high] * x.share;
  double lower = (double)bottom[x.low] * (1 - x.share) + (double)bottom[x.high] * x.share;
  return upper * (1 - y.share) + lower * y.share;
}

double cats_sample(const float *map, int grid, double x, double y) {
  return blend(map, grid, locate(x, grid), locate(y, grid));
}

void cats_transfer_point(const float *flow, int grid, const cats_sizes *sizes, const double in_a[2], double in_b[2]) {
  double x = cats_pixel_to_cell(in_a[0], sizes->width_a, grid);
  double y = cats_pixel_to_cell(in_a[1], sizes->height_a, grid);
  double dx = cats_sample(flow, grid, x, y);
  double dy = cats_sample(flow + (size_t)grid * (size_t)grid, grid, x, y);
  in_b[0] = cats_cell_to_pixel(x + dx, sizes->width_b, grid);
  in_b[1] = cats_cell_to_pixel(y + dy, sizes->height_b, grid);
}

void cats_fill_dense_flow(const float *flow, int grid, const cats_sizes *sizes, float *out) {
  const float *vertical = flow + (size_t)grid * (size_t)grid;
  for (int y = 0; y < sizes->height_a; y++) {
    double cell_y = cats_pixel_to_cell(y, sizes->height_a, grid);
    between row = locate(cell_y, grid);
    for (int x = 0; x < sizes->width_a; x++, out += 2) {
      double cell_x = cats_pixel_to_cell(x, sizes->width_a, grid);
      between column = locate(cell_x, grid);
      out[0] = (float)(cats_cell_to_pixel(cell_x + blend(flow, grid, column, row), sizes->width_b, grid) - x);
      out[1] = (float)(cats_cell_to_pixel(cell_y + blend(vertical, grid, column, row), sizes->height_b, grid) - y);
    }
  }
}
