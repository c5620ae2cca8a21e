// The scan as a wavefront over time and states.
//
// The lanes of a warp along time each hold L consecutive tokens of their channels. A lane takes its tokens through one
// group of states after the other, and hands each group's state to the lane behind it, which is one group of states
// behind in time: lane j takes in step k the states that lane j - 1 had in step k - 1. Once the first tile has passed,
// every lane is busy in every step, no state is computed twice, and each costs the one exponential that it must. With
// one lane along time, a lane has all states of its channels.
//
// Scanning warps do nothing else. Feeders, other warps of the block, prepare the next tile meanwhile: the time steps
// (the projection of delta on tensor cores where storage is 16-bit, softplus), the drive Delta c, and B and C by state;
// and they merge and store the tile that is done. All meet once a tile.
//
// A block owns some channels of one direction of an image. The two directions of the same channels meet half-way: each
// leaves its y of its first half in memory, waits until the other's is there, and merges on.
#include "lowering_rules.h"
#include "scan_steps.cuh"

namespace vimrt::cuda {

namespace {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xFFFFFFFFU;
constexpr int lane_channels = 2;  // B and C, once loaded, serve both

constexpr int unit = 16;  // tokens, and channels, that a feeder prepares at once

// Named barriers of a block, beside 0, __syncthreads'. The one for all warps counts them, as scanners and feeders come
// to it from different places.
constexpr int feeder_barrier = 1;
constexpr int tile_barrier = 2;

template <int Barrier>
__device__ void meet_at(int threads) {
    asm volatile("bar.sync %0, %1;" ::"n"(Barrier), "r"(threads) : "memory");
}

// Sizes that follow from the form.
template <int N, int TimeLanes>
struct Layout {
    static constexpr int lane_tokens = TimeLanes == 1 ? 4 : 8;
    static constexpr int step_states = N / TimeLanes;  // states that a lane takes in a step
    static constexpr int mini_tile = TimeLanes * lane_tokens;
    static constexpr int tile = mini_tile < 16 ? 16 : mini_tile;  // tokens between two meetings of the block
    static constexpr int stride = tile + 4;                       // of a channel's or state's tokens in shared memory
    static constexpr int warp_channels = warp_size / TimeLanes * lane_channels;
    // Tiles under way: being prepared, being scanned; of rows of B and C, and of y, also the one before.
    static constexpr int drive_slots = 2;
    static constexpr int y_slots = 3;
    static constexpr int row_slots = TimeLanes == 1 ? 2 : 3;

    __host__ __device__ static constexpr int rate_stride(int channels) { return channels + 2; }
    __host__ __device__ static constexpr int row_floats() { return row_slots * 2 * N * stride; }
    __host__ __device__ static constexpr int value_floats(int channels) {
        return (2 * drive_slots + y_slots) * channels * stride;
    }
    __host__ __device__ static constexpr int floats(int channels) {
        return row_floats() + value_floats(channels) + N * rate_stride(channels);
    }
};

// What all warps of a block know.
template <typename T, int N, int TimeLanes>
struct Block {
    using Sizes = Layout<N, TimeLanes>;

    __device__ Block(const Scan& scan, int ticket, int channels_of_block, float* shared)
        : a(scan), channels(channels_of_block), rows(shared) {
        const int groups = (a.channels + channels - 1) / channels;
        direction = ticket % a.directions;
        pair = ticket / a.directions;
        image = pair / groups;
        first_channel = pair % groups * channels;
        tiles = (a.tokens + Sizes::tile - 1) / Sizes::tile;
        delta = rows + Sizes::row_floats();
        drive = delta + Sizes::drive_slots * channels * Sizes::stride;
        y = drive + Sizes::drive_slots * channels * Sizes::stride;
        rates = y + Sizes::y_slots * channels * Sizes::stride;
        weights = reinterpret_cast<uint4*>(rates + N * Sizes::rate_stride(channels));
    }

    __device__ float* rows_of(int tile) const { return rows + tile % Sizes::row_slots * (2 * N * Sizes::stride); }
    __device__ float* delta_of(int tile) const {
        return delta + tile % Sizes::drive_slots * (channels * Sizes::stride);
    }
    __device__ float* drive_of(int tile) const {
        return drive + tile % Sizes::drive_slots * (channels * Sizes::stride);
    }
    __device__ float* y_of(int tile) const { return y + tile % Sizes::y_slots * (channels * Sizes::stride); }

    const Scan& a;
    int channels;  // of the block
    int direction, pair, image, first_channel;
    int tiles;
    float* rows;     // [row_slots][2 N][stride]: B and C of each state
    float* delta;    // [drive_slots][channels][stride]
    float* drive;    // the same: Delta c
    float* y;        // [y_slots][channels][stride]: D c, and then y
    float* rates;    // [N][rate_stride]: A log2(e)
    uint4* weights;  // [channels / 16][rank / 16][32 lanes]: dt_weight, of 16-bit storage
};

// A warp that scans.
template <typename T, int N, int TimeLanes>
class Scanner {
    using Sizes = Layout<N, TimeLanes>;
    static constexpr int L = Sizes::lane_tokens;
    static constexpr int S = Sizes::step_states;
    static constexpr int stride = Sizes::stride;

public:
    __device__ Scanner(const Block<T, N, TimeLanes>& block, int warp)
        : block_(block), rate_stride_(Sizes::rate_stride(block.channels)) {
        const int lane = static_cast<int>(threadIdx.x) % warp_size;
        time_lane_ = lane % TimeLanes;
        channel_ = warp * Sizes::warp_channels + lane / TimeLanes * lane_channels;
        // Lanes that wait for their first tile pass on states of zero: time stands still.
        row_ = block.rows_of(Sizes::row_slots - 1) + time_lane_ * L;
        rate_ = block.rates + channel_;
    }

    // Scans a tile; with lanes along time, in the one behind the last too.
    __device__ void scan(int tile) {
        if (tile >= block_.tiles + (TimeLanes == 1 ? 0 : 1)) return;
        if constexpr (TimeLanes == 1) {
#pragma unroll 1
            for (int first = 0; first < Sizes::tile; first += L) {
                enter(tile, first);
                step();
                leave(tile, first);
            }
        } else {
#pragma unroll 2
            for (int k = 0; k < TimeLanes; ++k) {
                if (time_lane_ == k) exchange(tile);
                step();
                pass_on();
            }
        }
    }

private:
    __device__ static void load(const float* from, float (&to)[L]) {
#pragma unroll
        for (int t = 0; t < L; t += 4) {
            const float4 four = *reinterpret_cast<const float4*>(from + t);
            to[t] = four.x, to[t + 1] = four.y, to[t + 2] = four.z, to[t + 3] = four.w;
        }
    }
    __device__ static void store(float* to, const float (&from)[L]) {
#pragma unroll
        for (int t = 0; t < L; t += 4) {
            *reinterpret_cast<float4*>(to + t) = float4{from[t], from[t + 1], from[t + 2], from[t + 3]};
        }
    }

    __device__ void exchange(int tile) {
#pragma unroll
        for (int i = 0; i < lane_channels; ++i) {
            const int at = (channel_ + i) * stride + time_lane_ * L;
            const float(&done)[L] = y_[i];
            float fresh[L];
            load(block_.y_of(tile) + at, fresh);
            store(block_.y_of(tile) + at, done);
#pragma unroll
            for (int t = 0; t < L; ++t) y_[i][t] = fresh[t];
            load(block_.delta_of(tile) + at, delta_[i]);
            load(block_.drive_of(tile) + at, drive_[i]);
        }
        row_ = block_.rows_of(tile) + time_lane_ * L;
        rate_ = block_.rates + channel_;
    }

    __device__ void enter(int tile, int first) {
#pragma unroll
        for (int i = 0; i < lane_channels; ++i) {
            const int at = (channel_ + i) * stride + first;
            load(block_.y_of(tile) + at, y_[i]);
            load(block_.delta_of(tile) + at, delta_[i]);
            load(block_.drive_of(tile) + at, drive_[i]);
        }
        row_ = block_.rows_of(tile) + first;
        rate_ = block_.rates + channel_;
    }

    __device__ void leave(int tile, int first) {
#pragma unroll
        for (int i = 0; i < lane_channels; ++i) store(block_.y_of(tile) + (channel_ + i) * stride + first, y_[i]);
    }

    // Takes the lane's tokens through its next states: every TimeLanes-th one, so that the lanes' rows lie in different
    // banks.
    __device__ void step() {
#pragma unroll
        for (int s = 0; s < S; ++s) {
            float in[L], out[L];
            load(row_ + s * TimeLanes * stride, in);
            load(row_ + (N + s * TimeLanes) * stride, out);
            const float* rates = rate_ + s * TimeLanes * rate_stride_;
            const float2 two = *reinterpret_cast<const float2*>(rates);
            const float rate[lane_channels] = {two.x, two.y};
#pragma unroll
            for (int t = 0; t < L; ++t) {
#pragma unroll
                for (int i = 0; i < lane_channels; ++i) {
                    const float decay = exp2_fast(delta_[i][t] * rate[i]);
                    state_[s][i] = fmaf(decay, state_[s][i], drive_[i][t] * in[t]);
                    y_[i][t] = fmaf(out[t], state_[s][i], y_[i][t]);
                }
            }
        }
        row_ += stride;
        rate_ += rate_stride_;
    }

    __device__ void pass_on() {
#pragma unroll
        for (int s = 0; s < S; ++s) {
#pragma unroll
            for (int i = 0; i < lane_channels; ++i) {
                state_[s][i] = __shfl_sync(all_lanes, state_[s][i], time_lane_ + TimeLanes - 1, TimeLanes);
            }
        }
    }

    const Block<T, N, TimeLanes>& block_;
    const int rate_stride_;
    int time_lane_;
    int channel_;  // the first of the lane's, in the block
    const float* row_;
    const float* rate_;
    float delta_[lane_channels][L] = {};
    float drive_[lane_channels][L] = {};
    float y_[lane_channels][L] = {};
    float state_[S][lane_channels] = {};
};

// sum += A B of 16x16 and 16x8 16-bit matrices, in the tensor cores' layout.
template <typename T>
__device__ void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (std::is_same_v<T, __half>) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
}

// Four or eight neighbouring elements as they lie in memory.
template <typename T, int Count>
struct alignas(sizeof(T) * Count < 16 ? sizeof(T) * Count : 16) Words {
    unsigned word[sizeof(T) * Count / 4];

    __device__ void unpack(float (&to)[Count]) const {
#pragma unroll
        for (int w = 0; w < static_cast<int>(sizeof(T) * Count / 4); ++w) {
            if constexpr (std::is_same_v<T, float>) {
                to[w] = __uint_as_float(word[w]);
            } else if constexpr (std::is_same_v<T, __half>) {
                const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&word[w]));
                to[2 * w] = two.x, to[2 * w + 1] = two.y;
            } else {
                to[2 * w] = __uint_as_float(word[w] << 16);
                to[2 * w + 1] = __uint_as_float(word[w] & 0xFFFF0000U);
            }
        }
    }
};

template <typename T, int Count>
__device__ Words<T, Count> load_words(const T* from) {
    return *reinterpret_cast<const Words<T, Count>*>(from);
}

// Written by another block while this one ran: not through the first-level cache, which would not know.
template <typename T>
__device__ Words<T, 4> load_coherent(const T* from) {
    Words<T, 4> words;
    if constexpr (sizeof(T) == 2) {
        const uint2 raw = __ldcg(reinterpret_cast<const uint2*>(from));
        words.word[0] = raw.x, words.word[1] = raw.y;
    } else {
        const uint4 raw = __ldcg(reinterpret_cast<const uint4*>(from));
        words.word[0] = raw.x, words.word[1] = raw.y, words.word[2] = raw.z, words.word[3] = raw.w;
    }
    return words;
}

// A warp that prepares tiles and stores results. It works on units of 16 tokens by 16 channels, of which a lane has the
// tokens g and g + 8 and the channels 4 q to 4 q + 3, with g = lane / 4 and q = lane % 4: the layout in which tensor
// cores leave two products side by side. What a unit needs from memory is fetched into registers one unit ahead.
template <typename T, int N, int TimeLanes>
class Feeder {
    using Sizes = Layout<N, TimeLanes>;
    static constexpr int stride = Sizes::stride;
    static constexpr int tile_tokens = Sizes::tile;
    static constexpr int token_units = tile_tokens / unit;
    static constexpr int pack = 8;           // values of B or C that a thread moves at once
    static constexpr int fetched_ranks = 2;  // groups of 16, fetched ahead

public:
    __device__ Feeder(const Block<T, N, TimeLanes>& block, int feeder, int feeders)
        : block_(block),
          a_(block.a),
          d_(direction_of(block.a, block.direction)),
          feeder_(feeder),
          feeders_(feeders),
          lane_(static_cast<int>(threadIdx.x) % warp_size),
          g_(lane_ / 4),
          q_(lane_ % 4),
          width_(block.a.rank + 2 * N),
          plain_(plain_steps(block.a, block.direction)),
          sign_(block.direction == 0 ? 1 : -1),
          origin_(block.image * block.a.tokens + token_at(block.a, block.direction, 0)),
          units_(token_units * (min(block.channels, block.a.channels - block.first_channel) / unit)) {}

    // Prepares the first tile.
    __device__ void begin() {
        fill_constants();
        if constexpr (TimeLanes > 1) clear_last_rows();
        if (plain_ == 0 && meets()) arrive();
        meet_feeders();
        if (feeder_ < units_) fetch(0, feeder_);
        prepare_rows(0);
        for (int u = feeder_; u < units_; u += feeders_) prepare(0, u);
    }

    // While a tile is scanned: prepares the next one, and finishes the one that is done.
    __device__ void feed(int tile) {
        constexpr int flush = TimeLanes == 1 ? 0 : 1;
        // The y of a tile is whole after the tile itself, or with lanes along time after the one behind it.
        constexpr int lag = TimeLanes == 1 ? 1 : 2;
        const int next = tile + 1;
        const int done = tile - lag;
        const bool prepares = next < block_.tiles + flush;
        const bool finishes = done >= 0 && done < block_.tiles;
        const bool merges = finishes && done * tile_tokens >= plain_;
        if (merges && meets() && !met_) wait_for_partner();
        if (prepares) prepare_rows(next);
        for (int u = feeder_; u < units_; u += feeders_) {
            if (merges) fetch_partners(done, u);
            if (prepares) prepare(next, u);
            if (merges) {
                store<true>(done, u);
            } else if (finishes) {
                store<false>(done, u);
            }
        }
        if (finishes && !merges) half_way(done);
    }

private:
    __device__ bool meets() const { return a_.merged != nullptr && a_.directions == 2; }
    __device__ int thread() const { return feeder_ * warp_size + lane_; }
    __device__ int threads() const { return feeders_ * warp_size; }

    // A unit's first token in the tile and first channel in the block.
    __device__ static int token_of(int u) { return u % token_units * unit; }
    __device__ static int channel_of(int u) { return u / token_units * unit; }
    // Of the lane's first element in unit u: its step, its row of the whole batch, its channel, and where it lies in a
    // tile in shared memory. The second token is 8 steps on.
    __device__ int step_of(int tile, int u) const { return tile * tile_tokens + token_of(u) + g_; }
    __device__ int row_of(int step) const { return origin_ + sign_ * step; }
    __device__ int column_of(int u) const { return block_.first_channel + channel_of(u) + 4 * q_; }
    __device__ int place_of(int u) const { return (channel_of(u) + 4 * q_) * stride + token_of(u) + g_; }
    __device__ std::int64_t element_of(int step, int u) const {
        return static_cast<std::int64_t>(row_of(step)) * a_.channels + column_of(u);
    }

    __device__ void meet_feeders() const { meet_at<feeder_barrier>(threads()); }

    // Rates by state, and dt_weight as tensor cores read it.
    __device__ void fill_constants() const {
        const int stride_of_rates = Sizes::rate_stride(block_.channels);
        for (int i = thread(); i < N * block_.channels; i += threads()) {
            const int channel = i / N;
            const int n = i % N;
            const int column = block_.first_channel + channel;
            block_.rates[n * stride_of_rates + channel] =
                column < a_.channels ? d_.decay[static_cast<std::int64_t>(column) * N + n] : 0.0F;
        }
        if constexpr (sizeof(T) == 2) {
            const int ranks = a_.rank / 16;
            for (int i = feeder_; i < units_ / token_units * ranks; i += feeders_) {
                block_.weights[i * warp_size + lane_] = weight_fragment(i / ranks * unit, i % ranks * 16);
            }
        }
    }

    // Column n of product p is the unit's channel 4 (n / 2) + 2 p + n % 2; a lane holds rows 2 q, 2 q + 1, 2 q + 8 and
    // 2 q + 9 of column g of both products.
    __device__ uint4 weight_fragment(int first_channel, int r) const {
        const int channel = block_.first_channel + first_channel + 4 * (g_ / 2) + g_ % 2;
        const T* from = static_cast<const T*>(d_.dt_weight) + static_cast<std::int64_t>(channel) * a_.rank + r + 2 * q_;
        const T* second = from + 2 * a_.rank;
        return {pair_at(from), pair_at(from + 8), pair_at(second), pair_at(second + 8)};
    }
    __device__ static unsigned pair_at(const T* from) { return *reinterpret_cast<const unsigned*>(from); }

    // Lanes that wait for their first tile read rows all the same.
    __device__ void clear_last_rows() const {
        float* last = block_.rows_of(Sizes::row_slots - 1);
        for (int i = thread(); i < 2 * N * stride; i += threads()) last[i] = 0.0F;
    }

    __device__ const T* projected(int step) const {
        return static_cast<const T*>(d_.projected) + static_cast<std::int64_t>(row_of(step)) * width_;
    }

    // B and C of a tile, by state; zeros beyond the end.
    __device__ void prepare_rows(int tile) const {
        constexpr int packs = tile_tokens * (2 * N / pack);
        float* rows = block_.rows_of(tile);
#pragma unroll 4
        for (int i = thread(); i < packs; i += threads()) {
            const int token = i % tile_tokens;
            const int n = i / tile_tokens * pack;
            const int step = tile * tile_tokens + token;
            float values[pack] = {};
            if (step < a_.tokens) load_words<T, pack>(projected(step) + a_.rank + n).unpack(values);
            float* to = rows + n * stride + token;
#pragma unroll
            for (int j = 0; j < pack; ++j) to[j * stride] = values[j];
        }
    }

    // Loads what prepare(tile, u) needs.
    __device__ void fetch(int tile, int u) {
        const int step = step_of(tile, u);
        const T* c = static_cast<const T*>(d_.c) + element_of(step, u);
        const T* row = projected(step) + 2 * q_;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (step + 8 * half >= a_.tokens) continue;
            c_[half] = load_words<T, 4>(c + sign_ * half * 8 * a_.channels);
            if constexpr (sizeof(T) == 2) {
#pragma unroll
                for (int r = 0; r < fetched_ranks; ++r) {
                    if (16 * r < a_.rank) load_low_rank(row + sign_ * half * 8 * width_ + 16 * r, half, low_rank_[r]);
                }
            }
        }
    }

    // delta's elements r to r + 15 of one of the lane's tokens, as tensor cores read them.
    __device__ static void load_low_rank(const T* from, int half, unsigned (&to)[4]) {
        to[half] = pair_at(from);
        to[half + 2] = pair_at(from + 8);
    }

    // Delta, the drive and D c of a unit; and fetches the next one.
    __device__ void prepare(int tile, int u) {
        const int step = step_of(tile, u);
        float x[2][4], c[2][4], skip[4];
        load_floats(d_.skip + column_of(u), skip);
        project(tile, u, x);
        c_[0].unpack(c[0]);
        c_[1].unpack(c[1]);
        const int following = u + feeders_;
        if (following < units_) {
            fetch(tile, following);
        } else {
            fetch(tile + 1, feeder_);
        }
        float* delta = block_.delta_of(tile) + place_of(u);
        float* drive = block_.drive_of(tile) + place_of(u);
        float* y = block_.y_of(tile) + place_of(u);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const bool real = step + 8 * half < a_.tokens;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                // Beyond the end time stands still: the decay is 1 and nothing is added.
                const float step_size = real ? softplus<exact_math<T>>(x[half][i]) : 0.0F;
                delta[i * stride + 8 * half] = step_size;
                drive[i * stride + 8 * half] = step_size * c[half][i];
                y[i * stride + 8 * half] = skip[i] * c[half][i];
            }
        }
    }

    // x = dt_weight delta + dt_bias for the lane's elements of the unit.
    __device__ void project(int tile, int u, float (&x)[2][4]) const {
        float bias[4];
        load_floats(d_.dt_bias + column_of(u), bias);
        if constexpr (sizeof(T) == 2) {
            float sums[2][4] = {{bias[0], bias[1], bias[0], bias[1]}, {bias[2], bias[3], bias[2], bias[3]}};
            const uint4* weights = block_.weights + channel_of(u) / unit * (a_.rank / 16) * warp_size + lane_;
#pragma unroll
            for (int r = 0; r < fetched_ranks; ++r) {
                if (16 * r < a_.rank) multiply_rank(weights[r * warp_size], low_rank_[r], sums);
            }
            for (int r = fetched_ranks; 16 * r < a_.rank; ++r) {
                unsigned low_rank[4] = {};
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int step = step_of(tile, u) + 8 * half;
                    if (step < a_.tokens) load_low_rank(projected(step) + 2 * q_ + 16 * r, half, low_rank);
                }
                multiply_rank(weights[r * warp_size], low_rank, sums);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int i = 0; i < 4; ++i) x[half][i] = sums[i / 2][2 * half + i % 2];
            }
        } else {
            const T* weight = static_cast<const T*>(d_.dt_weight) + static_cast<std::int64_t>(column_of(u)) * a_.rank;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int i = 0; i < 4; ++i) x[half][i] = bias[i];
                const int step = step_of(tile, u) + 8 * half;
                if (step < a_.tokens) add_projection(projected(step), weight, x[half]);
            }
        }
    }

    // Adds 16 terms of both products.
    __device__ static void multiply_rank(const uint4& weights, const unsigned (&low_rank)[4], float (&sums)[2][4]) {
        multiply_add<T>(sums[0], low_rank, {weights.x, weights.y});
        multiply_add<T>(sums[1], low_rank, {weights.z, weights.w});
    }

    // fp32 is never rounded to what tensor cores take.
    __device__ void add_projection(const T* row, const T* weight, float (&x)[4]) const {
        for (int r = 0; r < a_.rank; r += 4) {
            float low_rank[4];
            load_floats(row + r, low_rank);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float taps[4];
                load_floats(weight + i * a_.rank + r, taps);
#pragma unroll
                for (int j = 0; j < 4; ++j) x[i] = fmaf(to_float(taps[j]), low_rank[j], x[i]);
            }
        }
    }

    // Loads z and the other direction's y of the steps that are merged.
    __device__ void fetch_partners(int tile, int u) {
        const int step = step_of(tile, u);
        const T* z = static_cast<const T*>(a_.z) + static_cast<std::int64_t>(row_of(step)) * a_.z_stride + column_of(u);
        const T* other = static_cast<const T*>(direction_of(a_, 1 - block_.direction).y) + element_of(step, u);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (step + 8 * half < plain_ || step + 8 * half >= a_.tokens) continue;
            z_[half] = load_words<T, 4>(z + sign_ * half * 8 * a_.z_stride);
            if (a_.directions == 2) other_[half] = load_coherent(other + sign_ * half * 8 * a_.channels);
        }
    }

    // Stores the unit's y, merged or as it is.
    template <bool Merges>
    __device__ void store(int tile, int u) const {
        // With lanes along time, y lies where the next tile's D c lay.
        const float* values = block_.y_of(TimeLanes == 1 ? tile : tile + 1) + place_of(u);
        const int step = step_of(tile, u);
        T* to = static_cast<T*>(Merges ? a_.merged : d_.y) + element_of(step, u);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int at = step + 8 * half;
            if (at >= a_.tokens || (at >= plain_) != Merges) continue;
            float y[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) y[i] = values[i * stride + 8 * half];
            if constexpr (Merges) merge(half, y);
            store_floats(to + sign_ * half * 8 * a_.channels, y);
        }
    }

    __device__ void merge(int half, float (&y)[4]) const {
        float z[4], other[4] = {};
        z_[half].unpack(z);
        if (a_.directions == 2) other_[half].unpack(other);
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] = a_.factor * (y[i] + other[i]) * silu(z[i]);
    }

    // After a tile whose y, or some of it, was stored as it is: where that was the last, meets the other direction, and
    // merges the tile's other tokens.
    __device__ void half_way(int tile) {
        const int end = min((tile + 1) * tile_tokens, a_.tokens);
        if (!meets() || end < plain_) return;
        arrive();
        if (end == plain_) return;
        wait_for_partner();
        for (int u = feeder_; u < units_; u += feeders_) {
            fetch_partners(tile, u);
            store<true>(tile, u);
        }
    }

    __device__ unsigned* arrivals() const {
        return a_.tickets + 1 + block_.pair;
    }

    // Says that the first half of this direction's y is in memory.
    __device__ void arrive() const {
        __threadfence();
        meet_feeders();
        if (thread() == 0) atomicAdd(arrivals(), 1U);
    }

    // The other block is running already or is the next to start, as blocks take their work in the order of their
    // tickets.
    __device__ void wait_for_partner() {
        if (thread() == 0) {
            while (*reinterpret_cast<volatile unsigned*>(arrivals()) < 2U) __nanosleep(64);
            __threadfence();
        }
        meet_feeders();
        met_ = true;
    }

    const Block<T, N, TimeLanes>& block_;
    const Scan& a_;
    const ScanDirection& d_;
    const int feeder_, feeders_;
    const int lane_, g_, q_;
    const int width_;  // of a row of `projected`
    const int plain_;
    const int sign_;    // of a step in tokens
    const int origin_;  // the row of step 0
    const int units_;   // of a tile
    bool met_ = false;
    Words<T, 4> c_[2] = {};
    unsigned low_rank_[fetched_ranks][4] = {};
    Words<T, 4> z_[2] = {};
    Words<T, 4> other_[2] = {};
};

constexpr int max_threads = 384;

template <typename T, int N, int TimeLanes>
__global__ void __launch_bounds__(max_threads) scan_blocks(const __grid_constant__ Scan a, int warps, int feeders) {
    extern __shared__ float4 shared[];
    __shared__ unsigned ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(a.tickets, 1U);
    __syncthreads();
    const Block<T, N, TimeLanes> block(a, static_cast<int>(ticket), warps * Layout<N, TimeLanes>::warp_channels,
                                       reinterpret_cast<float*>(shared));
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
    const int periods = block.tiles + 2;
    if (warp < warps) {
        Scanner<T, N, TimeLanes> scanner(block, warp);
        for (int tile = 0; tile < periods; ++tile) {
            meet_at<tile_barrier>(static_cast<int>(blockDim.x));
            scanner.scan(tile);
        }
    } else {
        Feeder<T, N, TimeLanes> feeder(block, warp - warps, feeders);
        feeder.begin();
        for (int tile = 0; tile < periods; ++tile) {
            meet_at<tile_barrier>(static_cast<int>(blockDim.x));
            feeder.feed(tile);
        }
    }
}

template <typename F>
void with_form(const Scan& a, const ScanForm& form, const F& function) {
    const int key = 100 * form.time_lanes + a.states;
    switch (key) {
        case 116:
            return function.template operator()<16, 1>();
        case 808:
            return function.template operator()<8, 8>();
        case 816:
            return function.template operator()<16, 8>();
        case 832:
            return function.template operator()<32, 8>();
        case 864:
            return function.template operator()<64, 8>();
        case 1616:
            return function.template operator()<16, 16>();
        case 1632:
            return function.template operator()<32, 16>();
        case 1664:
            return function.template operator()<64, 16>();
    }
    throw std::logic_error("the wavefront has no such form");
}

}  // namespace

bool scan_wavefront_takes(const Scan& a, const ScanForm& form) {
    // Feeders move 4 neighbouring channels at once, 16 in a row; models have 16 states nearly always.
    if (a.channels % 16 != 0 || a.z_stride % 4 != 0) return false;
    return form.time_lanes == 1 ? a.states == 16 : form.time_lanes <= a.states;
}

std::size_t scan_wavefront_shared_bytes(const Scan& a, const ScanForm& form) {
    std::size_t bytes = 0;
    with_form(a, form, [&]<int N, int TimeLanes>() {
        bytes = sizeof(float) * static_cast<std::size_t>(Layout<N, TimeLanes>::floats(form.channels_per_block()));
    });
    const int weights = a.dtype == DType::F32 ? 0 : form.channels_per_block() * a.rank;
    return bytes + 2 * static_cast<std::size_t>(weights);
}

void scan_wavefront(const Scan& a, const ScanForm& form, cudaStream_t stream) {
    const std::size_t shared = scan_wavefront_shared_bytes(a, form);
    const unsigned blocks =
        blocks_for(a.channels, form.channels_per_block()) * static_cast<unsigned>(a.batch * a.directions);
    const auto threads = static_cast<unsigned>((form.warps + form.feeders) * warp_size);
    with_storage(a.dtype, [&](auto type) {
        with_form(a, form, [&]<int N, int TimeLanes>() {
            const auto kernel = scan_blocks<decltype(type), N, TimeLanes>;
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                  "scan_wavefront: shared memory");
            kernel<<<blocks, threads, shared, stream>>>(a, form.warps, form.feeders);
        });
    });
}

}  // namespace vimrt::cuda
