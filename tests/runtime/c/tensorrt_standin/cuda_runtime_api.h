/* The calls of the CUDA runtime that cats_engine.hpp makes, with ordinary memory; see NvInfer.h beside. */
#pragma once
#include <cstdlib>
#include <cstring>

using cudaError_t = int;
using cudaStream_t = struct CUstream_st *;
constexpr cudaError_t cudaSuccess = 0;
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };

inline const char *cudaGetErrorString(cudaError_t) { return "a failure"; }
inline cudaError_t cudaMalloc(void **data, std::size_t size) { return (*data = std::malloc(size)) ? cudaSuccess : 2; }
inline cudaError_t cudaFree(void *data) { return std::free(data), cudaSuccess; }
inline cudaError_t cudaStreamCreate(cudaStream_t *stream) {
  return cudaMalloc(reinterpret_cast<void **>(stream), 1);
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaFree(stream); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, std::size_t size, cudaMemcpyKind, cudaStream_t) {
  return std::memcpy(to, from, size), cudaSuccess;
}
