/* Counts what libcats allocates, and lets its n-th allocation fail; linked with --wrap for the allocating functions.
 *
 *     allocations pair.onnx tiny.encoder.onnx hot       no allocation after the first round
 *     allocations pair.onnx tiny.encoder.onnx fail      every allocation in turn fails: an error, no crash, no leak
 */
#include <cats.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long allocations, fail_at = -1;

static int refuse(void) { return allocations++ == fail_at; }

void *__real_malloc(size_t);
void *__real_aligned_alloc(size_t, size_t);
void *__wrap_malloc(size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

void *__wrap_malloc(size_t size) { return refuse() ? NULL : __real_malloc(size); }
void *__wrap_aligned_alloc(size_t alignment, size_t size) {
  return refuse() ? NULL : __real_aligned_alloc(alignment, size);
}

static unsigned char pixels[40 * 50 * 3];

/* One use of everything; the status of the first failure. */
static cats_status use(const char *model, const char *encoder, int rounds) {
  static const double from[2] = {3, 4};
  double to[2];
  float flow[512], map[256], dense[40 * 50 * 2], *tensor = __real_malloc(3 * 256 * 256 * sizeof(float));
  double confidence;
  cats_matcher *matchers[2] = {NULL, NULL};
  cats_context *contexts[2] = {NULL, NULL};
  cats_features *features = NULL;
  cats_options options = CATS_OPTIONS;
  cats_image image = CATS_IMAGE(pixels, 50, 40, CATS_RGB), turned = CATS_IMAGE(pixels, 40, 50, CATS_GREY);
  const cats_image *two[2] = {&image, &turned};
  cats_device_batch batch = {sizeof batch, tensor, tensor, flow, map, 1, NULL};
  options.threads = 1;
  cats_status status = cats_open(model, &options, &matchers[0]);
  if (!status) status = cats_open(encoder, &options, &matchers[1]);
  for (int i = 0; i < 2 && !status; i++) status = cats_context_create(matchers[i], &contexts[i]);
  if (!status) status = cats_features_create(matchers[1], &features);
  for (int round = 0; round < rounds && !status; round++) {
    const cats_features *b = features;
    if (round == 2) allocations = 0;
    status = cats_match(contexts[0], &image, &turned);
    if (!status) status = cats_transfer(contexts[0], 0, from, 1, to);
    if (!status) status = cats_flow(contexts[0], 0, flow, 512);
    if (!status) status = cats_preprocess(contexts[0], &image, tensor, 3 * 256 * 256);
    if (!status) status = cats_encode(contexts[1], &image, features);
    if (!status) status = cats_match_features(contexts[1], &b, &b, 1);
    if (!status) status = cats_match(contexts[1], &image, &turned);
    if (!status) status = cats_match_batch(contexts[0], two, two, 2);
    if (!status) status = cats_confidence(contexts[0], 1, map, 256);
    if (!status && cats_calibrated_confidence(contexts[0], 1, map, 256) != CATS_ERROR_STATE) status = CATS_ERROR_STATE;
    if (!status) status = cats_confidence_at(contexts[0], 1, from, 1, &confidence);
    if (!status) status = cats_dense_flow(contexts[0], 0, 0, 0, 0, 0, dense, 40 * 50 * 2);
    if (!status) status = cats_match_device(contexts[0], &batch);
  }
  cats_features_destroy(features);
  for (int i = 0; i < 2; i++) cats_context_destroy(contexts[i]);
  for (int i = 0; i < 2; i++) cats_close(matchers[i]);
  free(tensor);
  return status;
}

int main(int count, char **arguments) {
  if (count != 4) return 2;
  if (strcmp(arguments[3], "hot") == 0) {
    cats_status status = use(arguments[1], arguments[2], 12);
    printf("%d %ld\n", status, allocations);
    return status || allocations;
  }
  for (fail_at = 0;; fail_at++) {
    allocations = 0;
    cats_status status = use(arguments[1], arguments[2], 1);
    if (status == CATS_OK && allocations <= fail_at) break; /* beyond the last one */
    if (status != CATS_ERROR_MEMORY && status != CATS_ERROR_RUNTIME) {
      fprintf(stderr, "allocation %ld failed and the status was %d\n", fail_at, status);
      return 1;
    }
  }
  printf("%ld allocations\n", fail_at);
  return fail_at < 20;
}
