/* Handles of encoded images. */
#include <string.h>

#include "matcher.h"

cats_status cats_need_split(const cats_matcher *matcher) {
  if (matcher->split) return CATS_OK;
  return cats_fail(CATS_ERROR_STATE, "%s is a model for pairs: encoding needs a split model (cats-export --split)",
                   matcher->matcher.name);
}

cats_status cats_features_create(cats_matcher *matcher, cats_features **result) {
  if (!result) return cats_fail(CATS_ERROR_ARGUMENT, "features is NULL: there is nowhere to put the handle");
  *result = NULL;
  if (!matcher) return cats_fail(CATS_ERROR_ARGUMENT, "matcher is NULL");
  cats_status status = cats_need_split(matcher);
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
    if (features->levels) cats_free(features->levels[i]);
  }
  cats_free(features->values);
  cats_free(features->levels);
  cats_free(features);
  cats_matcher_drop(matcher);
}
