/* Stands in for libcuda.so.1, as far as it takes to time small copies between GPUs.
 *
 * The machine is that of standin.c: CORRAL_STANDIN_NVML names its directory, each `gpuN` there with a `uuid` is a
 * device. The file `cuda` says, in lines of `key value`, what is special here:
 *   0-1 2.5           a copy from GPU 0 to GPU 1 takes 2.5 us; a pair without a line has no peer access
 *   error.NAME 999    the function of that name answers with that error
 *   hang.NAME 1       the function of that name does not return
 *   hang.1-0 1        nor does a copy from GPU 1 to GPU 0
 * Every tenth copy takes ten times as long, as one that was disturbed. What the real driver refuses is refused: calls
 * before cuInit, without a context, with a buffer that is not where the caller says, or between GPUs whose peer access
 * was not enabled (which the real driver would copy through the host's memory: no figure for the way between them).
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
    PEER_ACCESS_UNSUPPORTED = 217, PEER_ACCESS_ALREADY_ENABLED = 704, PEER_ACCESS_NOT_ENABLED = 705, NOT_READY = 600
};
enum { MAX_GPUS = 16, FILE_BYTES = 8192, MAX_BUFFERS = 64, TENTH = 10 };

typedef unsigned long long ull;
typedef struct { int device, alive, enabled[MAX_GPUS]; double now_us; long copies; } context_t;
typedef struct { context_t *context; double at_us; int recorded; } event_t;
typedef struct { ull address, bytes; context_t *context; } buffer_t;

static int initialised;
static context_t contexts[MAX_GPUS];
static context_t *current;
static buffer_t buffers[MAX_BUFFERS];
static ull next_address = 0x700000000000ULL;

/* ---- files ---- */

static int read_file(const char *name, char *text)
{
    char path[4096];
    const char *folder = getenv("CORRAL_STANDIN_NVML");
    snprintf(path, sizeof path, "%s/%s", folder ? folder : "/nonexistent", name);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    size_t length = fread(text, 1, FILE_BYTES - 1, file);
    fclose(file);
    text[length] = 0;
    return 1;
}

static int value_in(const char *name, const char *key, char *value, size_t size)
{
    char text[FILE_BYTES], *rest = text;
    size_t length = strlen(key);
    if (!read_file(name, text))
        return 0;
    for (char *line; (line = strsep(&rest, "\n"));)
        if (!strncmp(line, key, length) && line[length] == ' ') {
            snprintf(value, size, "%s", line + length + 1);
            return 1;
        }
    return 0;
}

static int uuid_of(int device, char *uuid, size_t size)
{
    char name[16];
    snprintf(name, sizeof name, "gpu%d", device);
    return value_in(name, "uuid", uuid, size);
}

static double copy_us(int from, int to)
{
    char key[32], value[64];
    snprintf(key, sizeof key, "%d-%d", from, to);
    return value_in("cuda", key, value, sizeof value) ? atof(value) : -1;
}

static void hang_while(const char *what)
{
    char key[80], value[64];
    snprintf(key, sizeof key, "hang.%s", what);
    while (value_in("cuda", key, value, sizeof value))
        usleep(5000);
}

/* What every call goes through. */
static int enter(const char *function)
{
    char key[80], value[64];
    hang_while(function);
    snprintf(key, sizeof key, "error.%s", function);
    if (value_in("cuda", key, value, sizeof value))
        return atoi(value);
    return !initialised && strcmp(function, "cuInit") ? NOT_INITIALIZED : SUCCESS;
}

#define ENTER() do { int error = enter(__func__); if (error) return error; } while (0)
#define NEED_CONTEXT() do { if (!current || !current->alive) return INVALID_CONTEXT; } while (0)

static int is_device(int device)
{
    char uuid[128];
    return device >= 0 && device < MAX_GPUS && uuid_of(device, uuid, sizeof uuid);
}

static buffer_t *buffer_at(ull address)
{
    for (int i = 0; i < MAX_BUFFERS; i++)
        if (buffers[i].bytes && buffers[i].address == address)
            return &buffers[i];
    return NULL;
}

/* ---- the library ---- */

int cuInit(unsigned int flags)
{
    ENTER();
    initialised = flags == 0;
    return flags ? INVALID_VALUE : SUCCESS;
}

int cuGetErrorName(int error, const char **name)
{
    *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error == 999 ? "CUDA_ERROR_UNKNOWN" : NULL;
    return *name ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGetCount(int *count)
{
    ENTER();
    for (*count = 0; is_device(*count); ++*count)
        ;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal)
{
    ENTER();
    *device = ordinal;
    return is_device(ordinal) ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetUuid(unsigned char *bytes, int device)
{
    char uuid[128];
    ENTER();
    if (!is_device(device) || !uuid_of(device, uuid, sizeof uuid))
        return INVALID_DEVICE;
    const char *at = uuid + strlen("GPU-");
    for (int i = 0; i < 16; i++, at += 2) {
        at += *at == '-';
        if (sscanf(at, "%2hhx", &bytes[i]) != 1)
            return INVALID_VALUE;
    }
    return SUCCESS;
}

int cuDeviceCanAccessPeer(int *can, int device, int peer)
{
    ENTER();
    *can = copy_us(device, peer) >= 0;
    return is_device(device) && is_device(peer) ? SUCCESS : INVALID_DEVICE;
}

int cuCtxCreate_v2(context_t **context, unsigned int flags, int device)
{
    ENTER();
    if (flags || !is_device(device))
        return INVALID_VALUE;
    contexts[device] = (context_t){ .device = device, .alive = 1 };
    current = *context = &contexts[device];
    return SUCCESS;
}

int cuCtxSetCurrent(context_t *context)
{
    ENTER();
    current = context;
    return SUCCESS;
}

int cuCtxEnablePeerAccess(context_t *peer, unsigned int flags)
{
    ENTER();
    NEED_CONTEXT();
    if (flags || !peer->alive)
        return INVALID_VALUE;
    if (copy_us(current->device, peer->device) < 0)
        return PEER_ACCESS_UNSUPPORTED;
    if (current->enabled[peer->device])
        return PEER_ACCESS_ALREADY_ENABLED;
    current->enabled[peer->device] = 1;
    return SUCCESS;
}

int cuMemAlloc_v2(ull *address, size_t bytes)
{
    ENTER();
    NEED_CONTEXT();
    for (int i = 0; i < MAX_BUFFERS; i++)
        if (!buffers[i].bytes) {
            buffers[i] = (buffer_t){ next_address += 1 << 20, bytes, current };
            *address = buffers[i].address;
            return SUCCESS;
        }
    return OUT_OF_MEMORY;
}

int cuMemcpyPeerAsync(ull to, context_t *to_context, ull from, context_t *from_context, size_t bytes, void *stream)
{
    ENTER();
    NEED_CONTEXT();
    buffer_t *target = buffer_at(to), *source = buffer_at(from);
    if (stream || !target || !source || target->context != to_context || source->context != from_context)
        return INVALID_VALUE;
    if (bytes > target->bytes || bytes > source->bytes || current != from_context)
        return INVALID_VALUE;
    if (!from_context->enabled[to_context->device])
        return PEER_ACCESS_NOT_ENABLED;
    char pair[32];
    snprintf(pair, sizeof pair, "%d-%d", from_context->device, to_context->device);
    hang_while(pair);
    double took_us = copy_us(from_context->device, to_context->device);
    current->now_us += took_us * (++current->copies % TENTH ? 1 : 10);
    return SUCCESS;
}

int cuEventCreate(event_t **event, unsigned int flags)
{
    ENTER();
    NEED_CONTEXT();
    *event = calloc(1, sizeof **event);
    (*event)->context = current;
    return flags ? INVALID_VALUE : SUCCESS;
}

int cuEventRecord(event_t *event, void *stream)
{
    ENTER();
    if (stream || event->context != current)
        return INVALID_VALUE;
    event->at_us = current->now_us;
    event->recorded = 1;
    return SUCCESS;
}

int cuEventSynchronize(event_t *event)
{
    ENTER();
    return event->recorded ? SUCCESS : NOT_READY;
}

int cuEventElapsedTime(float *ms, event_t *from, event_t *to)
{
    ENTER();
    if (!from->recorded || !to->recorded)
        return INVALID_VALUE;
    *ms = (float)((to->at_us - from->at_us) / 1000);
    return SUCCESS;
}
