/* One ONNX file in ONNX Runtime. */
#ifndef CATS_SESSION_H
#define CATS_SESSION_H

#include "common.h"
#include "metadata.h"
#include "ort.h"

#define CATS_MAX_RANK 8
#define CATS_MAX_PORTS 128

/* An input or output. */
typedef struct {
  char *name;
  int type; /* ONNX element type */
  size_t rank;
  int64_t shape[CATS_MAX_RANK]; /* -1: free */
} cats_port;

typedef struct {
  const cats_ort *ort;
  OrtSession *handle;
  cats_metadata metadata;
  char name[256]; /* of the file, for messages */
  cats_port *inputs, *outputs;
  size_t input_count, output_count;
} cats_session;

/* Where a model comes from: a path, or data of size bytes, which `name` stands for in messages. */
typedef struct {
  const char *path;
  const void *data;
  size_t size;
  const char *name;
} cats_source;

/* Loads a model, its metadata and the names, types and shapes of what goes in and out. */
cats_status cats_session_open(cats_session *session, const cats_ort *ort, const OrtEnv *env,
                              const OrtSessionOptions *options, const cats_source *source);

void cats_session_close(cats_session *session);

/* The port of a name, NULL if there is none. */
cats_port *cats_port_find(cats_port *ports, size_t count, const char *name);

/* Bytes of an element of an ONNX type, 0 for those that libcats does not handle. */
size_t cats_type_size(int type);

/* Refuses a port whose shape is not (batch, shape...), and fills in dimensions that the file leaves free; *batch is its
 * fixed batch, 0 where it is free. */
cats_status cats_port_check(const cats_session *session, cats_port *port, const char *role, const char *name,
                            const int64_t *shape, size_t rank, int64_t *batch);

/* A tensor over memory of the caller, with `batch` in place of the first dimension. */
cats_status cats_tensor_over(const cats_session *session, const OrtMemoryInfo *memory, const cats_port *port,
                             int64_t batch, void *data, OrtValue **value);

/* Elements of one batch item of a port whose other dimensions are fixed; 0 if they are not, or too many. */
size_t cats_port_elements(const cats_port *port);

#endif
