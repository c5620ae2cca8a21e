// The causal convolution of both directions, with bias and SiLU.
//
// A thread owns V neighbouring channels and a run of tokens, and slides a window of 2W - 1 tokens over them, from which
// it makes both directions: x is read once, but for the ends of the runs.
#include "causal_conv1d.h"

#include "activations.h"
#include "lowering_rules.h"
#include "storage.h"

namespace vimrt::cuda {

namespace {

constexpr int threads_per_block = 128;
constexpr int tokens_per_thread = 8;

template <typename T, int V>
__device__ void load_token(const CausalConv& a, std::int64_t image, int token, int channel, float (&to)[V]) {
    if (token >= 0 && token < a.tokens) {
        load_floats(static_cast<const T*>(a.x) + (image * a.tokens + token) * a.x_stride + channel, to);
        return;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = 0.0F;
}

template <typename T, int V, int W, bool Both>
__global__ void __launch_bounds__(threads_per_block) convolve(const CausalConv a) {
    const int columns = a.channels / V;
    const int runs = (a.tokens + tokens_per_thread - 1) / tokens_per_thread;
    const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * threads_per_block + threadIdx.x;
    if (index >= static_cast<std::int64_t>(columns) * runs * a.batch) return;
    const int channel = static_cast<int>(index % columns) * V;
    const int first = static_cast<int>(index / columns % runs) * tokens_per_thread;
    const std::int64_t image = index / columns / runs;

    constexpr int reach = Both ? 2 * W - 1 : W;
    float forward_taps[W][V], backward_taps[Both ? W : 1][V], forward_bias[V], backward_bias[V];
    load_floats(a.forward_bias + channel, forward_bias);
    if constexpr (Both) load_floats(a.backward_bias + channel, backward_bias);
#pragma unroll
    for (int j = 0; j < W; ++j) {
        load_floats(a.forward_taps + j * a.channels + channel, forward_taps[j]);
        if constexpr (Both) load_floats(a.backward_taps + j * a.channels + channel, backward_taps[j]);
    }
    float window[reach][V];  // tokens t - (W - 1) to t + (W - 1), or to t
#pragma unroll
    for (int j = 0; j + 1 < reach; ++j) load_token<T>(a, image, first - (W - 1) + j, channel, window[j + 1]);
#pragma unroll
    for (int step = 0; step < tokens_per_thread; ++step) {
        const int token = first + step;
        if (token >= a.tokens) break;
#pragma unroll
        for (int j = 0; j + 1 < reach; ++j) {
#pragma unroll
            for (int i = 0; i < V; ++i) window[j][i] = window[j + 1][i];
        }
        load_token<T>(a, image, token + reach - W, channel, window[reach - 1]);
        const std::int64_t at = (image * a.tokens + token) * a.channels + channel;
        float out[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
            float sum = forward_bias[i];
#pragma unroll
            for (int j = 0; j < W; ++j) sum = fmaf(forward_taps[j][i], window[j][i], sum);
            out[i] = silu(sum);
        }
        store_floats(static_cast<T*>(a.forward) + at, out);
        if constexpr (Both) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                float sum = backward_bias[i];
#pragma unroll
                for (int j = 0; j < W; ++j) sum = fmaf(backward_taps[j][i], window[reach - 1 - j][i], sum);
                out[i] = silu(sum);
            }
            store_floats(static_cast<T*>(a.backward) + at, out);
        }
    }
}

// Any width, any number of channels: a thread makes one element of each direction, reading what it needs.
template <typename T>
__global__ void __launch_bounds__(threads_per_block) convolve_any(const CausalConv a) {
    const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * threads_per_block + threadIdx.x;
    if (at >= static_cast<std::int64_t>(a.batch) * a.tokens * a.channels) return;
    const int channel = static_cast<int>(at % a.channels);
    const int token = static_cast<int>(at / a.channels % a.tokens);
    const std::int64_t image = at / a.channels / a.tokens;
    float forward = a.forward_bias[channel];
    float backward = a.backward != nullptr ? a.backward_bias[channel] : 0.0F;
    for (int j = 0; j < a.width; ++j) {
        float x[1];
        load_token<T>(a, image, token - (a.width - 1) + j, channel, x);
        forward = fmaf(a.forward_taps[j * a.channels + channel], x[0], forward);
        if (a.backward == nullptr) continue;
        load_token<T>(a, image, token + (a.width - 1) - j, channel, x);
        backward = fmaf(a.backward_taps[j * a.channels + channel], x[0], backward);
    }
    static_cast<T*>(a.forward)[at] = from_float<T>(silu(forward));
    if (a.backward != nullptr) static_cast<T*>(a.backward)[at] = from_float<T>(silu(backward));
}

}  // namespace

void causal_conv1d(const CausalConv& a, cudaStream_t stream) {
    constexpr int V = 4;
    constexpr int published_width = 4;
    with_storage(a.dtype, [&](auto type) {
        using T = decltype(type);
        const bool aligned =
            a.channels % V == 0 && a.x_stride % V == 0 && reinterpret_cast<std::uintptr_t>(a.x) % (V * sizeof(T)) == 0;
        if (!aligned || a.width != published_width) {
            const std::int64_t elements = static_cast<std::int64_t>(a.batch) * a.tokens * a.channels;
            convolve_any<T><<<blocks_for(elements, threads_per_block), threads_per_block, 0, stream>>>(a);
            return;
        }
        const std::int64_t runs = blocks_for(a.tokens, tokens_per_thread);
        const unsigned blocks = blocks_for(a.channels / V * runs * a.batch, threads_per_block);
        if (a.backward != nullptr) {
            convolve<T, V, published_width, true><<<blocks, threads_per_block, 0, stream>>>(a);
        } else {
            convolve<T, V, published_width, false><<<blocks, threads_per_block, 0, stream>>>(a);
        }
    });
}

}  // namespace vimrt::cuda
