/* Coordinates and keypoint transfer, mirroring cats/core/geometry.py. */
#ifndef CATS_GEOMETRY_H
#define CATS_GEOMETRY_H

#include <stddef.h>

/* Sizes of the two images in pixels. */
typedef struct {
  int width_a, height_a, width_b, height_b;
} cats_sizes;

double cats_pixel_to_cell(double pixel, int size, int grid);
double cats_cell_to_pixel(double cell, int size, int grid);

/* Bilinear sample of a (grid, grid) map at x, y in cells, clamped at the border. */
double cats_sample(const float *map, int grid, double x, double y);

/* A point of a, pixels, to b. */
void cats_transfer_point(const float *flow, int grid, const cats_sizes *sizes, const double in_a[2], double in_b[2]);

/* (height_a, width_a, 2) displacements in pixels. */
void cats_fill_dense_flow(const float *flow, int grid, const cats_sizes *sizes, float *out);

#endif
