// The scan with a thread for each channel and direction, its states in registers, token after token: the form with the
// least work, for batches whose channels fill the chip.
//
// A block owns 64 channels of an image in both directions. Rows of delta, B and C, which all channels share, are copied
// ahead into shared memory, a tile of tokens at a time, and read from there by broadcast. Tokens are taken in small
// groups, so that the time steps, whose latency would otherwise sit between any two states, are worked out side by
// side.
#include "lowering_rules.h"
#include "scan_steps.cuh"

namespace vimrt::cuda {

namespace {

constexpr int channels_per_block = 64;
constexpr int tile_tokens = 16;
constexpr int group_tokens = 4;

template <typename T, int N>
class ChannelScan {
public:
    __device__ ChannelScan(const Scan& a, float* shared)
        : a_(a),
          direction_(static_cast<int>(threadIdx.y)),
          channel_(static_cast<int>(blockIdx.x) * channels_per_block + static_cast<int>(threadIdx.x)),
          column_(min(channel_, a.channels - 1)),
          row_(a.rank + 2 * N),
          tiles_(shared + direction_ * 2 * tile_tokens * row_) {
        const ScanDirection& d = direction_of(a, direction_);
        const std::int64_t first_token = static_cast<std::int64_t>(blockIdx.y) * a.tokens;
        const std::int64_t first = first_token * a.channels + column_;
        c_ = static_cast<const T*>(d.c) + first;
        y_ = static_cast<T*>(d.y) + first;
        other_ = static_cast<const T*>(direction_of(a, 1 - direction_).y) + first;
        merged_ = a.merged != nullptr ? static_cast<T*>(a.merged) + first : nullptr;
        z_ = static_cast<const T*>(a.z) + first_token * a.z_stride + column_;
        projected_ = d.projected + first_token * row_;
        dt_weight_ = d.dt_weight + column_;
        dt_bias_ = d.dt_bias[column_];
        skip_ = d.skip[column_];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            decay_[n] = d.decay[static_cast<std::int64_t>(column_) * N + n];
            state_[n] = 0.0F;
        }
    }

    __device__ void run() {
        const int phases = a_.directions;
        for (int phase = 0; phase < phases; ++phase) {
            walk_ = walk_of(a_, direction_, phase);
            merges_ = merged_ != nullptr && phase + 1 == phases;
            const int longest = (a_.tokens + 1) / phases;
            const int tiles = (min(longest, a_.tokens) + tile_tokens - 1) / tile_tokens;
            stage(0);
            load_group(0);
            for (int tile = 0; tile < tiles; ++tile) {
                stage(tile + 1);
                wait_for_copies<1>();
                __syncthreads();
                for (int group = 0; group < tile_tokens; group += group_tokens) scan_group(tile, group);
                __syncthreads();
            }
            wait_for_copies<0>();
        }
    }

private:
    // Starts copying the rows of a tile, in the order of the walk.
    __device__ void stage(int tile) {
        const int first = tile * tile_tokens;
        const int rows = min(tile_tokens, walk_.count - first);
        const int quads = row_ / 4;
        float* to = tiles_ + (tile % 2) * tile_tokens * row_;
        for (int i = static_cast<int>(threadIdx.x); i < rows * quads; i += channels_per_block) {
            const int step = i / quads;
            const int quad = i - step * quads;
            copy_async(to + step * row_ + 4 * quad,
                       projected_ + static_cast<std::int64_t>(walk_.token(first + step)) * row_ + 4 * quad);
        }
        commit_copies();
    }

    // The inputs of the group of tokens from `step` on, ahead of their use; beyond the end the last token's.
    __device__ void load_group(int step) {
#pragma unroll
        for (int j = 0; j < group_tokens; ++j) {
            const int token = walk_.token(min(step + j, max(walk_.count - 1, 0)));
            next_c_[j] = token < a_.tokens ? c_[static_cast<std::int64_t>(token) * a_.channels] : T{};
        }
    }

    __device__ void scan_group(int tile, int group) {
        const int step = tile * tile_tokens + group;
        if (step >= walk_.count) return;
        const float* rows = tiles_ + ((tile % 2) * tile_tokens + group) * row_;
        float c[group_tokens], delta[group_tokens], y[group_tokens];
        T z[group_tokens] = {};
        T other[group_tokens] = {};
#pragma unroll
        for (int j = 0; j < group_tokens; ++j) {
            c[j] = to_float(next_c_[j]);
            delta[j] = dt_bias_;
            if (merges_ && step + j < walk_.count) {
                const auto token = static_cast<std::int64_t>(walk_.token(step + j));
                z[j] = z_[token * a_.z_stride];
                if (a_.directions == 2) other[j] = other_[token * a_.channels];
            }
        }
        load_group(step + group_tokens);
        project_time_step(rows, row_, a_.rank, dt_weight_, a_.channels, delta);
#pragma unroll
        for (int j = 0; j < group_tokens; ++j) delta[j] = softplus(delta[j]);
#pragma unroll
        for (int j = 0; j < group_tokens; ++j) {
            if (step + j < walk_.count) y[j] = step_token(rows + j * row_ + a_.rank, delta[j], c[j]);
        }
#pragma unroll
        for (int j = 0; j < group_tokens; ++j) {
            if (step + j < walk_.count && channel_ < a_.channels) store(walk_.token(step + j), y[j], z[j], other[j]);
        }
    }

    // Advances the states by one token; returns y. `maps` holds B and C.
    __device__ float step_token(const float* maps, float delta, float c) {
        const float drive = delta * c;
        float y[2] = {skip_ * c, 0.0F};
#pragma unroll
        for (int n = 0; n < N; n += 4) {
            const float4 in = *reinterpret_cast<const float4*>(maps + n);
            const float4 out = *reinterpret_cast<const float4*>(maps + N + n);
            const float in_map[4] = {in.x, in.y, in.z, in.w};
            const float out_map[4] = {out.x, out.y, out.z, out.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                state_[n + i] = fmaf(exp2_fast(delta * decay_[n + i]), state_[n + i], drive * in_map[i]);
                y[i % 2] = fmaf(out_map[i], state_[n + i], y[i % 2]);
            }
        }
        return y[0] + y[1];
    }

    __device__ void store(int token, float y, T z, T other) {
        const std::int64_t at = static_cast<std::int64_t>(token) * a_.channels;
        if (merges_) {
            merged_[at] = from_float<T>(a_.factor * (y + to_float(other)) * silu(to_float(z)));
        } else {
            y_[at] = from_float<T>(y);
        }
    }

    const Scan& a_;
    const int direction_;
    const int channel_;
    const int column_;  // channel_, or the last one where there is no such channel
    const int row_;
    float* tiles_;  // two of tile_tokens rows
    const T* c_;
    T* y_;
    const T* other_;
    T* merged_;
    const T* z_;
    const float* projected_;
    const float* dt_weight_;
    float dt_bias_;
    float skip_;
    float decay_[N];
    float state_[N];
    T next_c_[group_tokens];
    Walk walk_;
    bool merges_ = false;
};

template <typename T, int N>
__global__ void __launch_bounds__(2 * channels_per_block) scan_channels(const __grid_constant__ Scan a) {
    extern __shared__ float4 shared[];
    ChannelScan<T, N>(a, reinterpret_cast<float*>(shared)).run();
}

template <typename T, int N>
void launch(const Scan& a, cudaStream_t stream) {
    const dim3 threads(channels_per_block, static_cast<unsigned>(a.directions));
    const dim3 blocks(blocks_for(a.channels, channels_per_block), static_cast<unsigned>(a.batch));
    const std::size_t shared =
        sizeof(float) * 2 * static_cast<std::size_t>(a.directions * tile_tokens * (a.rank + 2 * N));
    if (shared > 48 * 1024) {
        check(cudaFuncSetAttribute(scan_channels<T, N>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)),
              "scan_over_channels: shared memory");
    }
    scan_channels<T, N><<<blocks, threads, shared, stream>>>(a);
}

}  // namespace

void scan_over_channels(const Scan& a, cudaStream_t stream) {
    with_storage(a.dtype, [&](auto type) {
        using T = decltype(type);
        switch (a.states) {
            case 8:
                return launch<T, 8>(a, stream);
            case 16:
                return launch<T, 16>(a, stream);
            case 32:
                return launch<T, 32>(a, stream);
            case 64:
                return launch<T, 64>(a, stream);
        }
        throw std::logic_error("the scan takes 8, 16, 32 or 64 states");
    });
}

}  // namespace vimrt::cuda
