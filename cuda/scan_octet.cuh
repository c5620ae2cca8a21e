// An octet: eight tokens of a column of 16 channels of one direction, as a warp prepares them and reads their states,
// in 16-bit storage and ScanOrder::Octets. A step is a token, in the order in which the direction walks.
//
// Lane g = lane / 4, q = lane % 4 of a warp has the channels in rows g and g + 8 of the column, and of the 16 states
// the `q`th four. Values of an octet are spread as tensor cores spread the sum of a product (ptx.cuh), with its steps
// as columns: the lane has the steps 2 q and 2 q + 1 of both rows. The time steps' projection, what is added to states,
// drives times B, and what C reads of them are products on tensor cores; drives, and states as C reads them, are
// rounded to the storage's 16 bits for that, as c is. States and sums are in fp32.
#pragma once

#include "ptx.cuh"
#include "scan_steps.cuh"

namespace vimrt::cuda {

constexpr int warp_size = 32;
constexpr int octet_states = 16;
constexpr int lane_states = 4;  // of each of a lane's two channels
constexpr int octet_elements = octet_tokens * column_channels;

// Which part of a walk is taken: that up to the meeting, or the one behind it, or both without a result.
enum class Part { Plain, Merged, States };

struct Lane {
    int index, g, q;

    __device__ explicit Lane(int thread) : index(thread % warp_size), g(index / 4), q(index % 4) {}
};

// Rows of delta, B and C as asynchronous copies bring them to shared memory, a little apart where lanes would meet in a
// bank.
constexpr int piece_bytes = 16;  // of a copy
template <int Rank>
struct FetchedRows {
    static constexpr int bytes = (Rank + 2 * octet_states) * 2;
    static constexpr int pieces = bytes / piece_bytes;
    static constexpr int stride = bytes + (bytes % 128 == 0 ? 32 : 0);

    // Where the `piece`th piece of all rows lies.
    static constexpr __host__ __device__ int place_of(int piece) {
        return piece * piece_bytes + piece / pieces * (stride - bytes);
    }
};

// Calls function(i, t) for both of a lane's rows g + 8 i and both of its steps 2 q + t.
template <typename F>
__device__ void for_each_element(const F& function) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int t = 0; t < 2; ++t) function(i, t);
    }
}

// Four floats of shared memory, in one piece.
__device__ inline void load_four(unsigned from, float (&to)[4]) {
    const auto four = load_shared<float4>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}
__device__ inline void store_four(unsigned to, const float (&from)[4]) {
    store_shared(to, float4{from[0], from[1], from[2], from[3]});
}

using States = float[2][lane_states];

// What tokens do to a channel's states, of which a lane has four: what they add to them, from zero, and for how long
// those before decay.
struct StateChange {
    float4 added;
    float time;
};
__device__ inline void apply_change(const StateChange& change, const float (&rate)[lane_states],
                                    float (&state)[lane_states]) {
    const float added[lane_states] = {change.added.x, change.added.y, change.added.z, change.added.w};
#pragma unroll
    for (int n = 0; n < lane_states; ++n) state[n] = fmaf(exp2_fast(change.time * rate[n]), state[n], added[n]);
}
// A channel's time, of which the four lanes with its states have a part each.
__device__ inline float sum_of_parts(float time) {
    time += __shfl_xor_sync(all_lanes, time, 1);
    time += __shfl_xor_sync(all_lanes, time, 2);
    return time;
}

// Calls function(i, n) for every state of a lane.
template <typename F>
__device__ void for_each_state(const F& function) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int n = 0; n < lane_states; ++n) function(i, n);
    }
}

// Which channel of a column is row g + 8 i: such that a lane has four neighbours of a token where rows and steps are
// exchanged.
__device__ inline int channel_of_row(int g, int i) {
    return g / 2 * 4 + g % 2 + 2 * i;
}

// Of an octet what its lanes have of rows and steps. [i][t]: of channel row g + 8 i at step 2 q + t.
struct Octet {
    float delta[2][2];  // time steps; before, x that they are the softplus of
    float drive[2][2];  // Delta c
    float y[2][2];      // begins as D c
};

// An octet's time steps in shared memory: halves by rows, a little apart so that lanes meet different banks.
constexpr int half_steps = octet_tokens / 2;
constexpr int half_row_bytes = half_steps * 4;
constexpr int half_bytes = column_channels * half_row_bytes + 64;
constexpr int steps_bytes = 2 * half_bytes;

// Where steps 2 q and 2 q + 1 of a row lie. By bits, for the compiler takes more instructions for a remainder of what
// it thinks may be negative. `half`: bytes from half to half.
__device__ inline unsigned steps_place(const Lane& lane, int row, int half) {
    return (lane.index >> 1 & 1) * half + row * half_row_bytes + (lane.index & 1) * 8;
}
// Loads a row's of half an octet.
__device__ inline void load_steps(unsigned half, int row, float (&delta)[half_steps]) {
    load_four(half + row * half_row_bytes, delta);
}

// Of a lane's values of steps 2 q and 2 q + 1, the `t`th alone, as a side of a product.
__device__ inline unsigned step_alone(unsigned both, int t) {
    return both & (t == 0 ? 0xFFFFU : 0xFFFF0000U);
}

// A channel's drives of steps 2 q and 2 q + 1 as a left side of find_added(), for pairs of steps.
template <typename T>
__device__ void take_apart(const float (&drive)[2], unsigned (&left)[2]) {
    const unsigned both = pack_two<T>(drive[0], drive[1]);
    left[0] = step_alone(both, 0), left[1] = step_alone(both, 1);
}
// What is added to a lane's states: [k] to states 2 k and 2 k + 1 of its four, in rows g and then in rows g + 8 of a
// product over steps of drives with B. Of one of them other steps are zeros. Rows are those of the column; or rows g
// are a channel's first steps of pairs, rows g + 8 the second ones.
template <typename T>
__device__ void find_added(float (&added)[2][4], const unsigned (&drive)[2], const unsigned (&in)[2]) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        // In place: with a sum of their own octets spill registers.
#pragma unroll
        for (float& sum : added[k]) sum = 0;
        multiply_add<T>(added[k], drive, in[k]);
    }
}

// Products, as tensor cores spread them, of the states of a step, rounded to the storage's 16 bits, `upper` those of
// rows g and `lower` of rows g + 8, with what lanes have in `out`: C of the step that is the product's column.
template <typename T>
__device__ void read_states(float (&products)[4], const float (&upper)[lane_states], const float (&lower)[lane_states],
                            const Few<T, 4>& out) {
    multiply_add<T>(products,
                    {pack_two<T>(upper[0], upper[1]), pack_two<T>(lower[0], lower[1]), pack_two<T>(upper[2], upper[3]),
                     pack_two<T>(lower[2], lower[3])},
                    {out.word(0), out.word(1)});
}

// A lane's four values from tokens by lanes, as they lie in memory, to channels by lanes, as they are computed with; or
// back.
template <typename T>
__device__ void turn(Few<T, 4>& values) {
#pragma unroll
    for (int i = 0; i < 2; ++i) values.word(i) = transpose(values.word(i));
}

// dt_weight of a column, of rank `rank`.
constexpr int weight_bytes(int rank) {
    return rank * column_channels * 2;
}

// Stores it in shared memory at `to`, as tensor cores take a left side of 16 rows and 16 columns: rows g and g + 8 are
// those of the lane's channels, and columns in the order in which lanes have delta. Zeros where the lane's are not
// `wanted`.
template <typename T, int Rank>
__device__ void store_weights(unsigned to, const void* weight, const int (&channels)[2], const Lane& lane,
                              bool wanted = true) {
#pragma unroll
    for (int k = 0; k < Rank / 16; ++k) {
        Few<T, 4> of[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const T* row = static_cast<const T*>(weight) + channels[i] * Rank;
            if (wanted) of[i] = Few<T, 4>::at(reinterpret_cast<const char*>(row + 16 * k + 4 * lane.q));
        }
        store_shared(to + (k * warp_size + lane.index) * 16,
                     uint4{of[0].word(0), of[1].word(0), of[0].word(1), of[1].word(1)});
    }
}

// A column of a direction of an image, as a warp walks it alone. Shared memory has room for two octets; functions
// are told which one by its first byte.
template <typename T, int Rank>
class Column {
public:
    using Values = Few<T, 4>;
    static constexpr int bytes = 2 * steps_bytes + weight_bytes(Rank);

    // `memory`: `bytes` of shared memory, of the warp alone, aligned to 64.
    __device__ Column(const Scan& a, int image, int column, int direction, const Lane& lane, unsigned memory)
        : a_(a),
          lane_(lane),
          direction_(direction),
          last_((a.tokens - 1) / octet_tokens),
          first_channel_(column * column_channels),
          memory_(memory),
          steps_place_(kept(steps_place(lane, lane.g, half_bytes))) {
        const ScanDirection& d = direction_of(a, direction);
        const ScanDirection& other = direction_of(a, 1 - direction);
        const std::int64_t first_row = static_cast<std::int64_t>(image) * a.tokens;
        const std::int64_t columns_before = static_cast<std::int64_t>(image) * (a.channels / column_channels) + column;
        const std::int64_t first = columns_before * octets() * octet_elements;
        rows_ = place(d.projected, first_row * row_length + 4 * lane.q);
        c_ = place(d.c, first + lane.index * 4);
        y_ = place(d.y, first + lane.index * 4);
        other_y_ = place(other.y, first + (lane.index ^ 3) * 4);  // whose steps are the other way round
        z_ = place(a.z, first_row * a.z_stride + first_channel_ + 4 * lane.q);
        merged_ = place(a.merged, first_row * a.merged_stride + first_channel_ + 4 * lane.q);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            bias_[i] = d.dt_bias[channel_of(i)];
            skip_[i] = d.skip[channel_of(i)];
        }
        store_weights<T, Rank>(weights(), d.dt_weight, {channel_of(0), channel_of(1)}, lane);
        __syncwarp();
    }

    // A log2(e) of the lane's states.
    __device__ void load_rates(States& rates) const {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            load_floats(direction_of(a_, direction_).decay + channel_of(i) * octet_states + 4 * lane_.q, rates[i]);
    }

    // The first byte of a buffer in shared memory.
    __device__ unsigned buffer(int i) const {
        return memory_ + i * steps_bytes;
    }

    __device__ int octets() const {
        return last_ + 1;
    }
    // The octet that comes `step`th on the direction's walk; beyond its end, the last one.
    __device__ int octet_at(int step) const {
        return forward() ? min(step, last_) : max(last_ - step, 0);
    }
    // The one behind an octet on the walk; behind the last one, that.
    __device__ int octet_behind(int octet) const {
        return max(min(octet + (forward() ? 1 : -1), last_), 0);
    }
    // Octets on the walk, and how many of them leave their y for the other direction to merge.
    __device__ int walked_octets() const {
        return walked_parts(a_, octets(), octet_tokens, forward());
    }
    __device__ int plain_octets() const {
        return plain_parts(a_, octets(), octet_tokens, forward());
    }

    // Begins to read an octet's c, B, C and delta.
    __device__ void fetch(int octet) {
        fetched_c_ = Values::at(row_in(c_, octet, octet_elements));
        const char* row = row_in(rows_, own_token(octet), row_length);
        const auto at = [&](int element) { return Values::at(row + element * static_cast<int>(sizeof(T))); };
#pragma unroll
        for (int k = 0; k < Rank / 16; ++k) low_rank_[k] = at(16 * k);
        in_ = at(Rank);
        out_ = at(Rank + octet_states);
    }
    // Begins to read its z, which turn_z() makes ready.
    __device__ void fetch_z(int octet) {
        z_values_ = Values::at(row_in(z_, own_token(octet), a_.z_stride));
    }
    // Begins to read the other direction's y.
    __device__ void fetch_other(int octet) {
        if (a_.directions == 2) other_values_ = Values::at(row_in(other_y_, octet, octet_elements));
    }

    // Of making ready the octet that was fetched: x of its time steps, and B by states, of steps 2 q and 2 q + 1; C is
    // left in `out` as it is.
    __device__ void turn_and_project(Octet& octet, Values& in, Values& out) const {
        in = in_, out = out_;
        turn(in);
        project(octet.delta);
    }
    // From x to the time step, drive and D c.
    __device__ void activate(int i, int t, Octet& octet) const {
        float c[4];
        fetched_c_.to_floats(c);
        octet.delta[i][t] = softplus<false>(octet.delta[i][t]);
        octet.drive[i][t] = octet.delta[i][t] * c[2 * i + t];
        octet.y[i][t] = skip_[i] * c[2 * i + t];
    }
    // Time steps to those who take them.
    __device__ void give_steps(unsigned buffer, const Octet& octet) const {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            store_shared(buffer + steps_place_ + 8 * i * half_row_bytes, float2{octet.delta[i][0], octet.delta[i][1]});
    }
    // Those of half an octet, of the lane's channels.
    __device__ void take_steps(unsigned buffer, int half, float (&delta)[2][half_steps]) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) load_steps(buffer + half * half_bytes, lane_.g + 8 * i, delta[i]);
    }

    // What C of step t reads of the states behind it, left in `sum` where the step is the lane's.
    // `out`: of step g, as it was left.
    __device__ void read(int t, const States& s, const Values& out, float (&sum)[2][2]) const {
        // Products of the states with C of every step, of which this step's count.
        float products[4] = {};
        read_states<T>(products, s[0], s[1], out);
        if (lane_.q == t / 2) sum[0][t % 2] = products[t % 2], sum[1][t % 2] = products[2 + t % 2];
    }

    // The other direction's y.
    __device__ float other(int i, int t) const {
        if (a_.directions == 1) return 0.0F;
        float y[4];
        other_values_.to_floats(y);
        return y[2 * i + 1 - t];
    }
    // z to channels by lanes.
    __device__ void turn_z() {
        turn(z_values_);
    }
    // factor SiLU(z).
    __device__ float gate(int i, int t) const {
        float z[4];
        z_values_.to_floats(z);
        return a_.factor * silu_for_16_bits(z[2 * i + t]);
    }

    // Stores an octet's y for the other direction.
    __device__ void store(int octet, const float (&y)[2][2]) const {
        Values::of({y[0][0], y[0][1], y[1][0], y[1][1]}).put(row_in(y_, octet, octet_elements));
    }
    // Stores an octet's merged result.
    __device__ void store_merged(int octet, const float (&y)[2][2]) const {
        Values values = Values::of({y[0][0], y[0][1], y[1][0], y[1][1]});
        turn(values);
        if (octet * octet_tokens + token_of_step(lane_.g) < a_.tokens)
            values.put(row_in(merged_, own_token(octet), a_.merged_stride));
    }

private:
    __device__ bool forward() const {
        return direction_ == 0;
    }
    static constexpr int row_length = Rank + 2 * octet_states;

    __device__ int channel_of(int i) const {
        return first_channel_ + channel_of_row(lane_.g, i);
    }
    // Which token of an octet a step is.
    __device__ int token_of_step(int step) const {
        return forward() ? step : octet_tokens - 1 - step;
    }
    // The token whose rows the lane reads and writes, that of step g; beyond the last one, that.
    __device__ int own_token(int octet) const {
        return min(octet * octet_tokens + token_of_step(lane_.g), a_.tokens - 1);
    }

    __device__ unsigned weights() const {
        return buffer(2);
    }

    __device__ static char* place(const void* array, std::int64_t element) {
        return keep_pointer(static_cast<const char*>(array) + element * static_cast<std::int64_t>(sizeof(T)));
    }
    // The lane's place in a row of an array.
    __device__ static char* row_in(char* array, int row, std::int64_t stride) {
        const int bytes = static_cast<int>(stride) * static_cast<int>(sizeof(T));
        return array + static_cast<std::int64_t>(row) * bytes;
    }

    // x = dt_weight delta + dt_bias of the octet that was fetched.
    __device__ void project(float (&x)[2][2]) const {
        float sum[4] = {bias_[0], bias_[0], bias_[1], bias_[1]};
#pragma unroll
        for (int k = 0; k < Rank / 16; ++k) {
            const auto weight = load_shared<uint4>(weights() + (k * warp_size + lane_.index) * 16);
            multiply_add<T>(sum, {weight.x, weight.y, weight.z, weight.w},
                            {low_rank_[k].word(0), low_rank_[k].word(1)});
        }
        for_each_element([&](int i, int t) { x[i][t] = sum[2 * i + t]; });
    }

    const Scan& a_;
    const Lane& lane_;
    const int direction_;
    const int last_;  // octet
    const int first_channel_;
    const unsigned memory_, steps_place_;
    // The image's arrays, from where the lane reads and writes in the first token or octet.
    char *rows_, *c_, *y_, *other_y_, *z_, *merged_;
    float bias_[2], skip_[2];                            // of the lane's channels
    Values fetched_c_, in_, out_, low_rank_[Rank / 16];  // of the octet that was fetched
    Values z_values_, other_values_;
};

// What takes columns by octets: 16-bit storage, 16 states, the published models' ranks, results merged.
inline bool takes_octets(const Scan& a) {
    return a.order == ScanOrder::Octets && a.dtype != DType::F32 && a.merged != nullptr && a.states == octet_states &&
           a.channels % column_channels == 0 && a.z_stride % 4 == 0 && a.merged_stride % 4 == 0 &&
           (a.rank == 16 || a.rank == 32 || a.rank == 48);
}

// Calls function.operator()<T, Rank>() with the scan's.
template <typename F>
void with_rank(const Scan& a, const F& function) {
    const auto of_type = [&]<typename T>() {
        switch (a.rank) {
            case 16:
                return function.template operator()<T, 16>();
            case 32:
                return function.template operator()<T, 32>();
            case 48:
                return function.template operator()<T, 48>();
        }
        throw std::logic_error("octets are for ranks 16, 32 and 48");
    };
    if (a.dtype == DType::F16) return of_type.template operator()<__half>();
    if (a.dtype == DType::BF16) return of_type.template operator()<__nv_bfloat16>();
    throw std::logic_error("octets are for 16-bit storage");
}

}  // namespace vimrt::cuda
