/* What libcats reads from an ONNX file itself, before ONNX Runtime does: as cats/core/onnx_file.py. */
#ifndef CATS_ONNX_FILE_H
#define CATS_ONNX_FILE_H

#include <stdio.h>

#include "common.h"
#include "digest.h"

typedef struct {
  char *text; /* of the metadata entry `cats`, to be freed; NULL without one */
  size_t size;
  char content[CATS_DIGEST_TEXT]; /* digest of graph and weights */
  int external;                   /* whether weights lie in other files */
} cats_onnx;

/* Reads an ONNX file of `size` bytes from its start, in memory (data) where file is NULL. name: of the model, for
 * messages.
 * Errors: CATS_ERROR_MODEL for what is no ONNX file, or has several entries `cats`; CATS_ERROR_MEMORY. */
cats_status cats_onnx_read(FILE *file, const void *data, uint64_t size, const char *name, cats_onnx *found);

#endif
