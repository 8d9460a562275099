/* The metadata document of a model: what cats/core/metadata.py writes under the key `cats`. */
#ifndef CATS_METADATA_H
#define CATS_METADATA_H

#include "common.h"

#define CATS_MAX_KNOTS 256

/* What the confidence means, fitted by cats-calibrate: linear between knots, the ends held. */
typedef struct {
  size_t knots; /* 0: not fitted */
  double confidence[CATS_MAX_KNOTS], probability[CATS_MAX_KNOTS];
} cats_calibration;

typedef struct {
  char kind[16]; /* pair, encoder, matcher */
  char precision[16];
  char weights[65];
  char content[65]; /* digest of the graph and weights that the document is about; empty without one */
  int width, height; /* of the model's input, pixels */
  int grid;
  int verified;
  float mean[3], std[3];
  cats_calibration calibration;
} cats_metadata;

/* Parses and checks a document. name: of the model, for messages.
 * Errors: CATS_ERROR_MODEL. */
cats_status cats_metadata_parse(const char *text, size_t size, const char *name, cats_metadata *metadata);

/* Takes back what the document claims of verification and precision unless it is about this content. */
void cats_metadata_bind(cats_metadata *metadata, const char *content);

/* Probability of a confidence; needs knots. */
double cats_calibrate(const cats_calibration *calibration, double confidence);

#endif
