/* Uses every function of libcats as programs do, rightly and wrongly; run under the sanitizers by test_c_sanitizers.py.
 *
 *     exercise pair.onnx tiny.encoder.onnx THREADS ROUNDS [leak | overflow | race]
 *
 * The last word plants a defect that a sanitizer must find. Exit status 1 where libcats itself is wrong.
 */
#include <cats.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH 61
#define HEIGHT 47

static cats_matcher *pair, *split;
static unsigned char pixels[HEIGHT][WIDTH][3];
static int rounds;
static const char *planted = "";
static volatile long shared_counter; /* volatile, or it is optimised away */

#define EXPECT(condition)                                                                   \
  do {                                                                                      \
    if (!(condition)) {                                                                     \
      fprintf(stderr, "line %d: %s; last error: %s\n", __LINE__, #condition, cats_last_error()); \
      exit(1);                                                                              \
    }                                                                                       \
  } while (0)

static cats_image view(int crop) {
  cats_image image = CATS_IMAGE(pixels[crop], WIDTH - crop, HEIGHT - crop, CATS_RGB);
  image.stride = sizeof pixels[0];
  return image;
}

static void read_results(cats_context *context, size_t index) {
  static const double from[4] = {0, 0, 30.5, 20.25};
  float flow[2 * 256], map[256], dense[HEIGHT * WIDTH * 2];
  double to[4], confidence[2];
  EXPECT(cats_flow(context, index, flow, 512) == CATS_OK);
  EXPECT(cats_confidence(context, index, map, 256) == CATS_OK);
  EXPECT(cats_transfer(context, index, from, 2, to) == CATS_OK);
  EXPECT(cats_confidence_at(context, index, from, 2, confidence) == CATS_OK);
  EXPECT(cats_dense_flow(context, index, WIDTH, HEIGHT, WIDTH, HEIGHT, dense, HEIGHT * WIDTH * 2) == CATS_OK);
  EXPECT(cats_flow(context, index, flow, 3) == CATS_ERROR_ARGUMENT);
  EXPECT(cats_calibrated_confidence(context, index, map, 256) == CATS_ERROR_STATE);
  EXPECT(cats_flow(context, index + 1000, flow, 512) == CATS_ERROR_ARGUMENT);
}

static void use_wrongly(cats_context *context) {
  cats_image good = view(0), bad = good;
  cats_matcher *none = NULL;
  EXPECT(cats_open("/nonexistent/model.onnx", NULL, &none) != CATS_OK && !none);
  EXPECT(cats_open_memory("junk", 4, NULL, &none) != CATS_OK && !none);
  bad.stride = 1;
  EXPECT(cats_match(context, &good, &bad) == CATS_ERROR_ARGUMENT);
  EXPECT(strstr(cats_last_error(), "stride"));
  EXPECT(cats_match(context, &good, NULL) == CATS_ERROR_ARGUMENT);
  EXPECT(cats_pair_count(context) == 0);
}

static void *work(void *unused) {
  cats_context *context = NULL, *encoding = NULL;
  cats_features *one = NULL, *two = NULL;
  float *tensor = malloc(3 * 256 * 256 * sizeof(float));
  (void)unused;
  if (strcmp(planted, "race") == 0) shared_counter++; /* before anything that orders the threads */
  EXPECT(cats_context_create(pair, &context) == CATS_OK && cats_context_create(split, &encoding) == CATS_OK);
  EXPECT(cats_features_create(split, &one) == CATS_OK && cats_features_create(split, &two) == CATS_OK);
  EXPECT(tensor);
  for (int round = 0; round < rounds; round++) {
    cats_info info = CATS_INFO;
    EXPECT(cats_get_info(round % 2 ? pair : split, &info) == CATS_OK && info.split == !(round % 2));
    cats_image a = view(round % 3), b = view(0);
    const cats_image *as[2] = {&a, &b}, *bs[2] = {&b, &a};
    EXPECT(cats_preprocess(context, &a, tensor, 3 * 256 * 256) == CATS_OK);
    EXPECT(cats_match(context, &a, &b) == CATS_OK);
    read_results(context, 0);
    EXPECT(cats_match_batch(context, as, bs, 2) == CATS_OK && cats_pair_count(context) == 2);
    read_results(context, 1);
    EXPECT(cats_encode(encoding, &a, one) == CATS_OK && cats_encode(encoding, &b, two) == CATS_OK);
    const cats_features *many[2] = {one, two}, *same[2] = {one, one};
    EXPECT(cats_match_features(encoding, same, many, 2) == CATS_OK);
    read_results(encoding, 1);
    EXPECT(cats_match(encoding, &a, &b) == CATS_OK);
    use_wrongly(context);
  }
  if (strcmp(planted, "leak") == 0) {
    cats_context *lost = NULL;
    EXPECT(cats_context_create(pair, &lost) == CATS_OK);
  }
  if (strcmp(planted, "overflow") == 0) {
    float *small = malloc(511 * sizeof(float));
    cats_image a = view(0);
    EXPECT(cats_match(context, &a, &a) == CATS_OK);
    EXPECT(cats_flow(context, 0, small, 512) == CATS_OK); /* one float more than there is room for */
    free(small);
  }
  free(tensor);
  cats_features_destroy(one);
  cats_features_destroy(two);
  cats_context_destroy(context);
  cats_context_destroy(encoding);
  return NULL;
}

int main(int count, char **arguments) {
  pthread_t threads[64];
  cats_options options = CATS_OPTIONS;
  options.threads = 1;
  if (count < 5) return 2;
  int thread_count = atoi(arguments[3]);
  rounds = atoi(arguments[4]);
  if (count > 5) planted = arguments[5];
  for (size_t i = 0; i < sizeof pixels; i++) ((unsigned char *)pixels)[i] = (unsigned char)(i * 2654435761u >> 13);
  EXPECT(cats_open(arguments[1], &options, &pair) == CATS_OK);
  EXPECT(cats_open(arguments[2], &options, &split) == CATS_OK);
  for (int i = 0; i < thread_count; i++) EXPECT(pthread_create(&threads[i], NULL, work, NULL) == 0);
  for (int i = 0; i < thread_count; i++) pthread_join(threads[i], NULL);
  cats_close(pair);
  cats_close(split);
  puts("done");
  return 0;
}
