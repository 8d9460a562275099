/* See ort.h. */
#define _GNU_SOURCE
#include "ort.h"

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define PATH_SIZE 4096
#define PREFIX "libonnxruntime.so"

typedef void (*entry)(void);
typedef struct {
  const entry *(*GetApi)(uint32_t);
  const char *(*GetVersionString)(void);
} api_base;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cats_ort *loaded;

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
  void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char *reason = dlerror();
    size_t known = strlen(path); /* the reason often begins with the path */
    if (reason && strncmp(reason, path, known) == 0 && strncmp(reason + known, ": ", 2) == 0) reason += known + 2;
    note(tried, path, reason ? reason : "cannot be loaded");
    return NULL;
  }
  cats_ort *ort = find_loaded(handle);
  if (ort) {
    dlclose(handle); /* counted once already */
    return ort;
  }
  union {
    void *object;
    const api_base *(*function)(void);
  } symbol = {dlsym(handle, "OrtGetApiBase")};
  const api_base *base = symbol.object ? symbol.function() : NULL;
  int major = 0, minor = 0;
  const char *version = base ? base->GetVersionString() : NULL;
  if (!version || sscanf(version, "%d.%d", &major, &minor) != 2 || (major == 1 && minor < CATS_ORT_API)) {
    note(tried, path, version ? "is older than ONNX Runtime 1.11" : "is not ONNX Runtime");
    dlclose(handle);
    return NULL;
  }
  const entry *table = base->GetApi(CATS_ORT_API);
  ort = table ? cats_allocate(1, sizeof *ort) : NULL;
  Dl_info where;
  const char *file = dladdr(symbol.object, &where) && where.dli_fname ? where.dli_fname : path;
  if (ort && !(ort->library = cats_copy_text(file))) {
    free(ort);
    ort = NULL;
  }
  if (!ort) {
    note(tried, path, table ? "out of memory" : "does not offer the API that libcats uses");
    dlclose(handle);
    return NULL;
  }
  fill(ort, table);
  snprintf(ort->version, sizeof ort->version, "%s", version);
  ort->handle = handle;
  ort->next = loaded;
  loaded = ort;
  return ort;
}

/* Loads libonnxruntime.so* of a folder, the shortest and then first name, or notes why there is none. */
static cats_ort *load_folder(const char *folder, trail *tried) {
  char best[256] = "", path[PATH_SIZE];
  DIR *listing = opendir(folder);
  if (!listing) {
    note(tried, folder, "no such folder");
    return NULL;
  }
  for (struct dirent *item; (item = readdir(listing));) {
    size_t length = strlen(item->d_name);
    if (strncmp(item->d_name, PREFIX, strlen(PREFIX)) != 0 || length >= sizeof best) continue;
    size_t known = strlen(best);
    if (!known || length < known || (length == known && strcmp(item->d_name, best) < 0))
      memcpy(best, item->d_name, length + 1);
  }
  closedir(listing);
  if (!*best) {
    note(tried, folder, "no " PREFIX "*");
    return NULL;
  }
  if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, best) >= sizeof path) {
    note(tried, folder, "its path is too long");
    return NULL;
  }
  return load_file(path, tried);
}

static cats_ort *load_given(const char *place, trail *tried) {
  struct stat status;
  return stat(place, &status) == 0 && S_ISDIR(status.st_mode) ? load_folder(place, tried) : load_file(place, tried);
}

/* Where libcats lies, found while it is loaded: a relative name means something else once the program has changed its
 * folder. Empty for a program found in PATH that holds libcats itself: no folder is safe to look in then. */
static char self[PATH_SIZE];

__attribute__((constructor)) static void find_self(void) {
  Dl_info found;
  if (!dladdr((const void *)&lock, &found) || !found.dli_fname || !strchr(found.dli_fname, '/')) return;
  if (*found.dli_fname == '/') { /* as it was named: beside a link lies what belongs to the link */
    if (strlen(found.dli_fname) < sizeof self) strcpy(self, found.dli_fname);
    return;
  }
  char *real = realpath(found.dli_fname, NULL);
  if (real && strlen(real) < sizeof self) strcpy(self, real);
  free(real);
}

static void folder_of(const char *file, char *folder, size_t size) {
  snprintf(folder, size, "%.*s", (int)(strrchr(file, '/') - file), file);
}

static cats_ort *load_beside(const char *folder, trail *tried) {
  static const char *const places[] = {"", "/lib", "/../../../onnxruntime/capi", "/../onnxruntime/capi"};
  char path[PATH_SIZE + 64];
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    snprintf(path, sizeof path, "%s%s", folder, places[i]);
    cats_ort *ort = load_folder(path, tried);
    if (ort) return ort;
  }
  return NULL;
}

/* Beside libcats, and in the Python package onnxruntime of the same site-packages (libcats is in cats/runtime/c). */
static cats_ort *load_nearby(trail *tried) {
  char folder[PATH_SIZE], target[PATH_SIZE] = "";
  if (!*self) return NULL;
  folder_of(self, folder, sizeof folder);
  cats_ort *ort = load_beside(folder, tried);
  char *real = ort ? NULL : realpath(self, NULL); /* where libcats.so was found through a link */
  if (real && strlen(real) < PATH_SIZE) folder_of(real, target, sizeof target);
  free(real);
  return *target && strcmp(target, folder) != 0 ? load_beside(target, tried) : ort;
}

static cats_ort *search(const char *library, trail *tried) {
  if (library) return load_given(library, tried);
  const char *named = secure_getenv("CATS_ORT_LIBRARY");
  if (named && *named) return load_given(named, tried);
  cats_ort *ort = load_nearby(tried);
  if (!ort) ort = load_file("libonnxruntime.so.1", tried);
  return ort ? ort : load_file("libonnxruntime.so", tried);
}

cats_status cats_ort_load(const char *library, const cats_ort **ort) {
  trail tried = {"", 0};
  pthread_mutex_lock(&lock);
  *ort = search(library, &tried);
  pthread_mutex_unlock(&lock);
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
