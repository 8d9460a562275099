/* The part of TensorRT's runtime that cats_engine.hpp calls, with its names and signatures, so that the example compiles and
 * runs in tests where TensorRT is not. A plan here is the text "standin NETWORK SIDE GRID"; its network gives as flow
 * the means of a's red and b's green in each cell, and as confidence the mean of b's blue.
 * Compared by eye with NvInferRuntime.h, NvInferRuntimeBase.h and NvInferImpl.h of TensorRT 10, and by name with the
 * Python interface of 11.4 (tests/runtime/tensorrt_api). */
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace nvinfer1 {

using AsciiChar = char;
enum class DataType : std::int32_t { kFLOAT = 0, kHALF = 1 };
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };

struct Dims {
  std::int32_t nbDims;
  std::int64_t d[8];
};

class ILogger {
 public:
  enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
  virtual void log(Severity severity, AsciiChar const *text) noexcept = 0;
  virtual ~ILogger() = default;
};

class IExecutionContext {
 public:
  IExecutionContext(int side, int grid) : side_(side), grid_(grid) {}
  virtual ~IExecutionContext() noexcept = default;
  bool setInputShape(char const *, Dims const &dims) noexcept {
    return dims.nbDims == 4 && dims.d[0] == 1 && dims.d[1] == 3 && dims.d[2] == side_ && dims.d[3] == side_;
  }
  bool setTensorAddress(char const *name, void *data) noexcept { return (tensors_[name] = static_cast<float *>(data)); }
  bool enqueueV3(cudaStream_t) noexcept {
    const std::size_t cells = static_cast<std::size_t>(grid_) * grid_;
    pool("image_a", 0, tensors_["flow"]);
    pool("image_b", 1, tensors_["flow"] + cells);
    pool("image_b", 2, tensors_["confidence"]);
    return true;
  }

 private:
  void pool(const char *name, int channel, float *out) {
    const int cell = side_ / grid_;
    const float *plane = tensors_[name] + static_cast<std::size_t>(channel) * side_ * side_;
    std::vector<double> sums(static_cast<std::size_t>(grid_) * grid_);
    for (int y = 0; y < side_; y++)
      for (int x = 0; x < side_; x++) sums[y / cell * grid_ + x / cell] += plane[y * side_ + x];
    for (std::size_t i = 0; i < sums.size(); i++) out[i] = static_cast<float>(sums[i] / (cell * cell));
  }

  int side_, grid_;
  std::map<std::string, float *> tensors_;
};

class ICudaEngine {
 public:
  ICudaEngine(std::string name, int side, int grid) : name_(std::move(name)), side_(side), grid_(grid) {}
  virtual ~ICudaEngine() noexcept = default;
  char const *getName() const noexcept { return name_.c_str(); }
  IExecutionContext *createExecutionContext() noexcept { return new IExecutionContext(side_, grid_); }
  DataType getTensorDataType(char const *) const noexcept { return DataType::kFLOAT; }
  TensorIOMode getTensorIOMode(char const *name) const noexcept {
    for (const char *known : {"image_a", "image_b"})
      if (std::strcmp(name, known) == 0) return TensorIOMode::kINPUT;
    for (const char *known : {"flow", "confidence"})
      if (std::strcmp(name, known) == 0) return TensorIOMode::kOUTPUT;
    return TensorIOMode::kNONE;
  }

 private:
  std::string name_;
  int side_, grid_;
};

class IRuntime {
 public:
  explicit IRuntime(ILogger &logger) : logger_(logger) {}
  virtual ~IRuntime() noexcept = default;
  ICudaEngine *deserializeCudaEngine(void const *blob, std::size_t size) noexcept {
    std::istringstream plan(std::string(static_cast<const char *>(blob), size));
    std::string magic, name;
    int side = 0, grid = 0;
    if (plan >> magic >> name >> side >> grid && magic == "standin") return new ICudaEngine(name, side, grid);
    logger_.log(ILogger::Severity::kERROR, "magic tag does not match");
    return nullptr;
  }

 private:
  ILogger &logger_;
};

inline IRuntime *createInferRuntime(ILogger &logger) noexcept { return new IRuntime(logger); }

}  // namespace nvinfer1
