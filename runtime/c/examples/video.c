/* Matches one reference picture with many frames, as a video loop does: the reference is encoded once, buffers are kept.
 *
 *     cats-video cats.encoder.onnx reference.ppm frame1.ppm frame2.ppm ...
 *
 * One line a frame: its name, where the centre of the reference lies in it (pixels), confidence.
 */
#include <cats.h>
#include <stdio.h>
#include <stdlib.h>

#include "read_image.h"

static int failed(void) {
  fprintf(stderr, "error: %s\n", cats_last_error());
  return 1;
}

static int match_frame(cats_context *context, const cats_features *reference, cats_features *frame,
                       const double centre[2], const char *path) {
  int width, height;
  unsigned char *pixels = read_image(path, &width, &height);
  if (!pixels) return 1;
  cats_image image = CATS_IMAGE(pixels, width, height, CATS_RGB);
  cats_status status = cats_encode(context, &image, frame);
  free(pixels);
  const cats_features *b = frame;
  double place[2], confidence;
  if (status != CATS_OK || cats_match_features(context, &reference, &b, 1) != CATS_OK ||
      cats_transfer(context, 0, centre, 1, place) != CATS_OK ||
      cats_confidence_at(context, 0, centre, 1, &confidence) != CATS_OK)
    return failed();
  printf("%s %.3f %.3f %.4f\n", path, place[0], place[1], confidence);
  return 0;
}

int main(int count, char **arguments) {
  int width, height, bad = 1;
  cats_matcher *matcher = NULL;
  cats_context *context = NULL;
  cats_features *reference = NULL, *frame = NULL;
  if (count < 4) {
    fprintf(stderr, "usage: %s model.encoder.onnx reference frame...\n", arguments[0]);
    return 2;
  }
  unsigned char *pixels = read_image(arguments[2], &width, &height);
  if (!pixels) return 1;
  cats_image image = CATS_IMAGE(pixels, width, height, CATS_RGB);
  if (cats_open(arguments[1], NULL, &matcher) != CATS_OK || cats_context_create(matcher, &context) != CATS_OK ||
      cats_features_create(matcher, &reference) != CATS_OK || cats_features_create(matcher, &frame) != CATS_OK ||
      cats_encode(context, &image, reference) != CATS_OK) {
    failed();
  } else {
    double centre[2] = {(width - 1) / 2.0, (height - 1) / 2.0};
    bad = 0;
    for (int i = 3; i < count && !bad; i++) bad = match_frame(context, reference, frame, centre, arguments[i]);
  }
  free(pixels);
  cats_features_destroy(frame);
  cats_features_destroy(reference);
  cats_context_destroy(context);
  cats_close(matcher);
  return bad;
}
