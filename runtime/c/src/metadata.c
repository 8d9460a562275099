/* See metadata.h; the rules are those of cats/core/metadata.schema.json. */
#include "metadata.h"

#include <string.h>

#include "json.h"

#define FORMAT 1
#define LARGEST ((size_t)16 << 20)
#define MOST_VALUES 4000000
#define LARGEST_SIDE 4096
#define LARGEST_GRID 1024

static cats_status invalid(const char *name, const char *problem) {
  return cats_fail(CATS_ERROR_MODEL, "%s: invalid CATs metadata: %s; export the model again", name, problem);
}

static int is_text(cats_json object, const char *key, const char *expected) {
  char text[32];
  return cats_json_string(cats_json_find(object, key), text, sizeof text) && strcmp(text, expected) == 0;
}

static int integers(cats_json object, const char *key, int largest, int values[2]) {
  double numbers[2];
  if (!cats_json_numbers(cats_json_find(object, key), numbers, 2)) return 0;
  for (int i = 0; i < 2; i++) {
    if (!(numbers[i] >= 1 && numbers[i] <= largest) || numbers[i] != (double)(int)numbers[i]) return 0;
    values[i] = (int)numbers[i];
  }
  return 1;
}

static int colours(cats_json object, const char *key, float values[3]) {
  double numbers[3];
  if (!cats_json_numbers(cats_json_find(object, key), numbers, 3)) return 0;
  for (int i = 0; i < 3; i++) {
    if (!(numbers[i] > -1e6 && numbers[i] < 1e6)) return 0;
    values[i] = (float)numbers[i];
  }
  return 1;
}

static cats_status preprocessing(cats_json part, const char *name, cats_metadata *metadata) {
  int size[2];
  if (!integers(part, "size", LARGEST_SIDE, size))
    return invalid(name, "preprocessing/size is not [width, height] of 1 to 4096 pixels");
  metadata->width = size[0];
  metadata->height = size[1];
  if (!is_text(part, "resize", "pillow-bilinear")) return invalid(name, "preprocessing/resize is not pillow-bilinear");
  if (!is_text(part, "scale", "0..1")) return invalid(name, "preprocessing/scale is not 0..1");
  if (!colours(part, "mean", metadata->mean)) return invalid(name, "preprocessing/mean is not three numbers");
  if (!colours(part, "std", metadata->std)) return invalid(name, "preprocessing/std is not three numbers");
  for (int i = 0; i < 3; i++)
    if (!(metadata->std[i] > 1e-6f)) return invalid(name, "preprocessing/std is not three numbers above 0");
  return CATS_OK;
}

/* The mapping of calibration/confidence, where there is one. */
static cats_status mapping(cats_json part, const char *name, cats_calibration *calibration) {
  const char *problem = "calibration/confidence/mapping is not confidence and probability, rising from 0 to 1";
  cats_json fit = cats_json_find(part, "confidence"), knots = cats_json_find(fit, "mapping");
  if (fit.begin == fit.end || cats_json_null(fit)) return CATS_OK;
  if (knots.begin == knots.end) return invalid(name, problem);
  double *x = calibration->confidence, *y = calibration->probability;
  size_t count = cats_json_list(cats_json_find(knots, "confidence"), x, CATS_MAX_KNOTS);
  if (count == 0 || cats_json_list(cats_json_find(knots, "probability"), y, CATS_MAX_KNOTS) != count)
    return invalid(name, problem);
  for (size_t i = 0; i < count; i++)
    if (x[i] < 0 || x[i] > 1 || y[i] < 0 || y[i] > 1 || (i && (x[i] < x[i - 1] || y[i] < y[i - 1])))
      return invalid(name, problem);
  calibration->knots = count;
  return CATS_OK;
}

double cats_calibrate(const cats_calibration *calibration, double confidence) {
  const double *x = calibration->confidence, *y = calibration->probability;
  size_t last = calibration->knots - 1, at = 0;
  if (!(confidence > x[0])) return y[0];
  if (confidence >= x[last]) return y[last];
  while (x[at + 1] <= confidence) at++;
  return y[at] + (y[at + 1] - y[at]) / (x[at + 1] - x[at]) * (confidence - x[at]);
}

cats_status cats_metadata_parse(const char *text, size_t size, const char *name, cats_metadata *metadata) {
  double format;
  size_t where = 0;
  int grid[2];
  memset(metadata, 0, sizeof *metadata);
  if (size > LARGEST) return invalid(name, "it is larger than 16 MiB");
  size_t values = 0;
  for (size_t i = 0; i < size; i++) values += text[i] == ',' || text[i] == '[' || text[i] == '{';
  if (values > MOST_VALUES) return invalid(name, "it holds more than 4,000,000 values");
  cats_json document = cats_json_check(text, size, &where);
  if (document.begin == document.end)
    return cats_fail(CATS_ERROR_MODEL, "%s: CATs metadata is not JSON (byte %zu); export the model again", name, where);
  if (!cats_json_number(cats_json_find(document, "format"), &format) || format < 1)
    return invalid(name, "format is not a number of 1 or more");
  if (format > FORMAT)
    return cats_fail(CATS_ERROR_MODEL,
                     "%s: metadata format %g is newer than libcats %s reads (%d); "
                     "load a newer libcats or export the model again",
                     name, format, CATS_VERSION_STRING, FORMAT);
  if (!cats_json_string(cats_json_find(document, "kind"), metadata->kind, sizeof metadata->kind))
    return invalid(name, "kind is missing");
  if (!is_text(document, "direction", "a->b")) return invalid(name, "direction is not a->b");
  cats_status status = preprocessing(cats_json_find(document, "preprocessing"), name, metadata);
  if (status != CATS_OK) return status;
  if (!integers(document, "grid", LARGEST_GRID, grid)) return invalid(name, "grid is not [rows, columns] of 1 to 1024");
  if (grid[0] != grid[1])
    return cats_fail(CATS_ERROR_MODEL, "%s has a grid of %dx%d; only square grids are defined", name, grid[0], grid[1]);
  metadata->grid = grid[0];
  if (!cats_json_string(cats_json_find(document, "precision"), metadata->precision, sizeof metadata->precision))
    return invalid(name, "precision is missing");
  if (!cats_json_string(cats_json_find(document, "weights_sha256"), metadata->weights, sizeof metadata->weights) ||
      strlen(metadata->weights) != 64)
    return invalid(name, "weights_sha256 is not 64 digits");
  if (!cats_json_bool(cats_json_find(document, "verified"), &metadata->verified))
    return invalid(name, "verified is not true or false");
  cats_json content = cats_json_find(document, "content");
  if (content.begin != content.end && !cats_json_null(content) &&
      (!cats_json_string(content, metadata->content, sizeof metadata->content) || strlen(metadata->content) != 64))
    return invalid(name, "content is not 64 digits");
  return mapping(cats_json_find(document, "calibration"), name, &metadata->calibration);
}

void cats_metadata_bind(cats_metadata *metadata, const char *content) {
  if (strcmp(metadata->content, content) == 0) return;
  metadata->verified = 0;
  strcpy(metadata->precision, "unknown");
}
