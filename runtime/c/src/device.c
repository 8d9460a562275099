/* Matching tensors that are already on the device, through ONNX Runtime's IoBinding. */
#include <string.h>

#include "matcher.h"

/* Puts an entry of the driver's library, which the provider has loaded, into a pointer to a function; NULL without. */
static void find_entry(void *driver, const char *name, void *function) {
  void *found = cats_library_symbol(driver, name);
  memcpy(function, &found, sizeof found);
}

/* Waits for a stream of a device. A thread that never used CUDA has no context: it takes the device's own meanwhile. */
static int synchronize(void *driver, void *stream, int device) {
  int (*wait)(void *), (*current)(void **), (*retain)(void **, int), (*release)(int), (*push)(void *), (*pop)(void **);
  find_entry(driver, "cuStreamSynchronize", &wait);
  find_entry(driver, "cuCtxGetCurrent", &current);
  find_entry(driver, "cuDevicePrimaryCtxRetain", &retain);
  find_entry(driver, "cuDevicePrimaryCtxRelease_v2", &release);
  find_entry(driver, "cuCtxPushCurrent_v2", &push);
  find_entry(driver, "cuCtxPopCurrent_v2", &pop);
  void *context = NULL;
  if (!wait) return -1;
  if (!current || !retain || !release || !push || !pop || (current(&context) == 0 && context)) return wait(stream);
  int failure = retain(&context, device);
  if (failure) return failure;
  failure = push(context);
  if (!failure) {
    failure = wait(stream);
    pop(&context);
  }
  release(device);
  return failure;
}

static cats_status wait_for(void *stream, int device) {
  void *driver = cats_library_open(CATS_CUDA_DRIVER, NULL, 0);
  int failure = driver ? synchronize(driver, stream, device) : -1;
  if (driver) cats_library_close(driver);
  if (failure)
    return cats_fail(CATS_ERROR_RUNTIME, "waiting for the CUDA stream failed (cuStreamSynchronize: %d)", failure);
  return CATS_OK;
}

static cats_status check_batch(const cats_matcher *matcher, const cats_device_batch *batch) {
  const cats_session *session = &matcher->matcher;
  if (matcher->split)
    return cats_fail(CATS_ERROR_STATE, "%s is a split model: device tensors need a pair model", session->name);
  if (!batch->image_a || !batch->image_b || !batch->flow || !batch->confidence)
    return cats_fail(CATS_ERROR_ARGUMENT, "image_a, image_b, flow or confidence is NULL");
  if (batch->batch < 1 || batch->batch > CATS_MAX_COUNT)
    return cats_fail(CATS_ERROR_ARGUMENT, "batch is %lld: 1 to %d pairs", (long long)batch->batch, CATS_MAX_COUNT);
  if (matcher->batch && matcher->batch != batch->batch)
    return cats_fail(CATS_ERROR_ARGUMENT, "batch is %lld: %s has a fixed batch of %lld", (long long)batch->batch,
                     session->name, (long long)matcher->batch);
  if (matcher->flow->type != CATS_ORT_FLOAT || matcher->confidence->type != CATS_ORT_FLOAT)
    return cats_fail(CATS_ERROR_MODEL, "%s has outputs in float16: export it with float32 ones", session->name);
  if (batch->stream && strcmp(matcher->provider, "cuda") != 0)
    return cats_fail(CATS_ERROR_ARGUMENT, "a stream was given, which the provider \"%s\" has no use for",
                     matcher->provider);
  return CATS_OK;
}

static cats_status bind(cats_context *context, cats_port *port, int output, int64_t batch, void *data) {
  const cats_matcher *matcher = context->matcher;
  OrtValue *value = NULL;
  cats_status status = cats_tensor_over(&matcher->matcher, matcher->device, port, batch, data, &value);
  if (status != CATS_OK) return status;
  OrtStatus *failure = output ? matcher->ort->BindOutput(context->binding, port->name, value)
                              : matcher->ort->BindInput(context->binding, port->name, value);
  status = cats_ort_check(matcher->ort, failure, CATS_ERROR_RUNTIME, port->name);
  matcher->ort->ReleaseValue(value); /* the binding has its own reference */
  return status;
}

static cats_status run_bound(cats_context *context, const cats_device_batch *batch) {
  cats_matcher *matcher = context->matcher;
  cats_session *session = &matcher->matcher;
  cats_status status = CATS_OK;
  if (!context->binding)
    status = cats_ort_check(matcher->ort, matcher->ort->CreateIoBinding(session->handle, &context->binding),
                            CATS_ERROR_RUNTIME, session->name);
  for (size_t i = 0; i < session->input_count && status == CATS_OK; i++) {
    const void *data = strcmp(session->inputs[i].name, "image_b") == 0 ? batch->image_b : batch->image_a;
    status = bind(context, &session->inputs[i], 0, batch->batch, (void *)(uintptr_t)data);
  }
  if (status == CATS_OK) status = bind(context, matcher->flow, 1, batch->batch, batch->flow);
  if (status == CATS_OK) status = bind(context, matcher->confidence, 1, batch->batch, batch->confidence);
  int own_stream = batch->stream && batch->stream == matcher->stream;
  if (status == CATS_OK && batch->stream && !own_stream) status = wait_for(batch->stream, matcher->device_index);
  if (status != CATS_OK) return status;
  const OrtRunOptions *options = own_stream ? matcher->async_options : matcher->run_options;
  return cats_ort_check(matcher->ort, matcher->ort->RunWithBinding(session->handle, options, context->binding),
                        CATS_ERROR_RUNTIME, session->name);
}

cats_status cats_match_device(cats_context *context, const cats_device_batch *given) {
  cats_device_batch batch;
  cats_status status = cats_context_take(context);
  if (status != CATS_OK) return status;
  context->count = 0;
  status = cats_read_struct(given, &batch, sizeof batch, sizeof batch, "cats_device_batch", "batch");
  if (status == CATS_OK) status = check_batch(context->matcher, &batch);
  if (status == CATS_OK) status = run_bound(context, &batch);
  cats_context_give(context);
  return status;
}
