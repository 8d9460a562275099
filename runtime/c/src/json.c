/* See json.h. Grammar: RFC 8259. */
#include "json.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "platform.h"

#define DEPTH 64
#define LONGEST_NUMBER 64

typedef struct {
  const char *at;
  const char *end;
} reader;

static int value(reader *in, int depth);

/* A number of at most LONGEST_NUMBER characters; 0 if it is not finite. Independent of the locale. */
static int convert(const char *begin, const char *end, double *result) {
  char text[LONGEST_NUMBER + 1];
  memcpy(text, begin, (size_t)(end - begin));
  text[end - begin] = 0;
  return cats_number(text, result) && isfinite(*result);
}

static void skip_space(reader *in) {
  while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' || *in->at == '\n' || *in->at == '\r')) in->at++;
}

static int take(reader *in, char c) {
  if (in->at >= in->end || *in->at != c) return 0;
  in->at++;
  return 1;
}

static int word(reader *in, const char *text) {
  size_t length = strlen(text);
  if ((size_t)(in->end - in->at) < length || memcmp(in->at, text, length) != 0) return 0;
  in->at += length;
  return 1;
}

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/* The four hexadecimal digits after \u; -1 if they are none. */
static long unit(reader *in) {
  long code = 0;
  for (int i = 0; i < 4; i++) {
    int digit = in->at < in->end ? hex_digit(*in->at) : -1;
    if (digit < 0) return -1;
    code = code * 16 + digit;
    in->at++;
  }
  return code;
}

static size_t encode(uint32_t code, char bytes[4]) {
  if (code < 0x80) {
    bytes[0] = (char)code;
    return 1;
  }
  size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  static const unsigned char lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
  for (size_t i = length - 1; i > 0; i--) {
    bytes[i] = (char)(0x80 | (code & 0x3F));
    code >>= 6;
  }
  bytes[0] = (char)(lead[length] | code);
  return length;
}

/* The character after a backslash as UTF-8; 0 if it is none. */
static size_t escape(reader *in, char bytes[4]) {
  static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
  if (in->at >= in->end) return 0;
  char c = *in->at++;
  const char *known = c ? strchr(names, c) : NULL;
  if (known) {
    bytes[0] = meanings[known - names];
    return 1;
  }
  if (c != 'u') return 0;
  long code = unit(in);
  if (code >= 0xD800 && code < 0xDC00) {
    if (!take(in, '\\') || !take(in, 'u')) return 0;
    long low = unit(in);
    if (low < 0xDC00 || low > 0xDFFF) return 0;
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  } else if (code >= 0xDC00 && code <= 0xDFFF) {
    return 0;
  }
  return code < 0 ? 0 : encode((uint32_t)code, bytes);
}

/* The character of UTF-8 whose first byte was just read into bytes[0]: its length, 0 if it is none. */
static size_t character(reader *in, char bytes[4]) {
  unsigned char first = (unsigned char)bytes[0];
  size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  uint32_t code = first & (0x7Fu >> length);
  static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  if (first < 0xC2 || first > 0xF4 || (size_t)(in->end - in->at) < length - 1) return 0;
  for (size_t i = 1; i < length; i++) {
    unsigned char byte = (unsigned char)*in->at++;
    if ((byte & 0xC0u) != 0x80u) return 0;
    bytes[i] = (char)byte;
    code = code << 6 | (byte & 0x3Fu);
  }
  return code < least[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000) ? 0 : length;
}

/* Reads a string and, where `text` is not NULL, decodes it; 0 if it is malformed or does not fit. */
static int string(reader *in, char *text, size_t size) {
  size_t used = 0;
  if (!take(in, '"')) return 0;
  while (in->at < in->end) {
    char bytes[4];
    size_t length = 1;
    char c = *in->at++;
    if (c == '"') {
      if (text) text[used] = 0;
      return 1;
    }
    if ((unsigned char)c < 0x20) return 0;
    bytes[0] = c;
    if (c == '\\' && (length = escape(in, bytes)) == 0) return 0;
    if ((unsigned char)c >= 0x80 && (length = character(in, bytes)) == 0) return 0;
    if (bytes[0] == 0) return 0; /* texts end with it in C */
    if (!text) continue;
    if (length >= size - used) return 0;
    memcpy(text + used, bytes, length);
    used += length;
  }
  return 0;
}

static int digits(reader *in) {
  const char *start = in->at;
  while (in->at < in->end && *in->at >= '0' && *in->at <= '9') in->at++;
  return in->at > start;
}

static int number(reader *in) {
  const char *start = in->at;
  take(in, '-');
  if (!take(in, '0') && !digits(in)) return 0;
  if (take(in, '.') && !digits(in)) return 0;
  const char *exponent = NULL;
  if (take(in, 'e') || take(in, 'E')) {
    if (!take(in, '-')) take(in, '+');
    exponent = in->at;
    if (!digits(in)) return 0;
  }
  if (in->at - start > LONGEST_NUMBER) return 0;
  if (!exponent || in->at - exponent < 3) return 1; /* far from infinity */
  double value;
  return convert(start, in->at, &value);
}

/* Members of an object or array after its opening bracket. */
static int members(reader *in, int depth, int object) {
  char close = object ? '}' : ']';
  skip_space(in);
  if (take(in, close)) return 1;
  do {
    skip_space(in);
    if (object) {
      if (!string(in, NULL, 0)) return 0;
      skip_space(in);
      if (!take(in, ':')) return 0;
    }
    if (!value(in, depth)) return 0;
    skip_space(in);
  } while (take(in, ','));
  return take(in, close);
}

static int value(reader *in, int depth) {
  skip_space(in);
  if (depth >= DEPTH || in->at >= in->end) return 0;
  switch (*in->at) {
    case '{':
    case '[':
      in->at++;
      return members(in, depth + 1, in->at[-1] == '{');
    case '"':
      return string(in, NULL, 0);
    case 't':
      return word(in, "true");
    case 'f':
      return word(in, "false");
    case 'n':
      return word(in, "null");
    default:
      return number(in);
  }
}

cats_json cats_json_check(const char *text, size_t size, size_t *where) {
  reader in = {text, text + size};
  skip_space(&in);
  cats_json found = {in.at, in.at};
  int good = value(&in, 0);
  const char *end = in.at;
  skip_space(&in);
  if (good && in.at == in.end) {
    found.end = end;
  } else {
    *where = (size_t)(in.at - text);
  }
  return found;
}

cats_json cats_json_find(cats_json object, const char *key) {
  reader in = {object.begin, object.end};
  cats_json found = {object.begin, object.begin};
  if (!take(&in, '{')) return found;
  do {
    char name[64];
    skip_space(&in);
    reader again = in;
    int fits = string(&in, name, sizeof name);
    if (!fits) {
      in = again;
      if (!string(&in, NULL, 0)) return found; /* the end of an empty object */
    }
    skip_space(&in);
    take(&in, ':');
    skip_space(&in);
    const char *begin = in.at;
    if (!value(&in, 0)) return found;
    if (fits && strcmp(name, key) == 0) found = (cats_json){begin, in.at};
    skip_space(&in);
  } while (take(&in, ','));
  return found;
}

int cats_json_string(cats_json json, char *text, size_t size) {
  reader in = {json.begin, json.end};
  return string(&in, text, size);
}

int cats_json_number(cats_json json, double *result) {
  reader in = {json.begin, json.end};
  if (json.begin == json.end || !number(&in) || in.at != in.end) return 0;
  return convert(json.begin, json.end, result);
}

size_t cats_json_list(cats_json json, double *numbers, size_t limit) {
  reader in = {json.begin, json.end};
  size_t count = 0;
  if (!take(&in, '[')) return 0;
  do {
    skip_space(&in);
    cats_json item = {in.at, in.at};
    if (count == limit || !value(&in, 0)) return 0;
    item.end = in.at;
    if (!cats_json_number(item, &numbers[count++])) return 0;
    skip_space(&in);
  } while (take(&in, ','));
  return take(&in, ']') ? count : 0;
}

int cats_json_numbers(cats_json json, double *numbers, size_t count) {
  return cats_json_list(json, numbers, count) == count;
}

int cats_json_null(cats_json json) {
  reader in = {json.begin, json.end};
  return word(&in, "null");
}

int cats_json_bool(cats_json json, int *result) {
  reader in = {json.begin, json.end};
  *result = word(&in, "true");
  return *result || word(&in, "false");
}
