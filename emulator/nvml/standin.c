/* Stands in for libnvidia-ml.so.1: the functions that a monitor of GPUs calls, answered from a directory of files.
 *
 * CORRAL_STANDIN_NVML names the directory. `machine` describes the driver, `gpuN` a GPU, `gpuN.migM` a MIG device,
 * `links` what connects the GPUs; `gpuN.live` overrides what an emulator on that GPU measures. Each is lines of
 * `key value`. Every call reads them anew, so that a test or a demo changes a GPU by replacing its file. A key that a
 * file lacks is a sensor that the GPU lacks. Two keys add up instead of overriding: `memory_used` and `processes` of
 * the file itself are those of strangers on the GPU.
 *
 * As on a real GPU, what a dead process held is free again, and nothing runs once the emulator (`writer PID` in
 * `gpuN.live`) is dead; a process that outlives it keeps its memory.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10, GPU_IS_LOST = 15, VERSION_MISMATCH = 25, UNKNOWN = 999
};
enum { MAX_GPUS = 16, MAX_MIGS = 8, MAX_LINKS = 36, FILE_BYTES = 8192, CACHED = 8, VALUE_BYTES = 4096, MAX_PROCESSES = 128 };
enum { EVENT_XID = 8, EVENTS_SUPPORTED = 0x1f };

typedef unsigned int uint;
typedef unsigned long long ull;

/* What handles point to: a GPU is devices[gpu][0], its MIG device m is devices[gpu][m + 1]. */
typedef struct { char unused; } device_t;
static device_t devices[MAX_GPUS][MAX_MIGS + 1];
static atomic_int initialised;

typedef struct { uint gpu, memory; } utilisation_t;
typedef struct { ull total, free, used; } memory_t;
typedef struct { uint version; ull total, reserved, free, used; } memory_v2_t;
typedef struct { uint version; int sensor; int temperature; } temperature_t;
typedef struct { uint pid; ull bytes; } process_v1_t;
typedef struct { uint pid; ull bytes; uint gpu_instance, compute_instance; } process_t;
typedef struct { device_t *device; ull type, data; uint gpu_instance, compute_instance; } event_t;
typedef struct { uint registered[MAX_GPUS], seen[MAX_GPUS]; } event_set_t;
typedef struct {
    char legacy_id[16];
    uint domain, bus, device, device_id, subsystem_id;
    char id[32];
} pci_t;

/* ---- files ---- */

static int gpu_of(const device_t *device) { return (int)((device - &devices[0][0]) / (MAX_MIGS + 1)); }
static int mig_of(const device_t *device) { return (int)((device - &devices[0][0]) % (MAX_MIGS + 1)) - 1; }
static int is_mig(const device_t *device) { return mig_of(device) >= 0; }

static int is_handle(const device_t *device)
{
    return device >= &devices[0][0] && device <= &devices[MAX_GPUS - 1][MAX_MIGS];
}

static void path_of(const char *name, char *path, size_t size)
{
    const char *folder = getenv("CORRAL_STANDIN_NVML");
    snprintf(path, size, "%s/%s", folder ? folder : "/nonexistent", name);
}

static void name_of(const device_t *device, const char *suffix, char *name, size_t size)
{
    if (is_mig(device))
        snprintf(name, size, "gpu%d.mig%d%s", gpu_of(device), mig_of(device), suffix);
    else
        snprintf(name, size, "gpu%d%s", gpu_of(device), suffix);
}

static int read_file(const char *name, char *text)
{
    char path[4096];
    ssize_t length = 0, got;
    path_of(name, path, sizeof path);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    while (length < FILE_BYTES - 1 && (got = read(file, text + length, (size_t)(FILE_BYTES - 1 - length))) > 0)
        length += got;
    close(file);
    text[length] = 0;
    return 1;
}

/* The value of `key` in lines of `key value`. */
static int value_in(const char *text, const char *key, char *value, size_t size)
{
    size_t length = strlen(key);
    for (const char *line = text; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        if (strncmp(line, key, length) || line[length] != ' ')
            continue;
        const char *start = line + length + strspn(line + length, " ");
        size_t bytes = strcspn(start, "\n");
        bytes = bytes < size - 1 ? bytes : size - 1;
        memcpy(value, start, bytes);
        value[bytes] = 0;
        return 1;
    }
    return 0;
}

/* Each file is read once in a call, however many of its keys the call needs. */
typedef struct { char name[64]; int there, orphaned; char text[FILE_BYTES]; } cached_t;
static _Thread_local cached_t cache[CACHED];
static _Thread_local int cached;

static void forget_files(void) { cached = 0; }

/* A zombie is dead: its memory is free, whether or not its parent has asked for it. */
static int is_alive(long pid)
{
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    text[length > 0 ? length : 0] = 0;
    const char *end = strrchr(text, ')');
    return end && end[1] && end[2] != 'Z' && end[2] != 'X';
}

static const cached_t *file_of(const char *name)
{
    char value[32];
    for (int i = 0; i < cached; i++)
        if (!strcmp(cache[i].name, name))
            return cache[i].there ? &cache[i] : NULL;
    if (cached == CACHED)
        forget_files();
    cached_t *file = &cache[cached++];
    snprintf(file->name, sizeof file->name, "%s", name);
    file->there = read_file(name, file->text);
    file->orphaned = file->there && value_in(file->text, "writer", value, sizeof value) && !is_alive(atol(value));
    return file->there ? file : NULL;
}

static const char *text_of(const char *name)
{
    const cached_t *file = file_of(name);
    return file ? file->text : NULL;
}

static int file_exists(const device_t *device)
{
    char name[64], path[4096];
    name_of(device, "", name, sizeof name);
    path_of(name, path, sizeof path);
    return access(path, R_OK) == 0;
}

static int value_of_file(const device_t *device, const char *suffix, const char *key, char *value, size_t size)
{
    char name[64];
    name_of(device, suffix, name, sizeof name);
    const char *text = text_of(name);
    return text && value_in(text, key, value, size);
}

static int value_of(const device_t *device, const char *key, char *value, size_t size)
{
    char name[64];
    name_of(device, ".live", name, sizeof name);
    const cached_t *live = file_of(name);
    /* the meter of energy never runs backwards */
    if (live && (!live->orphaned || !strcmp(key, "energy_mj")) && value_in(live->text, key, value, size))
        return 1;
    return value_of_file(device, "", key, value, size);
}

static long machine_number(const char *key)
{
    char value[64];
    const char *text = text_of("machine");
    return text && value_in(text, key, value, sizeof value) ? atol(value) : 0;
}

static int lists(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; (at = strstr(at, word)); at += length) {
        int starts = at == list || at[-1] == ',' || at[-1] == ' ';
        if (starts && (!at[length] || at[length] == ',' || at[length] == ' '))
            return 1;
    }
    return 0;
}

/* ---- what every call goes through ---- */

static int enter_library(void)
{
    forget_files();
    long delay_us = machine_number("delay_us");
    if (delay_us > 0)
        usleep((useconds_t)delay_us);
    if (!initialised)
        return UNINITIALIZED;
    return (int)machine_number("init_error");
}

/* Waits while the GPU hangs; answers its error, GPU_IS_LOST where its file is gone. */
static int enter_gpu(const device_t *device)
{
    char value[VALUE_BYTES];
    const device_t *gpu = &devices[gpu_of(device)][0];
    while (value_of(gpu, "hang", value, sizeof value) && atoi(value)) {
        usleep(5000);
        forget_files();
    }
    if (!file_exists(device))
        return GPU_IS_LOST;
    if (value_of(gpu, "error", value, sizeof value) && atoi(value))
        return atoi(value);
    return SUCCESS;
}

/* `key` is what the call reads, so that a GPU can lack it. */
static int enter(const device_t *device, const char *key)
{
    char value[VALUE_BYTES];
    int error = enter_library();
    if (error)
        return error;
    if (!is_handle(device))
        return INVALID_ARGUMENT;
    error = enter_gpu(device);
    if (error)
        return error;
    if (key && value_of(device, "unsupported", value, sizeof value) && lists(value, key))
        return NOT_SUPPORTED;
    return SUCCESS;
}

static int get_text(const device_t *device, const char *key, char *value, size_t size)
{
    int error = enter(device, key);
    if (error)
        return error;
    return value_of(device, key, value, size) ? SUCCESS : NOT_SUPPORTED;
}

static int get_number(const device_t *device, const char *key, ull *number)
{
    char value[64];
    int error = get_text(device, key, value, sizeof value);
    if (!error)
        *number = strtoull(value, NULL, 0);
    return error;
}

/* Sensors are of the whole GPU: a MIG device has none. */
static int get_sensor(const device_t *device, const char *key, uint *out)
{
    ull number = 0;
    int error = get_number(device, key, &number);
    if (!error && is_mig(device))
        return NOT_SUPPORTED;
    if (!error)
        *out = (uint)number;
    return error;
}

static int get_string(const device_t *device, const char *key, char *out, uint size)
{
    char value[VALUE_BYTES];
    int error = get_text(device, key, value, sizeof value);
    if (error)
        return error;
    if (strlen(value) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

static int get_mode(const device_t *device, const char *key, uint *current, uint *pending)
{
    int error = get_sensor(device, key, current);
    if (!error && pending)
        *pending = *current;
    return error;
}

/* ---- library and driver ---- */

int nvmlInitWithFlags(uint flags)
{
    (void)flags;
    forget_files();
    if (!text_of("machine"))
        return 9; /* driver not loaded */
    int error = (int)machine_number("init_error");
    if (!error)
        initialised++;
    return error;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void)
{
    if (!initialised)
        return UNINITIALIZED;
    initialised--;
    return SUCCESS;
}

const char *nvmlErrorString(int error)
{
    switch (error) {
    case SUCCESS: return "The operation was successful";
    case UNINITIALIZED: return "NVML was not first initialized with nvmlInit()";
    case INVALID_ARGUMENT: return "A supplied argument is invalid";
    case NOT_SUPPORTED: return "The requested operation is not available on target device";
    case 4: return "The current user does not have permission for operation";
    case NOT_FOUND: return "A query to find an object was unsuccessful";
    case INSUFFICIENT_SIZE: return "An input argument is not large enough";
    case 9: return "NVIDIA driver is not loaded";
    case TIMEOUT: return "User provided timeout passed";
    case GPU_IS_LOST: return "The GPU has fallen off the bus or has otherwise become inaccessible";
    case 16: return "The GPU requires a reset before it can be used again";
    case 18: return "RM detects a driver/library version mismatch.";
    case UNKNOWN: return "An internal driver error occurred";
    default: return "Unknown Error";
    }
}

static int machine_string(const char *key, const char *otherwise, char *out, uint size)
{
    char value[128];
    int error = enter_library();
    if (error)
        return error;
    const char *text = text_of("machine");
    if (!text || !value_in(text, key, value, sizeof value))
        snprintf(value, sizeof value, "%s", otherwise);
    snprintf(out, size, "%s", value);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *out, uint size) { return machine_string("driver", "570.86.15", out, size); }
int nvmlSystemGetNVMLVersion(char *out, uint size) { return machine_string("nvml", "12.570.86.15", out, size); }

int nvmlSystemGetCudaDriverVersion_v2(int *out)
{
    int error = enter_library();
    if (!error)
        *out = (int)machine_number("cuda");
    return error;
}

int nvmlSystemGetCudaDriverVersion(int *out) { return nvmlSystemGetCudaDriverVersion_v2(out); }

/* ---- handles ---- */

int nvmlDeviceGetCount_v2(uint *out)
{
    int error = enter_library();
    if (error)
        return error;
    *out = 0;
    for (int gpu = 0; gpu < MAX_GPUS; gpu++)
        *out += (uint)file_exists(&devices[gpu][0]);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(uint index, device_t **out)
{
    int error = enter_library();
    if (error)
        return error;
    for (int gpu = 0; gpu < MAX_GPUS; gpu++) {
        if (!file_exists(&devices[gpu][0]) || index-- > 0)
            continue;
        *out = &devices[gpu][0];
        return enter_gpu(*out);
    }
    return INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **out)
{
    char value[VALUE_BYTES];
    int error = enter_library();
    if (error)
        return error;
    for (device_t *device = &devices[0][0]; is_handle(device); device++) {
        if (value_of(device, "uuid", value, sizeof value) && !strcmp(value, uuid)) {
            *out = device;
            return enter_gpu(device);
        }
    }
    return NOT_FOUND;
}

static int parse_pci(const char *text, pci_t *pci)
{
    if (sscanf(text, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device) != 3)
        return INVALID_ARGUMENT;
    snprintf(pci->legacy_id, sizeof pci->legacy_id, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff,
             pci->device & 0xff);
    snprintf(pci->id, sizeof pci->id, "%08X:%02X:%02X.0", pci->domain, pci->bus & 0xff, pci->device & 0xff);
    return SUCCESS;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, device_t **out)
{
    char value[VALUE_BYTES];
    pci_t wanted, found;
    int error = enter_library();
    if (error)
        return error;
    if (parse_pci(id, &wanted))
        return INVALID_ARGUMENT;
    for (int gpu = 0; gpu < MAX_GPUS; gpu++) {
        if (!value_of(&devices[gpu][0], "pci_bus_id", value, sizeof value) || parse_pci(value, &found))
            continue;
        if (!strcmp(wanted.id, found.id)) {
            *out = &devices[gpu][0];
            return enter_gpu(*out);
        }
    }
    return NOT_FOUND;
}

/* ---- identity ---- */

int nvmlDeviceGetName(device_t *device, char *out, uint size) { return get_string(device, "name", out, size); }
int nvmlDeviceGetUUID(device_t *device, char *out, uint size) { return get_string(device, "uuid", out, size); }
int nvmlDeviceGetMinorNumber(device_t *device, uint *out) { return get_sensor(device, "minor", out); }

int nvmlDeviceGetIndex(device_t *device, uint *out)
{
    int error = enter(device, NULL);
    if (error)
        return error;
    *out = 0;
    for (int gpu = 0; gpu < gpu_of(device); gpu++)
        *out += (uint)file_exists(&devices[gpu][0]);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(device_t *device, pci_t *out)
{
    char value[VALUE_BYTES];
    memset(out, 0, sizeof *out);
    if (is_handle(device))
        device = &devices[gpu_of(device)][0];
    int error = get_text(device, "pci_bus_id", value, sizeof value);
    return error ? error : parse_pci(value, out);
}

int nvmlDeviceGetCudaComputeCapability(device_t *device, int *major, int *minor)
{
    char value[64];
    int error = get_text(device, "capability", value, sizeof value);
    if (error)
        return error;
    return sscanf(value, "%d.%d", major, minor) == 2 ? SUCCESS : UNKNOWN;
}

/* ---- sensors ---- */

int nvmlDeviceGetUtilizationRates(device_t *device, utilisation_t *out)
{
    uint mig_mode = 0;
    int error = get_sensor(device, "utilisation", &out->gpu);
    if (error)
        return error;
    if (!get_sensor(device, "mig_mode", &mig_mode) && mig_mode)
        return NOT_SUPPORTED;
    out->memory = out->gpu / 2;
    return SUCCESS;
}

/* The processes of a list of `pid:bytes`: all of them, or those that still (or no longer) live. */
enum { EVERY, LIVING, DEAD };

static ull bytes_of(const char *word)
{
    const char *colon = strchr(word, ':');
    return colon && isdigit((unsigned char)colon[1]) ? strtoull(colon + 1, NULL, 10) : ~0ULL;
}

static uint list_processes(const device_t *device, const char *suffix, const char *key, int which, process_t *list)
{
    char value[VALUE_BYTES], *rest = value;
    uint count = 0;
    if (!value_of_file(device, suffix, key, value, sizeof value))
        return 0;
    for (char *word; count < MAX_PROCESSES && (word = strsep(&rest, " "));) {
        long pid = atol(word);
        if (pid > 0 && (which == EVERY || is_alive(pid) == (which == LIVING)))
            list[count++] = (process_t){(uint)pid, bytes_of(word), ~0U, ~0U};
    }
    return count;
}

static ull number_in_file(const device_t *device, const char *suffix, const char *key)
{
    char value[64];
    return value_of_file(device, suffix, key, value, sizeof value) ? strtoull(value, NULL, 10) : 0;
}

static ull used_memory(const device_t *device)
{
    process_t dead[MAX_PROCESSES];
    ull live = number_in_file(device, ".live", "memory_used");
    uint count = list_processes(device, ".live", "processes", DEAD, dead);
    for (uint i = 0; i < count; i++)
        live -= dead[i].bytes < live ? dead[i].bytes : live;
    return live + number_in_file(device, "", "memory_used");
}

static int get_memory(device_t *device, memory_v2_t *out)
{
    char value[64];
    int error = enter(device, "memory_used");
    if (!error)
        error = get_number(device, "memory_total", &out->total);
    if (error)
        return error;
    out->used = used_memory(device);
    out->reserved = value_of(device, "memory_reserved", value, sizeof value) ? strtoull(value, NULL, 10) : 0;
    ull taken = out->used + out->reserved;
    out->free = taken < out->total ? out->total - taken : 0;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(device_t *device, memory_t *out)
{
    memory_v2_t memory;
    int error = get_memory(device, &memory);
    if (!error)
        *out = (memory_t){memory.total, memory.free, memory.total - memory.free};
    return error;
}

int nvmlDeviceGetMemoryInfo_v2(device_t *device, memory_v2_t *out)
{
    if (out->version != 0x02000028)
        return VERSION_MISMATCH;
    return get_memory(device, out);
}

int nvmlDeviceGetTemperature(device_t *device, int sensor, uint *out)
{
    return sensor ? INVALID_ARGUMENT : get_sensor(device, "temperature", out);
}

int nvmlDeviceGetTemperatureV(device_t *device, temperature_t *out)
{
    if (out->version != 0x100000C)
        return VERSION_MISMATCH;
    return nvmlDeviceGetTemperature(device, out->sensor, (uint *)&out->temperature);
}

int nvmlDeviceGetTemperatureThreshold(device_t *device, int threshold, uint *out)
{
    static const char *const keys[] = {"shutdown", "slowdown", "memory_max", "gpu_max"};
    if (threshold < 0 || threshold > 3)
        return NOT_SUPPORTED;
    return get_sensor(device, keys[threshold], out);
}

int nvmlDeviceGetPowerUsage(device_t *device, uint *out) { return get_sensor(device, "power_mw", out); }
int nvmlDeviceGetEnforcedPowerLimit(device_t *device, uint *out) { return get_sensor(device, "power_limit_mw", out); }
int nvmlDeviceGetPowerManagementLimit(device_t *device, uint *out)
{
    return get_sensor(device, "power_limit_mw", out);
}
int nvmlDeviceGetMemoryBusWidth(device_t *device, uint *out) { return get_sensor(device, "bus_width", out); }
int nvmlDeviceGetPersistenceMode(device_t *device, uint *out) { return get_sensor(device, "persistence", out); }

int nvmlDeviceGetTotalEnergyConsumption(device_t *device, ull *out)
{
    int error = get_number(device, "energy_mj", out);
    return !error && is_mig(device) ? NOT_SUPPORTED : error;
}

int nvmlDeviceGetClockInfo(device_t *device, int clock, uint *out)
{
    int error = get_sensor(device, clock == 2 ? "mem_clock" : "sm_clock", out);
    return clock == 2 && error == NOT_SUPPORTED ? get_sensor(device, "mem_clock_max", out) : error;
}

int nvmlDeviceGetMaxClockInfo(device_t *device, int clock, uint *out)
{
    return get_sensor(device, clock == 2 ? "mem_clock_max" : "max_sm_clock", out);
}

int nvmlDeviceGetCurrentClocksEventReasons(device_t *device, ull *out)
{
    int error = get_number(device, "throttle", out);
    return !error && is_mig(device) ? NOT_SUPPORTED : error;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t *device, ull *out)
{
    int error = get_number(device, "throttle", out);
    return !error && is_mig(device) ? NOT_SUPPORTED : error;
}

int nvmlDeviceGetEccMode(device_t *device, uint *current, uint *pending)
{
    return get_mode(device, "ecc_mode", current, pending);
}

int nvmlDeviceGetTotalEccErrors(device_t *device, int kind, int counter, ull *out)
{
    uint mode = 0;
    (void)counter;
    int error = get_mode(device, "ecc_mode", &mode, NULL);
    if (error)
        return error;
    if (!mode)
        return NOT_SUPPORTED;
    return get_number(device, kind == 1 ? "ecc_errors" : "ecc_corrected", out);
}

/* `remapped`: corrected, uncorrected, pending, failed. */
int nvmlDeviceGetRemappedRows(device_t *device, uint *corrected, uint *uncorrected, uint *pending, uint *failed)
{
    char value[64];
    int error = get_text(device, "remapped", value, sizeof value);
    if (error)
        return error;
    return sscanf(value, "%u %u %u %u", corrected, uncorrected, pending, failed) == 4 ? SUCCESS : UNKNOWN;
}

/* Takes as long as the real one: it measures over 20 ms. */
int nvmlDeviceGetPcieThroughput(device_t *device, int counter, uint *out)
{
    int error = get_sensor(device, counter ? "pcie_rx" : "pcie_tx", out);
    if (!error)
        usleep(20000);
    return error;
}

/* ---- NUMA ---- */

static void set_bit(unsigned long *set, uint words, ull bit)
{
    const uint bits = 8 * sizeof *set;
    if (bit / bits < words)
        set[bit / bits] |= 1UL << (bit % bits);
}

int nvmlDeviceGetNumaNodeId(device_t *device, uint *out) { return get_sensor(device, "numa", out); }

int nvmlDeviceGetCpuAffinity(device_t *device, uint words, unsigned long *set)
{
    char value[VALUE_BYTES];
    int error = get_text(device, "cpus", value, sizeof value);
    if (error)
        return error;
    memset(set, 0, words * sizeof *set);
    char *rest = value;
    for (char *range; (range = strsep(&rest, ","));) {
        char *dash = strchr(range, '-');
        ull last = strtoull(dash ? dash + 1 : range, NULL, 10);
        for (ull cpu = strtoull(range, NULL, 10); isdigit((unsigned char)*range) && cpu <= last; cpu++)
            set_bit(set, words, cpu);
    }
    return SUCCESS;
}

int nvmlDeviceGetMemoryAffinity(device_t *device, uint words, unsigned long *set, int scope)
{
    uint node = 0;
    (void)scope;
    int error = get_sensor(device, "numa", &node);
    if (error)
        return error;
    memset(set, 0, words * sizeof *set);
    set_bit(set, words, node);
    return SUCCESS;
}

/* ---- topology ---- */

typedef struct { int a, b, level, lanes, nvlink, p2p; } link_t;

static int level_of(const char *kind)
{
    static const struct { const char *kind; int level; } levels[] = {
        {"board", 0}, {"switch", 10}, {"switches", 20}, {"bridge", 30}, {"node", 40}, {"system", 50}};
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if (!strcmp(kind, levels[i].kind))
            return levels[i].level;
    return 40;
}

/* A line of `links`: `a b kind [lanes] [p2p] [pcie]`, a dash for what is not said. */
static int parse_link(const char *line, link_t *link)
{
    char kind[16], lanes[16] = "-", p2p[16] = "-", pcie[16] = "node";
    int words = sscanf(line, "%d %d %15s %15s %15s %15s", &link->a, &link->b, kind, lanes, p2p, pcie);
    if (words < 3)
        return 0;
    link->nvlink = !strcmp(kind, "nvlink");
    link->level = level_of(link->nvlink ? pcie : kind);
    link->lanes = link->nvlink ? (*lanes == '-' ? 4 : atoi(lanes)) : 0;
    link->p2p = *p2p == '-' ? link->nvlink || link->level <= 20 : atoi(p2p);
    return 1;
}

/* Calls `found` with each link of the GPU until it answers other than 0. */
static int each_link(int gpu, int (*found)(const link_t *link, void *with), void *with)
{
    char text[FILE_BYTES], *rest = text;
    link_t link;
    int answer = 0;
    if (!read_file("links", text))
        return 0;
    for (char *line; !answer && (line = strsep(&rest, "\n"));)
        if (parse_link(line, &link) && (link.a == gpu || link.b == gpu))
            answer = found(&link, with);
    return answer;
}

typedef struct { int a, b; link_t link; } pair_t;

static int is_pair(const link_t *link, void *with)
{
    pair_t *pair = with;
    int found = (link->a == pair->a && link->b == pair->b) || (link->a == pair->b && link->b == pair->a);
    if (found)
        pair->link = *link;
    return found;
}

static int get_pair(device_t *a, device_t *b, pair_t *pair)
{
    int error = enter(a, "topology");
    if (!error)
        error = enter(b, "topology");
    if (error)
        return error;
    *pair = (pair_t){gpu_of(a), gpu_of(b), {0}};
    if (each_link(pair->a, is_pair, pair))
        return SUCCESS;
    char one[16] = "0", two[16] = "0";
    value_of(a, "numa", one, sizeof one);
    value_of(b, "numa", two, sizeof two);
    pair->link.level = strcmp(one, two) ? 50 : 40;
    return SUCCESS;
}

int nvmlDeviceGetTopologyCommonAncestor(device_t *a, device_t *b, int *out)
{
    pair_t pair;
    int error = get_pair(a, b, &pair);
    if (!error)
        *out = a == b ? 0 : pair.link.level;
    return error;
}

int nvmlDeviceGetP2PStatus(device_t *a, device_t *b, int index, int *out)
{
    pair_t pair;
    int error = get_pair(a, b, &pair);
    if (!error)
        *out = (index == 2 ? pair.link.nvlink : pair.link.p2p) ? 0 : 5; /* OK, not supported */
    return error;
}

/* Which GPU (or, on a machine with NVSwitches, -1) is at the other end of each of a GPU's NVLinks. */
typedef struct { int gpu, count, most, ends[MAX_LINKS]; } ends_t;

static int add_end(const link_t *link, void *with)
{
    ends_t *ends = with;
    for (int lane = 0; link->nvlink && lane < link->lanes; lane++, ends->count++)
        if (ends->count < MAX_LINKS)
            ends->ends[ends->count] = link->a == ends->gpu ? link->b : link->a;
    ends->most = link->nvlink && link->lanes > ends->most ? link->lanes : ends->most;
    return 0;
}

/* More lanes than a GPU can have mean that each is shared by all its peers: a switch is between. */
static int get_end(device_t *device, uint number, int *end)
{
    int error = enter(device, "nvlink");
    if (error)
        return error;
    ends_t ends = {.gpu = gpu_of(device)};
    each_link(ends.gpu, add_end, &ends);
    int switched = ends.count > MAX_LINKS;
    if (number >= MAX_LINKS)
        return INVALID_ARGUMENT;
    if ((int)number >= (switched ? ends.most : ends.count))
        return NOT_SUPPORTED;
    *end = switched ? -1 : ends.ends[number];
    return SUCCESS;
}

int nvmlDeviceGetNvLinkState(device_t *device, uint link, uint *out)
{
    int end;
    int error = get_end(device, link, &end);
    if (!error)
        *out = end < 0 || file_exists(&devices[end][0]);
    return error;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(device_t *device, uint link, pci_t *out)
{
    int end;
    char value[VALUE_BYTES] = "00000000:C0:00.0";
    int error = get_end(device, link, &end);
    if (error)
        return error;
    if (end >= 0 && (end >= MAX_GPUS || !value_of(&devices[end][0], "pci_bus_id", value, sizeof value)))
        return UNKNOWN;
    memset(out, 0, sizeof *out);
    return parse_pci(value, out);
}

int nvmlDeviceGetNvLinkRemoteDeviceType(device_t *device, uint link, int *out)
{
    int end;
    int error = get_end(device, link, &end);
    if (!error)
        *out = end < 0 ? 2 : 0; /* a switch, a GPU */
    return error;
}

/* ---- MIG ---- */

int nvmlDeviceGetMigMode(device_t *device, uint *current, uint *pending)
{
    return get_mode(device, "mig_mode", current, pending);
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *device, uint *out)
{
    uint mode;
    int error = get_mode(device, "mig_mode", &mode, NULL);
    *out = error ? 0 : 7;
    return error == NOT_SUPPORTED ? SUCCESS : error;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *device, uint index, device_t **out)
{
    uint mode = 0;
    int error = get_mode(device, "mig_mode", &mode, NULL);
    if (error)
        return error;
    if (index >= MAX_MIGS)
        return INVALID_ARGUMENT;
    *out = &devices[gpu_of(device)][index + 1];
    return mode && file_exists(*out) ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t *device, device_t **out)
{
    int error = enter(device, NULL);
    if (error)
        return error;
    if (!is_mig(device))
        return INVALID_ARGUMENT;
    *out = &devices[gpu_of(device)][0];
    return SUCCESS;
}

int nvmlDeviceIsMigDeviceHandle(device_t *device, uint *out)
{
    int error = enter(device, NULL);
    if (!error)
        *out = (uint)is_mig(device);
    return error;
}

/* ---- processes ---- */

static int get_processes(device_t *device, const char *key, uint *count, process_t *list, uint *found)
{
    int error = enter(device, key);
    if (error)
        return error;
    *found = list_processes(device, "", key, EVERY, list);
    *found += list_processes(device, ".live", key, LIVING, list + *found);
    uint room = *count;
    *count = *found;
    return *found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

static int processes(device_t *device, const char *key, uint *count, process_t *out)
{
    process_t list[2 * MAX_PROCESSES];
    uint found = 0;
    int error = get_processes(device, key, count, list, &found);
    if (!error && out)
        memcpy(out, list, found * sizeof *out);
    return error;
}

int nvmlDeviceGetComputeRunningProcesses(device_t *device, uint *count, process_v1_t *out)
{
    process_t list[2 * MAX_PROCESSES];
    uint found = 0;
    int error = get_processes(device, "processes", count, list, &found);
    for (uint i = 0; !error && out && i < found; i++)
        out[i] = (process_v1_t){list[i].pid, list[i].bytes};
    return error;
}

int nvmlDeviceGetComputeRunningProcesses_v2(device_t *device, uint *count, process_t *out)
{
    return processes(device, "processes", count, out);
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t *device, uint *count, process_t *out)
{
    return processes(device, "processes", count, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(device_t *device, uint *count, process_t *out)
{
    return processes(device, "graphics", count, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t *device, uint *count, process_t *out)
{
    return processes(device, "graphics", count, out);
}

/* ---- events ---- */

static uint words_in(const char *text)
{
    uint words = 0;
    for (int inside = 0; *text; text++) {
        int is_word = *text != ' ';
        words += is_word && !inside;
        inside = is_word;
    }
    return words;
}

static uint xids_of(int gpu, char *value, size_t size)
{
    return value_of(&devices[gpu][0], "xid", value, size) ? words_in(value) : 0;
}

int nvmlEventSetCreate(event_set_t **out)
{
    int error = enter_library();
    if (error)
        return error;
    *out = calloc(1, sizeof **out);
    return *out ? SUCCESS : UNKNOWN;
}

int nvmlEventSetFree(event_set_t *set)
{
    free(set);
    return SUCCESS;
}

int nvmlDeviceGetSupportedEventTypes(device_t *device, ull *out)
{
    int error = enter(device, "xid");
    *out = error ? 0 : EVENTS_SUPPORTED;
    return error == NOT_SUPPORTED ? SUCCESS : error;
}

/* What happened before is not reported. */
int nvmlDeviceRegisterEvents(device_t *device, ull types, event_set_t *set)
{
    char value[VALUE_BYTES];
    int error = enter(device, "xid");
    if (error)
        return error;
    if (is_mig(device) || (types & ~(ull)EVENTS_SUPPORTED))
        return NOT_SUPPORTED;
    int gpu = gpu_of(device);
    set->registered[gpu] = 1;
    set->seen[gpu] = xids_of(gpu, value, sizeof value);
    return SUCCESS;
}

static int next_xid(event_set_t *set, int gpu, event_t *out)
{
    char value[VALUE_BYTES], *rest = value;
    uint count = xids_of(gpu, value, sizeof value), number = 0;
    if (count <= set->seen[gpu]) {
        set->seen[gpu] = count;
        return 0;
    }
    for (char *word; (word = strsep(&rest, " "));) {
        if (!*word || number++ < set->seen[gpu])
            continue;
        *out = (event_t){&devices[gpu][0], EVENT_XID, strtoull(word, NULL, 10), ~0U, ~0U};
        break;
    }
    set->seen[gpu]++;
    return 1;
}

/* An event of any GPU, else GPU_IS_LOST where one of them is lost, else TIMEOUT. */
static int look(event_set_t *set, event_t *out)
{
    char value[64];
    int answer = TIMEOUT;
    forget_files();
    for (int gpu = 0; gpu < MAX_GPUS; gpu++)
        if (set->registered[gpu] && next_xid(set, gpu, out))
            return SUCCESS;
    for (int gpu = 0; gpu < MAX_GPUS; gpu++)
        if (set->registered[gpu] && value_of(&devices[gpu][0], "error", value, sizeof value)
            && atoi(value) == GPU_IS_LOST)
            answer = GPU_IS_LOST;
    return answer;
}

int nvmlEventSetWait_v2(event_set_t *set, event_t *out, uint timeout_ms)
{
    struct timespec begin, now;
    int answer = enter_library();
    if (answer)
        return answer;
    if (!set)
        return INVALID_ARGUMENT;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    while ((answer = look(set, out)) == TIMEOUT) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        long waited_ms = (now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000;
        if (waited_ms >= (long)timeout_ms)
            return TIMEOUT;
        usleep(2000);
    }
    return answer;
}
