/* See session.h. */
#include "session.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "onnx_file.h"

#define LARGEST_PORT ((size_t)1 << 28)

static cats_status check(const cats_session *session, OrtStatus *failure) {
  return cats_ort_check(session->ort, failure, CATS_ERROR_MODEL, session->name);
}

/* Reads what the file says about itself; ONNX Runtime would take one of several documents, and bind none. */
static cats_status read_metadata(cats_session *session, const cats_source *source) {
  cats_onnx found;
  uint64_t size = source->size;
  FILE *file = NULL;
  if (source->path) {
    cats_path_kind(source->path, &size);
    file = cats_file_open(source->path);
    if (!file) return cats_fail(CATS_ERROR_FILE, "cannot read %s: %s", session->name, strerror(errno));
  }
  cats_status status = cats_onnx_read(file, source->data, size, session->name, &found);
  if (file) fclose(file);
  if (status != CATS_OK) return status;
  if (found.external && !source->path)
    status = cats_fail(CATS_ERROR_MODEL,
                       "%s keeps its weights in another file, which memory has no place beside: open it by its path",
                       session->name);
  else if (!found.text)
    status = cats_fail(CATS_ERROR_MODEL, "%s: an ONNX file without CATs metadata; write it with cats-export",
                       session->name);
  else
    status = cats_metadata_parse(found.text, found.size, session->name, &session->metadata);
  cats_free(found.text);
  if (status == CATS_OK) cats_metadata_bind(&session->metadata, found.content);
  return status;
}

static cats_status read_port(cats_session *session, OrtAllocator *allocator, int output, size_t index,
                             cats_port *port) {
  const cats_ort *ort = session->ort;
  OrtTypeInfo *type = NULL;
  const OrtTensorTypeAndShapeInfo *tensor = NULL;
  char *name = NULL;
  cats_status status = check(session, output ? ort->SessionGetOutputName(session->handle, index, allocator, &name)
                                             : ort->SessionGetInputName(session->handle, index, allocator, &name));
  if (status != CATS_OK) return status;
  port->name = cats_copy_text(name);
  OrtStatus *failure = ort->AllocatorFree(allocator, name);
  if (failure) ort->ReleaseStatus(failure);
  if (!port->name) return cats_out_of_memory(64);
  status = check(session, output ? ort->SessionGetOutputTypeInfo(session->handle, index, &type)
                                 : ort->SessionGetInputTypeInfo(session->handle, index, &type));
  if (status != CATS_OK) return status;
  status = check(session, ort->CastTypeInfoToTensorInfo(type, &tensor));
  if (status == CATS_OK && !tensor)
    status = cats_fail(CATS_ERROR_MODEL, "%s: %s is not a tensor: not a CATs model", session->name, port->name);
  if (status == CATS_OK) status = check(session, ort->GetTensorElementType(tensor, &port->type));
  if (status == CATS_OK) status = check(session, ort->GetDimensionsCount(tensor, &port->rank));
  if (status == CATS_OK && port->rank > CATS_MAX_RANK)
    status = cats_fail(CATS_ERROR_MODEL, "%s: %s has %zu dimensions: not a CATs model", session->name, port->name,
                       port->rank);
  if (status == CATS_OK) status = check(session, ort->GetDimensions(tensor, port->shape, port->rank));
  ort->ReleaseTypeInfo(type);
  return status;
}

static cats_status read_ports(cats_session *session, OrtAllocator *allocator, int output) {
  const cats_ort *ort = session->ort;
  size_t count = 0;
  cats_status status = check(session, output ? ort->SessionGetOutputCount(session->handle, &count)
                                             : ort->SessionGetInputCount(session->handle, &count));
  if (status != CATS_OK) return status;
  if (count > CATS_MAX_PORTS)
    return cats_fail(CATS_ERROR_MODEL, "%s has %zu %s: not a CATs model", session->name, count,
                     output ? "outputs" : "inputs");
  cats_port *ports = cats_allocate(count, sizeof *ports);
  if (!ports) return cats_out_of_memory(count * sizeof *ports);
  if (output) {
    session->outputs = ports;
    session->output_count = count;
  } else {
    session->inputs = ports;
    session->input_count = count;
  }
  for (size_t i = 0; i < count && status == CATS_OK; i++)
    status = read_port(session, allocator, output, i, &ports[i]);
  return status;
}

/* ONNX Runtime's own words about files that are not there, or are folders, say little. */
static cats_status check_file(const char *path) {
  int kind = cats_path_kind(path, NULL);
  if (!kind) return cats_fail(CATS_ERROR_FILE, "cannot read %s: %s", path, strerror(errno));
  if (kind != CATS_PATH_FILE) return cats_fail(CATS_ERROR_FILE, "cannot read %s: it is not a file", path);
  FILE *file = cats_file_open(path);
  if (!file) return cats_fail(CATS_ERROR_FILE, "cannot read %s: %s", path, strerror(errno));
  fclose(file);
  return CATS_OK;
}

/* Gives a model to ONNX Runtime. */
static cats_status create(cats_session *session, const OrtEnv *env, const OrtSessionOptions *options,
                          const cats_source *source) {
  const cats_ort *ort = session->ort;
  cats_native_char path[CATS_PATH_SIZE];
  if (!source->path)
    return check(session,
                 ort->CreateSessionFromArray(env, source->data, source->size, options, &session->handle));
  if (!cats_native_path(source->path, path))
    return cats_fail(CATS_ERROR_FILE, "cannot read %s: the path is too long, or not UTF-8", session->name);
  return check(session, ort->CreateSession(env, path, options, &session->handle));
}

cats_status cats_session_open(cats_session *session, const cats_ort *ort, const OrtEnv *env,
                              const OrtSessionOptions *options, const cats_source *source) {
  OrtAllocator *allocator = NULL;
  session->ort = ort;
  const char *name = source->path ? source->path : source->name;
  size_t length = strlen(name), room = sizeof session->name - 1;
  /* The end of a long path says more than its beginning. */
  snprintf(session->name, sizeof session->name, "%s%s", length > room ? "..." : "",
           length > room ? name + length - room + 3 : name);
  if (!source->path && source->size > (size_t)INT32_MAX)
    return cats_fail(CATS_ERROR_ARGUMENT, "%s has %zu bytes; an ONNX file has less than 2 GiB", name, source->size);
  cats_status status = source->path ? check_file(source->path) : CATS_OK;
  if (status != CATS_OK) return status;
  status = read_metadata(session, source);
  if (status != CATS_OK) return status;
  status = create(session, env, options, source);
  if (status == CATS_OK) status = check(session, ort->GetAllocatorWithDefaultOptions(&allocator));
  if (status == CATS_OK) status = read_ports(session, allocator, 0);
  if (status == CATS_OK) status = read_ports(session, allocator, 1);
  return status;
}

static void free_ports(cats_port *ports, size_t count) {
  for (size_t i = 0; i < count; i++) cats_free(ports[i].name);
  cats_free(ports);
}

void cats_session_close(cats_session *session) {
  if (session->handle) session->ort->ReleaseSession(session->handle);
  free_ports(session->inputs, session->input_count);
  free_ports(session->outputs, session->output_count);
}

cats_port *cats_port_find(cats_port *ports, size_t count, const char *name) {
  for (size_t i = 0; i < count; i++)
    if (strcmp(ports[i].name, name) == 0) return &ports[i];
  return NULL;
}

size_t cats_type_size(int type) {
  switch (type) { /* TensorProto.DataType */
    case 1:       /* float32 */
    case 6:       /* int32 */
      return 4;
    case 2:  /* uint8 */
    case 3:  /* int8 */
      return 1;
    case 10: /* float16 */
    case 16: /* bfloat16 */
      return 2;
    default:
      return 0;
  }
}

static void write_shape(char *text, size_t size, const int64_t *shape, size_t rank) {
  size_t used = 0;
  *text = 0;
  for (size_t i = 0; i < rank && used < size; i++) {
    const char *comma = i ? ", " : "";
    int length = shape[i] < 0 ? snprintf(text + used, size - used, "%s?", comma)
                              : snprintf(text + used, size - used, "%s%lld", comma, (long long)shape[i]);
    used += length > 0 ? (size_t)length : 0;
  }
}

cats_status cats_port_check(const cats_session *session, cats_port *port, const char *role, const char *name,
                            const int64_t *shape, size_t rank, int64_t *batch) {
  if (!port) return cats_fail(CATS_ERROR_MODEL, "%s has no %s %s: not a CATs model", session->name, role, name);
  int fits = port->rank == rank + 1 && port->shape[0] != 0;
  for (size_t i = 0; fits && i < rank; i++) fits = port->shape[i + 1] == shape[i] || port->shape[i + 1] < 0;
  if (!fits) {
    char have[128], want[128];
    write_shape(have, sizeof have, port->shape, port->rank);
    write_shape(want, sizeof want, shape, rank);
    return cats_fail(CATS_ERROR_MODEL,
                     "%s: %s %s has shape (%s), its metadata says (batch, %s): export the model again", session->name,
                     role, name, have, want);
  }
  for (size_t i = 0; i < rank; i++) port->shape[i + 1] = shape[i];
  *batch = port->shape[0] > 0 ? port->shape[0] : 0;
  return CATS_OK;
}

size_t cats_port_elements(const cats_port *port) {
  size_t total = 1;
  for (size_t i = 1; i < port->rank; i++) {
    if (port->shape[i] <= 0 || (size_t)port->shape[i] > LARGEST_PORT / total) return 0;
    total *= (size_t)port->shape[i];
  }
  return total;
}

cats_status cats_tensor_over(const cats_session *session, const OrtMemoryInfo *memory, const cats_port *port,
                             int64_t batch, void *data, OrtValue **value) {
  int64_t shape[CATS_MAX_RANK];
  memcpy(shape, port->shape, sizeof shape);
  shape[0] = batch;
  size_t bytes = cats_type_size(port->type) * (size_t)batch;
  for (size_t i = 1; i < port->rank; i++) bytes *= (size_t)shape[i];
  OrtStatus *failure = session->ort->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape, port->rank, port->type,
                                                                     value);
  return cats_ort_check(session->ort, failure, CATS_ERROR_RUNTIME, session->name);
}
