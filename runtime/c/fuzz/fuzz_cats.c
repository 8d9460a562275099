/* Hostile input for libcats: metadata, model files, images and arguments. An entry point for libFuzzer, and for
 * fuzz_driver.c where there is none; compiled together with the sources of libcats.
 *
 * The first byte of an input says what the rest is. A refusal must have a text of its own; that is checked here, and
 * everything else by the sanitizers. CATS_FUZZ_MODEL names a pair model that images and arguments are used with.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "metadata.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *count, char ***arguments);

#define LARGEST_IMAGE ((int64_t)1 << 20)

static cats_matcher *matcher;
static cats_context *context;
static unsigned char picture[32 * 24 * 3];

typedef struct {
  const uint8_t *at;
  size_t left;
} bytes;

/* Takes size bytes, zeros where the input ends. */
static void take(bytes *in, void *value, size_t size) {
  memset(value, 0, size);
  size_t have = size < in->left ? size : in->left;
  if (have) memcpy(value, in->at, have);
  in->at += have;
  in->left -= have;
}

static void forget_error(void) { cats_flow(NULL, 0, NULL, 0); }

static int explained(cats_status status) {
  if (status != CATS_OK && (!*cats_last_error() || strcmp(cats_last_error(), "context is NULL") == 0 ||
                            strncmp(cats_status_name(status), "CATS_ERROR_", 11) != 0)) {
    fprintf(stderr, "status %d without a text\n", status);
    abort();
  }
  forget_error();
  return status == CATS_OK;
}

static void fuzz_metadata(bytes in) {
  cats_metadata metadata;
  char *text = malloc(in.left + 1); /* exactly as long, so that reading beyond is seen */
  if (!text) return;
  memcpy(text, in.at, in.left);
  char *end = realloc(text, in.left ? in.left : 1);
  explained(cats_metadata_parse(end, in.left, "fuzzed", &metadata));
  free(end);
}

static void fuzz_model(bytes in) {
  cats_matcher *opened = NULL;
  cats_context *own = NULL;
  cats_options options = CATS_OPTIONS;
  cats_image image = CATS_IMAGE(picture, 32, 24, CATS_RGB);
  options.threads = 1;
  if (explained(cats_open_memory(in.at, in.left, &options, &opened)) && explained(cats_context_create(opened, &own)))
    explained(cats_match(own, &image, &image));
  cats_context_destroy(own);
  cats_close(opened);
}

/* A split model: the size of the encoder's file, it, and the matcher's. */
static void fuzz_split(bytes in) {
  cats_matcher *opened = NULL;
  cats_context *own = NULL;
  cats_features *features[2] = {NULL, NULL};
  cats_options options = CATS_OPTIONS;
  cats_image image = CATS_IMAGE(picture, 32, 24, CATS_RGB);
  uint32_t length;
  take(&in, &length, sizeof length);
  if (length > in.left) length = (uint32_t)in.left;
  options.threads = 1;
  options.partner_data = in.at + length;
  options.partner_size = in.left - length;
  if (explained(cats_open_memory(in.at, length, &options, &opened)) && explained(cats_context_create(opened, &own)) &&
      explained(cats_features_create(opened, &features[0])) && explained(cats_features_create(opened, &features[1]))) {
    const cats_features *a[] = {features[0], features[0]}, *b[] = {features[0], features[1]};
    explained(cats_match_features(own, a, b, 2));
    if (explained(cats_encode(own, &image, features[0])) && explained(cats_match_features(own, a, b, 1)))
      explained(cats_match(own, &image, &image));
  }
  for (int i = 0; i < 2; i++) cats_features_destroy(features[i]);
  cats_context_destroy(own);
  cats_close(opened);
}

static void fuzz_image(bytes in) {
  static float tensor[3 * 256 * 256];
  static const int samples[] = {4, 3, 3, 4, 4, 1};
  cats_image image = CATS_IMAGE(NULL, 0, 0, 0);
  uint16_t width, height;
  uint8_t format;
  int16_t gap;
  take(&in, &width, sizeof width);
  take(&in, &height, sizeof height);
  take(&in, &format, sizeof format);
  take(&in, &gap, sizeof gap);
  image.width = width;
  image.height = height;
  image.format = format % 7;
  int64_t packed = (int64_t)width * samples[image.format % 6], stride = packed + gap;
  int64_t step = stride < 0 ? -stride : stride, span = height ? step * (height - 1) + packed : 0;
  if (span > LARGEST_IMAGE) return;
  unsigned char *pixels = calloc(1, (size_t)span + 1);
  unsigned char *exact = pixels ? realloc(pixels, span ? (size_t)span : 1) : NULL;
  if (!exact) return;
  memcpy(exact, in.at, in.left < (size_t)span ? in.left : (size_t)span);
  image.stride = stride;
  image.data = stride < 0 && height ? exact + step * (height - 1) : exact;
  explained(cats_preprocess(context, &image, tensor, sizeof tensor / sizeof *tensor));
  free(exact);
}

static void fuzz_arguments(bytes in) {
  cats_image images[2];
  cats_options options;
  cats_info info;
  cats_device_batch batch;
  double points[8], results[8];
  float out[600];
  size_t pair, count;
  int32_t sizes[4];
  uint8_t choice;
  take(&in, &choice, sizeof choice);
  take(&in, images, sizeof images);
  take(&in, &pair, sizeof pair);
  take(&in, &count, sizeof count);
  take(&in, points, sizeof points);
  take(&in, sizes, sizeof sizes);
  if (choice & 1) images[0].struct_size = sizeof *images;
  if (choice & 2) pair = 0;
  images[0].data = images[1].data = choice & 4 ? picture : NULL;
  for (int i = 0; i < 2; i++) { /* an honest caller's memory is as large as it says; what is larger must be refused */
    int64_t pixels = (int64_t)images[i].width * images[i].height;
    if (pixels > 0 && pixels <= CATS_MAX_PIXELS) images[i].height = 0;
  }
  const cats_image *a = &images[0], *b = choice & 8 ? &images[1] : NULL;
  cats_image good = CATS_IMAGE(picture, 32, 24, CATS_RGB);
  if (choice & 128) explained(cats_match(context, &good, &good));
  explained(cats_match_batch(context, &a, choice & 16 ? &b : NULL, choice & 1 ? 1 : count > 1 ? 0 : count));
  if (choice & 128) explained(cats_match(context, &good, &good));
  explained(cats_transfer(context, pair, points, count % 5, results));
  explained(cats_confidence_at(context, pair, points, count % 5, choice & 32 ? results : NULL));
  explained(cats_flow(context, pair, out, count % 600));
  explained(cats_confidence(context, pair, choice & 64 ? out : NULL, count % 600));
  explained(cats_calibrated_confidence(context, pair, choice & 64 ? out : NULL, count % 600));
  if (count != 2 * (size_t)(uint32_t)sizes[0] * (uint32_t)sizes[1] || count <= 600)
    explained(cats_dense_flow(context, pair, sizes[0], sizes[1], sizes[2], sizes[3], out, count > 600 ? 600 : count));
  take(&in, &options, sizeof options);
  options.provider = choice & 2 ? NULL : "cuda";
  options.ort_library = options.partner_path = NULL;
  options.partner_data = NULL;
  if (choice & 4) options.struct_size = sizeof options;
  if (options.struct_size <= sizeof options) {
    cats_matcher *none = NULL;
    explained(cats_open("/nonexistent", &options, &none));
    explained(cats_open_memory(picture, count % 8, &options, choice & 8 ? &none : NULL));
    cats_close(none);
  }
  take(&in, &info, sizeof info);
  if (info.struct_size <= sizeof info) explained(cats_get_info(matcher, &info));
  take(&in, &batch, sizeof batch);
  batch.image_a = batch.image_b = NULL;
  if (batch.struct_size <= sizeof batch) explained(cats_match_device(context, &batch));
}

int LLVMFuzzerInitialize(int *count, char ***arguments) {
  const char *model = getenv("CATS_FUZZ_MODEL");
  cats_options options = CATS_OPTIONS;
  (void)count;
  (void)arguments;
  options.threads = 1;
  if (!model || cats_open(model, &options, &matcher) != CATS_OK || cats_context_create(matcher, &context) != CATS_OK) {
    fprintf(stderr, "CATS_FUZZ_MODEL: %s\n", model ? cats_last_error() : "not set");
    exit(2);
  }
  for (size_t i = 0; i < sizeof picture; i++) picture[i] = (unsigned char)(i * 37);
  forget_error();
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 1) return 0;
  bytes rest = {data + 1, size - 1};
  switch (data[0] % 5) {
    case 0:
      fuzz_metadata(rest);
      break;
    case 1:
      fuzz_model(rest);
      break;
    case 2:
      fuzz_image(rest);
      break;
    case 3:
      fuzz_arguments(rest);
      break;
    default:
      fuzz_split(rest);
  }
  return 0;
}
