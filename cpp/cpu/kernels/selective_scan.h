// The selective scan over a chunk of tokens, for one register of channels:
//
//     h[n] <- 2^(delta A[n]) h[n] + (delta c) B[n],    y = D c + sum over n of C[n] h[n]
//
// Channels lie across the register's lanes; states are unrolled, up to 16 at a time in registers (4 with AVX2), and
// stay there for the whole chunk. More states take several passes over the chunk, which is in the first-level cache by
// then.
#pragma once

#include "kernels/partition.h"
#include "kernels/vector_math.h"

namespace vimrt::cpu::VIMRT_ISA {

// Tokens per chunk, at most: a chunk's c and delta, 2 * 32 * E floats, stay in the second-level cache.
constexpr std::int64_t kChunk = 32;

// A chunk of `tokens` tokens for one register of channels. Pointers are at the first token to be scanned; strides are
// in floats and negative where the scan goes backwards.
struct ScanChunk {
    std::int64_t tokens = 0;
    std::int64_t states = 0;
    const float* c = nullptr;       // (tokens, lanes)
    float* delta = nullptr;         // (tokens, lanes); overwritten by y
    std::int64_t stride = 0;        // of c and delta
    const float* b = nullptr;       // (tokens, states)
    const float* c_out = nullptr;   // (tokens, states): C, which reads the state out
    std::int64_t state_stride = 0;  // of b and c_out
    const float* rates = nullptr;   // (states, lanes): A log2(e)
    const float* skip = nullptr;    // (lanes): D
    float* h = nullptr;             // (states, lanes), read and written
};

// States [n, n + kStates) of the chunk. `y` (tokens, lanes), dense, holds the sum over the states before n, and
// receives it with these added; in the last pass the sum goes to `chunk.delta` instead. Without earlier states it
// starts at D c.
template <int kStates>
static inline void scan_pass(const ScanChunk& chunk, std::int64_t n, float* y) {
    const bool first = n == 0;
    const bool last = n + kStates == chunk.states;
    const float* rates = chunk.rates + n * kLanes;
    float* states = chunk.h + n * kLanes;
    Vec h[kStates];
#pragma GCC unroll 16
    for (int i = 0; i < kStates; ++i) h[i] = load(states + i * kLanes);

    const Vec skip = load(chunk.skip);
    const float* c = chunk.c;
    float* delta_row = chunk.delta;
    const float* b = chunk.b + n;
    const float* c_out = chunk.c_out + n;
    for (std::int64_t t = 0; t < chunk.tokens; ++t) {
        const Vec delta = load(delta_row);
        const Vec input = load(c);
        const Vec drive = mul(delta, input);
        Vec sum = first ? mul(skip, input) : load(y);
        Vec sum_odd = zero();
#pragma GCC unroll 16
        for (int i = 0; i < kStates; ++i) {
            const Vec decay = exp2_nonpositive(mul(delta, load(rates + i * kLanes)));
            h[i] = fma(decay, h[i], mul(drive, set1(b[i])));
            Vec& part = i % 2 == 0 ? sum : sum_odd;
            part = fma(h[i], set1(c_out[i]), part);
        }
        store(last ? delta_row : y, add(sum, sum_odd));
        c += chunk.stride;
        delta_row += chunk.stride;
        b += chunk.state_stride;
        c_out += chunk.state_stride;
        y += kLanes;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kStates; ++i) store(states + i * kLanes, h[i]);
}

// Scans the chunk: chunk.h goes on, chunk.delta becomes y. chunk.tokens <= kChunk.
static inline void selective_scan(const ScanChunk& chunk) {
    alignas(64) float y[kChunk * kLanes];
    std::int64_t n = 0;
    while (n < chunk.states) {
        const std::int64_t left = chunk.states - n;
#if defined(__AVX512F__)
        if (left >= 16) {
            scan_pass<16>(chunk, n, y);
            n += 16;
        } else if (left >= 8) {
            scan_pass<8>(chunk, n, y);
            n += 8;
        } else
#endif
            if (left >= 4) {
            scan_pass<4>(chunk, n, y);
            n += 4;
        } else if (left >= 2) {
            scan_pass<2>(chunk, n, y);
            n += 2;
        } else {
            scan_pass<1>(chunk, n, y);
            n += 1;
        }
    }
}

}  // namespace vimrt::cpu::VIMRT_ISA
