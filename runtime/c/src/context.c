/* Contexts: what one thread works with: the buffers and tensors of runs, and the runs. */
#include "matcher.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

size_t cats_image_elements(const cats_matcher *matcher) {
  const cats_metadata *metadata = &matcher->matcher.metadata;
  return (size_t)3 * (size_t)metadata->width * (size_t)metadata->height;
}

size_t cats_grid_elements(const cats_matcher *matcher) {
  size_t grid = (size_t)matcher->matcher.metadata.grid;
  return grid * grid;
}

size_t cats_run_step(const cats_matcher *matcher, size_t count) {
  if (matcher->batch) return (size_t)matcher->batch;
  return count < matcher->run_pairs ? count : matcher->run_pairs;
}

cats_status cats_context_take(cats_context *context) {
  if (!context) return cats_fail(CATS_ERROR_ARGUMENT, "context is NULL");
  if (atomic_flag_test_and_set(&context->busy))
    return cats_fail(CATS_ERROR_BUSY, "another thread is using this context: make one per thread");
  return CATS_OK;
}

void cats_context_give(cats_context *context) { atomic_flag_clear(&context->busy); }

static void free_values(cats_context *context) {
  const cats_matcher *matcher = context->matcher;
  for (size_t i = 0; context->values && i < matcher->matcher.input_count + 2; i++) {
    if (context->values[i]) matcher->ort->ReleaseValue(context->values[i]);
    context->values[i] = NULL;
  }
  context->run_batch = 0;
}

static void free_run(cats_context *context) {
  free_values(context);
  for (size_t i = 0; context->inputs && i < context->matcher->matcher.input_count; i++) {
    cats_free(context->inputs[i]);
    context->inputs[i] = NULL;
  }
  cats_free(context->flow);
  cats_free(context->confidence);
  context->flow = context->confidence = NULL;
  context->run_capacity = 0;
}

cats_status cats_context_create(cats_matcher *matcher, cats_context **result) {
  if (!result) return cats_fail(CATS_ERROR_ARGUMENT, "context is NULL: there is nowhere to put the handle");
  *result = NULL;
  if (!matcher) return cats_fail(CATS_ERROR_ARGUMENT, "matcher is NULL");
  cats_context *context = cats_allocate(1, sizeof *context);
  if (!context) return cats_out_of_memory(sizeof *context);
  atomic_flag_clear(&context->busy);
  context->matcher = matcher;
  cats_matcher_keep(matcher);
  size_t inputs = matcher->matcher.input_count;
  context->inputs = cats_allocate(inputs, sizeof *context->inputs);
  context->values = cats_allocate(inputs + 2, sizeof *context->values);
  if (!context->inputs || !context->values) {
    cats_context_destroy(context);
    return cats_out_of_memory((2 * inputs + 2) * sizeof(void *));
  }
  *result = context;
  return CATS_OK;
}

void cats_context_destroy(cats_context *context) {
  if (!context) return;
  cats_matcher *matcher = context->matcher;
  free_run(context);
  cats_free(context->inputs);
  cats_free(context->values);
  if (context->image_value) matcher->ort->ReleaseValue(context->image_value);
  if (context->binding) matcher->ort->ReleaseIoBinding(context->binding);
  cats_free(context->image);
  cats_free(context->flows);
  cats_free(context->confidences);
  cats_free(context->sizes);
  cats_features_destroy(context->own_a);
  cats_features_destroy(context->own_b);
  cats_resizer_free(&context->resizer);
  cats_free(context);
  cats_matcher_drop(matcher);
}

cats_status cats_results_reserve(cats_context *context, size_t count) {
  size_t cells = cats_grid_elements(context->matcher), capacity = context->capacity;
  context->count = 0;
  if (count <= capacity) return CATS_OK;
  size_t flows = 2 * cells * capacity, maps = cells * capacity, sizes = capacity;
  context->capacity = 0;
  cats_status status = cats_reserve((void **)&context->flows, &flows, 2 * cells * count, sizeof(float));
  if (status == CATS_OK) status = cats_reserve((void **)&context->confidences, &maps, cells * count, sizeof(float));
  if (status == CATS_OK) status = cats_reserve((void **)&context->sizes, &sizes, count, sizeof(cats_sizes));
  if (status == CATS_OK) context->capacity = count;
  return status;
}

/* Makes a buffer unless there is one, and a tensor over it. */
static cats_status buffer_for(cats_context *context, const cats_port *port, int64_t batch, void **buffer,
                              OrtValue **value) {
  size_t elements = cats_port_elements(port);
  if (elements == 0)
    return cats_fail(CATS_ERROR_MODEL, "%s: %s has a shape that is not fixed, or too large",
                     context->matcher->matcher.name, port->name);
  if (!*buffer) *buffer = cats_allocate(elements * (size_t)batch, cats_type_size(port->type));
  if (!*buffer) return cats_out_of_memory(elements * (size_t)batch * cats_type_size(port->type));
  return cats_tensor_over(&context->matcher->matcher, context->matcher->host, port, batch, *buffer, value);
}

cats_status cats_run_prepare(cats_context *context, int64_t batch) {
  const cats_matcher *matcher = context->matcher;
  const cats_session *session = &matcher->matcher;
  size_t inputs = session->input_count;
  if (context->run_batch == batch) return CATS_OK;
  if (batch > context->run_capacity) {
    free_run(context);
  } else {
    free_values(context); /* the buffers of a larger batch serve a smaller one */
  }
  cats_status status = CATS_OK;
  for (size_t i = 0; i < inputs && status == CATS_OK; i++)
    status = buffer_for(context, &session->inputs[i], batch, &context->inputs[i], &context->values[i]);
  if (status == CATS_OK)
    status = buffer_for(context, matcher->flow, batch, &context->flow, &context->values[inputs]);
  if (status == CATS_OK)
    status = buffer_for(context, matcher->confidence, batch, &context->confidence, &context->values[inputs + 1]);
  if (status != CATS_OK) {
    free_run(context);
    return status;
  }
  context->run_batch = batch;
  if (batch > context->run_capacity) context->run_capacity = batch;
  return CATS_OK;
}

static float from_half(uint16_t half) {
  unsigned exponent = (half >> 10) & 31, fraction = half & 1023;
  float size = exponent == 31 ? (fraction ? NAN : INFINITY)
               : exponent     ? ldexpf((float)(1024 + fraction), (int)exponent - 25)
                              : ldexpf((float)fraction, -24);
  return half & 0x8000 ? -size : size;
}

/* Copies an output as float32; 0 where a value is not finite. */
static int copy_output(const cats_port *port, const void *from, float *to, size_t count) {
  int finite = 1;
  for (size_t i = 0; i < count; i++) {
    to[i] = port->type == CATS_ORT_FLOAT16 ? from_half(((const uint16_t *)from)[i]) : ((const float *)from)[i];
    finite &= isfinite(to[i]) != 0;
  }
  return finite;
}

cats_status cats_run_matcher(cats_context *context, const OrtValue *const *inputs, size_t first, size_t wanted) {
  const cats_matcher *matcher = context->matcher;
  const cats_session *session = &matcher->matcher;
  const char *names[CATS_MAX_PORTS], *outputs[] = {"flow", "confidence"};
  size_t count = session->input_count, cells = cats_grid_elements(matcher);
  for (size_t i = 0; i < count; i++) names[i] = session->inputs[i].name;
  OrtStatus *failure = matcher->ort->Run(session->handle, matcher->run_options, names, inputs, count, outputs, 2,
                                         context->values + count);
  cats_status status = cats_ort_check(matcher->ort, failure, CATS_ERROR_RUNTIME, session->name);
  if (status != CATS_OK) return status;
  if (!copy_output(matcher->flow, context->flow, context->flows + 2 * cells * first, 2 * cells * wanted) ||
      !copy_output(matcher->confidence, context->confidence, context->confidences + cells * first, cells * wanted))
    return cats_fail(CATS_ERROR_RUNTIME,
                     "%s gave values that are not numbers (%s): half precision overflows in this model; "
                     "export it in fp32",
                     session->name, session->metadata.precision);
  return CATS_OK;
}
