/* Matching: images, encoded images, and tables of either. */
#include <stdio.h>
#include <string.h>

#include "matcher.h"

/* Encodes an image of the context's matcher; the context is taken. */
static cats_status encode_image(cats_context *context, const cats_image *given, cats_features *features) {
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
  status = cats_need_split(context->matcher);
  if (status == CATS_OK && !features) status = cats_fail(CATS_ERROR_ARGUMENT, "features is NULL");
  if (status == CATS_OK && features->matcher != context->matcher)
    status = cats_fail(CATS_ERROR_ARGUMENT, "features and context are of different matchers");
  if (status == CATS_OK) status = encode_image(context, image, features);
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
  status = cats_need_split(context->matcher);
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

static cats_status match_pairs(cats_context *context, const cats_image *const *a, const cats_image *const *b,
                               size_t count) {
  const cats_matcher *matcher = context->matcher;
  const cats_metadata *metadata = &matcher->matcher.metadata;
  size_t elements = cats_image_elements(matcher);
  const cats_port *inputs = matcher->matcher.inputs;
  int side_b = strcmp(inputs[1].name, "image_b") == 0;
  cats_status status = CATS_OK;
  for (size_t first = 0, step; first < count && status == CATS_OK; first += step) {
    step = cats_run_step(matcher, count - first);
    size_t wanted = count - first < step ? count - first : step;
    status = cats_run_prepare(context, (int64_t)step);
    for (size_t i = 0; i < 2 * wanted && status == CATS_OK; i++) {
      const cats_image *const *images = i % 2 ? b : a;
      float *tensor = context->inputs[i % 2 ? side_b : !side_b];
      cats_image image;
      status = cats_image_check(images[first + i / 2], matcher->max_pixels, i % 2 ? "image b" : "image a", &image);
      if (status == CATS_OK)
        status = cats_image_to_tensor(&context->resizer, &matcher->levels, &image, metadata->width, metadata->height,
                                      tensor + i / 2 * elements);
    }
    for (size_t side = 0; side < 2 && status == CATS_OK; side++) { /* a fixed batch takes no less */
      float *tensor = context->inputs[side];
      for (size_t i = wanted; i < step; i++)
        memcpy(tensor + i * elements, tensor + (wanted - 1) * elements, elements * sizeof(float));
    }
    if (status == CATS_OK)
      status = cats_run_matcher(context, (const OrtValue *const *)context->values, first, wanted);
  }
  return status;
}

static cats_status match_split(cats_context *context, const cats_image *const *a, const cats_image *const *b,
                               size_t count) {
  cats_status status = CATS_OK;
  if (!context->own_a) status = cats_features_create(context->matcher, &context->own_a);
  if (status == CATS_OK && !context->own_b) status = cats_features_create(context->matcher, &context->own_b);
  for (size_t i = 0; i < count && status == CATS_OK; i++) {
    const cats_features *one = context->own_a, *two = context->own_b;
    if (i == 0 || a[i] != a[i - 1]) status = encode_image(context, a[i], context->own_a);
    if (status == CATS_OK) status = encode_image(context, b[i], context->own_b);
    if (status == CATS_OK) status = cats_run_prepare(context, 1);
    if (status != CATS_OK) break;
    const OrtValue *inputs[CATS_MAX_PORTS];
    for (size_t k = 0; k < context->matcher->level_count; k++) {
      inputs[context->matcher->input_a[k]] = one->values[k];
      inputs[context->matcher->input_b[k]] = two->values[k];
    }
    status = cats_run_matcher(context, inputs, i, 1);
  }
  return status;
}

cats_status cats_match_batch(cats_context *context, const cats_image *const *a, const cats_image *const *b,
                             size_t count) {
  cats_status status = cats_context_take(context);
  if (status != CATS_OK) return status;
  context->count = 0;
  if (!a || !b) status = cats_fail(CATS_ERROR_ARGUMENT, "a or b is NULL");
  if (status == CATS_OK && (count == 0 || count > CATS_MAX_COUNT))
    status = cats_fail(CATS_ERROR_ARGUMENT, "count is %zu: 1 to %d pairs", count, CATS_MAX_COUNT);
  if (status == CATS_OK) status = cats_results_reserve(context, count);
  for (size_t i = 0; i < count && status == CATS_OK; i++) { /* refuse before working */
    char name_a[32] = "image a", name_b[32] = "image b";
    cats_image one, two;
    if (count > 1) {
      snprintf(name_a, sizeof name_a, "image a[%zu]", i);
      snprintf(name_b, sizeof name_b, "image b[%zu]", i);
    }
    status = cats_image_check(a[i], context->matcher->max_pixels, name_a, &one);
    if (status == CATS_OK) status = cats_image_check(b[i], context->matcher->max_pixels, name_b, &two);
    if (status == CATS_OK) context->sizes[i] = (cats_sizes){one.width, one.height, two.width, two.height};
  }
  if (status == CATS_OK)
    status = context->matcher->split ? match_split(context, a, b, count) : match_pairs(context, a, b, count);
  if (status == CATS_OK) context->count = count;
  cats_context_give(context);
  return status;
}

cats_status cats_match(cats_context *context, const cats_image *a, const cats_image *b) {
  return cats_match_batch(context, &a, &b, 1);
}

cats_status cats_preprocess(cats_context *context, const cats_image *given, float *tensor, size_t count) {
  cats_image image;
  cats_status status = cats_context_take(context);
  if (status != CATS_OK) return status;
  const cats_matcher *matcher = context->matcher;
  const cats_metadata *metadata = &matcher->matcher.metadata;
  if (!tensor) status = cats_fail(CATS_ERROR_ARGUMENT, "tensor is NULL");
  if (status == CATS_OK && count != cats_image_elements(matcher))
    status = cats_fail(CATS_ERROR_ARGUMENT, "tensor has room for %zu floats: this model's input has %zu", count,
                       cats_image_elements(matcher));
  if (status == CATS_OK) status = cats_image_check(given, matcher->max_pixels, "image", &image);
  if (status == CATS_OK)
    status = cats_image_to_tensor(&context->resizer, &matcher->levels, &image, metadata->width, metadata->height,
                                  tensor);
  cats_context_give(context);
  return status;
}
