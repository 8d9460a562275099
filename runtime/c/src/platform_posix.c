/* See platform.h: Linux and macOS. */
#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "platform.h"

#ifndef _WIN32
#include <dirent.h>
#include <dlfcn.h>
#include <locale.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __APPLE__
#include <xlocale.h>
#else
#include <sched.h>
#endif

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void *cats_aligned_memory(size_t alignment, size_t bytes) { return aligned_alloc(alignment, bytes); }

void cats_free(void *memory) { free(memory); }

void cats_lock(void) { pthread_mutex_lock(&lock); }

void cats_unlock(void) { pthread_mutex_unlock(&lock); }

const char *cats_environment(const char *name) {
#ifdef __APPLE__
  return issetugid() ? NULL : getenv(name);
#else
  return secure_getenv(name);
#endif
}

int cats_path_kind(const char *path, uint64_t *size) {
  struct stat status;
  if (stat(path, &status) != 0) return 0;
  if (size) *size = (uint64_t)status.st_size;
  return S_ISREG(status.st_mode) ? CATS_PATH_FILE : S_ISDIR(status.st_mode) ? CATS_PATH_FOLDER : CATS_PATH_OTHER;
}

FILE *cats_file_open(const char *path) { return fopen(path, "rb"); }

int cats_folder_list(const char *folder, void (*each)(void *context, const char *name), void *context) {
  DIR *listing = opendir(folder);
  if (!listing) return 0;
  for (struct dirent *item; (item = readdir(listing));) each(context, item->d_name);
  closedir(listing);
  return 1;
}

int cats_native_path(const char *path, cats_native_char *native) {
  return (size_t)snprintf(native, CATS_PATH_SIZE, "%s", path) < CATS_PATH_SIZE;
}

int cats_real_path(const char *path, char *real, size_t size) {
  char *found = realpath(path, NULL);
  int fits = found && strlen(found) < size;
  if (fits) strcpy(real, found);
  free(found);
  return fits;
}

/* Found while the library is loaded: a relative name means something else once the program has changed its folder.
 * Empty for a program found in PATH that holds libcats itself: no folder is safe to look in then. */
static char self[CATS_PATH_SIZE];

__attribute__((constructor)) static void find_self(void) {
  Dl_info found;
  if (!dladdr((const void *)&lock, &found) || !found.dli_fname || !strchr(found.dli_fname, '/')) return;
  if (*found.dli_fname != '/') {
    if (!cats_real_path(found.dli_fname, self, sizeof self)) *self = 0;
  } else if (strlen(found.dli_fname) < sizeof self) { /* as it was named: beside a link lies what belongs to the link */
    strcpy(self, found.dli_fname);
  }
}

const char *cats_self(void) { return *self ? self : NULL; }

void *cats_library_open(const char *file, char *reason, size_t size) {
  const char *name = file;
#ifdef __APPLE__
  char run_path[CATS_PATH_SIZE]; /* of a bare name, dlopen would try the working folder */
  if (!strchr(file, '/') && (size_t)snprintf(run_path, sizeof run_path, "@rpath/%s", file) < sizeof run_path)
    name = run_path;
#endif
  void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (library || !size) return library;
  const char *text = dlerror();
  size_t known = strlen(file); /* the reason often begins with the path */
  if (text && strncmp(text, file, known) == 0 && strncmp(text + known, ": ", 2) == 0) text += known + 2;
  snprintf(reason, size, "%s", text ? text : "cannot be loaded");
  return NULL;
}

void cats_library_close(void *library) { dlclose(library); }

void *cats_library_symbol(void *library, const char *name) { return dlsym(library, name); }

int cats_library_file(void *library, const void *symbol, char *path, size_t size) {
  Dl_info where;
  (void)library; /* has no name of its own here */
  return dladdr(symbol, &where) && where.dli_fname && (size_t)snprintf(path, size, "%s", where.dli_fname) < size;
}

int cats_number(const char *text, double *number) {
  locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0); /* strtod would read "0,5" in some locales */
  if (!plain) return 0;
  *number = strtod_l(text, NULL, plain);
  freelocale(plain);
  return 1;
}

#ifdef __APPLE__
int cats_limited_cpus(void) { return 0; }
#else
#define CPU_FOLDER "/sys/devices/system/cpu"

/* CPUs that the quota of the control group amounts to, rounded up; 0 without a quota. */
static long quota(void) {
  long long share = -1, period = 0;
  FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
  if (file) {
    if (fscanf(file, "%lld %lld", &share, &period) != 2) share = -1; /* "max" */
    fclose(file);
  } else {
    file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r");
    if (file && fscanf(file, "%lld", &share) != 1) share = -1;
    if (file) fclose(file);
    file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r");
    if (file && fscanf(file, "%lld", &period) != 1) period = 0;
    if (file) fclose(file);
  }
  return share > 0 && period > 0 ? (long)((share + period - 1) / period) : 0;
}

/* CPUs that are the first of their core, the machine's logical ones where the system does not tell. */
static long physical_cores(void) {
  long logical = sysconf(_SC_NPROCESSORS_CONF), cores = 0;
  for (long cpu = 0; cpu < logical; cpu++) {
    char path[128];
    long first = -1;
    snprintf(path, sizeof path, CPU_FOLDER "/cpu%ld/topology/thread_siblings_list", cpu);
    FILE *file = fopen(path, "r");
    if (file && fscanf(file, "%ld", &first) != 1) first = -1;
    if (file) fclose(file);
    cores += first == cpu;
  }
  return cores ? cores : logical;
}

int cats_limited_cpus(void) {
  cpu_set_t mask;
  long cores = physical_cores(), usable = cores, limit = quota();
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) usable = CPU_COUNT(&mask); /* fails beyond 1024 CPUs */
  if (limit && limit < usable) usable = limit;
  return usable > 0 && usable < cores ? (int)usable : 0;
}
#endif
#endif
