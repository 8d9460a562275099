/* The part of ONNX Runtime's C API that libcats uses, so that no header of it is needed.
 *
 * OrtGetApiBase()->GetApi(N) returns a table of function pointers. Positions in it never change between releases, which
 * is what ONNX Runtime guarantees to programs built against an older version; those used here exist since API 11.
 * abi/check_ort_header.c compares positions, types and constants with a real header where there is one.
 */
#ifndef CATS_ORT_API_H
#define CATS_ORT_API_H

#include <stddef.h>
#include <stdint.h>

#include "platform.h"

#define CATS_ORT_API 11

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtModelMetadata OrtModelMetadata;
typedef struct OrtIoBinding OrtIoBinding;
typedef struct OrtCUDAProviderOptionsV2 OrtCUDAProviderOptionsV2;

/* ONNX Runtime's enumerations: no value of theirs is negative or large, so an int is passed alike. */
#ifndef ORT_API_VERSION /* of the real header, which check_ort_header.c includes beforehand */
typedef int OrtLoggingLevel;
typedef int GraphOptimizationLevel;
typedef int ExecutionMode;
typedef int OrtAllocatorType;
typedef int OrtMemType;
typedef int ONNXTensorElementDataType;
#endif

#define CATS_ORT_LOG_FATAL 4
#define CATS_ORT_OPTIMIZE_ALL 99
#define CATS_ORT_SEQUENTIAL 0
#define CATS_ORT_DEVICE_ALLOCATOR 0
#define CATS_ORT_MEMORY_DEFAULT 0
#define CATS_ORT_FLOAT 1
#define CATS_ORT_FLOAT16 10

/* X(position, result, name, parameters) of every entry in use. */
#define CATS_ORT_ENTRIES(X)                                                                                            \
  X(2, const char *, GetErrorMessage, (const OrtStatus *))                                                             \
  X(3, OrtStatus *, CreateEnv, (OrtLoggingLevel, const char *, OrtEnv **))                                             \
  X(7, OrtStatus *, CreateSession, (const OrtEnv *, const cats_native_char *, const OrtSessionOptions *, OrtSession **)) \
  X(8, OrtStatus *, CreateSessionFromArray,                                                                            \
    (const OrtEnv *, const void *, size_t, const OrtSessionOptions *, OrtSession **))                                  \
  X(9, OrtStatus *, Run,                                                                                               \
    (OrtSession *, const OrtRunOptions *, const char *const *, const OrtValue *const *, size_t, const char *const *,   \
     size_t, OrtValue **))                                                                                             \
  X(10, OrtStatus *, CreateSessionOptions, (OrtSessionOptions **))                                                     \
  X(13, OrtStatus *, SetSessionExecutionMode, (OrtSessionOptions *, ExecutionMode))                                    \
  X(22, OrtStatus *, SetSessionLogSeverityLevel, (OrtSessionOptions *, int))                                           \
  X(23, OrtStatus *, SetSessionGraphOptimizationLevel, (OrtSessionOptions *, GraphOptimizationLevel))                  \
  X(24, OrtStatus *, SetIntraOpNumThreads, (OrtSessionOptions *, int))                                                 \
  X(30, OrtStatus *, SessionGetInputCount, (const OrtSession *, size_t *))                                             \
  X(31, OrtStatus *, SessionGetOutputCount, (const OrtSession *, size_t *))                                            \
  X(33, OrtStatus *, SessionGetInputTypeInfo, (const OrtSession *, size_t, OrtTypeInfo **))                            \
  X(34, OrtStatus *, SessionGetOutputTypeInfo, (const OrtSession *, size_t, OrtTypeInfo **))                           \
  X(36, OrtStatus *, SessionGetInputName, (const OrtSession *, size_t, OrtAllocator *, char **))                       \
  X(37, OrtStatus *, SessionGetOutputName, (const OrtSession *, size_t, OrtAllocator *, char **))                      \
  X(39, OrtStatus *, CreateRunOptions, (OrtRunOptions **))                                                             \
  X(41, OrtStatus *, RunOptionsSetRunLogSeverityLevel, (OrtRunOptions *, int))                                         \
  X(49, OrtStatus *, CreateTensorWithDataAsOrtValue,                                                                   \
    (const OrtMemoryInfo *, void *, size_t, const int64_t *, size_t, ONNXTensorElementDataType, OrtValue **))          \
  X(55, OrtStatus *, CastTypeInfoToTensorInfo, (const OrtTypeInfo *, const OrtTensorTypeAndShapeInfo **))              \
  X(60, OrtStatus *, GetTensorElementType, (const OrtTensorTypeAndShapeInfo *, ONNXTensorElementDataType *))           \
  X(61, OrtStatus *, GetDimensionsCount, (const OrtTensorTypeAndShapeInfo *, size_t *))                                \
  X(62, OrtStatus *, GetDimensions, (const OrtTensorTypeAndShapeInfo *, int64_t *, size_t))                            \
  X(68, OrtStatus *, CreateMemoryInfo, (const char *, OrtAllocatorType, int, OrtMemType, OrtMemoryInfo **))            \
  X(76, OrtStatus *, AllocatorFree, (OrtAllocator *, void *))                                                          \
  X(78, OrtStatus *, GetAllocatorWithDefaultOptions, (OrtAllocator **))                                                \
  X(92, void, ReleaseEnv, (OrtEnv *))                                                                                  \
  X(93, void, ReleaseStatus, (OrtStatus *))                                                                            \
  X(94, void, ReleaseMemoryInfo, (OrtMemoryInfo *))                                                                    \
  X(95, void, ReleaseSession, (OrtSession *))                                                                          \
  X(96, void, ReleaseValue, (OrtValue *))                                                                              \
  X(97, void, ReleaseRunOptions, (OrtRunOptions *))                                                                    \
  X(98, void, ReleaseTypeInfo, (OrtTypeInfo *))                                                                        \
  X(100, void, ReleaseSessionOptions, (OrtSessionOptions *))                                                           \
  X(133, OrtStatus *, RunWithBinding, (OrtSession *, const OrtRunOptions *, const OrtIoBinding *))                     \
  X(134, OrtStatus *, CreateIoBinding, (OrtSession *, OrtIoBinding **))                                                \
  X(135, void, ReleaseIoBinding, (OrtIoBinding *))                                                                     \
  X(136, OrtStatus *, BindInput, (OrtIoBinding *, const char *, const OrtValue *))                                     \
  X(137, OrtStatus *, BindOutput, (OrtIoBinding *, const char *, const OrtValue *))                                    \
  X(165, OrtStatus *, AddRunConfigEntry, (OrtRunOptions *, const char *, const char *))                                \
  X(204, OrtStatus *, SessionOptionsAppendExecutionProvider_CUDA_V2,                                                   \
    (OrtSessionOptions *, const OrtCUDAProviderOptionsV2 *))                                                           \
  X(205, OrtStatus *, CreateCUDAProviderOptions, (OrtCUDAProviderOptionsV2 **))                                        \
  X(206, OrtStatus *, UpdateCUDAProviderOptions,                                                                       \
    (OrtCUDAProviderOptionsV2 *, const char *const *, const char *const *, size_t))                                    \
  X(208, void, ReleaseCUDAProviderOptions, (OrtCUDAProviderOptionsV2 *))

#endif
