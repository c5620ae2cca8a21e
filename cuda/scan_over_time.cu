// The scan with the lanes of a warp along time: for few channels and many tokens, where a thread for each channel would
// leave most of the chip idle.
//
// A lane holds 8 consecutive tokens of a channel. For each state it runs the recurrence over them from zero, keeping
// the 8 decays; the lanes' results are pairs (decay, state) that compose, (p, h) after (q, g) = (p q, p g + h), so a
// warp-wide scan gives every lane the state before its first token, from which it runs the recurrence again with the
// decays it has. That costs 9 exponentials for 8 tokens, the ninth for the decay over all of them; chunks that are
// scanned twice would cost 16. The state behind the warp's last token goes on to the next tile.
//
// A block owns a few channels of one direction of an image. The two directions of a channel meet half-way: each leaves
// its y of the first half in memory, waits until the other's is there, and merges on the second half.
#include "lowering_rules.h"
#include "scan_steps.cuh"

namespace vimrt::cuda {

namespace {

constexpr int lane_tokens = 8;
constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xFFFFFFFFU;
constexpr int states_at_once = 4;

constexpr int max_threads = 256;

// Bytes between a channel's values in shared memory beyond the tile's tokens, so that channels start in other banks.
template <typename T>
constexpr int value_padding = 16 / static_cast<int>(sizeof(T));

__host__ __device__ constexpr int chunk_floats(int row) {
    return lane_tokens * row + 4;
}  // 4: lanes start in other banks

template <typename T, int N, int TimeLanes>
class TimeScan {
public:
    static constexpr int warp_channels = warp_size / TimeLanes;
    static constexpr int tile_tokens = TimeLanes * lane_tokens;

    __device__ TimeScan(const Scan& a, int index, float* shared)
        : a_(a), row_(a.rank + 2 * N), block_channels_(static_cast<int>(blockDim.x) / warp_size * warp_channels) {
        const int groups = (a.channels + block_channels_ - 1) / block_channels_;
        direction_ = index % a.directions;
        pair_ = index / a.directions;
        first_channel_ = pair_ % groups * block_channels_;
        const int lane = static_cast<int>(threadIdx.x) % warp_size;
        time_lane_ = lane % TimeLanes;
        own_ = static_cast<int>(threadIdx.x) / warp_size * warp_channels + lane / TimeLanes;

        const ScanDirection& d = direction_of(a, direction_);
        const std::int64_t first_token = static_cast<std::int64_t>(pair_ / groups) * a.tokens;
        moved_channel_ = static_cast<int>(threadIdx.x) % block_channels_;
        moved_first_ = static_cast<int>(threadIdx.x) / block_channels_;
        const std::int64_t first = first_token * a.channels + first_channel_ + moved_channel_;
        c_ = static_cast<const T*>(d.c) + first;
        y_ = static_cast<T*>(d.y) + first;
        other_ = static_cast<const T*>(direction_of(a, 1 - direction_).y) + first;
        merged_ = a.merged != nullptr ? static_cast<T*>(a.merged) + first : nullptr;
        z_ = static_cast<const T*>(a.z) + first_token * a.z_stride + first_channel_ + moved_channel_;
        projected_ = d.projected + first_token * row_;

        const int column = min(first_channel_ + own_, a.channels - 1);
        dt_weight_ = d.dt_weight + column;
        dt_bias_ = d.dt_bias[column];
        skip_ = d.skip[column];
        decay_ = d.decay + static_cast<std::int64_t>(column) * N;
        tiles_ = shared;
        carry_ = shared + 2 * TimeLanes * chunk_floats(row_);
        values_ = reinterpret_cast<T*>(carry_ + block_channels_ * N);
    }

    __device__ void run() {
        for (int n = time_lane_; n < N; n += TimeLanes) carry_[own_ * N + n] = 0.0F;
        for (int phase = 0; phase < a_.directions; ++phase) {
            if (phase > 0 && merged_ != nullptr) meet();
            walk_ = walk_of(a_, direction_, phase);
            merges_ = merged_ != nullptr && phase + 1 == a_.directions;
            const int tiles = (walk_.count + tile_tokens - 1) / tile_tokens;
            stage(0);
            load_values(0);
            for (int tile = 0; tile < tiles; ++tile) run_tile(tile);
            wait_for_copies<0>();
            __syncthreads();
        }
    }

private:
    // Between memory and shared memory a thread moves one channel, and of a tile every TimeLanes-th token.
    __device__ int moved_step(int turn) const { return turn * TimeLanes + moved_first_; }
    __device__ bool moves(int tile, int turn) const {
        return tile * tile_tokens + moved_step(turn) < walk_.count && first_channel_ + moved_channel_ < a_.channels;
    }
    __device__ std::int64_t moved_token(int tile, int turn) const {
        return walk_.token(tile * tile_tokens + moved_step(turn));
    }
    __device__ T& moved_value(int turn) {
        return values_[moved_channel_ * (tile_tokens + value_padding<T>)+moved_step(turn)];
    }

    // Starts copying the rows of a tile, in the order of the walk; beyond its end they are zeros.
    __device__ void stage(int tile) {
        const int first = tile * tile_tokens;
        const int rows = walk_.count - first;
        const int quads = row_ / 4;
        float* tile_rows = tiles_ + (tile % 2) * TimeLanes * chunk_floats(row_);
        for (int i = static_cast<int>(threadIdx.x); rows > 0 && i < tile_tokens * quads;
             i += static_cast<int>(blockDim.x)) {
            const int step = i / quads;
            const int quad = i - step * quads;
            float* to = tile_rows + step / lane_tokens * chunk_floats(row_) + step % lane_tokens * row_ + 4 * quad;
            if (step < rows) {
                copy_async(to, projected_ + static_cast<std::int64_t>(walk_.token(first + step)) * row_ + 4 * quad);
            } else {
                *reinterpret_cast<float4*>(to) = float4{};
            }
        }
        commit_copies();
    }

    __device__ void load_values(int tile) {
#pragma unroll
        for (int turn = 0; turn < lane_tokens; ++turn) {
            next_c_[turn] = moves(tile, turn) ? c_[moved_token(tile, turn) * a_.channels] : T{};
        }
    }

    __device__ void run_tile(int tile) {
#pragma unroll
        for (int turn = 0; turn < lane_tokens; ++turn) moved_value(turn) = next_c_[turn];
        stage(tile + 1);
        wait_for_copies<1>();
        __syncthreads();
        load_values(tile + 1);
        T z[lane_tokens] = {};
        T other[lane_tokens] = {};
        if (merges_) load_partners(tile, z, other);
        scan_lane(tile);
        __syncthreads();
        store_tile(tile, z, other);
        __syncthreads();
    }

    __device__ void load_partners(int tile, T (&z)[lane_tokens], T (&other)[lane_tokens]) {
#pragma unroll
        for (int turn = 0; turn < lane_tokens; ++turn) {
            if (!moves(tile, turn)) continue;
            z[turn] = z_[moved_token(tile, turn) * a_.z_stride];
            // Written by another block while this one ran: not through the first-level cache, which would not know.
            if (a_.directions == 2) other[turn] = __ldcg(other_ + moved_token(tile, turn) * a_.channels);
        }
    }

    __device__ void store_tile(int tile, const T (&z)[lane_tokens], const T (&other)[lane_tokens]) {
#pragma unroll
        for (int turn = 0; turn < lane_tokens; ++turn) {
            if (!moves(tile, turn)) continue;
            const std::int64_t at = moved_token(tile, turn) * a_.channels;
            const T y = moved_value(turn);
            if (merges_) {
                const float sum = to_float(y) + to_float(other[turn]);
                merged_[at] = from_float<T>(a_.factor * sum * silu(to_float(z[turn])));
            } else {
                y_[at] = y;
            }
        }
    }

    // Replaces this lane's c in shared memory by its y.
    __device__ void scan_lane(int tile) {
        const float* rows = tiles_ + ((tile % 2) * TimeLanes + time_lane_) * chunk_floats(row_);
        T* values = values_ + own_ * (tile_tokens + value_padding<T>)+time_lane_ * lane_tokens;
        float delta[lane_tokens], drive[lane_tokens], y[lane_tokens];
        load_floats(values, y);
#pragma unroll
        for (int j = 0; j < lane_tokens; ++j) delta[j] = dt_bias_;
        project_time_step(rows, row_, a_.rank, dt_weight_, a_.channels, delta);
        float total = 0;
        const int first = tile * tile_tokens + time_lane_ * lane_tokens;
#pragma unroll
        for (int j = 0; j < lane_tokens; ++j) {
            // Beyond the end the time stands still: the decay is 1 and nothing is added.
            delta[j] = first + j < walk_.count ? softplus(delta[j]) : 0.0F;
            total += delta[j];
            drive[j] = delta[j] * y[j];
            y[j] *= skip_;
        }
        // Not unrolled: the registers of several batches of states would leave room for too few warps.
#pragma unroll 1
        for (int n = 0; n < N; n += states_at_once) scan_states(rows + a_.rank + n, n, delta, drive, total, y);
        store_floats(values, y);
    }

    // Adds what states n, n + 1, ... contribute to y. `maps` holds their B in the lane's first row, and N further on
    // their C.
    __device__ void scan_states(const float* maps, int n, const float (&delta)[lane_tokens],
                                const float (&drive)[lane_tokens], float total, float (&y)[lane_tokens]) {
        const float4 rate4 = __ldg(reinterpret_cast<const float4*>(decay_ + n));
        const float rate[states_at_once] = {rate4.x, rate4.y, rate4.z, rate4.w};
        float decay[lane_tokens][states_at_once], input[lane_tokens][states_at_once];
        float state[states_at_once] = {};
        float product[states_at_once], carry[states_at_once];
        load_floats(carry_ + own_ * N + n, carry);
#pragma unroll
        for (int j = 0; j < lane_tokens; ++j) {
            float in[states_at_once];
            load_floats(maps + j * row_, in);
#pragma unroll
            for (int i = 0; i < states_at_once; ++i) {
                decay[j][i] = exp2_fast(delta[j] * rate[i]);
                input[j][i] = drive[j] * in[i];
                state[i] = fmaf(decay[j][i], state[i], input[j][i]);
            }
        }
#pragma unroll
        for (int i = 0; i < states_at_once; ++i) {
            product[i] = exp2_fast(total * rate[i]);
            if (time_lane_ == 0) state[i] = fmaf(product[i], carry[i], state[i]);
        }
        compose(product, state);
        if (time_lane_ == TimeLanes - 1) store_floats(carry_ + own_ * N + n, state);
#pragma unroll
        for (int i = 0; i < states_at_once; ++i) {
            const float before = __shfl_up_sync(all_lanes, state[i], 1, TimeLanes);
            state[i] = time_lane_ == 0 ? carry[i] : before;
        }
#pragma unroll
        for (int j = 0; j < lane_tokens; ++j) {
            float out[states_at_once];
            load_floats(maps + N + j * row_, out);
#pragma unroll
            for (int i = 0; i < states_at_once; ++i) {
                state[i] = fmaf(decay[j][i], state[i], input[j][i]);
                y[j] = fmaf(out[i], state[i], y[j]);
            }
        }
    }

    // The inclusive scan of the lanes' (decay, state) pairs along time.
    __device__ void compose(float (&product)[states_at_once], float (&state)[states_at_once]) {
#pragma unroll
        for (int offset = 1; offset < TimeLanes; offset *= 2) {
#pragma unroll
            for (int i = 0; i < states_at_once; ++i) {
                const float earlier = __shfl_up_sync(all_lanes, state[i], offset, TimeLanes);
                const float earlier_product = __shfl_up_sync(all_lanes, product[i], offset, TimeLanes);
                if (time_lane_ >= offset) {
                    state[i] = fmaf(product[i], earlier, state[i]);
                    product[i] *= earlier_product;
                }
            }
        }
    }

    // Waits until both directions have left their first halves in memory. The other block is running already or is the
    // next to start, as blocks take their work in the order of their tickets.
    __device__ void meet() {
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned* arrived = a_.tickets + 1 + pair_;
            atomicAdd(arrived, 1U);
            while (*reinterpret_cast<volatile unsigned*>(arrived) < 2U) __nanosleep(100);
            __threadfence();
        }
        __syncthreads();
    }

    const Scan& a_;
    const int row_;
    const int block_channels_;
    int direction_;
    int pair_;  // which channels of which image
    int first_channel_;
    int time_lane_;
    int own_;            // the lane's channel in the block
    int moved_channel_;  // the channel in the block that this thread loads and stores
    int moved_first_;    // the first of its tokens in a tile
    const T* c_;
    T* y_;
    const T* other_;
    T* merged_;
    const T* z_;
    const float* projected_;
    const float* dt_weight_;
    float dt_bias_;
    float skip_;
    const float* decay_;
    float* tiles_;  // two, each of TimeLanes chunks of lane_tokens rows
    float* carry_;  // (block_channels_, N): states behind the last tile; each belongs to one warp
    T* values_;     // c and then y: (block_channels_, tile_tokens + padding)
    T next_c_[lane_tokens];
    Walk walk_;
    bool merges_ = false;
};

template <typename T, int N, int TimeLanes>
__global__ void __launch_bounds__(max_threads, 2) scan_time(const __grid_constant__ Scan a) {
    extern __shared__ float4 shared[];
    __shared__ unsigned ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(a.tickets, 1U);
    __syncthreads();
    TimeScan<T, N, TimeLanes>(a, static_cast<int>(ticket), reinterpret_cast<float*>(shared)).run();
}

template <typename T, int N, int TimeLanes>
void launch(const Scan& a, const ScanForm& form, cudaStream_t stream) {
    const std::size_t shared = scan_over_time_shared_bytes(a, form);
    if (shared > 48 * 1024) {
        check(cudaFuncSetAttribute(scan_time<T, N, TimeLanes>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)),
              "scan_over_time: shared memory");
    }
    const unsigned blocks =
        blocks_for(a.channels, form.channels_per_block()) * static_cast<unsigned>(a.batch * a.directions);
    scan_time<T, N, TimeLanes><<<blocks, static_cast<unsigned>(form.warps * warp_size), shared, stream>>>(a);
}

template <typename T, int N>
void launch(const Scan& a, const ScanForm& form, cudaStream_t stream) {
    switch (form.time_lanes) {
        case 8:
            return launch<T, N, 8>(a, form, stream);
        case 16:
            return launch<T, N, 16>(a, form, stream);
        case 32:
            return launch<T, N, 32>(a, form, stream);
    }
    throw std::logic_error("the scan has 8, 16 or 32 lanes along time");
}

}  // namespace

std::size_t scan_over_time_shared_bytes(const Scan& a, const ScanForm& form) {
    const int row = a.rank + 2 * a.states;
    const std::size_t rows = sizeof(float) * 2 * static_cast<std::size_t>(form.time_lanes * chunk_floats(row));
    const int padding = 16 / static_cast<int>(size_of(a.dtype));
    const std::size_t values = size_of(a.dtype) * static_cast<std::size_t>(form.channels_per_block() *
                                                                           (form.time_lanes * lane_tokens + padding));
    const std::size_t carry = sizeof(float) * static_cast<std::size_t>(form.channels_per_block() * a.states);
    return rows + carry + values;
}

void scan_over_time(const Scan& a, const ScanForm& form, cudaStream_t stream) {
    with_storage(a.dtype, [&](auto type) {
        using T = decltype(type);
        switch (a.states) {
            case 8:
                return launch<T, 8>(a, form, stream);
            case 16:
                return launch<T, 16>(a, form, stream);
            case 32:
                return launch<T, 32>(a, form, stream);
            case 64:
                return launch<T, 64>(a, form, stream);
        }
        throw std::logic_error("the scan takes 8, 16, 32 or 64 states");
    });
}

}  // namespace vimrt::cuda
