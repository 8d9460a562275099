/* See ort.h. */
#include "ort.h"

#include <stdio.h>
#include <string.h>

typedef void (*entry)(void);
typedef struct {
  const entry *(*GetApi)(uint32_t);
  const char *(*GetVersionString)(void);
} api_base;

static cats_ort *loaded; /* under the lock */

/* What was tried, for the message. */
typedef struct {
  char text[3000];
  size_t used;
} trail;

static void note(trail *tried, const char *place, const char *outcome) {
  size_t room = sizeof tried->text - tried->used;
  int length = snprintf(tried->text + tried->used, room, "%s%s: %.200s", tried->used ? "; " : "", place, outcome);
  if (length > 0) tried->used += (size_t)length < room ? (size_t)length : room - 1;
}

static cats_ort *find_loaded(const void *handle) {
  for (cats_ort *ort = loaded; ort; ort = ort->next)
    if (ort->handle == handle) return ort;
  return NULL;
}

static void fill(cats_ort *ort, const entry *table) {
#define CATS_ORT_FILL(position, result, name, parameters) ort->name = (result(*) parameters)table[position];
  CATS_ORT_ENTRIES(CATS_ORT_FILL)
#undef CATS_ORT_FILL
}

/* Loads one file; NULL with a reason. */
static cats_ort *load_file(const char *path, trail *tried) {
  char reason[256], file[CATS_PATH_SIZE];
  void *handle = cats_library_open(path, reason, sizeof reason);
  if (!handle) {
    note(tried, path, reason);
    return NULL;
  }
  cats_ort *ort = find_loaded(handle);
  if (ort) {
    cats_library_close(handle); /* counted once already */
    return ort;
  }
  union {
    void *object;
    const api_base *(*function)(void);
  } symbol = {cats_library_symbol(handle, "OrtGetApiBase")};
  const api_base *base = symbol.object ? symbol.function() : NULL;
  int major = 0, minor = 0;
  const char *version = base ? base->GetVersionString() : NULL;
  if (!version || sscanf(version, "%d.%d", &major, &minor) != 2 || (major == 1 && minor < CATS_ORT_API)) {
    note(tried, path, version ? "is older than ONNX Runtime 1.11" : "is not ONNX Runtime");
    cats_library_close(handle);
    return NULL;
  }
  const entry *table = base->GetApi(CATS_ORT_API);
  ort = table ? cats_allocate(1, sizeof *ort) : NULL;
  int known = cats_library_file(handle, symbol.object, file, sizeof file);
  if (ort && !(ort->library = cats_copy_text(known ? file : path))) {
    cats_free(ort);
    ort = NULL;
  }
  if (!ort) {
    note(tried, path, table ? "out of memory" : "does not offer the API that libcats uses");
    cats_library_close(handle);
    return NULL;
  }
  fill(ort, table);
  snprintf(ort->version, sizeof ort->version, "%s", version);
  ort->handle = handle;
  ort->next = loaded;
  loaded = ort;
  return ort;
}

#define LONGEST_NAME 256

/* Keeps the shortest and then first of the names that ONNX Runtime's file may have; context: LONGEST_NAME characters. */
static void consider(void *context, const char *name) {
  char *best = context;
  size_t length = strlen(name), begin = strlen(CATS_ORT_BEGIN), end = strlen(CATS_ORT_END), known = strlen(best);
  if (length >= LONGEST_NAME || length < begin + end || strncmp(name, CATS_ORT_BEGIN, begin) != 0) return;
  if (strcmp(name + length - end, CATS_ORT_END) != 0) return;
  if (!known || length < known || (length == known && strcmp(name, best) < 0)) memcpy(best, name, length + 1);
}

/* Loads ONNX Runtime's file of a folder, or notes why there is none. */
static cats_ort *load_folder(const char *folder, trail *tried) {
  char best[LONGEST_NAME] = "", path[CATS_PATH_SIZE];
  if (!cats_folder_list(folder, consider, best)) {
    note(tried, folder, "no such folder");
    return NULL;
  }
  if (!*best) {
    note(tried, folder, "no " CATS_ORT_FILES);
    return NULL;
  }
  if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, best) >= sizeof path) {
    note(tried, folder, "its path is too long");
    return NULL;
  }
  return load_file(path, tried);
}

static cats_ort *load_given(const char *place, trail *tried) {
  return cats_path_kind(place, NULL) == CATS_PATH_FOLDER ? load_folder(place, tried) : load_file(place, tried);
}

static void folder_of(const char *file, char *folder, size_t size) {
  snprintf(folder, size, "%.*s", (int)(strrchr(file, '/') - file), file);
}

static cats_ort *load_beside(const char *folder, trail *tried) {
  static const char *const places[] = {"", "/lib", "/../../../onnxruntime/capi", "/../onnxruntime/capi"};
  char path[CATS_PATH_SIZE + 64];
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    snprintf(path, sizeof path, "%s%s", folder, places[i]);
    cats_ort *ort = load_folder(path, tried);
    if (ort) return ort;
  }
  return NULL;
}

/* Beside libcats, and in the Python package onnxruntime of the same site-packages (libcats is in cats/runtime/c). */
static cats_ort *load_nearby(trail *tried) {
  char folder[CATS_PATH_SIZE], target[CATS_PATH_SIZE], real[CATS_PATH_SIZE];
  const char *self = cats_self();
  if (!self) return NULL;
  folder_of(self, folder, sizeof folder);
  cats_ort *ort = load_beside(folder, tried);
  if (ort || !cats_real_path(self, real, sizeof real)) return ort; /* libcats may have been found through a link */
  folder_of(real, target, sizeof target);
  return strcmp(target, folder) != 0 ? load_beside(target, tried) : NULL;
}

static cats_ort *search(const char *library, trail *tried) {
  if (library) return load_given(library, tried);
  static const char *const names[] = CATS_ORT_NAMES;
  const char *named = cats_environment("CATS_ORT_LIBRARY");
  if (named && *named) return load_given(named, tried);
  cats_ort *ort = load_nearby(tried);
  for (size_t i = 0; !ort && i < sizeof names / sizeof *names; i++) ort = load_file(names[i], tried);
  return ort;
}

cats_status cats_ort_load(const char *library, const cats_ort **ort) {
  trail tried = {"", 0};
  cats_lock();
  *ort = search(library, &tried);
  cats_unlock();
  if (*ort) return CATS_OK;
  return cats_fail(CATS_ERROR_RUNTIME,
                   "ONNX Runtime was not found (%s). Install it (pip install onnxruntime, or a release archive of it) and "
                   "name its file or folder in cats_options.ort_library or in the environment variable CATS_ORT_LIBRARY "
                   "(python -m cats.runtime.c --onnxruntime prints that of the Python package)",
                   tried.text);
}

cats_status cats_ort_check(const cats_ort *ort, OrtStatus *failure, cats_status status, const char *what) {
  if (!failure) return CATS_OK;
  const char *text = ort->GetErrorMessage(failure);
  cats_fail(status, "%s: ONNX Runtime %s: %.1500s", what, ort->version, text && *text ? text : "failed");
  ort->ReleaseStatus(failure);
  return status;
}
