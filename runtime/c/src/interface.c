/* See interface.h. */
#include "interface.h"

#include <stdio.h>
#include <string.h>

static cats_status check_outputs(cats_matcher *matcher, int64_t *batch) {
  cats_session *session = &matcher->matcher;
  int64_t grid = session->metadata.grid, flow_shape[] = {2, grid, grid}, map_shape[] = {grid, grid}, of_flow, of_map;
  matcher->flow = cats_port_find(session->outputs, session->output_count, "flow");
  matcher->confidence = cats_port_find(session->outputs, session->output_count, "confidence");
  cats_status status = cats_port_check(session, matcher->flow, "output", "flow", flow_shape, 3, &of_flow);
  if (status == CATS_OK)
    status = cats_port_check(session, matcher->confidence, "output", "confidence", map_shape, 2, &of_map);
  if (status != CATS_OK) return status;
  const cats_port *ports[] = {matcher->flow, matcher->confidence};
  for (int i = 0; i < 2; i++)
    if (ports[i]->type != CATS_ORT_FLOAT && ports[i]->type != CATS_ORT_FLOAT16)
      return cats_fail(CATS_ERROR_MODEL, "%s: output %s is neither float32 nor float16: export the model again",
                       session->name, ports[i]->name);
  int64_t wrong = (of_flow && of_flow != *batch) ? of_flow : (of_map && of_map != *batch) ? of_map : 0;
  if (wrong)
    return cats_fail(CATS_ERROR_MODEL, "%s: inputs and outputs have different batch sizes: export the model again",
                     session->name);
  return CATS_OK;
}

static cats_status check_image(cats_session *session, const char *name, int64_t *batch) {
  int64_t shape[] = {3, session->metadata.height, session->metadata.width};
  cats_port *port = cats_port_find(session->inputs, session->input_count, name);
  cats_status status = cats_port_check(session, port, "input", name, shape, 3, batch);
  if (status != CATS_OK) return status;
  if (port->type != CATS_ORT_FLOAT)
    return cats_fail(CATS_ERROR_MODEL, "%s: input %s is not float32: export the model again", session->name, name);
  if (*batch > CATS_MAX_COUNT)
    return cats_fail(CATS_ERROR_MODEL, "%s has a fixed batch of %lld, over %d", session->name, (long long)*batch,
                     CATS_MAX_COUNT);
  return CATS_OK;
}

cats_status cats_check_pair(cats_matcher *matcher) {
  cats_session *session = &matcher->matcher;
  int64_t of_a, of_b;
  cats_status status = check_image(session, "image_a", &of_a);
  if (status == CATS_OK) status = check_image(session, "image_b", &of_b);
  if (status != CATS_OK) return status;
  if (of_a != of_b)
    return cats_fail(CATS_ERROR_MODEL, "%s takes different batch sizes for image_a and image_b: export the model again",
                     session->name);
  if (session->input_count != CATS_PAIR_INPUTS)
    return cats_fail(CATS_ERROR_MODEL, "%s has further inputs: not a model of kind pair", session->name);
  matcher->batch = of_a;
  return check_outputs(matcher, &matcher->batch);
}

/* The input of the matcher that takes an output of the encoder, for side 'a' or 'b'. taken: of each input, whether
 * another output goes there already, so that in the end none is left without a tensor. */
static cats_status find_input(cats_matcher *matcher, const cats_port *level, char side, size_t *index,
                              unsigned char *taken) {
  cats_session *session = &matcher->matcher;
  char name[280];
  int64_t batch;
  snprintf(name, sizeof name, "%.256s_%c", level->name, side);
  cats_port *port = cats_port_find(session->inputs, session->input_count, name);
  cats_status status = cats_port_check(session, port, "input", name, level->shape + 1, level->rank - 1, &batch);
  if (status != CATS_OK) return status;
  *index = (size_t)(port - session->inputs);
  if (port->type != level->type || batch > 1 || taken[*index])
    return cats_fail(CATS_ERROR_MODEL, "%s and %s do not fit each other at %s: export them again, with a dynamic batch",
                     matcher->encoder.name, session->name, name);
  taken[*index] = 1;
  if (batch) matcher->batch = batch;
  return CATS_OK;
}

cats_status cats_check_split(cats_matcher *matcher) {
  cats_session *encoder = &matcher->encoder, *session = &matcher->matcher;
  const cats_metadata *one = &encoder->metadata, *two = &session->metadata;
  unsigned char taken[CATS_MAX_PORTS] = {0};
  int64_t batch;
  cats_status status = check_image(encoder, "image", &batch);
  if (status != CATS_OK) return status;
  if (batch > 1)
    return cats_fail(CATS_ERROR_MODEL, "%s has a fixed batch of %lld: export it with a dynamic one", encoder->name,
                     (long long)batch);
  size_t count = encoder->output_count;
  if (encoder->input_count != 1 || count == 0 || session->input_count != 2 * count)
    return cats_fail(CATS_ERROR_MODEL, "%s and %s do not fit each other: export them again", encoder->name,
                     session->name);
  if (one->grid != two->grid || one->width != two->width || one->height != two->height ||
      memcmp(one->mean, two->mean, sizeof one->mean) != 0 || memcmp(one->std, two->std, sizeof one->std) != 0)
    return cats_fail(CATS_ERROR_MODEL, "the metadata of %s and %s differ: export them again", encoder->name,
                     session->name);
  matcher->level_count = count;
  matcher->input_a = cats_allocate(count, sizeof(size_t));
  matcher->input_b = cats_allocate(count, sizeof(size_t));
  if (!matcher->input_a || !matcher->input_b) return cats_out_of_memory(count * sizeof(size_t));
  for (size_t i = 0; i < count; i++) {
    const cats_port *level = &encoder->outputs[i];
    if (level->rank == 0 || level->shape[0] > 1 || !cats_type_size(level->type) || !cats_port_elements(level))
      return cats_fail(CATS_ERROR_MODEL, "%s: output %s has a shape or type that is not fixed: export the model again",
                       encoder->name, level->name);
    status = find_input(matcher, level, 'a', &matcher->input_a[i], taken);
    if (status == CATS_OK) status = find_input(matcher, level, 'b', &matcher->input_b[i], taken);
    if (status != CATS_OK) return status;
  }
  return check_outputs(matcher, &matcher->batch);
}
