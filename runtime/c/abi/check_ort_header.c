/* Compares src/ort_api.h with a real onnxruntime_c_api.h: positions in the table, types of the functions, constants.
 * Compile it where that header is: gcc -std=c11 -fsyntax-only -I src check_ort_header.c
 * It agrees with those of 1.21.0 and 1.23.2 (Debian's libonnxruntime-dev). Other releases have the same table: ONNX
 * Runtime's own onnxruntime_c_api.cc asserts where each version of it ends, version 11 at position 209. */
#include <onnxruntime_c_api.h>
#include "ort_api.h" /* declares the opaque types again, which C11 allows */

#define CHECK(position, result, name, parameters)                                                             \
  _Static_assert(offsetof(OrtApi, name) == (position) * sizeof(void *), #name " is elsewhere in the table"); \
  _Static_assert(__builtin_types_compatible_p(__typeof__(((OrtApi *)0)->name), result(*) parameters),        \
                 #name " has another type");
CATS_ORT_ENTRIES(CHECK)

_Static_assert(offsetof(OrtApiBase, GetApi) == 0 && offsetof(OrtApiBase, GetVersionString) == sizeof(void *), "base");
_Static_assert(ORT_LOGGING_LEVEL_FATAL == CATS_ORT_LOG_FATAL && ORT_ENABLE_ALL == CATS_ORT_OPTIMIZE_ALL &&
                   ORT_SEQUENTIAL == CATS_ORT_SEQUENTIAL && OrtDeviceAllocator == CATS_ORT_DEVICE_ALLOCATOR &&
                   OrtMemTypeDefault == CATS_ORT_MEMORY_DEFAULT &&
                   ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == CATS_ORT_FLOAT &&
                   ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 == CATS_ORT_FLOAT16,
               "an enumeration has other values");
