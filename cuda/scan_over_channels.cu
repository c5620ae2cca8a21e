// The scan with a thread for each channel and direction, its states in registers, token after token: the plain form,
// for shapes that scan_columns.cu does not take. A block owns 32 channels of an image in both directions.
#include "lowering_rules.h"
#include "scan_steps.cuh"

namespace vimrt::cuda {

namespace {

constexpr int channels_per_block = 32;

// The token of a direction's step.
__device__ int token_at(const Scan& a, int direction, int step) {
    return direction == 0 ? step : a.tokens - 1 - step;
}

// Steps of a direction's walk whose y is stored as it is: all of them where nothing is merged here.
__device__ int plain_steps(const Scan& a, int direction) {
    if (a.merged == nullptr) return a.tokens;
    if (a.directions == 1) return 0;
    const int half = (a.tokens + 1) / 2;
    return direction == 0 ? half : a.tokens - half;
}

template <typename T, int N>
__device__ void scan_token(const Scan& a, const ScanDirection& d, std::int64_t row, int channel,
                           const float (&decay)[N], float (&state)[N], float& y) {
    const int width = a.rank + 2 * N;
    const T* projected = static_cast<const T*>(d.projected) + row * width;
    const T* weight = static_cast<const T*>(d.dt_weight) + static_cast<std::int64_t>(channel) * a.rank;
    float delta = d.dt_bias[channel];
    for (int r = 0; r < a.rank; ++r) delta = fmaf(to_float(weight[r]), to_float(projected[r]), delta);
    delta = softplus<exact_math<T>>(delta);
    const float c = to_float(static_cast<const T*>(d.c)[row * a.channels + channel]);
    y = d.skip[channel] * c;
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const float in = to_float(projected[a.rank + n]);
        const float out = to_float(projected[a.rank + N + n]);
        state[n] = fmaf(exp2_fast(delta * decay[n]), state[n], delta * c * in);
        y = fmaf(out, state[n], y);
    }
}

// Each direction leaves its y of the first half of its walk in memory, and merges on the second half.
template <typename T, int N>
__global__ void __launch_bounds__(2 * channels_per_block) scan_channels(const __grid_constant__ Scan a) {
    const int direction = static_cast<int>(threadIdx.y);
    const int channel = static_cast<int>(blockIdx.x * channels_per_block + threadIdx.x);
    const bool real = channel < a.channels;
    const ScanDirection& d = direction_of(a, direction);
    float decay[N], state[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
        decay[n] = real ? d.decay[static_cast<std::int64_t>(channel) * N + n] : 0.0F;
        state[n] = 0.0F;
    }
    const int plain = plain_steps(a, direction);
    for (int step = 0; step < a.tokens; ++step) {
        if (step == plain) __syncthreads();
        if (!real) continue;
        const std::int64_t row = static_cast<std::int64_t>(blockIdx.y) * a.tokens + token_at(a, direction, step);
        const std::int64_t at = row * a.channels + channel;
        float y;
        scan_token<T, N>(a, d, row, channel, decay, state, y);
        if (step < plain) {
            static_cast<T*>(d.y)[at] = from_float<T>(y);
            continue;
        }
        if (a.directions == 2) y += to_float(static_cast<const T*>(direction_of(a, 1 - direction).y)[at]);
        const float z = to_float(static_cast<const T*>(a.z)[row * a.z_stride + channel]);
        static_cast<T*>(a.merged)[row * a.merged_stride + channel] = from_float<T>(a.factor * y * silu(z));
    }
    if (plain == a.tokens) __syncthreads();
}

}  // namespace

void scan_over_channels(const Scan& a, cudaStream_t stream) {
    const dim3 threads(channels_per_block, static_cast<unsigned>(a.directions));
    const dim3 blocks(blocks_for(a.channels, channels_per_block), static_cast<unsigned>(a.batch));
    with_storage(a.dtype, [&](auto type) {
        using T = decltype(type);
        switch (a.states) {
            case 16:
                return scan_channels<T, 16><<<blocks, threads, 0, stream>>>(a);
            case 32:
                return scan_channels<T, 32><<<blocks, threads, 0, stream>>>(a);
            case 64:
                return scan_channels<T, 64><<<blocks, threads, 0, stream>>>(a);
        }
        throw std::logic_error("the scan takes 16, 32 or 64 states");
    });
}

}  // namespace vimrt::cuda
