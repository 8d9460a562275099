/* Errors, memory and structure checks; see common.h. */
#include "common.h"

#include <stdio.h>
#include <string.h>

#define ALIGNMENT 64
#define LARGEST_STRUCT 4096

static CATS_THREAD_LOCAL char last_error[4096];

const char *cats_version(void) { return CATS_VERSION_STRING; }

uint32_t cats_abi_version(void) { return CATS_ABI_VERSION; }

const char *cats_last_error(void) { return last_error; }

const char *cats_status_name(cats_status status) {
  static const char *const names[] = {"CATS_OK",
                                      "CATS_ERROR_ARGUMENT",
                                      "CATS_ERROR_FILE",
                                      "CATS_ERROR_MODEL",
                                      "CATS_ERROR_RUNTIME",
                                      "CATS_ERROR_MEMORY",
                                      "CATS_ERROR_STATE",
                                      "CATS_ERROR_BUSY"};
  if (status < 0 || (size_t)status >= sizeof names / sizeof *names) return "unknown status";
  return names[status];
}

cats_status cats_fail(cats_status status, const char *format, ...) {
  char text[sizeof last_error]; /* arguments may point into the old text */
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  memcpy(last_error, text, sizeof text);
  return status;
}

cats_status cats_out_of_memory(size_t bytes) {
  return cats_fail(CATS_ERROR_MEMORY, "out of memory: %zu bytes are needed", bytes);
}

void *cats_allocate(size_t count, size_t size) {
  if (size && count > (SIZE_MAX - ALIGNMENT) / size) return NULL;
  size_t bytes = (count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (bytes == 0) bytes = ALIGNMENT;
  void *memory = cats_aligned_memory(ALIGNMENT, bytes);
  if (memory) memset(memory, 0, bytes);
  return memory;
}

cats_status cats_reserve(void **buffer, size_t *capacity, size_t count, size_t size) {
  if (*buffer && count <= *capacity) return CATS_OK;
  void *memory = cats_allocate(count, size);
  if (!memory) return cats_out_of_memory(size && count > SIZE_MAX / size ? SIZE_MAX : count * size);
  cats_free(*buffer);
  *buffer = memory;
  *capacity = count;
  return CATS_OK;
}

char *cats_copy_text(const char *text) {
  size_t bytes = strlen(text) + 1;
  char *copy = cats_allocate(bytes, 1);
  if (copy) memcpy(copy, text, bytes);
  return copy;
}

cats_status cats_read_struct(const void *given, void *copy, size_t size, size_t minimum, const char *type,
                             const char *name) {
  size_t bytes;
  if (!given) return cats_fail(CATS_ERROR_ARGUMENT, "%s is NULL", name);
  memcpy(&bytes, given, sizeof bytes);
  if (bytes < minimum || bytes > LARGEST_STRUCT)
    return cats_fail(CATS_ERROR_ARGUMENT, "%s.struct_size is %zu: set it to sizeof(%s), which is %zu here", name, bytes,
                     type, size);
  const unsigned char *source = given;
  for (size_t at = size; at < bytes; at++)
    if (source[at])
      return cats_fail(CATS_ERROR_ARGUMENT,
                       "%s uses fields that this libcats %s does not know: load a newer libcats, or leave them 0", name,
                       CATS_VERSION_STRING);
  memset(copy, 0, size);
  memcpy(copy, given, bytes < size ? bytes : size);
  return CATS_OK;
}
