/* Prints the layout of every structure and the value of every constant of cats.h: the part of the ABI that symbols do
 * not show. libcats.abi holds its output on a 64-bit machine together with the exported functions. */
#include <cats.h>
#include <stdio.h>

#define CONSTANT(name) printf("constant " #name " %ld\n", (long)(name))
#define STRUCT(type) printf("struct " #type " size %zu\n", sizeof(type))
#define FIELD(type, field) \
  printf("field " #type "." #field " at %zu size %zu\n", offsetof(type, field), sizeof(((type *)0)->field))

int main(void) {
  CONSTANT(CATS_ABI_VERSION);
  CONSTANT(CATS_OK);
  CONSTANT(CATS_ERROR_ARGUMENT);
  CONSTANT(CATS_ERROR_FILE);
  CONSTANT(CATS_ERROR_MODEL);
  CONSTANT(CATS_ERROR_RUNTIME);
  CONSTANT(CATS_ERROR_MEMORY);
  CONSTANT(CATS_ERROR_STATE);
  CONSTANT(CATS_ERROR_BUSY);
  CONSTANT(CATS_RGB);
  CONSTANT(CATS_BGR);
  CONSTANT(CATS_RGBA);
  CONSTANT(CATS_BGRA);
  CONSTANT(CATS_GREY);
  STRUCT(cats_status);
  STRUCT(cats_image);
  FIELD(cats_image, struct_size);
  FIELD(cats_image, data);
  FIELD(cats_image, width);
  FIELD(cats_image, height);
  FIELD(cats_image, stride);
  FIELD(cats_image, format);
  FIELD(cats_image, reserved);
  STRUCT(cats_options);
  FIELD(cats_options, struct_size);
  FIELD(cats_options, provider);
  FIELD(cats_options, device);
  FIELD(cats_options, threads);
  FIELD(cats_options, stream);
  FIELD(cats_options, ort_library);
  FIELD(cats_options, partner_path);
  FIELD(cats_options, partner_data);
  FIELD(cats_options, partner_size);
  FIELD(cats_options, max_pixels);
  FIELD(cats_options, run_pairs);
  FIELD(cats_options, reserved);
  STRUCT(cats_info);
  FIELD(cats_info, struct_size);
  FIELD(cats_info, image_width);
  FIELD(cats_info, image_height);
  FIELD(cats_info, grid);
  FIELD(cats_info, max_batch);
  FIELD(cats_info, split);
  FIELD(cats_info, verified);
  FIELD(cats_info, calibrated);
  FIELD(cats_info, mean);
  FIELD(cats_info, std);
  FIELD(cats_info, precision);
  FIELD(cats_info, weights);
  FIELD(cats_info, provider);
  FIELD(cats_info, ort_version);
  FIELD(cats_info, ort_library);
  STRUCT(cats_device_batch);
  FIELD(cats_device_batch, struct_size);
  FIELD(cats_device_batch, image_a);
  FIELD(cats_device_batch, image_b);
  FIELD(cats_device_batch, flow);
  FIELD(cats_device_batch, confidence);
  FIELD(cats_device_batch, batch);
  FIELD(cats_device_batch, stream);
  return 0;
}
