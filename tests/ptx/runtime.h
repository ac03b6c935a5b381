// What translated kernels and the driver share: a thread, and PTX's arithmetic where C has none of its own.
#pragma once
#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct Thread Thread;
// What a thread cannot do without the others of its warp or block.
typedef enum {
    BARRIER, BARRIER_OR, BARRIER_AND, BARRIER_POPC,
    SHUFFLE_IDX, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_BFLY,
    VOTE_ALL, VOTE_ANY, VOTE_BALLOT, ACTIVE_MASK, WARP_BARRIER,
} Meeting;

struct Thread {
    uint32_t tid[3], ntid[3], ctaid[3], nctaid[3], lane, warp;
    char *shared;
    void **params;
    // Waits for the others at a place of the program; `value` is the thread's own, `by` and `bounds` are of
    // a shuffle. The upper word of a shuffle's answer says whether its source was in bounds.
    uint64_t (*meet)(Thread *, Meeting, int place, uint64_t value, uint32_t by, uint32_t bounds);
};

// Numbers from their bits and back; arithmetic has one NaN.
#define BITS(type, number, bits, nan)                                                           \
    static inline number from_##type(bits x) { number y; memcpy(&y, &x, sizeof y); return y; }  \
    static inline bits to_##type(number x) { bits y; memcpy(&y, &x, sizeof y); return isnan(x) ? nan : y; }
BITS(f32, float, uint32_t, 0x7fffffff)
BITS(f64, double, uint64_t, 0x7fffffffffffffff)
BITS(half, _Float16, uint16_t, 0x7fff)

static inline float from_f16(uint16_t x) { return (float)from_half(x); }
static inline uint16_t to_f16(float x) { return to_half((_Float16)x); }
static inline float from_bf16(uint16_t x) { return from_f32((uint32_t)x << 16); }
static inline uint16_t to_bf16(float x) {
    uint32_t bits = to_f32(x);
    return isnan(x) ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); // to even
}

static inline float flushed(float x) { return fpclassify(x) == FP_SUBNORMAL ? copysignf(0, x) : x; }
// NaN loses against a number, and -0 is below +0.
static inline double least(double a, double b) {
    if (a == 0 && b == 0) return signbit(a) ? a : b;
    return fmin(a, b);
}
static inline double most(double a, double b) {
    if (a == 0 && b == 0) return signbit(a) ? b : a;
    return fmax(a, b);
}
static inline double least_or_nan(double a, double b) { return isnan(a) || isnan(b) ? NAN : least(a, b); }
static inline double most_or_nan(double a, double b) { return isnan(a) || isnan(b) ? NAN : most(a, b); }

// To an integer of so many bits, saturated; NaN is 0, as it is for f32 and 32 bits or fewer.
static inline uint64_t to_integer(double x, int bits, int is_signed) {
    if (isnan(x)) return 0;
    double low = is_signed ? -ldexp(1, bits - 1) : 0, end = ldexp(1, is_signed ? bits - 1 : bits);
    if (x < low) x = low;
    if (is_signed) return x < end ? (uint64_t)(int64_t)x : (1ull << (bits - 1)) - 1;
    return x < end ? (uint64_t)x : bits == 64 ? UINT64_MAX : (1ull << bits) - 1;
}

static inline uint32_t permuted_bytes(uint64_t bytes, uint32_t selector) {
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned choice = selector >> (4 * i) & 15;
        uint32_t byte = bytes >> (8 * (choice & 7)) & 255;
        out |= (choice & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
    }
    return out;
}
