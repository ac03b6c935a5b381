// The part of CUDA's driver that CubeCL calls, on the CPU. Device memory is memory, streams do at once what
// they are told, and the threads of a block are coroutines that meet at barriers and warp operations.
#define _GNU_SOURCE
#include "runtime.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { OK, INVALID_VALUE, OUT_OF_MEMORY, INVALID_DEVICE = 101, INVALID_PTX = 218, NOT_FOUND = 500, LAUNCH_FAILED = 719, UNSUPPORTED = 801 };
typedef uint64_t Address;

// --- The device: what an H200 says of itself, with less memory ---

static const size_t MEMORY = 8ull << 30;

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }
int cuDeviceGet(int *device, int index) { *device = index; return index == 0 ? OK : INVALID_DEVICE; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "NVIDIA H200, emulated"); return OK; }
int cuDeviceGetPCIBusId(char *id, int size, int device) { snprintf(id, size, "0000:01:00.0"); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = MEMORY; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break; // threads of a block, and along x and y
    case 4: *value = 64; break;                   // along z
    case 5: *value = 2147483647; break;           // blocks along x
    case 6: case 7: *value = 65535; break;        // along y and z
    case 10: *value = 32; break;                  // threads of a warp
    case 16: *value = 132; break;                 // multiprocessors
    case 75: *value = 9; break;                   // compute capability
    case 97: *value = 232448; break;              // shared memory of a block
    case 115: *value = 1; break;                  // memory pools
    default: *value = 0;
    }
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
int cuCtxSetCurrent(void *context) { return OK; }
int cuCtxGetCurrent(void **context) { *context = (void *)1; return OK; }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return OK; }
int cuGetErrorName(int error, const char **name) { *name = "an error of the emulated driver"; return OK; }
int cuGetErrorString(int error, const char **text) { *text = "see standard error"; return OK; }

int cuStreamCreate(void **stream, unsigned flags) { *stream = malloc(1); return OK; }
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return cuStreamCreate(stream, flags); }
int cuStreamDestroy_v2(void *stream) { free(stream); return OK; }
int cuStreamSynchronize(void *stream) { return OK; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return OK; }
int cuStreamIsCapturing(void *stream, int *status) { *status = 0; return OK; }
int cuStreamBeginCapture_v2(void *stream, int mode) { return UNSUPPORTED; }
int cuEventCreate(void **event, unsigned flags) { *event = calloc(1, sizeof(struct timespec)); return OK; }
int cuEventRecord(void *event, void *stream) { clock_gettime(CLOCK_MONOTONIC, event); return OK; }
int cuEventQuery(void *event) { return OK; }
int cuEventSynchronize(void *event) { return OK; }
int cuEventDestroy_v2(void *event) { free(event); return OK; }
int cuEventElapsedTime(float *milliseconds, struct timespec *start, struct timespec *end) {
    *milliseconds = (end->tv_sec - start->tv_sec) * 1e3 + (end->tv_nsec - start->tv_nsec) * 1e-6;
    return OK;
}
int cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) { return cuEventElapsedTime(milliseconds, start, end); }

// --- Memory, poisoned with NaN ---

int cuMemAlloc_v2(Address *address, size_t bytes) {
    void *memory;
    if (posix_memalign(&memory, 512, bytes)) return OUT_OF_MEMORY;
    *address = (Address)memset(memory, 0xff, bytes);
    return OK;
}
int cuMemAllocAsync(Address *address, size_t bytes, void *stream) { return cuMemAlloc_v2(address, bytes); }
int cuMemAllocHost_v2(void **memory, size_t bytes) { return cuMemAlloc_v2((Address *)memory, bytes); }
int cuMemFree_v2(Address address) { free((void *)address); return OK; }
int cuMemFreeAsync(Address address, void *stream) { return cuMemFree_v2(address); }
int cuMemFreeHost(void *memory) { free(memory); return OK; }
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) { memcpy((void *)to, from, bytes); return OK; }
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) { memcpy(to, (void *)from, bytes); return OK; }
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) { memmove((void *)to, (void *)from, bytes); return OK; }

typedef struct {
    size_t x, y;
    int kind; // 1: the host's memory
    void *host;
    Address device;
    void *array;
    size_t pitch;
} Side;
typedef struct { Side from, to; size_t width, height; } Copy;
static char *row_of(const Side *side, size_t y) {
    return (side->kind == 1 ? side->host : (char *)side->device) + (side->y + y) * side->pitch + side->x;
}
int cuMemcpy2DAsync_v2(const Copy *copy, void *stream) {
    for (size_t y = 0; y < copy->height; y++) memcpy(row_of(&copy->to, y), row_of(&copy->from, y), copy->width);
    return OK;
}

// --- Modules: PTX becomes C, and C a library, once for each text ---

typedef struct { void (*run)(Thread *); int meets; char *name; } Function;

static uint64_t hash_of(const char *text) {
    uint64_t hash = 14695981039346656037ull; // FNV-1a
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 1099511628211ull;
    return hash;
}
int cuModuleLoadData(void **module, const char *ptx) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    const char *cache = getenv("PTX_CACHE"), *tools = getenv("PTX_TOOLS");
    if (!cache || !tools) { fprintf(stderr, "PTX_CACHE or PTX_TOOLS is not set: use run.sh\n"); return INVALID_PTX; }
    char base[512], library[520], command[4096];
    snprintf(library, sizeof library, "%s/%016lx.so", cache, hash_of(ptx));
    // Programs may share the folder.
    snprintf(base, sizeof base, "%s/%016lx-%d", cache, hash_of(ptx), getpid());
    pthread_mutex_lock(&lock);
    int failed = 0;
    if (access(library, R_OK)) {
        snprintf(command, sizeof command, "%s.ptx", base);
        FILE *file = fopen(command, "w");
        failed = !file || fputs(ptx, file) < 0 || fclose(file);
        // No fused multiply-add but those of the PTX.
        snprintf(command, sizeof command,
                 "python3 '%s/translate.py' '%s.ptx' >'%s.c' && gcc -O1 -w -fwrapv -fno-strict-aliasing -ffp-contract=off "
                 "-march=native -frounding-math -fPIC -shared -I'%s' '%s.c' -o '%s.so' -lm && mv '%s.so' '%s'",
                 tools, base, base, tools, base, base, base, library);
        failed = failed || system(command);
    }
    *module = failed ? NULL : dlopen(library, RTLD_NOW | RTLD_LOCAL);
    pthread_mutex_unlock(&lock);
    if (!*module) fprintf(stderr, "cannot translate %s.ptx\n", base);
    return *module ? OK : INVALID_PTX;
}
int cuModuleUnload(void *module) { return OK; }
int cuModuleGetFunction(Function **function, void *module, const char *name) {
    char symbol[1024];
    snprintf(symbol, sizeof symbol, "entry_%s", name);
    for (char *c = symbol; *c; c++) if (*c == '$' || *c == '.') *c = '_';
    Function *found = calloc(1, sizeof *found);
    found->run = (void (*)(Thread *))dlsym(module, symbol);
    if (!found->run) { free(found); return NOT_FOUND; }
    found->meets = *(int *)dlsym(module, "meets");
    found->name = strdup(name);
    *function = found;
    return OK;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { return OK; }

// --- Launches ---

enum { MOST_THREADS = 1024, WARP = 32, STACK = 1 << 16, SHARED = 232448 };
typedef struct {
    Thread thread; // the first, so that a thread is its coroutine
    ucontext_t context;
    enum { RUNS, AT_BARRIER, AT_WARP_OPERATION, ENDED } state;
    Meeting meeting;
    int place;
    uint64_t value, answer;
    uint32_t by, bounds;
} Coroutine;

static __thread Coroutine *block, *current;
static __thread ucontext_t scheduler;
static __thread const Function *running;

static uint64_t meet(Thread *thread, Meeting meeting, int place, uint64_t value, uint32_t by, uint32_t bounds) {
    Coroutine *self = (Coroutine *)thread;
    self->meeting = meeting; self->place = place; self->value = value; self->by = by; self->bounds = bounds;
    self->state = meeting <= BARRIER_POPC ? AT_BARRIER : AT_WARP_OPERATION;
    swapcontext(&self->context, &scheduler);
    return self->answer;
}
static void start(void) {
    running->run(&current->thread);
    current->state = ENDED;
    swapcontext(&current->context, &scheduler);
}

// The lane that a shuffle reads, or -1 where that is out of bounds.
static int source_lane(const Coroutine *lane, int index) {
    int segment = lane->bounds >> 8 & 31, clamp = lane->bounds & 31;
    int first = index & segment, last = first | (clamp & ~segment), source = index;
    switch (lane->meeting) {
    case SHUFFLE_UP: source = index - (int)lane->by; return source >= last ? source : -1;
    case SHUFFLE_DOWN: source = index + lane->by; break;
    case SHUFFLE_BFLY: source = index ^ lane->by; break;
    default: source = first | (lane->by & ~segment & 31);
    }
    return source <= last ? source : -1;
}
// Answers the lanes that wait where the first waiting one does.
static void answer_warp(Coroutine *warp, int lanes) {
    uint32_t here = 0, yes = 0;
    int place = -1;
    for (int i = 0; i < lanes; i++) {
        if (warp[i].state != AT_WARP_OPERATION || (place >= 0 && warp[i].place != place)) continue;
        place = warp[i].place;
        here |= 1u << i;
        if (warp[i].value) yes |= 1u << i;
    }
    for (int i = 0; i < lanes; i++) {
        if (!(here >> i & 1)) continue;
        Coroutine *lane = &warp[i];
        int source;
        switch (lane->meeting) {
        case VOTE_ALL: lane->answer = yes == here; break;
        case VOTE_ANY: lane->answer = yes != 0; break;
        case VOTE_BALLOT: lane->answer = yes; break;
        case ACTIVE_MASK: lane->answer = here; break;
        case WARP_BARRIER: break;
        default:
            source = source_lane(lane, i);
            lane->answer = (uint32_t)warp[source < 0 ? i : source].value | (uint64_t)(source >= 0) << 32;
        }
    }
    for (int i = 0; i < lanes; i++) if (here >> i & 1) warp[i].state = RUNS;
}
// Lets everybody go on if all that are left wait at the barrier.
static int answer_barrier(int threads) {
    uint64_t count = 0, waiting = 0;
    for (int i = 0; i < threads; i++) {
        if (block[i].state != AT_BARRIER && block[i].state != ENDED) return 0;
        waiting += block[i].state == AT_BARRIER;
        count += block[i].state == AT_BARRIER && block[i].value;
    }
    for (int i = 0; i < threads; i++) {
        if (block[i].state != AT_BARRIER) continue;
        Meeting meeting = block[i].meeting;
        block[i].answer = meeting == BARRIER_OR ? count > 0 : meeting == BARRIER_AND ? count == waiting : count;
        block[i].state = RUNS;
    }
    return waiting > 0;
}
static int run_block(int threads, int backwards) {
    for (int ended = 0; ended < threads;) {
        int progress = 0;
        for (int i = 0; i < threads; i++) {
            current = &block[backwards ? threads - 1 - i : i];
            if (current->state != RUNS) continue;
            progress = 1;
            swapcontext(&scheduler, &current->context);
            ended += current->state == ENDED;
        }
        for (int first = 0; first < threads; first += WARP) {
            int lanes = threads - first < WARP ? threads - first : WARP, run = 0, wait = 0;
            for (int i = first; i < first + lanes; i++) {
                run |= block[i].state == RUNS;
                wait |= block[i].state == AT_WARP_OPERATION;
            }
            if (wait && !run) { answer_warp(&block[first], lanes); progress = 1; }
        }
        progress |= answer_barrier(threads);
        if (!progress && ended < threads) { fprintf(stderr, "%s hangs\n", running->name); return LAUNCH_FAILED; }
    }
    return OK;
}

int cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void *stream, void **params, void **extra) {
    static __thread char *shared, *stacks;
    int threads = bx * by * bz, backwards = getenv("PTX_REVERSE") != NULL;
    if (threads > MOST_THREADS || shared_bytes > SHARED) return INVALID_VALUE;
    if (!block) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        block = calloc(MOST_THREADS, sizeof *block);
        stacks = mmap(NULL, (size_t)MOST_THREADS * STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
        // Where addresses of shared memory fit into 32 bits.
        shared = mmap(NULL, SHARED, PROT_READ | PROT_WRITE, flags | MAP_32BIT, -1, 0);
        if (!block || stacks == MAP_FAILED || shared == MAP_FAILED) return OUT_OF_MEMORY;
    }
    running = function;
    for (uint64_t turn = 0, blocks = (uint64_t)gx * gy * gz; turn < blocks; turn++) {
        uint64_t at = backwards ? blocks - 1 - turn : turn;
        memset(shared, 0xff, shared_bytes);
        for (int other = 0; other < threads; other++) {
            int i = backwards ? threads - 1 - other : other;
            Thread thread = {{i % bx, i / bx % by, i / (bx * by)}, {bx, by, bz}, {at % gx, at / gx % gy, at / gx / gy},
                             {gx, gy, gz}, i % WARP, i / WARP, shared, params, meet};
            if (!function->meets) { function->run(&thread); continue; }
            Coroutine *new = &block[i];
            new->thread = thread;
            new->state = RUNS;
            getcontext(&new->context);
            new->context.uc_stack.ss_sp = stacks + (size_t)i * STACK;
            new->context.uc_stack.ss_size = STACK;
            makecontext(&new->context, start, 0);
        }
        int failed = function->meets ? run_block(threads, backwards) : OK;
        if (failed) return failed;
    }
    return OK;
}
