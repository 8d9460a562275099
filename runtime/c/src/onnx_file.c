/* See onnx_file.h. Walks the protobuf fields of ModelProto; the numbers are those of onnx.proto3. */
#include "onnx_file.h"

#include <string.h>

#define LARGEST_ENTRY ((uint64_t)16 << 20)

enum { NUMBER = 0, EIGHT = 1, BYTES = 2, FOUR = 5 }; /* wire types */

typedef struct {
  FILE *file;                /* NULL: in memory */
  const unsigned char *data; /* of `size` bytes */
  uint64_t size, at;
  cats_digest digest;
  int digesting;
} reader;

static int take(reader *in, void *to, size_t size) {
  if (in->file) {
    if (fread(to, 1, size, in->file) != size) return 0;
  } else {
    if (size > in->size - in->at) return 0;
    memcpy(to, in->data + in->at, size);
  }
  in->at += size;
  if (in->digesting) cats_digest_add(&in->digest, to, size);
  return 1;
}

static int skip(reader *in, uint64_t size) {
  unsigned char buffer[16384];
  while (size) {
    size_t step = size < sizeof buffer ? (size_t)size : sizeof buffer;
    if (!take(in, buffer, step)) return 0;
    size -= step;
  }
  return 1;
}

static int varint(reader *in, uint64_t end, uint64_t *value) {
  *value = 0;
  for (int shift = 0; shift < 70; shift += 7) {
    unsigned char byte;
    if (in->at >= end || !take(in, &byte, 1)) return 0;
    if (shift < 64) *value |= (uint64_t)(byte & 127u) << shift;
    if (byte < 128) return 1;
  }
  return 0;
}

/* The next field before `end`: its number, wire type, and its value (NUMBER) or length (others); 0 if it is damaged. */
static int field(reader *in, uint64_t end, uint64_t *number, unsigned *wire, uint64_t *value) {
  uint64_t key;
  if (!varint(in, end, &key)) return 0;
  *number = key >> 3;
  *wire = (unsigned)(key & 7u);
  if (*wire == NUMBER) return varint(in, end, value);
  *value = *wire == EIGHT ? 8 : 4;
  if (*wire == BYTES && !varint(in, end, value)) return 0;
  return (*wire == BYTES || *wire == EIGHT || *wire == FOUR) && *value <= end - in->at;
}

/* Goes through TensorProto: whether its values lie in another file. */
static int tensor(reader *in, uint64_t end, int *external) {
  while (in->at < end) {
    uint64_t number, value;
    unsigned wire;
    if (!field(in, end, &number, &wire, &value)) return 0;
    if (wire == NUMBER) {
      if (number == 14 && value == 1) *external = 1;
    } else if (!skip(in, value)) {
      return 0;
    }
  }
  return 1;
}

static int graph(reader *in, uint64_t end, int *external) {
  while (in->at < end) {
    uint64_t number, value;
    unsigned wire;
    if (!field(in, end, &number, &wire, &value)) return 0;
    if (wire == NUMBER) continue;
    int good = number == 5 && wire == BYTES ? tensor(in, in->at + value, external) : skip(in, value);
    if (!good) return 0;
  }
  return 1;
}

/* Reads one entry of metadata_props into memory; *key and *text are its key and value, where it has them. */
static int entry(const char *data, size_t size, cats_onnx *found, size_t *count) {
  size_t at = 0;
  const char *text = "";
  size_t length = 0;
  int ours = 0;
  while (at < size) {
    uint64_t key = 0, value = 0;
    for (int part = 0; part < 2; part++) {
      uint64_t *to = part ? &value : &key;
      int shift = 0;
      for (;; shift += 7) {
        if (at >= size || shift > 63) return 0;
        unsigned char byte = (unsigned char)data[at++];
        *to |= (uint64_t)(byte & 127u) << shift;
        if (byte < 128) break;
      }
      if (!part && (key & 7u) == EIGHT) return 0;
    }
    if ((key & 7u) != BYTES || value > size - at) return 0;
    if (key >> 3 == 1) ours |= value == 4 && memcmp(data + at, "cats", 4) == 0;
    if (key >> 3 == 2) {
      text = data + at;
      length = (size_t)value;
    }
    at += (size_t)value;
  }
  if (!ours) return 1;
  if (++*count > 1) return 1;
  found->text = cats_allocate(length + 1, 1);
  if (!found->text) return -1;
  memcpy(found->text, text, length);
  found->size = length;
  return 1;
}

/* Goes through ModelProto; 1, 0 where it is damaged, -1 without memory. */
static int model(reader *in, uint64_t size, cats_onnx *found, size_t *count) {
  while (in->at < size) {
    uint64_t number, value;
    unsigned wire;
    if (!field(in, size, &number, &wire, &value)) return 0;
    int digested = number == 7 || number == 8 || number == 20 || number == 25;
    if (wire == NUMBER) {
      if (digested || number == 14) return 0;
      continue;
    }
    if (wire != BYTES) {
      if (!skip(in, value)) return 0;
      continue;
    }
    if (digested) {
      unsigned char head[9] = {(unsigned char)number};
      for (int i = 0; i < 8; i++) head[i + 1] = (unsigned char)(value >> (8 * i));
      cats_digest_add(&in->digest, head, sizeof head);
      in->digesting = 1;
      int good = number == 7 ? graph(in, in->at + value, &found->external) : skip(in, value);
      in->digesting = 0;
      if (!good) return 0;
    } else if (number == 14 && value <= LARGEST_ENTRY + 64) {
      char *data = cats_allocate((size_t)value + 1, 1);
      if (!data) return -1;
      int good = take(in, data, (size_t)value) ? entry(data, (size_t)value, found, count) : 0;
      cats_free(data);
      if (good != 1) return good;
    } else if (!skip(in, value)) {
      return 0;
    }
  }
  return 1;
}

cats_status cats_onnx_read(FILE *file, const void *data, uint64_t size, const char *name, cats_onnx *found) {
  reader in = {file, data, size, 0, {{0}, 0, {0}, 0}, 0};
  size_t count = 0;
  memset(found, 0, sizeof *found);
  cats_digest_begin(&in.digest);
  int good = model(&in, size, found, &count);
  cats_digest_end(&in.digest, found->content);
  if (good == 1 && count <= 1) return CATS_OK;
  cats_free(found->text);
  found->text = NULL;
  if (good < 0) return cats_out_of_memory(size);
  if (good == 0)
    return cats_fail(CATS_ERROR_MODEL, "%s is not an ONNX file (it goes wrong at byte %llu)", name,
                     (unsigned long long)in.at);
  return cats_fail(CATS_ERROR_MODEL,
                   "%s has %zu metadata entries 'cats', which say different things to different programs: export the "
                   "model again",
                   name, count);
}
