// Loops that do nothing but multiply-adds, or nothing but exponentials, at the rate that the processor's units allow.
#include "kernels/vector_math.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

// Independent chains, enough to hide the latency of four cycles on two units.
constexpr int kChains = 12;

}  // namespace

// 2 * kChains * kLanes floating-point operations per step; returns how many that is.
double probe_fma(long steps) {
    volatile float seed = 0.5F;
    const Vec factor = set1(seed);
    Vec sums[kChains];
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = factor;
    for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) {
            sums[i] = fma(sums[i], factor, factor);
            asm volatile("" : "+v"(sums[i]));  // keeps every product of every step
        }
    }
    return 2.0 * kChains * kLanes * static_cast<double>(steps);
}

// 4 * kLanes exponentials per step; returns how many that is.
double probe_exp(long steps) {
    constexpr int exponentials = 4;
    volatile float seed = -0.5F;
    const Vec start = set1(seed);
    Vec values[exponentials];
#pragma GCC unroll 4
    for (int i = 0; i < exponentials; ++i) values[i] = start;
    for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 4
        for (int i = 0; i < exponentials; ++i) {
            Vec argument = start;
            asm volatile("" : "+v"(argument));
            values[i] = exp2_nonpositive(argument);
            asm volatile("" : "+v"(values[i]));
        }
    }
    return 1.0 * exponentials * kLanes * static_cast<double>(steps);
}

}  // namespace vimrt::cpu::VIMRT_ISA
