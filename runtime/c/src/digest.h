/* BLAKE2b-256 (RFC 7693, no key): the digest of graph and weights that the metadata of a model carry. */
#ifndef CATS_DIGEST_H
#define CATS_DIGEST_H

#include <stddef.h>
#include <stdint.h>

#define CATS_DIGEST_TEXT 65

typedef struct {
  uint64_t state[8], count;
  unsigned char block[128];
  size_t used;
} cats_digest;

void cats_digest_begin(cats_digest *digest);
void cats_digest_add(cats_digest *digest, const void *data, size_t size);

/* Writes the digest as 64 lower-case hexadecimal digits and a zero. */
void cats_digest_end(cats_digest *digest, char text[CATS_DIGEST_TEXT]);

#endif
