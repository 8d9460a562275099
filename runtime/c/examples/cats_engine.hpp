// A CATs engine of cats-build in TensorRT, without ONNX Runtime: engine.plan and its sidecar engine.plan.json.
//
// Loads the plan, checks that the sidecar is its own, preprocesses as Python does, runs, and moves points a -> b. Uses
// the preprocessing, metadata and geometry of libcats as sources (src/common.c, image.c, json.c, metadata.c, geometry.c,
// platform_posix.c), NvInfer.h and the CUDA runtime. A plan is code: load only files that you trust.
//
// For TensorRT 10 and newer. Not thread-safe: one Engine per thread.
#ifndef CATS_ENGINE_HPP
#define CATS_ENGINE_HPP

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" {
#include "geometry.h"
#include "image.h"
#include "json.h"
#include "metadata.h"
}

namespace cats {

inline void check(cudaError_t status, const char *what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline void check(cats_status status) {
  if (status != CATS_OK) throw std::runtime_error(cats_last_error());
}

inline std::string read_file(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// Memory of the GPU.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) { check(cudaMalloc(&data_, bytes), "cudaMalloc"); }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer &) = delete;
  DeviceBuffer &operator=(const DeviceBuffer &) = delete;
  void *data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void *data_ = nullptr;
  std::size_t bytes_;
};

class Stream {
 public:
  Stream() { check(cudaStreamCreate(&stream_), "cudaStreamCreate"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream &) = delete;
  Stream &operator=(const Stream &) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// The buffers of libcats' preprocessing.
struct Resizer : cats_resizer {
  Resizer() : cats_resizer{} {}
  ~Resizer() { cats_resizer_free(this); }
  Resizer(const Resizer &) = delete;
  Resizer &operator=(const Resizer &) = delete;
};

// Where an image lies in another: flow in cells, (2, grid, grid), and confidence, (grid, grid).
struct Match {
  int grid;
  cats_sizes sizes;
  std::vector<float> flow, confidence;

  // Pixels of a to pixels of b.
  void transfer(const double in_a[2], double in_b[2]) const {
    cats_transfer_point(flow.data(), grid, &sizes, in_a, in_b);
  }
  // In [0, 1], at pixels of a.
  double confidence_at(const double in_a[2]) const {
    return cats_sample(confidence.data(), grid, cats_pixel_to_cell(in_a[0], sizes.width_a, grid),
                       cats_pixel_to_cell(in_a[1], sizes.height_a, grid));
  }
};

class Engine {
 public:
  // Throws std::runtime_error: files missing, not of each other, or not for this GPU and TensorRT.
  explicit Engine(const std::string &plan) {
    read_sidecar(plan + ".json");
    const std::string data = read_file(plan);
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(data.data(), data.size()));
    if (!engine_) throw std::runtime_error(plan + " does not load here: " + logger_.last + "; build it with cats-build");
    if (network_ != engine_->getName())
      throw std::runtime_error(plan + " holds the network " + engine_->getName() + ", its sidecar " + network_);
    context_.reset(engine_->createExecutionContext());
    if (!context_) throw std::runtime_error(plan + ": no execution context: " + logger_.last);
    stream_ = std::make_unique<Stream>();
    const std::size_t image = 3u * metadata_.width * metadata_.height, cells = std::size_t(metadata_.grid) * metadata_.grid;
    const nvinfer1::Dims shape{4, {1, 3, metadata_.height, metadata_.width}};
    for (const char *name : {"image_a", "image_b"}) {
      if (!context_->setInputShape(name, shape)) throw std::runtime_error(plan + " does not take one pair at a time");
      bind(plan, name, image);
    }
    bind(plan, "flow", 2 * cells);
    bind(plan, "confidence", cells);
  }

  Engine(const Engine &) = delete;
  Engine &operator=(const Engine &) = delete;

  // Matches image a to image b.
  Match match(const cats_image &a, const cats_image &b) {
    const std::size_t cells = std::size_t(metadata_.grid) * metadata_.grid;
    Match result{metadata_.grid, {a.width, a.height, b.width, b.height}, {}, {}};
    upload(a, "image a", *buffers_[0]);
    upload(b, "image b", *buffers_[1]);
    if (!context_->enqueueV3(*stream_)) throw std::runtime_error("TensorRT: " + logger_.last);
    result.flow.resize(2 * cells);
    result.confidence.resize(cells);
    download(*buffers_[2], result.flow);
    download(*buffers_[3], result.confidence);
    check(cudaStreamSynchronize(*stream_), "the GPU");
    for (const auto *values : {&result.flow, &result.confidence})
      for (float value : *values)
        if (!std::isfinite(value)) throw std::runtime_error("values that are not numbers: build the engine in fp32");
    return result;
  }

 private:
  // TensorRT reports through a log; the last complaint becomes the error text.
  struct Logger : nvinfer1::ILogger {
    std::string last = "no reason given";
    void log(Severity severity, const char *text) noexcept override {
      if (severity <= Severity::kERROR) last = text;
    }
  };

  void read_sidecar(const std::string &path) {
    const std::string text = read_file(path);
    char name[128];
    std::size_t where = 0;
    check(cats_metadata_parse(text.data(), text.size(), path.c_str(), &metadata_));
    const cats_json document = cats_json_check(text.data(), text.size(), &where);
    const cats_json network = cats_json_find(cats_json_find(document, "engine"), "network");
    if (std::string(metadata_.kind) != "pair" || !cats_json_string(network, name, sizeof name))
      throw std::runtime_error(path + " does not describe an engine for pairs; build it with cats-build");
    network_ = name;
    cats_levels_init(&levels_, &metadata_);
  }

  void bind(const std::string &plan, const char *name, std::size_t elements) {
    if (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kNONE ||
        engine_->getTensorDataType(name) != nvinfer1::DataType::kFLOAT)
      throw std::runtime_error(plan + " has no float32 tensor " + name);
    buffers_.push_back(std::make_unique<DeviceBuffer>(elements * sizeof(float)));
    if (!context_->setTensorAddress(name, buffers_.back()->data()))
      throw std::runtime_error(plan + ": " + name + ": " + logger_.last);
  }

  void upload(const cats_image &given, const char *name, const DeviceBuffer &buffer) {
    cats_image image;
    std::vector<float> &tensor = tensors_[&buffer == buffers_[1].get()];
    tensor.resize(buffer.bytes() / sizeof(float));
    check(cats_image_check(&given, CATS_MAX_PIXELS, name, &image));
    check(cats_image_to_tensor(&resizer_, &levels_, &image, metadata_.width, metadata_.height, tensor.data()));
    check(cudaMemcpyAsync(buffer.data(), tensor.data(), buffer.bytes(), cudaMemcpyHostToDevice, *stream_), "upload");
  }

  void download(const DeviceBuffer &buffer, std::vector<float> &values) {
    check(cudaMemcpyAsync(values.data(), buffer.data(), buffer.bytes(), cudaMemcpyDeviceToHost, *stream_), "download");
  }

  Logger logger_;
  cats_metadata metadata_{};
  cats_levels levels_{};
  Resizer resizer_;
  std::string network_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;  // image_a, image_b, flow, confidence
  std::vector<float> tensors_[2];                       // what is being uploaded
};

}  // namespace cats

#endif
