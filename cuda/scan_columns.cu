// The scan by columns of 64 channels, for shapes whose columns fill the chip: a warp takes a column of one direction
// through all of its tokens. A lane has 8 states of 4 channels; the lanes of a group, 2 where there are 16 states, have
// the others. So what B and C say of a token is loaded from shared memory once for every four channels, and little is
// summed over lanes: shared memory's lanes are as busy as the exponentials' otherwise (docs/performance.md).
//
// Eight tokens ahead, B and C are spread in shared memory, and time steps computed, in 16-bit storage by tensor cores.
// A column's two directions are neighbours in a block and meet once, half-way.
#include "launch.h"
#include "lowering_rules.h"
#include "ptx.cuh"
#include "scan_steps.cuh"

namespace vimrt::cuda {

namespace {

constexpr int warp_size = 32;
constexpr int warps_of_block = 4;
constexpr int ahead = 8;  // tokens that are prepared at once: the columns of a product on tensor cores
constexpr int lane_channels = 4;
constexpr int lane_states = 8;

template <int N>
constexpr int group_lanes = N / lane_states;
template <int N>
constexpr int column_width = (lane_channels * warp_size) / group_lanes<N>;

// Floats from a token's time steps to the next one's, such that lanes of different tokens meet different banks.
template <int N>
constexpr int delta_stride = column_width<N> + 4;

// Bytes of shared memory: B and C of `ahead` tokens, their time steps, and dt_bias and dt_weight of the column.
template <int N>
constexpr int operand_bytes = ahead * 2 * N * 4;
template <int N>
constexpr int ahead_bytes = operand_bytes<N> + (ahead * 4) * delta_stride<N>;
template <typename T, int N>
constexpr int warp_bytes(int rank) {
    return 2 * ahead_bytes<N> + column_width<N> * (4 + rank * static_cast<int>(sizeof(T)));
}

template <typename T, int N, int Rank>
class Walk {
    static constexpr int L = group_lanes<N>;
    static constexpr int width = column_width<N>;
    static constexpr int blocks = width / 16;         // of 16 channels, whose time steps are computed together
    static constexpr int row_pieces = 2 * N / 4 / 8;  // that a lane fetches of B and C of a token, 8 elements each
    static constexpr int own = L == 2 ? 2 : 1;        // channels of a group whose result is the lane's
    static constexpr bool tensor_cores = sizeof(T) == 2;
    using Channels = Few<T, lane_channels>;
    using Own = Few<T, own>;

public:
    __device__ Walk(const Scan& a, int image, int column, int direction, int lane, unsigned memory)
        : a_(a),
          d_(direction_of(a, direction)),
          lane_(lane),
          g_(lane / 4),
          q_(lane % 4),
          part_(lane % L),
          forward_(direction == 0),
          first_row_(static_cast<std::int64_t>(image) * a.tokens),
          first_channel_(column * width),
          memory_(memory) {
        const int wanted = first_channel_ + lane / L * lane_channels;
        real_ = wanted < a.channels;
        channel_ = real_ ? wanted : 0;
        own_channel_ = channel_ + (L == 2 ? 2 * part_ : L == 4 ? part_ : part_ / 2);
        stores_ = real_ && (L < 8 || part_ % 2 == 0);
#pragma unroll
        for (int i = 0; i < lane_channels; ++i) {
            load_floats(d_.decay + static_cast<std::int64_t>(channel_ + i) * N + part_ * lane_states, rate_[i]);
            skip_[i] = part_ == 0 ? d_.skip[channel_ + i] : 0.0F;
        }
        store_weights();
    }

    // The tokens up to the meeting, and those behind it.
    __device__ int plain_tokens() const {
        if (a_.merged == nullptr) return a_.tokens;
        if (a_.directions == 1) return 0;
        return (a_.tokens + (forward_ ? 1 : 0)) / 2;
    }
    __device__ void walk_plain() {
        walk<false>(0, plain_tokens());
    }
    __device__ void walk_merged() {
        walk<true>(plain_tokens(), a_.tokens);
    }

private:
    __device__ int token_at(int step) const {
        return forward_ ? step : a_.tokens - 1 - step;
    }
    __device__ int clamped_token_at(int step) const {
        return token_at(min(step, a_.tokens - 1));
    }

    // Where the lane reads and writes, going from token to token: a place of the array, and bytes to the next one.
    struct Cursor {
        char* at;
        int step;

        __device__ void advance() { at += step; }
    };
    __device__ Cursor cursor(const void* array, std::int64_t stride, int channel, int step) const {
        const auto bytes = static_cast<std::int64_t>(sizeof(T));
        const std::int64_t element = (first_row_ + token_at(step)) * stride + channel;
        auto to_next = static_cast<int>((forward_ ? stride : -stride) * bytes);
        asm("" : "+r"(to_next));  // is kept, not computed again for every token
        return {keep_pointer(static_cast<const char*>(array) + element * bytes), to_next};
    }

    template <bool Merged>
    __device__ void walk(int begin, int end) {
        if (begin >= end) return;
        fetch(begin);
        spread_operands(memory_);
#pragma unroll 1
        for (int block = 0; block < blocks; ++block) find_time_steps(memory_, block);
        fetch(begin + ahead);
        __syncwarp();
        c_ = cursor(d_.c, a_.channels, channel_, begin);
        to_ = Merged ? cursor(a_.merged, a_.merged_stride, own_channel_, begin)
                     : cursor(d_.y, a_.channels, own_channel_, begin);
        if constexpr (Merged) {
            z_ = cursor(a_.z, a_.z_stride, own_channel_, begin);
            other_ = cursor(direction_of(a_, forward_ ? 1 : 0).y, a_.channels, own_channel_, begin);
        }
        Channels c = Channels::at(c_.at);
        unsigned turn = 0;  // bytes to those that are prepared
#pragma unroll 1
        for (int first = begin; first < end; first += ahead) {
            const unsigned here = memory_ + turn;
            turn = ahead_bytes<N> - turn;
            const unsigned there = memory_ + turn;
            spread_operands(there);
            const int count = min(ahead, end - first);
            unsigned operands = here + part_ * lane_states * 4;
            unsigned deltas = here + operand_bytes<N> + lane_ / L * lane_channels * 4;
#pragma unroll 1
            for (int t = 0; t < count; ++t) {
                if (t % 2 == 0 && t / 2 < blocks) find_time_steps(there, t / 2);
                take_token<Merged>(operands, deltas, first + t + 1 < end, c);
                operands += 2 * N * 4;
                deltas += delta_stride<N> * 4;
            }
            fetch(first + 2 * ahead);
            __syncwarp();
        }
    }

    // Takes a token through the states and stores its y. `c` is its own; the next one's is left there.
    template <bool Merged>
    __device__ void take_token(unsigned operands, unsigned deltas, bool more, Channels& c_of_token) {
        Own z, other;
        if constexpr (Merged) {
            z = Own::at(z_.at);
            if (a_.directions == 2) other = Own::at(other_.at);
            z_.advance();
            other_.advance();
        }
        const auto delta4 = load_shared<float4>(deltas);
        const float delta[lane_channels] = {delta4.x, delta4.y, delta4.z, delta4.w};
        float c[lane_channels], y[lane_channels], drive[lane_channels];
        c_of_token.to_floats(c);
        c_.advance();
        if (more) c_of_token = Channels::at(c_.at);
#pragma unroll
        for (int i = 0; i < lane_channels; ++i) {
            drive[i] = delta[i] * c[i];
            y[i] = skip_[i] * c[i];
        }
#pragma unroll
        for (int n = 0; n < lane_states; n += 4) {
            const auto in4 = load_shared<float4>(operands + n * 4);
            const auto out4 = load_shared<float4>(operands + (N + n) * 4);
            const float in[4] = {in4.x, in4.y, in4.z, in4.w}, out[4] = {out4.x, out4.y, out4.z, out4.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
#pragma unroll
                for (int i = 0; i < lane_channels; ++i) {
                    float& state = state_[i][n + j];
                    state = fmaf(exp2_fast(delta[i] * rate_[i][n + j]), state, drive[i] * in[j]);
                    y[i] = fmaf(out[j], state, y[i]);
                }
            }
        }
        float sum[own];
        sum_over_group(y, sum);
        if constexpr (Merged) merge(sum, z, other);
        if (stores_) Own::of(sum).put(to_.at);
        to_.advance();
    }

    // Sums y over the lanes of the group, and leaves each lane those of its own channels.
    __device__ void sum_over_group(const float (&y)[lane_channels], float (&sum)[own]) const {
        const auto trade = [&](float low, float high, int lanes) {
            const bool upper = (part_ & lanes) != 0;
            const float given = __shfl_xor_sync(all_lanes, upper ? low : high, lanes);
            return (upper ? high : low) + given;
        };
        const float first = trade(y[0], y[2], L / 2), second = trade(y[1], y[3], L / 2);
        if constexpr (L == 2) {
            sum[0] = first, sum[1] = second;
        } else {
            sum[0] = trade(first, second, L / 4);
            if constexpr (L == 8) sum[0] += __shfl_xor_sync(all_lanes, sum[0], 1);
        }
    }

    __device__ void merge(float (&y)[own], const Own& z_values, const Own& other_values) const {
        float z[own], other[own];
        z_values.to_floats(z);
        other_values.to_floats(other);
#pragma unroll
        for (int i = 0; i < own; ++i) {
            if (a_.directions == 2) y[i] += other[i];
            y[i] *= a_.factor * silu(z[i]);
        }
    }

    __device__ int rank() const {
        return Rank != 0 ? Rank : a_.rank;
    }
    // A token's row of delta, B and C.
    __device__ const T* row_at(int step) const {
        return static_cast<const T*>(d_.projected) +
               (first_row_ + clamped_token_at(step)) * static_cast<std::int64_t>(rank() + 2 * N);
    }

    // Begins to read B, C and delta of the tokens from a step on, a quarter of the `g`th one's by each lane.
    __device__ void fetch(int step) {
        fetched_ = step;
        const T* row = row_at(step + g_);
#pragma unroll
        for (int i = 0; i < row_pieces; ++i) {
            operands_[i] = *reinterpret_cast<const Pack<T, 8>*>(row + rank() + (i * 4 + q_) * 8);
        }
#pragma unroll
        for (int k = 0; k < Rank / 16; ++k) low_rank_[k] = *reinterpret_cast<const uint2*>(row + 16 * k + 4 * q_);
    }
    __device__ void spread_operands(unsigned to) const {
#pragma unroll
        for (int i = 0; i < row_pieces; ++i) {
            const unsigned at = to + (g_ * 2 * N + (i * 4 + q_) * 8) * 4;
            float of[8];
#pragma unroll
            for (int j = 0; j < 8; ++j) of[j] = to_float(operands_[i].lane[j]);
            store_shared(at, float4{of[0], of[1], of[2], of[3]});
            store_shared(at + 16, float4{of[4], of[5], of[6], of[7]});
        }
    }

    // softplus(dt_weight delta + dt_bias) of 16 channels of the tokens that were fetched.
    __device__ void find_time_steps(unsigned to, int block) const {
        // Of channels g and g + 8 and steps 2 q and 2 q + 1.
        const auto bias = load_shared<float2>(biases_at() + (block * 8 + g_) * 8);
        float x[2][2] = {{bias.x, bias.x}, {bias.y, bias.y}};
        project(block, x);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int t = 0; t < 2; ++t) {
                store_shared(to + operand_bytes<N> + ((2 * q_ + t) * delta_stride<N> + block * 16 + g_ + 8 * i) * 4,
                             softplus<exact_math<T>>(x[i][t]));
            }
        }
    }
    __device__ void project(int block, float (&x)[2][2]) const {
        if constexpr (tensor_cores) {
            float sum[4] = {x[0][0], x[0][1], x[1][0], x[1][1]};
            const auto add = [&](int k, const uint2& low_rank) {
                const auto weights =
                    load_shared<uint4>(weights_at() + ((block * (rank() / 16) + k) * warp_size + lane_) * 16);
                multiply_add<T>(sum, {weights.x, weights.y, weights.z, weights.w}, {low_rank.x, low_rank.y});
            };
            if constexpr (Rank != 0) {
#pragma unroll
                for (int k = 0; k < Rank / 16; ++k) add(k, low_rank_[k]);
            } else {
                const T* row = row_at(fetched_ + g_);
                for (int k = 0; k < rank() / 16; ++k) add(k, *reinterpret_cast<const uint2*>(row + 16 * k + 4 * q_));
            }
            x[0][0] = sum[0], x[0][1] = sum[1], x[1][0] = sum[2], x[1][1] = sum[3];
        } else {
            const T* rows[2] = {row_at(fetched_ + 2 * q_), row_at(fetched_ + 2 * q_ + 1)};
            for (int r = 0; r < rank(); ++r) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const auto weight = load_shared<float>(weights_at() + (r * width + block * 16 + g_ + 8 * i) * 4);
#pragma unroll
                    for (int t = 0; t < 2; ++t) x[i][t] = fmaf(weight, to_float(rows[t][r]), x[i][t]);
                }
            }
        }
    }

    // dt_bias to shared memory, and dt_weight: as tensor cores take left sides of 16 rows and 16 columns, with columns
    // in the order in which fetch() has delta; in fp32 by rank.
    __device__ unsigned biases_at() const {
        return memory_ + 2 * ahead_bytes<N>;
    }
    __device__ unsigned weights_at() const {
        return biases_at() + width * 4;
    }
    __device__ void store_weights() const {
        for (int i = lane_; i < width; i += warp_size) {
            const int channel = min(first_channel_ + i, a_.channels - 1);
            store_shared(biases_at() + (i / 16 * 8 + i % 8) * 8 + i % 16 / 8 * 4, d_.dt_bias[channel]);
        }
        const T* from = static_cast<const T*>(d_.dt_weight);
        if constexpr (tensor_cores) {
            for (int block = 0; block < blocks; ++block) {
                for (int k = 0; k < rank() / 16; ++k) {
                    uint2 of[2];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int channel = min(first_channel_ + block * 16 + g_ + 8 * i, a_.channels - 1);
                        of[i] = *reinterpret_cast<const uint2*>(from + channel * rank() + 16 * k + 4 * q_);
                    }
                    store_shared(weights_at() + ((block * (rank() / 16) + k) * warp_size + lane_) * 16,
                                 uint4{of[0].x, of[1].x, of[0].y, of[1].y});
                }
            }
        } else {
            for (int i = lane_; i < width * rank(); i += warp_size) {
                const int channel = min(first_channel_ + i % width, a_.channels - 1);
                store_shared(weights_at() + i * 4, to_float(from[channel * rank() + i / width]));
            }
        }
        __syncwarp();
    }

    const Scan& a_;
    const ScanDirection& d_;
    const int lane_, g_, q_;
    const int part_;  // which of its group's lanes, and so which of the states
    const bool forward_;
    const std::int64_t first_row_;
    const int first_channel_;
    const unsigned memory_;
    bool real_ = false, stores_ = false;
    int channel_ = 0, own_channel_ = 0;
    float rate_[lane_channels][lane_states];  // A log2(e)
    float state_[lane_channels][lane_states] = {};
    float skip_[lane_channels];  // in one lane of the group
    Cursor c_, z_, other_, to_;  // where the next ones are read and stored
    int fetched_ = 0;
    Pack<T, 8> operands_[row_pieces];
    uint2 low_rank_[Rank / 16 + 1];
};

template <typename T, int N, int Rank>
__global__ void __launch_bounds__(warps_of_block* warp_size, 3) scan_columns_of(const __grid_constant__ Scan a) {
    extern __shared__ float4 shared[];
    wait_for_predecessor();
    let_successor_begin();
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
    const int columns = (a.channels + column_width<N> - 1) / column_width<N>;
    const int index = static_cast<int>(blockIdx.x) * (warps_of_block / a.directions) + warp / a.directions;
    const bool real = index < a.batch * columns;
    const int own = real ? index : 0;
    Walk<T, N, Rank> walk(a, own / columns, own % columns, warp % a.directions,
                          static_cast<int>(threadIdx.x) % warp_size,
                          shared_address(shared) + warp * warp_bytes<T, N>(a.rank));
    if (real) walk.walk_plain();
    __syncthreads();
    if (real && a.merged != nullptr) walk.walk_merged();
}

// Calls function.operator()<T, N, Rank>() with the scan's. Rank: 0 where a kernel is not made for it.
template <typename F>
void with_columns(const Scan& a, const F& function) {
    with_storage(a.dtype, [&](auto type) {
        using T = decltype(type);
        if constexpr (sizeof(T) == 2) {
            if (a.states == 16 && a.rank == 16) return function.template operator()<T, 16, 16>();
            if (a.states == 16 && a.rank == 32) return function.template operator()<T, 16, 32>();
            if (a.states == 16 && a.rank == 48) return function.template operator()<T, 16, 48>();
        }
        switch (a.states) {
            case 16:
                return function.template operator()<T, 16, 0>();
            case 32:
                return function.template operator()<T, 32, 0>();
            case 64:
                return function.template operator()<T, 64, 0>();
        }
        throw std::logic_error("the scan takes 16, 32 or 64 states");
    });
}

int column_count(const Scan& a) {
    int count = 0;
    with_columns(a, [&]<typename T, int N, int Rank>() {
        count = a.batch * a.directions * ((a.channels + column_width<N> - 1) / column_width<N>);
    });
    return count;
}

}  // namespace

bool scan_columns_takes(const Scan& a) {
    return a.order == ScanOrder::Rows && a.channels % lane_channels == 0 && a.z_stride % lane_channels == 0 &&
           a.merged_stride % lane_channels == 0 && a.rank % 16 == 0;
}

std::size_t scan_columns_shared_bytes(const Scan& a) {
    std::size_t bytes = 0;
    with_columns(a, [&]<typename T, int N, int Rank>() {
        bytes = static_cast<std::size_t>(warps_of_block * warp_bytes<T, N>(a.rank));
    });
    return bytes;
}

void scan_columns(const Scan& a, cudaStream_t stream) {
    const Grid grid{blocks_for(column_count(a), warps_of_block), warps_of_block * warp_size,
                    scan_columns_shared_bytes(a)};
    with_columns(a, [&]<typename T, int N, int Rank>() {
        launch("scan_columns", scan_columns_of<T, N, Rank>, grid, stream, a);
    });
}

}  // namespace vimrt::cuda
