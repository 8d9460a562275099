/* Opening and closing models. */
#include "matcher.h"

#include <stdio.h>
#include <string.h>

#include "interface.h"

#define MAX_THREADS 1024 /* many more, and ONNX Runtime ends the process where the system starts no more threads */

/* The other file of a split model: X.encoder.onnx and X.matcher.onnx. */
static int partner_of(const char *path, char *partner, size_t size) {
  static const char encoder[] = ".encoder.onnx", matcher[] = ".matcher.onnx";
  size_t length = strlen(path), tail = sizeof encoder - 1;
  if (length <= tail || length >= size) return 0;
  const char *end = path + length - tail;
  const char *other = strcmp(end, encoder) == 0 ? matcher : strcmp(end, matcher) == 0 ? encoder : NULL;
  if (!other) return 0;
  memcpy(partner, path, length - tail);
  memcpy(partner + length - tail, other, tail + 1);
  return 1;
}

static int ort_is_before(const cats_ort *ort, int minor) {
  int major = 0, found = 0;
  return sscanf(ort->version, "%d.%d", &major, &found) == 2 && major == 1 && found < minor;
}

static cats_status append_cuda(const cats_matcher *matcher, OrtSessionOptions *session, const cats_options *options) {
  const cats_ort *ort = matcher->ort;
  OrtCUDAProviderOptionsV2 *cuda = NULL;
  char device[16], stream[24];
  /* Without TF32, as in Python: float32 in the file is computed in float32. Runtimes before 1.18 lack the key. */
  const char *keys[] = {"device_id", "use_tf32", "user_compute_stream"}, *values[] = {device, "0", stream};
  const char *old_keys[] = {"device_id", "user_compute_stream"}, *old_values[] = {device, stream};
  size_t streams = options->stream ? 1 : 0;
  snprintf(device, sizeof device, "%d", options->device);
  snprintf(stream, sizeof stream, "%zu", (size_t)(uintptr_t)options->stream);
  const char *what = "the CUDA provider did not start (pip install 'cats-toolkit[gpu]' brings a build that has it)";
  cats_status status = cats_ort_check(ort, ort->CreateCUDAProviderOptions(&cuda), CATS_ERROR_RUNTIME, what);
  if (status != CATS_OK) return status;
  OrtStatus *failure = ort->UpdateCUDAProviderOptions(cuda, keys, values, 2 + streams);
  if (failure && ort_is_before(ort, 18)) {
    ort->ReleaseStatus(failure);
    failure = ort->UpdateCUDAProviderOptions(cuda, old_keys, old_values, 1 + streams);
  }
  status = cats_ort_check(ort, failure, CATS_ERROR_RUNTIME, what);
  if (status == CATS_OK)
    status = cats_ort_check(ort, ort->SessionOptionsAppendExecutionProvider_CUDA_V2(session, cuda), CATS_ERROR_RUNTIME,
                            what);
  ort->ReleaseCUDAProviderOptions(cuda);
  return status;
}

static cats_status session_options(const cats_matcher *matcher, const cats_options *options, OrtSessionOptions **made) {
  const cats_ort *ort = matcher->ort;
  const char *what = "session options";
  OrtStatus *failure = ort->CreateSessionOptions(made);
  if (!failure) failure = ort->SetSessionGraphOptimizationLevel(*made, CATS_ORT_OPTIMIZE_ALL);
  if (!failure) failure = ort->SetSessionExecutionMode(*made, CATS_ORT_SEQUENTIAL);
  if (!failure) failure = ort->SetSessionLogSeverityLevel(*made, CATS_ORT_LOG_FATAL);
  int threads = options->threads ? options->threads : cats_limited_cpus();
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  if (!failure && threads) failure = ort->SetIntraOpNumThreads(*made, threads);
  cats_status status = cats_ort_check(ort, failure, CATS_ERROR_RUNTIME, what);
  if (status == CATS_OK && strcmp(matcher->provider, "cuda") == 0) status = append_cuda(matcher, *made, options);
  return status;
}

static cats_status make_environment(cats_matcher *matcher, const cats_options *options) {
  const cats_ort *ort = matcher->ort;
  int cuda = strcmp(matcher->provider, "cuda") == 0;
  OrtStatus *failure = ort->CreateEnv(CATS_ORT_LOG_FATAL, "cats", &matcher->env);
  if (!failure)
    failure = ort->CreateMemoryInfo("Cpu", CATS_ORT_DEVICE_ALLOCATOR, 0, CATS_ORT_MEMORY_DEFAULT, &matcher->host);
  if (!failure)
    failure = ort->CreateMemoryInfo(cuda ? "Cuda" : "Cpu", CATS_ORT_DEVICE_ALLOCATOR, cuda ? options->device : 0,
                                    CATS_ORT_MEMORY_DEFAULT, &matcher->device);
  if (!failure) failure = ort->CreateRunOptions(&matcher->run_options);
  if (!failure) failure = ort->RunOptionsSetRunLogSeverityLevel(matcher->run_options, CATS_ORT_LOG_FATAL);
  if (!failure) failure = ort->CreateRunOptions(&matcher->async_options);
  if (!failure) failure = ort->RunOptionsSetRunLogSeverityLevel(matcher->async_options, CATS_ORT_LOG_FATAL);
  if (!failure)
    failure = ort->AddRunConfigEntry(matcher->async_options, "disable_synchronize_execution_providers", "1");
  return cats_ort_check(ort, failure, CATS_ERROR_RUNTIME, "cannot start");
}

/* Loads the other file of a split model. */
static cats_status open_partner(cats_matcher *matcher, const OrtSessionOptions *session, const cats_options *options,
                                const cats_source *source, cats_session *other, const char *expected) {
  char path[CATS_PATH_SIZE];
  cats_source partner = {options->partner_path, options->partner_data, options->partner_size, "the partner in memory"};
  const cats_session *first = other == &matcher->encoder ? &matcher->matcher : &matcher->encoder;
  if (partner.path) {
    partner.data = NULL;
  } else if (!partner.data && source->path && partner_of(source->path, path, sizeof path)) {
    partner.path = path;
  } else if (!partner.data || partner.size == 0) {
    return cats_fail(CATS_ERROR_MODEL,
                     "%s is the %s of a split model: name its %s in cats_options.partner_path or partner_data",
                     first->name, first->metadata.kind, expected);
  }
  cats_status status = cats_session_open(other, matcher->ort, matcher->env, session, &partner);
  if (status != CATS_OK) return status;
  if (strcmp(other->metadata.kind, expected) != 0)
    return cats_fail(CATS_ERROR_MODEL, "%s is of kind %s, but the %s of a split model belongs to %s", other->name,
                     other->metadata.kind, expected, first->name);
  if (strcmp(first->metadata.weights, other->metadata.weights) != 0)
    return cats_fail(CATS_ERROR_MODEL, "%s and %s are of different models (their weights differ)", first->name,
                     other->name);
  return CATS_OK;
}

static cats_status open_sessions(cats_matcher *matcher, const OrtSessionOptions *session, const cats_options *options,
                                 const cats_source *source) {
  cats_status status = cats_session_open(&matcher->matcher, matcher->ort, matcher->env, session, source);
  if (status != CATS_OK) return status;
  const char *kind = matcher->matcher.metadata.kind;
  if (strcmp(kind, "pair") == 0) {
    if (options->partner_path || options->partner_data)
      return cats_fail(CATS_ERROR_ARGUMENT, "%s is a model for pairs and has no partner file", matcher->matcher.name);
    return cats_check_pair(matcher);
  }
  matcher->split = 1;
  if (strcmp(kind, "encoder") == 0) {
    matcher->encoder = matcher->matcher;
    memset(&matcher->matcher, 0, sizeof matcher->matcher);
    status = open_partner(matcher, session, options, source, &matcher->matcher, "matcher");
  } else if (strcmp(kind, "matcher") == 0) {
    status = open_partner(matcher, session, options, source, &matcher->encoder, "encoder");
  } else {
    return cats_fail(CATS_ERROR_MODEL,
                     "%s is a model of kind %s; libcats runs pair models (cats-export) and split ones (--split)",
                     matcher->matcher.name, kind);
  }
  return status == CATS_OK ? cats_check_split(matcher) : status;
}

static cats_status check_options(const cats_options *given, cats_options *options, cats_matcher *matcher) {
  static const cats_options defaults = CATS_OPTIONS;
  *options = defaults;
  if (given) {
    cats_status status =
        cats_read_struct(given, options, sizeof *options, sizeof *options, "cats_options", "options");
    if (status != CATS_OK) return status;
  }
  const char *provider = options->provider ? options->provider : "cpu";
  if (strcmp(provider, "cpu") != 0 && strcmp(provider, "cuda") != 0)
    return cats_fail(CATS_ERROR_ARGUMENT, "provider \"%.64s\" is not known: use \"cpu\" or \"cuda\"", provider);
  if (options->device < 0 || options->device > 1023)
    return cats_fail(CATS_ERROR_ARGUMENT, "device %d is not the index of a GPU", options->device);
  if (options->threads < 0 || options->threads > MAX_THREADS)
    return cats_fail(CATS_ERROR_ARGUMENT, "threads %d: use 0 to %d", options->threads, MAX_THREADS);
  if (options->max_pixels < 0)
    return cats_fail(CATS_ERROR_ARGUMENT, "max_pixels %lld is negative", (long long)options->max_pixels);
  if (options->run_pairs < 0 || options->run_pairs > CATS_MAX_COUNT)
    return cats_fail(CATS_ERROR_ARGUMENT, "run_pairs %d: use 0 to %d", options->run_pairs, CATS_MAX_COUNT);
  if (options->reserved) return cats_fail(CATS_ERROR_ARGUMENT, "options.reserved must be 0");
  if (options->stream && strcmp(provider, "cuda") != 0)
    return cats_fail(CATS_ERROR_ARGUMENT, "a stream was given, which the provider \"%s\" has no use for", provider);
  snprintf(matcher->provider, sizeof matcher->provider, "%s", provider);
  matcher->max_pixels = options->max_pixels ? options->max_pixels : CATS_MAX_PIXELS;
  matcher->run_pairs = options->run_pairs ? (size_t)options->run_pairs : CATS_RUN_PAIRS;
  matcher->stream = options->stream;
  matcher->device_index = options->device;
  return CATS_OK;
}

static cats_status open_source(const cats_source *source, const cats_options *given, cats_matcher *matcher) {
  cats_options options;
  OrtSessionOptions *session = NULL;
  cats_status status = check_options(given, &options, matcher);
  if (status == CATS_OK) status = cats_ort_load(options.ort_library, &matcher->ort);
  if (status == CATS_OK) status = make_environment(matcher, &options);
  if (status == CATS_OK) status = session_options(matcher, &options, &session);
  if (status == CATS_OK) status = open_sessions(matcher, session, &options, source);
  if (session) matcher->ort->ReleaseSessionOptions(session);
  if (status == CATS_OK) cats_levels_init(&matcher->levels, &matcher->matcher.metadata);
  return status;
}

static cats_status open_model(const cats_source *source, const cats_options *options, cats_matcher **result) {
  cats_matcher *matcher = cats_allocate(1, sizeof *matcher);
  if (!matcher) return cats_out_of_memory(sizeof *matcher);
  atomic_init(&matcher->owners, 1);
  cats_status status = open_source(source, options, matcher);
  if (status == CATS_OK) {
    *result = matcher;
  } else {
    cats_matcher_drop(matcher);
  }
  return status;
}

cats_status cats_open(const char *path, const cats_options *options, cats_matcher **matcher) {
  if (!matcher) return cats_fail(CATS_ERROR_ARGUMENT, "matcher is NULL: there is nowhere to put the handle");
  *matcher = NULL;
  if (!path) return cats_fail(CATS_ERROR_ARGUMENT, "path is NULL");
  cats_source source = {path, NULL, 0, NULL};
  return open_model(&source, options, matcher);
}

cats_status cats_open_memory(const void *data, size_t size, const cats_options *options, cats_matcher **matcher) {
  if (!matcher) return cats_fail(CATS_ERROR_ARGUMENT, "matcher is NULL: there is nowhere to put the handle");
  *matcher = NULL;
  if (!data || size == 0) return cats_fail(CATS_ERROR_ARGUMENT, "the model in memory is empty");
  cats_source source = {NULL, data, size, "the model in memory"};
  return open_model(&source, options, matcher);
}

void cats_matcher_keep(cats_matcher *matcher) { atomic_fetch_add(&matcher->owners, 1); }

void cats_matcher_drop(cats_matcher *matcher) {
  if (atomic_fetch_sub(&matcher->owners, 1) != 1) return;
  cats_session_close(&matcher->encoder);
  cats_session_close(&matcher->matcher);
  const cats_ort *ort = matcher->ort;
  if (matcher->async_options) ort->ReleaseRunOptions(matcher->async_options);
  if (matcher->run_options) ort->ReleaseRunOptions(matcher->run_options);
  if (matcher->device) ort->ReleaseMemoryInfo(matcher->device);
  if (matcher->host) ort->ReleaseMemoryInfo(matcher->host);
  if (matcher->env) ort->ReleaseEnv(matcher->env);
  cats_free(matcher->input_a);
  cats_free(matcher->input_b);
  cats_free(matcher);
}

void cats_close(cats_matcher *matcher) {
  if (matcher) cats_matcher_drop(matcher);
}

cats_status cats_get_info(const cats_matcher *matcher, cats_info *info) {
  cats_info known;
  if (!matcher) return cats_fail(CATS_ERROR_ARGUMENT, "matcher is NULL");
  cats_status status = cats_read_struct(info, &known, sizeof known, sizeof known, "cats_info", "info");
  if (status != CATS_OK) return status;
  const cats_metadata *metadata = &matcher->matcher.metadata;
  known.image_width = metadata->width;
  known.image_height = metadata->height;
  known.grid = metadata->grid;
  known.max_batch = (int32_t)matcher->batch;
  known.split = matcher->split;
  known.verified = metadata->verified;
  known.calibrated = metadata->calibration.knots > 0;
  memcpy(known.mean, metadata->mean, sizeof known.mean);
  memcpy(known.std, metadata->std, sizeof known.std);
  known.precision = metadata->precision;
  known.weights = metadata->weights;
  known.provider = matcher->provider;
  known.ort_version = matcher->ort->version;
  known.ort_library = matcher->ort->library;
  size_t room = known.struct_size < sizeof known ? known.struct_size : sizeof known;
  memcpy(info, &known, room); /* the caller's structure may be of another version */
  return CATS_OK;
}
