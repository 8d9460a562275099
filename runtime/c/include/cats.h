/* libcats: semantic correspondence with CATs inside C and C++ programs.
 *
 *     #include <cats.h>
 *
 *     cats_matcher *matcher = NULL;
 *     cats_context *context = NULL;
 *     if (cats_open("cats.onnx", NULL, &matcher) != CATS_OK || cats_context_create(matcher, &context) != CATS_OK) {
 *         fprintf(stderr, "%s\n", cats_last_error());
 *         return 1;
 *     }
 *     cats_image a = CATS_IMAGE(pixels_a, width_a, height_a, CATS_RGB);
 *     cats_image b = CATS_IMAGE(pixels_b, width_b, height_b, CATS_RGB);
 *     double points_a[2] = {120.0, 80.0}, points_b[2];
 *     if (cats_match(context, &a, &b) != CATS_OK || cats_transfer(context, 0, points_a, 1, points_b) != CATS_OK)
 *         fprintf(stderr, "%s\n", cats_last_error());
 *     cats_context_destroy(context);
 *     cats_close(matcher);
 *
 * One image against many, with a split model (cats-export --split), each image encoded once:
 *
 *     cats_features *reference = NULL, *frame = NULL;
 *     cats_features_create(matcher, &reference);
 *     cats_features_create(matcher, &frame);
 *     cats_encode(context, &a, reference);
 *     for (;;) {
 *         cats_encode(context, &b, frame);
 *         const cats_features *from = reference, *to = frame;
 *         if (cats_match_features(context, &from, &to, 1) != CATS_OK) break;
 *         cats_transfer(context, 0, points_a, 1, points_b);
 *     }
 *     cats_features_destroy(frame);
 *     cats_features_destroy(reference);
 *
 * Models are ONNX files of `cats-export`; everything about them (input side, normalisation, grid) is read from the
 * file. ONNX Runtime is loaded at run time and is the only thing that libcats needs beside libc: see cats_options.
 *
 * Units. Points are x, y pairs in pixels of the images as given, pixel centres at integers, x right, y down: an image of
 * width W spans [-0.5, W - 0.5]. Flow is in cells of the model's grid. Everything runs a -> b.
 *
 * Errors. Functions return a cats_status, CATS_OK on success; cats_last_error() says what was wrong and how to mend it.
 * Outputs are not written when a call fails, unless said. Nothing in libcats prints, exits or aborts. Null pointers and
 * values out of range are refused with CATS_ERROR_ARGUMENT everywhere; what else a call may return is said with it.
 *
 * Ownership. What a function hands out through a `**` is the caller's until it is given to the function of the same name
 * that ends in _close or _destroy. What a caller passes in stays the caller's and is only used during the call.
 *
 * Threads. A matcher may be used by any number of threads. A context is the workspace and the result of one run at a
 * time: make one per thread. Two threads in one context at once are refused with CATS_ERROR_BUSY, never undefined.
 * Features may be read by many threads, but not while cats_encode writes them.
 *
 * Memory. After the first call of its kind with the largest images and batch, libcats itself allocates nothing in
 * cats_match, cats_match_batch, cats_encode, cats_match_features, cats_match_device and the functions that read results.
 * What ONNX Runtime allocates is its own affair; cats_options.run_pairs bounds it.
 *
 * Texts. Paths and all other texts are UTF-8, on Windows too.
 *
 * ABI. Handles are opaque, structures begin with their size, constants are macros: a program built against this header
 * runs with every later libcats of the same CATS_ABI_VERSION.
 */
#ifndef CATS_H
#define CATS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* CATS_BUILD: while libcats itself is compiled. CATS_STATIC: its sources are part of the program that includes this. */
#if defined(_WIN32) && !defined(CATS_STATIC)
#if defined(CATS_BUILD)
#define CATS_API __declspec(dllexport)
#else
#define CATS_API __declspec(dllimport)
#endif
#elif defined(CATS_BUILD) && defined(__GNUC__)
#define CATS_API __attribute__((visibility("default")))
#else
#define CATS_API
#endif

#define CATS_VERSION_STRING "0.1.0"
#define CATS_ABI_VERSION 1

/* Outcome of a call. */
typedef int32_t cats_status;
#define CATS_OK 0
#define CATS_ERROR_ARGUMENT 1 /* an argument is null, out of range, or does not fit the model */
#define CATS_ERROR_FILE 2     /* a file cannot be read */
#define CATS_ERROR_MODEL 3    /* not a model that this version of libcats can run */
#define CATS_ERROR_RUNTIME 4  /* ONNX Runtime, its provider or the device is not here, or failed */
#define CATS_ERROR_MEMORY 5   /* libcats is out of memory; where ONNX Runtime is, it is CATS_ERROR_RUNTIME */
#define CATS_ERROR_STATE 6    /* the call needs something done before, such as a match */
#define CATS_ERROR_BUSY 7     /* another thread is using this context */

/* A loaded model. */
typedef struct cats_matcher cats_matcher;
/* Workspace and results of one run at a time. */
typedef struct cats_context cats_context;
/* An encoded image, to be matched with many. */
typedef struct cats_features cats_features;

/* Order of the samples of a pixel, 8 bits each. */
#define CATS_RGB 1u
#define CATS_BGR 2u
#define CATS_RGBA 3u /* transparent pixels are laid over white, as cats-run does */
#define CATS_BGRA 4u
#define CATS_GREY 5u

/* An image in memory of the caller, read during the call only. At least 16x16 pixels, at most 2^24 a side. */
typedef struct cats_image {
  size_t struct_size; /* sizeof(cats_image) */
  const void *data;   /* first sample of the top row */
  int32_t width;      /* pixels */
  int32_t height;     /* pixels */
  int64_t stride;     /* bytes from a row to the next below it; 0: rows follow each other; negative: bottom-up */
  uint32_t format;    /* CATS_RGB, ... */
  uint32_t reserved;  /* 0 */
} cats_image;

/* Initialiser of a cats_image without gaps between its rows. */
#define CATS_IMAGE(data_, width_, height_, format_)                                                                   \
  { sizeof(cats_image), (data_), (width_), (height_), 0, (format_), 0 }

/* How to load a model; begin with CATS_OPTIONS and change fields. */
typedef struct cats_options {
  size_t struct_size;       /* sizeof(cats_options) */
  const char *provider;     /* "cpu" (default) or "cuda"; never replaced by another one */
  int32_t device;           /* index of the GPU */
  int32_t threads;          /* CPU threads of one run; 0: one per physical core, fewer where the process is limited */
  void *stream;             /* cudaStream_t of all work of this matcher; NULL: a stream of its own */
  const char *ort_library;  /* file of ONNX Runtime, or folder of it; NULL: CATS_ORT_LIBRARY of the environment, then
                               beside libcats and the Python package onnxruntime next to it, then the loader's places */
  const char *partner_path; /* the other file of a split model; NULL: X.encoder.onnx finds X.matcher.onnx beside it */
  const void *partner_data; /* the other file of a split model in memory, for cats_open_memory */
  size_t partner_size;      /* bytes */
  int64_t max_pixels;       /* larger images are refused; 0: 89478485, as cats-run */
  int32_t run_pairs;        /* most pairs of one run where the file leaves the batch free, which bounds memory; 0: 8 */
  int32_t reserved;         /* 0 */
} cats_options;

#define CATS_OPTIONS                                                                                                  \
  { sizeof(cats_options), NULL, 0, 0, NULL, NULL, NULL, NULL, 0, 0, 0, 0 }

/* What a model says about itself. Texts belong to the matcher. */
typedef struct cats_info {
  size_t struct_size;      /* set it to sizeof(cats_info) before the call */
  int32_t image_width;     /* pixels of the model's input */
  int32_t image_height;    /* pixels of the model's input */
  int32_t grid;            /* cells per side, G */
  int32_t max_batch;       /* pairs of one run that the file fixes, 0: any number; larger batches are split */
  int32_t split;           /* 1: encoder and matcher, so that cats_encode works */
  int32_t verified;        /* 1: compared with PyTorch at export, within its tolerance */
  int32_t calibrated;      /* 1: cats_calibrated_confidence works */
  float mean[3];           /* of R, G, B in 0..1 */
  float std[3];            /* of R, G, B in 0..1 */
  const char *precision;   /* fp32, fp16, int8, ... */
  const char *weights;     /* SHA-256 of the weights, hexadecimal */
  const char *provider;    /* cpu or cuda */
  const char *ort_version; /* of the ONNX Runtime in use */
  const char *ort_library; /* its file */
} cats_info;

#define CATS_INFO                                                                                                     \
  { sizeof(cats_info), 0, 0, 0, 0, 0, 0, 0, {0, 0, 0}, {0, 0, 0}, NULL, NULL, NULL, NULL, NULL }

/* Version of the library, CATS_VERSION_STRING of its header; static. Any thread. */
CATS_API const char *cats_version(void);

/* CATS_ABI_VERSION of the library's header: compare it with your own where the library is loaded at run time. Any
 * thread. */
CATS_API uint32_t cats_abi_version(void);

/* Why the last failed call of this thread failed; "" before the first. Belongs to libcats, valid until the thread's next
 * failure; a success does not clear it. */
CATS_API const char *cats_last_error(void);

/* Name of a status, such as "CATS_ERROR_MODEL"; static. Any thread. */
CATS_API const char *cats_status_name(cats_status status);

/* Loads a model from a file: a pair model, or either file of a split one. Optimises the graph, so keep it open.
 * options may be NULL; texts and buffers in it are read during the call only. On success *matcher is the caller's, to
 * be given to cats_close; on failure it is NULL. Any thread, several at once.
 * Returns also CATS_ERROR_FILE, CATS_ERROR_MODEL (not ONNX, no metadata of CATs, another kind, a partner of other
 * weights), CATS_ERROR_RUNTIME (ONNX Runtime was not found: the text lists what was tried; the provider did not start),
 * CATS_ERROR_MEMORY. */
CATS_API cats_status cats_open(const char *path, const cats_options *options, cats_matcher **matcher);

/* Loads a model of `size` bytes in memory, which may be released afterwards. Otherwise as cats_open; the other file of a
 * split model is named in options (partner_data or partner_path). */
CATS_API cats_status cats_open_memory(const void *data, size_t size, const cats_options *options,
                                      cats_matcher **matcher);

/* Releases a matcher; NULL is allowed. Contexts and features made of it stay usable until they are destroyed. Once per
 * matcher, when no other thread is passing it to a function. */
CATS_API void cats_close(cats_matcher *matcher);

/* Fills *info, whose struct_size the caller has set (CATS_INFO does). Its texts live as long as the matcher. Any
 * thread. */
CATS_API cats_status cats_get_info(const cats_matcher *matcher, cats_info *info);

/* Makes a context, which grows with its first match. *context is the caller's, to be given to cats_context_destroy; NULL
 * on failure. Any thread. Returns also CATS_ERROR_MEMORY. */
CATS_API cats_status cats_context_create(cats_matcher *matcher, cats_context **context);

/* Releases a context; NULL is allowed. No other thread may be using it. */
CATS_API void cats_context_destroy(cats_context *context);

/* Matches image a to image b: where each place of a lies in b. The result is in the context, pair 0, until its next
 * match, and is read with cats_flow, cats_transfer and the like; after a failure the context holds none.
 * Returns also CATS_ERROR_RUNTIME (the run failed, or gave values that are not numbers), CATS_ERROR_MEMORY,
 * CATS_ERROR_BUSY. */
CATS_API cats_status cats_match(cats_context *context, const cats_image *a, const cats_image *b);

/* Matches a[i] to b[i] for i < count (1 to 1024), cats_options.run_pairs at a time or as many as the file fixes; a split
 * model one at a time, encoding an image once where a[i] is a[i - 1]. The results are pairs 0 .. count - 1 of the
 * context. All images are checked before anything runs. Otherwise as cats_match. */
CATS_API cats_status cats_match_batch(cats_context *context, const cats_image *const *a, const cats_image *const *b,
                                      size_t count);

/* Makes room for an encoded image; needs a split model. *features is the caller's, to be given to
 * cats_features_destroy; NULL on failure. Any thread. Returns also CATS_ERROR_STATE (a pair model), CATS_ERROR_MEMORY. */
CATS_API cats_status cats_features_create(cats_matcher *matcher, cats_features **features);

/* Releases features; NULL is allowed. No other thread may be using them. */
CATS_API void cats_features_destroy(cats_features *features);

/* Encodes an image into features, replacing what they held; needs a split model. Leaves the context's last match as it
 * is. Features that are not being written may be read by any number of threads; where the encoder itself fails they
 * hold nothing. Returns also CATS_ERROR_STATE (a pair model), CATS_ERROR_RUNTIME, CATS_ERROR_MEMORY, CATS_ERROR_BUSY. */
CATS_API cats_status cats_encode(cats_context *context, const cats_image *image, cats_features *features);

/* Matches a[i] to b[i] for i < count (1 to 1024): encoded images, the same one as often as wanted, so that one image
 * is matched with many at the cost of the matcher alone. Results and failures as of cats_match_batch;
 * CATS_ERROR_STATE where features hold no image yet. */
CATS_API cats_status cats_match_features(cats_context *context, const cats_features *const *a,
                                         const cats_features *const *b, size_t count);

/* Number of pairs of the last match; 0 if there is none, it failed, or another thread is using the context. */
CATS_API size_t cats_pair_count(const cats_context *context);

/* Copies the flow of a pair: count = 2 * G * G floats, all x then all y, rows of cells of a, in cells: the cell (x, y) of
 * a lies at (x + flow_x, y + flow_y) in b. This and all functions below that read results return also CATS_ERROR_STATE
 * (no match yet) and CATS_ERROR_BUSY. */
CATS_API cats_status cats_flow(cats_context *context, size_t pair, float *flow, size_t count);

/* Copies the confidence of a pair: count = G * G floats in 0..1, one per cell of a. */
CATS_API cats_status cats_confidence(cats_context *context, size_t pair, float *confidence, size_t count);

/* Copies the probability, in 0..1, that each cell's match is within a tenth of the image's side of the truth: count =
 * G * G floats. Needs a model that cats fit-confidence wrote (cats_info.calibrated), else
 * CATS_ERROR_STATE. */
CATS_API cats_status cats_calibrated_confidence(cats_context *context, size_t pair, float *probability, size_t count);

/* Where points of a lie in b.
 * points_a, points_b: count x, y pairs in pixels; they may be the same memory. A point outside image a is refused;
 * a result may lie outside image b. */
CATS_API cats_status cats_transfer(cats_context *context, size_t pair, const double *points_a, size_t count,
                                   double *points_b);

/* Confidence in 0..1 at points of a, bilinear between cells: count values. Points as in cats_transfer. */
CATS_API cats_status cats_confidence_at(cats_context *context, size_t pair, const double *points_a, size_t count,
                                        double *confidence);

/* Displacement of every pixel of a in pixels: position in b minus position in a.
 * width_a .. height_b: the sizes to which the images are thought to be scaled; all 0: their own.
 * flow: count = height_a * width_a * 2 floats, row by row, x and y of a pixel side by side. */
CATS_API cats_status cats_dense_flow(cats_context *context, size_t pair, int32_t width_a, int32_t height_a,
                                     int32_t width_b, int32_t height_b, float *flow, size_t count);

/* Model input of an image: resized as Pillow does (antialiased bilinear, exact), normalised. Leaves the context's last
 * match as it is.
 * tensor: count = 3 * image_height * image_width floats, planes R, G, B. */
CATS_API cats_status cats_preprocess(cats_context *context, const cats_image *image, float *tensor, size_t count);

/* Inputs and outputs in memory of the matcher's device ("cuda": device memory; "cpu": ordinary memory), float32. */
typedef struct cats_device_batch {
  size_t struct_size;  /* sizeof(cats_device_batch) */
  const void *image_a; /* (batch, 3, image_height, image_width), as cats_preprocess makes them */
  const void *image_b; /* the same */
  void *flow;          /* (batch, 2, G, G), in cells */
  void *confidence;    /* (batch, G, G) */
  int64_t batch;       /* pairs, at most 1024; a model of fixed batch takes exactly that */
  void *stream;        /* cudaStream_t on which the inputs are produced; NULL: they are complete */
} cats_device_batch;

/* Matches tensors that are already on the device, without a copy; needs a pair model.
 * On the stream that the matcher was opened with, the work is only enqueued: outputs are complete when the stream is,
 * and the four buffers must live until then. With any other stream the call waits for it before and for the outputs
 * after. Leaves no result in the context. Returns also CATS_ERROR_STATE (a split model), CATS_ERROR_MODEL (outputs in
 * float16), CATS_ERROR_RUNTIME (after which the outputs may hold anything), CATS_ERROR_BUSY. Unlike cats_match it does
 * not look for values that are not numbers. */
CATS_API cats_status cats_match_device(cats_context *context, const cats_device_batch *batch);

#ifdef __cplusplus
}
#endif

#endif
