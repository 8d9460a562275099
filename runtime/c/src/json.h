/* A bounded JSON reader that allocates nothing: a document is checked once, then values are found in its text. */
#ifndef CATS_JSON_H
#define CATS_JSON_H

#include <stddef.h>

/* A value inside a checked document; empty (begin == end) where nothing was found. */
typedef struct {
  const char *begin;
  const char *end;
} cats_json;

/* Checks that text is one JSON document, at most 64 levels deep, and returns it without surrounding space; on failure
 * the result is empty and *where is the byte at which it is wrong. */
cats_json cats_json_check(const char *text, size_t size, size_t *where);

/* Value of a key of an object, the last one where it repeats; empty if `object` is no object or lacks it. */
cats_json cats_json_find(cats_json object, const char *key);

/* Decodes a string into UTF-8; 0 if it is none or does not fit with its final zero. */
int cats_json_string(cats_json value, char *text, size_t size);

/* Reads a number; 0 if it is none or not finite. Independent of the locale. */
int cats_json_number(cats_json value, double *number);

/* Reads an array of exactly count numbers; 0 if it is none. */
int cats_json_numbers(cats_json value, double *numbers, size_t count);

/* Reads an array of 1 to `limit` numbers; returns how many, 0 if it is none. */
size_t cats_json_list(cats_json value, double *numbers, size_t limit);

/* Whether a value is null. */
int cats_json_null(cats_json value);

/* 1 and *result for true and false; 0 for anything else. */
int cats_json_bool(cats_json value, int *result);

#endif
