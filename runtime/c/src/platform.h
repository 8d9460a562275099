/* What differs between systems: platform_posix.c has it for Linux and macOS, platform_windows.c for Windows, and no
 * other file includes a header of a system. Texts and paths are UTF-8, parted by '/', on each of them. */
#ifndef CATS_PLATFORM_H
#define CATS_PLATFORM_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CATS_PATH_SIZE 4096

#if defined(_MSC_VER) && !defined(__clang__)
#define CATS_THREAD_LOCAL __declspec(thread)
#else
#define CATS_THREAD_LOCAL _Thread_local
#endif

#if defined(__GNUC__)
#define CATS_PRINTF(format_, first_) __attribute__((format(printf, format_, first_)))
#else
#define CATS_PRINTF(format_, first_)
#endif

/* ONNX Runtime's file: how its name begins and ends, the pattern for people, and the names to give to the loader. */
#if defined(_WIN32)
#define CATS_ORT_BEGIN "onnxruntime.dll"
#define CATS_ORT_END ""
#define CATS_ORT_FILES "onnxruntime.dll"
#define CATS_ORT_NAMES {"onnxruntime.dll"}
#define CATS_CUDA_DRIVER "nvcuda.dll"
typedef wchar_t cats_native_char; /* of a path, for ONNX Runtime */
#elif defined(__APPLE__)
#define CATS_ORT_BEGIN "libonnxruntime."
#define CATS_ORT_END ".dylib"
#define CATS_ORT_FILES "libonnxruntime.*dylib"
#define CATS_ORT_NAMES                                                                                                 \
  {"libonnxruntime.dylib", "/opt/homebrew/lib/libonnxruntime.dylib", "/usr/local/lib/libonnxruntime.dylib"}
#define CATS_CUDA_DRIVER "libcuda.dylib"
typedef char cats_native_char;
#else
#define CATS_ORT_BEGIN "libonnxruntime.so"
#define CATS_ORT_END ""
#define CATS_ORT_FILES "libonnxruntime.so*"
#define CATS_ORT_NAMES {"libonnxruntime.so.1", "libonnxruntime.so"}
#define CATS_CUDA_DRIVER "libcuda.so.1"
typedef char cats_native_char;
#endif

enum { CATS_PATH_FILE = 1, CATS_PATH_FOLDER, CATS_PATH_OTHER };

/* Memory of `bytes` bytes, a multiple of the alignment; NULL without. cats_free releases it; NULL is allowed. */
void *cats_aligned_memory(size_t alignment, size_t bytes);
void cats_free(void *memory);

/* The one lock of the process, for the list of loaded libraries. */
void cats_lock(void);
void cats_unlock(void);

/* Value of an environment variable, until the next call; NULL without one, or where the program runs with more rights
 * than who started it. Call it under the lock. */
const char *cats_environment(const char *name);

/* What a path leads to, CATS_PATH_FILE and the like, and its size in bytes unless that is NULL; 0 with errno. */
int cats_path_kind(const char *path, uint64_t *size);

/* Opens a file for reading bytes; NULL with errno. */
FILE *cats_file_open(const char *path);

/* Calls `each` with every name in a folder; 0 where there is no such folder. */
int cats_folder_list(const char *folder, void (*each)(void *context, const char *name), void *context);

/* A path as ONNX Runtime takes it here, in room for CATS_PATH_SIZE; 0 where it is too long or not UTF-8. */
int cats_native_path(const char *path, cats_native_char *native);

/* The path without links; 0 where there is none, or it does not fit. */
int cats_real_path(const char *path, char *real, size_t size);

/* File of libcats itself, absolute; NULL where it is not known. Call it under the lock. */
const char *cats_self(void);

/* Loads a library: a path, or a name that is looked for in the loader's places, among which the working folder of the
 * process never is. NULL with a reason. */
void *cats_library_open(const char *file, char *reason, size_t size);
void cats_library_close(void *library);

/* Address of a symbol, NULL without it. */
void *cats_library_symbol(void *library, const char *name);

/* File of a library of which `symbol` is one; 0 where it is not known. */
int cats_library_file(void *library, const void *symbol, char *path, size_t size);

/* Reads a number with a decimal point, whatever the locale; 0 without memory. */
int cats_number(const char *text, double *number);

/* CPUs that this process may use where they are fewer than the machine's physical cores, which ONNX Runtime counts and
 * nothing else; 0 where they are not. The rules are those of cats/runtime/hardware.py: affinity, and on Linux the
 * control group's quota. macOS has neither. */
int cats_limited_cpus(void);

#endif
