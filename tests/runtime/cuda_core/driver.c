/* A CUDA driver of one GPU whose memory is the host's: the entry points that the runtime and cuda-core call.
 *
 * Work in a stream is done at once, or recorded where the stream is captured. Every call that matters is a line of the
 * log file that CATS_DRIVER_LOG names. Wrong use (no current context, a wait or a synchronisation while capturing,
 * memory that is not there) is an error, as it is with a real driver.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef void (*Callback)(void *);
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_CONTEXT = 201, BAD_HANDLE = 400, NOT_FOUND = 500, CAPTURING = 900 };

typedef struct {
    void *dst;
    const void *src;
    size_t size;
    Callback call;
    void *data;
} Work;

typedef struct {
    int count;
    Work work[256];
} Graph;

typedef struct {
    void *context;
    Graph *capture;
    int gone;
} Stream;

typedef struct {
    uintptr_t begin;
    size_t size;
    int pinned;
} Block;

static Block blocks[4096];
static int block_count;
static int primary, other;
static void *stack[64];
static int depth;
static Stream legacy;

static void say(const char *format, ...) {
    const char *path = getenv("CATS_DRIVER_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    va_list args;
    if (!file)
        return;
    va_start(args, format);
    vfprintf(file, format, args);
    va_end(args);
    fputc('\n', file);
    fclose(file);
}

static Stream *stream_of(Stream *stream) {
    if ((uintptr_t)stream <= 2) {
        legacy.context = depth ? stack[depth - 1] : NULL;
        return &legacy;
    }
    return stream;
}

static int stream_name(Stream *stream) { return (int)((uintptr_t)stream <= 2 ? (uintptr_t)stream : (uintptr_t)stream & 0xffff); }

static Block *block_of(uintptr_t at) {
    for (int i = block_count - 1; i >= 0; i--)
        if (blocks[i].begin && blocks[i].begin <= at && at < blocks[i].begin + blocks[i].size)
            return &blocks[i];
    return NULL;
}

static CUresult allocate(void **result, size_t size, int pinned) {
    void *memory;
    if (!depth)
        return NO_CONTEXT;
    if (size > 1u << 30)
        return NO_MEMORY;
    if (!size || posix_memalign(&memory, 256, size))
        return INVALID;
    memset(memory, 0xaa, size);
    blocks[block_count++] = (Block){(uintptr_t)memory, size, pinned};
    *result = memory;
    return OK;
}

static CUresult release(uintptr_t at) {
    Block *block = block_of(at);
    if (!block || block->begin != at)
        return INVALID;
    block->begin = 0; /* kept: what still looks at it finds the old values */
    return OK;
}

static CUresult put(Stream *handle, Work work) {
    Stream *stream = stream_of(handle);
    if (!depth)
        return NO_CONTEXT;
    if (stream->capture) {
        stream->capture->work[stream->capture->count++] = work;
        return OK;
    }
    if (work.call)
        work.call(work.data);
    else
        memcpy(work.dst, work.src, work.size);
    return OK;
}

CUresult cuInit(unsigned flags) { return OK; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return OK; }
CUresult cuDeviceGet(int *device, int index) { *device = index; return index ? 101 : OK; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return OK; }
CUresult cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Host GPU"); return OK; }
CUresult cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1u << 30; return OK; }
CUresult cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, 7, 16); return OK; }
CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 9 : 1;
    return OK;
}
CUresult cuDevicePrimaryCtxRetain(void **context, int device) { *context = &primary; return OK; }
CUresult cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
CUresult cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return OK; }
CUresult cuCtxPushCurrent_v2(void *context) {
    if (context != &primary && context != &other)
        return 201;
    stack[depth++] = context;
    say("push %s", context == &primary ? "primary" : "other");
    return OK;
}
CUresult cuCtxPopCurrent_v2(void **context) {
    if (!depth)
        return NO_CONTEXT;
    *context = stack[--depth];
    say("pop");
    return OK;
}
CUresult cuCtxGetCurrent(void **context) { *context = depth ? stack[depth - 1] : NULL; return OK; }
CUresult cuCtxSetCurrent(void *context) { if (depth) stack[depth - 1] = context; else stack[depth++] = context; return OK; }
CUresult cuCtxSynchronize(void) { say("sync all"); return depth ? OK : NO_CONTEXT; }
CUresult cuCtxGetDevice(int *device) { *device = 0; return depth ? OK : NO_CONTEXT; }
CUresult cuCtxGetDevice_v2(int *device, void *context) { *device = 0; return OK; }
CUresult cuCtxGetStreamPriorityRange(int *low, int *high) { *low = *high = 0; return OK; }
void *test_other_context(void) { return &other; }
int test_depth(void) { return depth; }

CUresult cuStreamCreate(Stream **stream, unsigned flags) {
    if (!depth)
        return NO_CONTEXT;
    *stream = calloc(1, sizeof **stream);
    (*stream)->context = stack[depth - 1];
    say("stream %d flags %u", stream_name(*stream), flags);
    return OK;
}
CUresult cuStreamCreateWithPriority(Stream **stream, unsigned flags, int priority) { return cuStreamCreate(stream, flags); }
CUresult cuStreamDestroy_v2(Stream *stream) {
    say("destroy stream %d", stream_name(stream));
    stream->gone = 1; /* kept, so that its use is an error each time */
    return OK;
}
CUresult cuStreamGetCtx(Stream *stream, void **context) { *context = stream_of(stream)->context; return OK; }
CUresult cuStreamGetFlags(Stream *stream, unsigned *flags) { *flags = 1; return OK; }
CUresult cuStreamSynchronize(Stream *stream) {
    say("sync %d", stream_name(stream));
    return stream_of(stream)->capture ? CAPTURING : OK;
}
CUresult cuStreamWaitEvent(Stream *stream, void *event, unsigned flags) {
    say("%d waits for %d", stream_name(stream), *(int *)event);
    return stream_of(stream)->capture ? CAPTURING : OK;
}
CUresult cuStreamIsCapturing(Stream *stream, int *status) { *status = stream_of(stream)->capture != NULL; return OK; }
CUresult cuStreamBeginCapture_v2(Stream *stream, int mode) {
    if ((uintptr_t)stream <= 2)
        return CAPTURING;
    stream->capture = calloc(1, sizeof(Graph));
    say("capture %d mode %d", stream_name(stream), mode);
    return OK;
}
CUresult cuStreamEndCapture(Stream *stream, Graph **graph) {
    Graph *captured = stream->capture;
    if (graph)
        *graph = captured;
    stream->capture = NULL;
    return captured ? OK : CAPTURING;
}
static CUresult capture_info(Stream *stream, int *status, uint64_t *id, Graph **graph) {
    *status = stream_of(stream)->capture != NULL;
    if (id)
        *id = 1;
    if (graph)
        *graph = stream_of(stream)->capture;
    return OK;
}
CUresult cuStreamGetCaptureInfo_v2(Stream *s, int *status, uint64_t *id, Graph **graph, void **nodes, size_t *count) {
    return capture_info(s, status, id, graph);
}
CUresult cuStreamGetCaptureInfo_v3(Stream *s, int *status, uint64_t *id, Graph **graph, void **nodes, void **edges,
                                   size_t *count) {
    return capture_info(s, status, id, graph);
}

CUresult cuEventCreate(void **event, unsigned flags) {
    *event = calloc(1, sizeof(int));
    return depth ? OK : NO_CONTEXT;
}
CUresult cuEventRecord(void *event, Stream *stream) {
    if (stream_of(stream)->gone)
        return BAD_HANDLE;
    *(int *)event = stream_name(stream);
    say("record %d", stream_name(stream));
    return OK;
}
CUresult cuEventDestroy_v2(void *event) { free(event); return OK; }

CUresult cuDeviceGetMemPool(void **pool, int device) { *pool = &primary; return OK; }
CUresult cuDeviceGetDefaultMemPool(void **pool, int device) { *pool = &primary; return OK; }
CUresult cuMemPoolSetAttribute(void *pool, int attribute, void *value) { return OK; }
CUresult cuMemPoolGetAttribute(void *pool, int attribute, void *value) { *(uint64_t *)value = 0; return OK; }
CUresult cuMemAllocFromPoolAsync(void **result, size_t size, void *pool, Stream *stream) {
    say("allocate %zu in %d", size, stream_name(stream));
    return stream_of(stream)->capture ? CAPTURING : allocate(result, size, 0);
}
CUresult cuMemFreeAsync(uintptr_t at, Stream *stream) {
    if (!depth && (uintptr_t)stream <= 2)
        return NO_CONTEXT;
    say("free in %d", stream_name(stream));
    return release(at);
}
CUresult cuMemAllocHost_v2(void **result, size_t size) { say("pin %zu", size); return allocate(result, size, 1); }
CUresult cuMemFreeHost(void *at) { return release((uintptr_t)at); }
CUresult cuMemcpyAsync(void *dst, const void *src, size_t size, Stream *stream) {
    Block *to = block_of((uintptr_t)dst), *from = block_of((uintptr_t)src);
    if (!to || !from || (uintptr_t)dst + size > to->begin + to->size || (uintptr_t)src + size > from->begin + from->size)
        return INVALID;
    say("%s->%s in %d", from->pinned ? "pinned" : "device", to->pinned ? "pinned" : "device", stream_name(stream));
    return put(stream, (Work){dst, src, size, NULL, NULL});
}
CUresult cuLaunchHostFunc(Stream *stream, Callback call, void *data) {
    return put(stream, (Work){NULL, NULL, 0, call, data});
}

static CUresult attribute(void *value, int name, uintptr_t at) {
    Block *block = block_of(at);
    if (!block)
        return INVALID;
    switch (name) {
    case 1: *(void **)value = &primary; return OK;              /* context */
    case 2: *(int *)value = block->pinned ? 1 : 2; return OK;   /* memory type: host, device */
    case 3: *(uintptr_t *)value = at; return OK;                /* device pointer */
    case 4: *(uintptr_t *)value = block->pinned ? at : 0; return OK;
    case 8: *(int *)value = 0; return OK;                       /* is managed */
    case 9: *(int *)value = 0; return OK;                       /* device ordinal */
    default: *(int *)value = 0; return OK;
    }
}
CUresult cuPointerGetAttribute(void *value, int name, uintptr_t at) { return attribute(value, name, at); }
CUresult cuPointerGetAttributes(unsigned count, int *names, void **values, uintptr_t at) {
    for (unsigned i = 0; i < count; i++)
        if (attribute(values[i], names[i], at))
            memset(values[i], 0, sizeof(int)); /* memory of others: all zero, no error */
    return OK;
}

CUresult cuGraphInstantiateWithParams(Graph **result, Graph *graph, void *params) { *result = graph; return OK; }
CUresult cuGraphInstantiate(Graph **result, Graph *graph, uint64_t flags) { *result = graph; return OK; }
CUresult cuGraphInstantiateWithFlags(Graph **result, Graph *graph, uint64_t flags) { *result = graph; return OK; }
CUresult cuGraphLaunch(Graph *graph, Stream *stream) {
    say("launch %d of %d", stream_name(stream), graph->count);
    for (int i = 0; i < graph->count; i++) {
        CUresult status = put(stream, graph->work[i]);
        if (status)
            return status;
    }
    return OK;
}
CUresult cuUserObjectCreate(void **object, void *held, Callback destroy, unsigned count, unsigned flags) {
    *object = &primary;
    return OK;
}
CUresult cuUserObjectRelease(void *object, unsigned count) { return OK; }
CUresult cuGraphRetainUserObject(Graph *graph, void *object, unsigned count, unsigned flags) { return OK; }
CUresult cuGraphReleaseUserObject(Graph *graph, void *object, unsigned count) { return OK; }
CUresult cuGraphClone(Graph **copy, Graph *graph) { *copy = graph; return OK; }
CUresult cuGraphExecGetFlags(Graph *graph, uint64_t *flags) { *flags = 0; return OK; }
CUresult cuGraphUpload(Graph *graph, Stream *stream) { return OK; }
CUresult cuGraphExecDestroy(Graph *graph) { return OK; }
CUresult cuGraphDestroy(Graph *graph) { return OK; }

CUresult cuGetErrorName(int error, const char **text) {
    *text = error == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_HOST_DRIVER";
    return OK;
}
CUresult cuGetErrorString(int error, const char **text) { *text = "an error"; return OK; }

static void *self(void) {
    Dl_info info;
    dladdr((void *)&self, &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
}

/* The newest of what goes by a name; absent entry points are null. */
CUresult cuGetProcAddress_v2(const char *symbol, void **found, int version, uint64_t flags, int *status) {
    static const char *suffixes[] = {"_v3", "_v2", ""};
    char name[128];
    *found = NULL;
    for (int i = 0; i < 3 && !*found; i++) {
        if (i < 2 && (!strcmp(symbol, "cuCtxGetDevice") || !strcmp(symbol, "cuGetProcAddress")))
            continue; /* the newer one takes other arguments, and goes by its own name */
        snprintf(name, sizeof name, "%s%s", symbol, suffixes[i]);
        *found = dlsym(self(), name);
    }
    if (status)
        *status = *found ? 0 : 1;
    return *found ? OK : NOT_FOUND;
}
