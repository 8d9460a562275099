/* The metadata document of a model: what cats/metadata.py writes under the key `cats`. */
#ifndef CATS_METADATA_H
#define CATS_METADATA_H

#include "common.h"

typedef struct {
  char kind[16]; /* pair, encoder, matcher */
  char precision[16];
  char weights[65];
  int width, height; /* of the model's input, pixels */
  int grid;
  int verified;
  float mean[3], std[3];
} cats_metadata;

/* Parses and checks a document. name: of the model, for messages.
 * Errors: CATS_ERROR_MODEL. */
cats_status cats_metadata_parse(const char *text, size_t size, const char *name, cats_metadata *metadata);

#endif
