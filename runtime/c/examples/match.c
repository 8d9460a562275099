/* Matches two pictures and prints where a grid of points of a lies in b.
 *
 *     cats-match cats.onnx a.ppm b.jpg
 *
 * One point a line: x and y in a, x and y in b (pixels), confidence.
 */
#include <cats.h>
#include <stdio.h>
#include <stdlib.h>

#include "read_image.h"

#define SIDE 8
#define POINTS (SIDE * SIDE)

static int run(cats_context *context, const cats_image *a, const cats_image *b) {
  double from[2 * POINTS], to[2 * POINTS], confidence[POINTS];
  for (int i = 0; i < POINTS; i++) {
    from[2 * i] = (i % SIDE + 0.5) * a->width / SIDE - 0.5;
    from[2 * i + 1] = ((double)(i / SIDE) + 0.5) * a->height / SIDE - 0.5;
  }
  if (cats_match(context, a, b) != CATS_OK || cats_transfer(context, 0, from, POINTS, to) != CATS_OK ||
      cats_confidence_at(context, 0, from, POINTS, confidence) != CATS_OK) {
    fprintf(stderr, "error: %s\n", cats_last_error());
    return 1;
  }
  for (int i = 0; i < POINTS; i++)
    printf("%.3f %.3f %.3f %.3f %.4f\n", from[2 * i], from[2 * i + 1], to[2 * i], to[2 * i + 1], confidence[i]);
  return 0;
}

int main(int count, char **arguments) {
  int width[2], height[2], failed = 1;
  unsigned char *pixels[2] = {NULL, NULL};
  cats_matcher *matcher = NULL;
  cats_context *context = NULL;
  if (count != 4) {
    fprintf(stderr, "usage: %s model.onnx a b\n", arguments[0]);
    return 2;
  }
  for (int i = 0; i < 2; i++) pixels[i] = read_image(arguments[i + 2], &width[i], &height[i]);
  if (pixels[0] && pixels[1]) {
    cats_image a = CATS_IMAGE(pixels[0], width[0], height[0], CATS_RGB);
    cats_image b = CATS_IMAGE(pixels[1], width[1], height[1], CATS_RGB);
    if (cats_open(arguments[1], NULL, &matcher) != CATS_OK || cats_context_create(matcher, &context) != CATS_OK) {
      fprintf(stderr, "error: %s\n", cats_last_error());
    } else {
      failed = run(context, &a, &b);
    }
  }
  cats_context_destroy(context);
  cats_close(matcher);
  free(pixels[0]);
  free(pixels[1]);
  return failed;
}
