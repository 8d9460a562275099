/* Reading the results of a context. */
#include <math.h>
#include <string.h>

#include "matcher.h"

/* Takes the context and checks that it has this pair. */
static cats_status take_pair(cats_context *context, size_t pair) {
  cats_status status = cats_context_take(context);
  if (status != CATS_OK || pair < context->count) return status;
  status = context->count ? cats_fail(CATS_ERROR_ARGUMENT, "pair %zu: this context holds %zu", pair, context->count)
                          : cats_fail(CATS_ERROR_STATE, "this context holds no match: call cats_match first");
  cats_context_give(context);
  return status;
}

static const float *flow_of(const cats_context *context, size_t pair) {
  return context->flows + pair * 2 * cats_grid_elements(context->matcher);
}

static const float *confidence_of(const cats_context *context, size_t pair) {
  return context->confidences + pair * cats_grid_elements(context->matcher);
}

size_t cats_pair_count(const cats_context *context) {
  cats_context *mine = (cats_context *)context;
  if (cats_context_take(mine) != CATS_OK) return 0;
  size_t count = mine->count;
  cats_context_give(mine);
  return count;
}

static cats_status copy(const float *from, size_t have, float *to, size_t count, const char *name) {
  if (!to) return cats_fail(CATS_ERROR_ARGUMENT, "%s is NULL", name);
  if (count != have)
    return cats_fail(CATS_ERROR_ARGUMENT, "%s has room for %zu floats: it has %zu", name, count, have);
  memcpy(to, from, have * sizeof(float));
  return CATS_OK;
}

cats_status cats_flow(cats_context *context, size_t pair, float *flow, size_t count) {
  cats_status status = take_pair(context, pair);
  if (status != CATS_OK) return status;
  status = copy(flow_of(context, pair), 2 * cats_grid_elements(context->matcher), flow, count, "flow");
  cats_context_give(context);
  return status;
}

cats_status cats_confidence(cats_context *context, size_t pair, float *confidence, size_t count) {
  cats_status status = take_pair(context, pair);
  if (status != CATS_OK) return status;
  status = copy(confidence_of(context, pair), cats_grid_elements(context->matcher), confidence, count, "confidence");
  cats_context_give(context);
  return status;
}

cats_status cats_calibrated_confidence(cats_context *context, size_t pair, float *probability, size_t count) {
  cats_status status = take_pair(context, pair);
  if (status != CATS_OK) return status;
  const cats_session *session = &context->matcher->matcher;
  const cats_calibration *calibration = &session->metadata.calibration;
  if (!calibration->knots)
    status = cats_fail(CATS_ERROR_STATE, "the confidence of %s is not calibrated: see cats fit-confidence",
                       session->name);
  if (status == CATS_OK)
    status = copy(confidence_of(context, pair), cats_grid_elements(context->matcher), probability, count,
                  "probability");
  for (size_t i = 0; i < count && status == CATS_OK; i++)
    probability[i] = (float)cats_calibrate(calibration, probability[i]);
  cats_context_give(context);
  return status;
}

static cats_status check_points(const double *points, size_t count, const void *results, const cats_sizes *sizes) {
  if (count && (!points || !results)) return cats_fail(CATS_ERROR_ARGUMENT, "points or their results are NULL");
  if (count > SIZE_MAX / (2 * sizeof(double))) return cats_fail(CATS_ERROR_ARGUMENT, "%zu points", count);
  for (size_t i = 0; i < count; i++) {
    double x = points[2 * i], y = points[2 * i + 1];
    if (!isfinite(x) || !isfinite(y))
      return cats_fail(CATS_ERROR_ARGUMENT, "point %zu is (%g, %g): coordinates must be finite", i, x, y);
    if (x < -0.5 || y < -0.5 || x > sizes->width_a - 0.5 || y > sizes->height_a - 0.5)
      return cats_fail(CATS_ERROR_ARGUMENT, "point %zu at (%g, %g) lies outside image a, which has %dx%d pixels", i, x,
                       y, sizes->width_a, sizes->height_a);
  }
  return CATS_OK;
}

cats_status cats_transfer(cats_context *context, size_t pair, const double *points_a, size_t count,
                          double *points_b) {
  cats_status status = take_pair(context, pair);
  if (status != CATS_OK) return status;
  const cats_sizes *sizes = &context->sizes[pair];
  int grid = context->matcher->matcher.metadata.grid;
  status = check_points(points_a, count, points_b, sizes);
  for (size_t i = 0; i < count && status == CATS_OK; i++) {
    double point[2] = {points_a[2 * i], points_a[2 * i + 1]};
    cats_transfer_point(flow_of(context, pair), grid, sizes, point, points_b + 2 * i);
  }
  cats_context_give(context);
  return status;
}

cats_status cats_confidence_at(cats_context *context, size_t pair, const double *points_a, size_t count,
                               double *confidence) {
  cats_status status = take_pair(context, pair);
  if (status != CATS_OK) return status;
  const cats_sizes *sizes = &context->sizes[pair];
  int grid = context->matcher->matcher.metadata.grid;
  status = check_points(points_a, count, confidence, sizes);
  for (size_t i = 0; i < count && status == CATS_OK; i++)
    confidence[i] = cats_sample(confidence_of(context, pair), grid,
                                cats_pixel_to_cell(points_a[2 * i], sizes->width_a, grid),
                                cats_pixel_to_cell(points_a[2 * i + 1], sizes->height_a, grid));
  cats_context_give(context);
  return status;
}

static cats_status check_dense(const cats_sizes *sizes, const float *flow, size_t count) {
  if (sizes->width_a < 1 || sizes->height_a < 1 || sizes->width_b < 1 || sizes->height_b < 1)
    return cats_fail(CATS_ERROR_ARGUMENT, "sizes %dx%d and %dx%d: all must be at least 1, or all 0", sizes->width_a,
                     sizes->height_a, sizes->width_b, sizes->height_b);
  if (!flow) return cats_fail(CATS_ERROR_ARGUMENT, "flow is NULL");
  uint64_t needed = (uint64_t)sizes->width_a * (uint64_t)sizes->height_a;
  if (needed > SIZE_MAX / 16 || count != 2 * needed)
    return cats_fail(CATS_ERROR_ARGUMENT, "flow has room for %zu floats: %dx%d pixels need %llu", count, sizes->width_a,
                     sizes->height_a, 2 * (unsigned long long)needed);
  return CATS_OK;
}

cats_status cats_dense_flow(cats_context *context, size_t pair, int32_t width_a, int32_t height_a, int32_t width_b,
                            int32_t height_b, float *flow, size_t count) {
  cats_status status = take_pair(context, pair);
  if (status != CATS_OK) return status;
  cats_sizes sizes = {width_a, height_a, width_b, height_b};
  if (!width_a && !height_a && !width_b && !height_b) sizes = context->sizes[pair];
  status = check_dense(&sizes, flow, count);
  if (status == CATS_OK)
    cats_fill_dense_flow(flow_of(context, pair), context->matcher->matcher.metadata.grid, &sizes, flow);
  cats_context_give(context);
  return status;
}
