/* What differs between systems, used through cats.h with nothing but standard C: paths in UTF-8, a model in memory, a
 * locale with decimal commas, a split model, a refused file.
 *
 *     portable tiny.onnx tiny.encoder.onnx FOLDER
 *
 * FOLDER holds the pair model under a name that is not ASCII. Prints what it found; exits 1 where something is wrong.
 */
#include <cats.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME "mod\xC3\xA8le \xC3\xBC \xE7\x8C\xAB.onnx" /* in UTF-8 */
#define SIDE 64

static unsigned char pixels[SIDE * SIDE * 3];

static int failed(const char *what) {
  printf("%s: %s\n", what, cats_last_error());
  return 1;
}

/* Matches the picture with itself and gives a place of it. */
static int use(cats_matcher *matcher, double place[2]) {
  static const double from[2] = {20.5, 33.25};
  cats_image image = CATS_IMAGE(pixels, SIDE, SIDE, CATS_RGB);
  cats_context *context = NULL;
  int bad = cats_context_create(matcher, &context) != CATS_OK || cats_match(context, &image, &image) != CATS_OK ||
            cats_transfer(context, 0, from, 1, place) != CATS_OK;
  if (bad) failed("match");
  cats_context_destroy(context);
  cats_close(matcher);
  return bad;
}

static unsigned char *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  unsigned char *data = malloc((size_t)1 << 24);
  *size = data ? fread(data, 1, (size_t)1 << 24, file) : 0;
  fclose(file);
  return data;
}

int main(int count, char **arguments) {
  char path[4096];
  double by_path[2], by_memory[2], split[2];
  size_t size = 0;
  cats_matcher *matcher = NULL;
  cats_info info = CATS_INFO;
  if (count != 4) return 2;
  if (!setlocale(LC_ALL, "de_DE.UTF-8")) setlocale(LC_ALL, "de-DE");
  printf("comma %s\n", *localeconv()->decimal_point == ',' ? "yes" : "no");
  for (size_t i = 0; i < sizeof pixels; i++) pixels[i] = (unsigned char)(i * i % 251);
  snprintf(path, sizeof path, "%s/" NAME, arguments[3]);
  if (cats_open(path, NULL, &matcher) != CATS_OK || cats_get_info(matcher, &info) != CATS_OK) return failed("path");
  printf("ort %s\nlibrary %s\nmean %d\n", info.ort_version, info.ort_library, (int)lround(1000 * (double)info.mean[0]));
  if (use(matcher, by_path)) return 1;
  unsigned char *data = read_file(arguments[1], &size);
  if (!data || cats_open_memory(data, size, NULL, &matcher) != CATS_OK) return failed("memory");
  free(data);
  if (use(matcher, by_memory)) return 1;
  if (cats_open(arguments[2], NULL, &matcher) != CATS_OK) return failed("split");
  if (use(matcher, split)) return 1;
  if (memcmp(by_path, by_memory, sizeof by_path) != 0) return failed("the model in memory differs");
  printf("place %d %d %d %d\n", (int)lround(1000 * by_path[0]), (int)lround(1000 * by_path[1]),
         (int)lround(1000 * split[0]), (int)lround(1000 * split[1]));
  if (cats_open(arguments[3], NULL, &matcher) != CATS_ERROR_FILE) return failed("a folder");
  printf("folder %s\n", strstr(cats_last_error(), "it is not a file") ? "refused" : cats_last_error());
  if (cats_open("nowhere.onnx", NULL, &matcher) != CATS_ERROR_FILE) return failed("no file");
  puts(cats_last_error());
  return 0;
}
