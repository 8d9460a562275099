/* Encoded images. */
#include <stdlib.h>
#include <string.h>

#include "matcher.h"

static cats_status need_split(const cats_matcher *matcher) {
  if (matcher->split) return CATS_OK;
  return cats_fail(CATS_ERROR_STATE, "%s is a model for pairs: encoding needs a split model (cats-export --split)",
                   matcher->matcher.name);
}

cats_status cats_features_create(cats_matcher *matcher, cats_features **result) {
  if (!result) return cats_fail(CATS_ERROR_ARGUMENT, "features is NULL: there is nowhere to put the handle");
  *result = NULL;
  if (!matcher) return cats_fail(CATS_ERROR_ARGUMENT, "matcher is NULL");
  cats_status status = need_split(matcher);
  if (status != CATS_OK) return status;
  cats_features *features = cats_allocate(1, sizeof *features);
  if (!features) return cats_out_of_memory(sizeof *features);
  features->matcher = matcher;
  atomic_init(&features->filled, 0);
  cats_matcher_keep(matcher);
  features->levels = cats_allocate(matcher->level_count, sizeof *features->levels);
  features->values = cats_allocate(matcher->level_count, sizeof *features->values);
  if (!features->levels || !features->values) status = cats_out_of_memory(matcher->level_count * sizeof(void *));
  for (size_t i = 0; i < matcher->level_count && status == CATS_OK; i++) {
    const cats_port *port = &matcher->encoder.outputs[i];
    features->levels[i] = cats_allocate(cats_port_elements(port), cats_type_size(port->type));
    if (!features->levels[i]) status = cats_out_of_memory(cats_port_elements(port) * cats_type_size(port->type));
    if (status == CATS_OK)
      status = cats_tensor_over(&matcher->encoder, matcher->host, port, 1, features->levels[i], &features->values[i]);
  }
  if (status == CATS_OK) {
    *result = features;
  } else {
    cats_features_destroy(features);
  }
  return status;
}

void cats_features_destroy(cats_features *features) {
  if (!features) return;
  cats_matcher *matcher = features->matcher;
  for (size_t i = 0; i < matcher->level_count; i++) {
    if (features->values && features->values[i]) matcher->ort->ReleaseValue(features->values[i]);
    if (features->levels) free(features->levels[i]);
  }
  free(features->values);
  free(features->levels);
  free(features);
  cats_matcher_drop(matcher);
}

cats_status cats_encode_image(cats_context *context, const cats_image *given, cats_features *features) {
  cats_matcher *matcher = context->matcher;
  const cats_session *encoder = &matcher->encoder;
  const cats_metadata *metadata = &encoder->metadata;
  const char *input = "image", *outputs[CATS_MAX_PORTS];
  cats_image image;
  cats_status status = cats_image_check(given, matcher->max_pixels, "image", &image);
  if (status != CATS_OK) return status;
  if (!context->image) {
    context->image = cats_allocate(cats_image_elements(matcher), sizeof(float));
    if (!context->image) return cats_out_of_memory(cats_image_elements(matcher) * sizeof(float));
  }
  if (!context->image_value)
    status = cats_tensor_over(encoder, matcher->host, &encoder->inputs[0], 1, context->image, &context->image_value);
  if (status == CATS_OK)
    status = cats_image_to_tensor(&context->resizer, &matcher->levels, &image, metadata->width, metadata->height,
                                  context->image);
  if (status != CATS_OK) return status;
  for (size_t i = 0; i < matcher->level_count; i++) outputs[i] = encoder->outputs[i].name;
  const OrtValue *inputs[] = {context->image_value};
  atomic_store(&features->filled, 0);
  status = cats_ort_check(matcher->ort,
                          matcher->ort->Run(encoder->handle, matcher->run_options, &input, inputs, 1, outputs,
                                            matcher->level_count, features->values),
                          CATS_ERROR_RUNTIME, encoder->name);
  if (status == CATS_OK) {
    features->size[0] = image.width;
    features->size[1] = image.height;
    atomic_store(&features->filled, 1);
  }
  return status;
}

cats_status cats_encode(cats_context *context, const cats_image *image, cats_features *features) {
  cats_status status = cats_context_take(context);
  if (status != CATS_OK) return status;
  status = need_split(context->matcher);
  if (status == CATS_OK && !features) status = cats_fail(CATS_ERROR_ARGUMENT, "features is NULL");
  if (status == CATS_OK && features->matcher != context->matcher)
    status = cats_fail(CATS_ERROR_ARGUMENT, "features and context are of different matchers");
  if (status == CATS_OK) status = cats_encode_image(context, image, features);
  cats_context_give(context);
  return status;
}

/* Copies one side of all pairs into the matcher's inputs. */
static void gather(cats_context *context, const cats_features *const *features, const size_t *inputs, size_t count) {
  const cats_matcher *matcher = context->matcher;
  for (size_t k = 0; k < matcher->level_count; k++) {
    const cats_port *port = &matcher->encoder.outputs[k];
    size_t bytes = cats_port_elements(port) * cats_type_size(port->type);
    char *to = context->inputs[inputs[k]];
    for (size_t i = 0; i < count; i++) memcpy(to + i * bytes, features[i]->levels[k], bytes);
  }
}

static cats_status run_pairs(cats_context *context, const cats_features *const *a, const cats_features *const *b,
                             size_t count) {
  const cats_matcher *matcher = context->matcher;
  const OrtValue *inputs[CATS_MAX_PORTS];
  cats_status status = CATS_OK;
  for (size_t first = 0, step; first < count && status == CATS_OK; first += step) {
    step = cats_run_step(matcher, count - first);
    status = cats_run_prepare(context, (int64_t)step);
    if (status != CATS_OK) break;
    if (step == 1) {
      for (size_t k = 0; k < matcher->level_count; k++) {
        inputs[matcher->input_a[k]] = a[first]->values[k];
        inputs[matcher->input_b[k]] = b[first]->values[k];
      }
      status = cats_run_matcher(context, inputs, first, 1);
    } else {
      gather(context, a + first, matcher->input_a, step);
      gather(context, b + first, matcher->input_b, step);
      status = cats_run_matcher(context, (const OrtValue *const *)context->values, first, step);
    }
  }
  return status;
}

static cats_status check_features(const cats_context *context, const cats_features *features, const char *side,
                                  size_t index) {
  if (!features) return cats_fail(CATS_ERROR_ARGUMENT, "%s[%zu] is NULL", side, index);
  if (features->matcher != context->matcher)
    return cats_fail(CATS_ERROR_ARGUMENT, "%s[%zu] and the context are of different matchers", side, index);
  if (!atomic_load(&features->filled))
    return cats_fail(CATS_ERROR_STATE, "%s[%zu] holds no image yet: call cats_encode first", side, index);
  return CATS_OK;
}

cats_status cats_match_features(cats_context *context, const cats_features *const *a, const cats_features *const *b,
                                size_t count) {
  cats_status status = cats_context_take(context);
  if (status != CATS_OK) return status;
  context->count = 0;
  status = need_split(context->matcher);
  if (status == CATS_OK && (!a || !b)) status = cats_fail(CATS_ERROR_ARGUMENT, "a or b is NULL");
  if (status == CATS_OK && (count == 0 || count > CATS_MAX_COUNT))
    status = cats_fail(CATS_ERROR_ARGUMENT, "count is %zu: 1 to %d pairs", count, CATS_MAX_COUNT);
  if (status == CATS_OK) status = cats_results_reserve(context, count);
  for (size_t i = 0; i < count && status == CATS_OK; i++) {
    status = check_features(context, a[i], "a", i);
    if (status == CATS_OK) status = check_features(context, b[i], "b", i);
    if (status == CATS_OK)
      context->sizes[i] = (cats_sizes){a[i]->size[0], a[i]->size[1], b[i]->size[0], b[i]->size[1]};
  }
  if (status == CATS_OK) status = run_pairs(context, a, b, count);
  if (status == CATS_OK) context->count = count;
  cats_context_give(context);
  return status;
}
