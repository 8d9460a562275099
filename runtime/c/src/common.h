/* Errors, memory and checks that every part of libcats uses. */
#ifndef CATS_COMMON_H
#define CATS_COMMON_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "cats.h"
#include "platform.h"

#define CATS_MIN_SIDE 16
#define CATS_MAX_SIDE (1 << 24) /* beyond, 22-bit filter weights overflow their sums */
#define CATS_MAX_PIXELS 89478485
#define CATS_MAX_COUNT 1024
#define CATS_RUN_PAIRS 8

/* Sets this thread's error text and returns the status. */
cats_status cats_fail(cats_status status, const char *format, ...) CATS_PRINTF(2, 3);

/* As cats_fail with CATS_ERROR_MEMORY. */
cats_status cats_out_of_memory(size_t bytes);

/* Zeroed memory for count elements, aligned for vector instructions, to be given to cats_free; NULL where that is too
 * much. */
void *cats_allocate(size_t count, size_t size);

/* Makes *buffer hold at least count elements; its content is lost when it grows. */
cats_status cats_reserve(void **buffer, size_t *capacity, size_t count, size_t size);

/* A copy of a text, NULL when out of memory. */
char *cats_copy_text(const char *text);

/* Reads a structure of the caller that begins with its size into *copy of `size` bytes, the rest of which is zero.
 * minimum: size of the structure's first version. type, name: for the message. */
cats_status cats_read_struct(const void *given, void *copy, size_t size, size_t minimum, const char *type,
                             const char *name);

#endif
