/* Finding and loading ONNX Runtime. */
#ifndef CATS_ORT_H
#define CATS_ORT_H

#include "common.h"
#include "ort_api.h"

/* A loaded ONNX Runtime; loaded once per file, never unloaded, because its threads and static objects do not allow it. */
typedef struct cats_ort {
#define CATS_ORT_FIELD(position, result, name, parameters) result(*name) parameters;
  CATS_ORT_ENTRIES(CATS_ORT_FIELD)
#undef CATS_ORT_FIELD
  char version[32];
  char *library; /* its file */
  void *handle;
  struct cats_ort *next;
} cats_ort;

/* Finds ONNX Runtime: `library` if given, else the environment's CATS_ORT_LIBRARY, else the usual places. */
cats_status cats_ort_load(const char *library, const cats_ort **ort);

/* Turns a failure of ONNX Runtime into an error text and releases it; CATS_OK for NULL. */
cats_status cats_ort_check(const cats_ort *ort, OrtStatus *failure, cats_status status, const char *what);

#endif
