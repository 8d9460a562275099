/* The handles. */
#ifndef CATS_MATCHER_H
#define CATS_MATCHER_H

#include <stdatomic.h>

#include "geometry.h"
#include "image.h"
#include "session.h"

#define CATS_PAIR_INPUTS 2

struct cats_matcher {
  const cats_ort *ort;
  OrtEnv *env;
  OrtMemoryInfo *host, *device; /* device: host for the provider cpu */
  OrtRunOptions *run_options;   /* for runs that end complete */
  OrtRunOptions *async_options; /* for runs on the caller's stream */
  cats_session encoder;         /* of a split model */
  cats_session matcher;         /* of a pair model, or the matcher of a split one */
  int split;
  cats_port *flow, *confidence; /* of matcher */
  int64_t batch;                /* fixed batch, 0: any */
  size_t level_count;           /* outputs of the encoder */
  size_t *input_a, *input_b;    /* which input of the matcher takes each of them */
  cats_levels levels;
  int64_t max_pixels;
  size_t run_pairs; /* most pairs of one run where `batch` is free */
  void *stream;
  int device_index; /* of the GPU */
  char provider[8];
  atomic_size_t owners; /* the caller, contexts and features */
};

/* An encoded image. */
struct cats_features {
  cats_matcher *matcher;
  void **levels;     /* a buffer per output of the encoder */
  OrtValue **values; /* over them, batch 1 */
  atomic_int filled;
  int size[2]; /* width, height of the image in pixels */
};

struct cats_context {
  cats_matcher *matcher;
  atomic_flag busy;
  cats_resizer resizer;
  /* What the model reads and writes: tensors for runs of `run_batch` pairs over buffers for `run_capacity`. */
  int64_t run_batch, run_capacity;
  void **inputs; /* a buffer per input of the matcher */
  void *flow, *confidence;
  OrtValue **values; /* inputs, flow, confidence */
  float *image;      /* of an encoder's run */
  OrtValue *image_value;
  cats_features *own_a, *own_b; /* of cats_match on a split model */
  /* Results. */
  size_t count, capacity;
  float *flows, *confidences;
  cats_sizes *sizes;
  OrtIoBinding *binding;
};

/* Counts one more owner of a matcher, or one less, which releases it after the last. */
void cats_matcher_keep(cats_matcher *matcher);
void cats_matcher_drop(cats_matcher *matcher);

/* CATS_ERROR_STATE where a matcher is not of a split model. */
cats_status cats_need_split(const cats_matcher *matcher);

/* Takes a context for a call; CATS_ERROR_BUSY where another thread has it. */
cats_status cats_context_take(cats_context *context);
void cats_context_give(cats_context *context);

/* Elements of a model input image, and of a flow and a confidence. */
size_t cats_image_elements(const cats_matcher *matcher);
size_t cats_grid_elements(const cats_matcher *matcher);

/* Pairs of one run of the matcher's session when `count` are to be matched. */
size_t cats_run_step(const cats_matcher *matcher, size_t count);

/* Makes room for results of `count` pairs. */
cats_status cats_results_reserve(cats_context *context, size_t count);

/* Makes buffers and tensors for runs of `batch` pairs. */
cats_status cats_run_prepare(cats_context *context, int64_t batch);

/* Runs the matcher's session on tensors and copies `wanted` results to the context, from pair `first`. */
cats_status cats_run_matcher(cats_context *context, const OrtValue *const *inputs, size_t first, size_t wanted);

#endif
