/* Matches two pictures with a TensorRT engine and prints where a grid of points of a lies in b, as match.c does.
 *
 *     run-engine engine.plan a.ppm b.ppm
 *
 * Build, in this folder:
 *     gcc -std=c11 -O2 -ffp-contract=off -c ../src/{common,image,json,metadata,geometry,platform_posix}.c read_image.c
 *         -I../include
 *     g++ -std=c++17 -O2 run_engine.cpp *.o -I../include -I../src -I$CUDA/include -I$TENSORRT/include -o run-engine
 *         -L$CUDA/lib64 -L$TENSORRT/lib -lnvinfer -lcudart -ldl -pthread
 */
#include "cats_engine.hpp"

#include <cstdio>
#include <cstdlib>

#include "read_image.h"

int main(int count, char **arguments) {
  constexpr int side = 8;
  if (count != 4) {
    std::fprintf(stderr, "usage: %s engine.plan a b\n", arguments[0]);
    return 2;
  }
  try {
    cats::Engine engine(arguments[1]);
    cats_image images[2] = {CATS_IMAGE(nullptr, 0, 0, CATS_RGB), CATS_IMAGE(nullptr, 0, 0, CATS_RGB)};
    std::unique_ptr<unsigned char, void (*)(void *)> pixels[2] = {{nullptr, std::free}, {nullptr, std::free}};
    for (int i = 0; i < 2; i++) {
      pixels[i].reset(read_image(arguments[i + 2], &images[i].width, &images[i].height));
      if (!pixels[i]) return 1;
      images[i].data = pixels[i].get();
    }
    const cats::Match match = engine.match(images[0], images[1]);
    for (int i = 0; i < side * side; i++) {
      const double from[2] = {(i % side + 0.5) * images[0].width / side - 0.5,
                              (i / side + 0.5) * images[0].height / side - 0.5};
      double to[2];
      match.transfer(from, to);
      std::printf("%.3f %.3f %.3f %.3f %.4f\n", from[0], from[1], to[0], to[1], match.confidence_at(from));
    }
  } catch (const std::exception &error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
