// libcats in C++: handles in unique_ptr, failures as exceptions.
//
//     cats-raii cats.onnx a.ppm b.ppm x y
//
// Prints where the point (x, y) of a lies in b, and the confidence.
#include <cats.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "read_image.h"

namespace {

struct Close {
  void operator()(cats_matcher *matcher) const { cats_close(matcher); }
  void operator()(cats_context *context) const { cats_context_destroy(context); }
  void operator()(unsigned char *pixels) const { std::free(pixels); }
};

void check(cats_status status) {
  if (status != CATS_OK) throw std::runtime_error(cats_last_error());
}

class Picture {
 public:
  explicit Picture(const char *path) : pixels_(read_image(path, &width_, &height_)) {
    if (!pixels_) throw std::runtime_error(std::string("cannot read ") + path);
  }
  cats_image view() const { return CATS_IMAGE(pixels_.get(), width_, height_, CATS_RGB); }

 private:
  int width_ = 0, height_ = 0;
  std::unique_ptr<unsigned char, Close> pixels_;
};

class Matcher {
 public:
  explicit Matcher(const char *path) {
    cats_matcher *matcher = nullptr;
    check(cats_open(path, nullptr, &matcher));
    matcher_.reset(matcher);
    cats_context *context = nullptr;
    check(cats_context_create(matcher, &context));
    context_.reset(context);
  }

  // The point of b and the confidence.
  std::pair<std::pair<double, double>, double> match(const Picture &a, const Picture &b, double x, double y) {
    const cats_image one = a.view(), two = b.view();
    const double from[2] = {x, y};
    double to[2], confidence;
    check(cats_match(context_.get(), &one, &two));
    check(cats_transfer(context_.get(), 0, from, 1, to));
    check(cats_confidence_at(context_.get(), 0, from, 1, &confidence));
    return {{to[0], to[1]}, confidence};
  }

 private:
  std::unique_ptr<cats_matcher, Close> matcher_;
  std::unique_ptr<cats_context, Close> context_;
};

}  // namespace

int main(int count, char **arguments) {
  if (count != 6) {
    std::cerr << "usage: " << arguments[0] << " model.onnx a b x y\n";
    return 2;
  }
  try {
    Matcher matcher(arguments[1]);
    const auto found = matcher.match(Picture(arguments[2]), Picture(arguments[3]), std::atof(arguments[4]),
                                     std::atof(arguments[5]));
    std::cout << found.first.first << " " << found.first.second << " " << found.second << "\n";
  } catch (const std::exception &error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
