/* Compares src/ort_api.h with a real onnxruntime_c_api.h: positions in the table and constants.
 * Compile it where that header is: gcc -std=c11 -fsyntax-only -I src check_ort_header.c */
#include <onnxruntime_c_api.h>
#include "ort_api.h" /* declares the opaque types again, which C11 allows */

#define POSITION(position, result, name, parameters) \
  _Static_assert(offsetof(OrtApi, name) == (position) * sizeof(void *), #name " is elsewhere in the table");
CATS_ORT_ENTRIES(POSITION)

_Static_assert(offsetof(OrtApiBase, GetApi) == 0 && offsetof(OrtApiBase, GetVersionString) == sizeof(void *), "base");
_Static_assert(ORT_LOGGING_LEVEL_FATAL == CATS_ORT_LOG_FATAL && ORT_ENABLE_ALL == CATS_ORT_OPTIMIZE_ALL &&
                   ORT_SEQUENTIAL == CATS_ORT_SEQUENTIAL && OrtDeviceAllocator == CATS_ORT_DEVICE_ALLOCATOR &&
                   OrtMemTypeDefault == CATS_ORT_MEMORY_DEFAULT &&
                   ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == CATS_ORT_FLOAT &&
                   ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 == CATS_ORT_FLOAT16,
               "an enumeration has other values");
