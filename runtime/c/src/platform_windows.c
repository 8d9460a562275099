/* See platform.h: Windows 8 and newer, 64 bits. It ran under Wine, and never on Windows itself. */
#include "platform.h"

#ifdef _WIN32
#ifndef _WIN64
#error "libcats is for 64-bit Windows: ONNX Runtime's functions are called otherwise in 32 bits"
#endif
#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0602
#endif
#define WIN32_LEAN_AND_MEAN
#include <errno.h>
#include <locale.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

#define LONGEST_VALUE 32767 /* of an environment variable, in UTF-16 */
#define MOST_RELATIONS 1024 /* of the processors of one group, which has at most 64 */

static SRWLOCK lock = SRWLOCK_INIT;

static int to_wide(const char *text, wchar_t *wide, int size) {
  return MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, wide, size) > 0;
}

static int to_utf8(const wchar_t *wide, char *text, size_t size) {
  return WideCharToMultiByte(CP_UTF8, 0, wide, -1, text, (int)size, NULL, NULL) > 0;
}

void *cats_aligned_memory(size_t alignment, size_t bytes) { return _aligned_malloc(bytes, alignment); }

void cats_free(void *memory) { _aligned_free(memory); }

void cats_lock(void) { AcquireSRWLockExclusive(&lock); }

void cats_unlock(void) { ReleaseSRWLockExclusive(&lock); }

const char *cats_environment(const char *name) {
  static wchar_t wide[LONGEST_VALUE + 1];
  static char value[3 * LONGEST_VALUE + 1];
  wchar_t key[64];
  if (!to_wide(name, key, sizeof key / sizeof *key)) return NULL;
  DWORD length = GetEnvironmentVariableW(key, wide, LONGEST_VALUE + 1);
  return length && length <= LONGEST_VALUE && to_utf8(wide, value, sizeof value) ? value : NULL;
}

/* What a path leads to, through links, for reading about it; INVALID_HANDLE_VALUE with errno. */
static HANDLE look_at(const char *path) {
  wchar_t wide[CATS_PATH_SIZE];
  errno = ENOENT;
  if (!to_wide(path, wide, CATS_PATH_SIZE)) return INVALID_HANDLE_VALUE;
  const DWORD others = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
  HANDLE file = CreateFileW(wide, FILE_READ_ATTRIBUTES, others, NULL, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, NULL);
  if (file == INVALID_HANDLE_VALUE && GetLastError() == ERROR_ACCESS_DENIED) errno = EACCES;
  return file;
}

/* Parts a path by '/'. */
static void turn_slashes(char *path) {
  for (; *path; path++)
    if (*path == '\\') *path = '/';
}

int cats_path_kind(const char *path, uint64_t *size) {
  BY_HANDLE_FILE_INFORMATION found;
  HANDLE file = look_at(path);
  if (file == INVALID_HANDLE_VALUE) return 0;
  int kind = CATS_PATH_OTHER;
  if (GetFileType(file) == FILE_TYPE_DISK && GetFileInformationByHandle(file, &found)) {
    if (size) *size = (uint64_t)found.nFileSizeHigh << 32 | found.nFileSizeLow;
    kind = found.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY ? CATS_PATH_FOLDER : CATS_PATH_FILE;
  }
  CloseHandle(file);
  return kind;
}

FILE *cats_file_open(const char *path) {
  wchar_t wide[CATS_PATH_SIZE];
  errno = ENOENT;
  return to_wide(path, wide, CATS_PATH_SIZE) ? _wfopen(wide, L"rb") : NULL;
}

int cats_folder_list(const char *folder, void (*each)(void *context, const char *name), void *context) {
  char pattern[CATS_PATH_SIZE], name[3 * MAX_PATH + 1];
  wchar_t wide[CATS_PATH_SIZE];
  WIN32_FIND_DATAW item;
  if ((size_t)snprintf(pattern, sizeof pattern, "%s/*", folder) >= sizeof pattern) return 0;
  if (!to_wide(pattern, wide, CATS_PATH_SIZE)) return 0;
  HANDLE listing = FindFirstFileW(wide, &item);
  if (listing == INVALID_HANDLE_VALUE) return 0;
  do {
    if (to_utf8(item.cFileName, name, sizeof name)) each(context, name);
  } while (FindNextFileW(listing, &item));
  FindClose(listing);
  return 1;
}

int cats_native_path(const char *path, cats_native_char *native) { return to_wide(path, native, CATS_PATH_SIZE); }

int cats_real_path(const char *path, char *real, size_t size) {
  static const wchar_t mark[] = L"\\\\?\\"; /* before every answer; after it a drive, or "UNC" and a machine */
  wchar_t wide[CATS_PATH_SIZE];
  HANDLE file = look_at(path);
  if (file == INVALID_HANDLE_VALUE) return 0;
  DWORD length = GetFinalPathNameByHandleW(file, wide, CATS_PATH_SIZE, FILE_NAME_NORMALIZED);
  CloseHandle(file);
  if (length < 6 || length >= CATS_PATH_SIZE || wcsncmp(wide, mark, 4) != 0 || wide[5] != L':') return 0;
  if (!to_utf8(wide + 4, real, size)) return 0;
  turn_slashes(real);
  return 1;
}

static int file_of(HMODULE module, char *path, size_t size) {
  wchar_t wide[CATS_PATH_SIZE];
  DWORD length = GetModuleFileNameW(module, wide, CATS_PATH_SIZE);
  return length > 0 && length < CATS_PATH_SIZE && to_utf8(wide, path, size);
}

const char *cats_self(void) {
  static char self[CATS_PATH_SIZE];
  HMODULE module = NULL;
  const DWORD flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
  if (!GetModuleHandleExW(flags, (LPCWSTR)(const void *)&lock, &module)) return NULL;
  if (!file_of(module, self, sizeof self)) return NULL;
  turn_slashes(self);
  return strchr(self, '/') ? self : NULL;
}

/* A path is searched for what it needs in its own folder; a bare name in the program's folder, those of AddDllDirectory
 * and the system's. Neither in PATH, nor in the working folder. */
static HMODULE load(const char *file) {
  wchar_t wide[CATS_PATH_SIZE], full[CATS_PATH_SIZE];
  SetLastError(ERROR_BAD_PATHNAME);
  if (!to_wide(file, wide, CATS_PATH_SIZE)) return NULL;
  if (!strpbrk(file, "/\\:")) return LoadLibraryExW(wide, NULL, LOAD_LIBRARY_SEARCH_DEFAULT_DIRS);
  DWORD length = GetFullPathNameW(wide, CATS_PATH_SIZE, full, NULL);
  if (length == 0 || length >= CATS_PATH_SIZE) return NULL;
  return LoadLibraryExW(full, NULL, LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR | LOAD_LIBRARY_SEARCH_DEFAULT_DIRS);
}

void *cats_library_open(const char *file, char *reason, size_t size) {
  DWORD mode = 0;
  wchar_t text[256];
  SetThreadErrorMode(SEM_FAILCRITICALERRORS, &mode); /* no window about a damaged file */
  HMODULE library = load(file);
  DWORD failure = GetLastError();
  SetThreadErrorMode(mode, NULL);
  if (library || !size) return (void *)library;
  const DWORD flags = FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS | FORMAT_MESSAGE_MAX_WIDTH_MASK;
  DWORD length = FormatMessageW(flags, NULL, failure, 0, text, sizeof text / sizeof *text, NULL);
  while (length && text[length - 1] == L' ') text[--length] = 0;
  if (!length || !to_utf8(text, reason, size)) snprintf(reason, size, "error %lu of Windows", (unsigned long)failure);
  return NULL;
}

void cats_library_close(void *library) { FreeLibrary((HMODULE)library); }

void *cats_library_symbol(void *library, const char *name) {
  FARPROC found = GetProcAddress((HMODULE)library, name);
  void *symbol;
  memcpy(&symbol, &found, sizeof symbol);
  return symbol;
}

int cats_library_file(void *library, const void *symbol, char *path, size_t size) {
  (void)symbol;
  return file_of((HMODULE)library, path, size);
}

int cats_number(const char *text, double *number) {
  _locale_t plain = _create_locale(LC_ALL, "C");
  if (!plain) return 0;
  *number = _strtod_l(text, NULL, plain);
  _free_locale(plain);
  return 1;
}

int cats_limited_cpus(void) {
  static SYSTEM_LOGICAL_PROCESSOR_INFORMATION relations[MOST_RELATIONS];
  DWORD_PTR mine = 0, all = 0;
  DWORD bytes = sizeof relations;
  int cores = 0, usable = 0;
  if (GetActiveProcessorGroupCount() != 1 || !GetProcessAffinityMask(GetCurrentProcess(), &mine, &all)) return 0;
  cats_lock(); /* for the buffer */
  if (GetLogicalProcessorInformation(relations, &bytes))
    for (size_t i = 0; i < bytes / sizeof *relations; i++) cores += relations[i].Relationship == RelationProcessorCore;
  cats_unlock();
  for (; mine; mine &= mine - 1) usable++;
  return usable > 0 && usable < cores ? usable : 0;
}
#endif
