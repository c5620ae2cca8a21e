// A strip: half a column of 16 channels of one direction, as a warp walks it alone, an octet of tokens at a time.
//
// Lane g = lane / 4, q = lane % 4 of a warp has the strip's channel g and of the 16 states the `q`th four. Inputs are
// fetched octets ahead. What is added to states, and what C reads of them, are products on tensor cores for two
// steps at a time: rows g are of the first one, rows g + 8 the second.
#pragma once

#include "scan_octet.cuh"

namespace vimrt::cuda {

constexpr int strip_channels = column_channels / 2;

constexpr int parts_of_strip = 3;  // where a quarter of a multiprocessor has several

// `parts`: of a warp's shared memory, for octets in turn, and so many are fetched ahead.
template <typename T, int Rank, int parts>
class Strip {
    using Two = Few<T, 2>;  // a lane's of an octet: steps 2 q and 2 q + 1
    using Four = Few<T, 4>;
    using Rows = FetchedRows<Rank>;

    // Shared memory of an octet that is prepared: time steps by its halves, a little apart so that lanes meet different
    // banks.
    static constexpr int half_bytes = strip_channels * half_row_bytes + 64;
    static constexpr int steps_bytes = 2 * half_bytes;
    // Of what is fetched: rows and c of one octet; of the one before it the other direction's y, and z. There is room
    // for what lanes copy that have nothing to.
    static constexpr int values_bytes = octet_tokens * strip_channels * 2;
    static constexpr int values_pieces = values_bytes / piece_bytes;
    static constexpr int row_copies = (octet_tokens * Rows::pieces + warp_size - 1) / warp_size;  // of a lane
    static constexpr int rows_at = steps_bytes;
    static constexpr int c_at = rows_at + Rows::place_of(row_copies * warp_size);
    static constexpr int other_y_at = c_at + values_bytes;
    static constexpr int z_at = other_y_at + values_bytes;
    static constexpr int part_bytes = c_at + warp_size * piece_bytes;

public:
    static constexpr int bytes = parts * part_bytes;

    // `first`: octets of the walk that are taken already.
    __device__ Strip(const Scan& a, int image, int strip, int direction, const Lane& lane, unsigned memory,
                     int first = 0)
        : a_(a),
          lane_(lane),
          forward_(direction == 0),
          last_((a.tokens - 1) / octet_tokens),
          memory_(memory),
          row_place_(rows_at + token_of_step(lane.g) * Rows::stride + 8 * lane.q),
          copy_place_(rows_at + Rows::place_of(lane.index)),
          steps_place_(steps_place(lane, lane.g, half_bytes)) {
        const ScanDirection& d = direction_of(a, direction);
        const int half = strip % 2, first_channel = strip * strip_channels;
        const int channel = first_channel - half * strip_channels + channel_of_row(4 * half + lane.g % 4, lane.g / 4);
        const std::int64_t first_row = static_cast<std::int64_t>(image) * a.tokens;
        const std::int64_t columns_before =
            static_cast<std::int64_t>(image) * (a.channels / column_channels) + strip / 2;
        const int octet = forward_ ? first : last_ - first, way = forward_ ? 1 : -1;
        const std::int64_t first_value =
            (columns_before * octets() + octet) * octet_elements + half * (octet_elements / 2);
        const std::int64_t row = first_row + octet * octet_tokens;
        constexpr int values_step = octet_elements * static_cast<int>(sizeof(T));
        rows_ = place(d.projected, row * (Rows::bytes / 2)) + lane.index * piece_bytes;
        rows_step_ = way * octet_tokens * Rows::bytes;
        result_ = place(d.y, first_value) + own_place();
        result_step_ = way * values_step;
        rest_ = a.tokens - octet * octet_tokens;
        rest_step_ = way * octet_tokens;
        left_ = octets() - first;
#pragma unroll
        for (int k = 0; k < row_copies; ++k) {
            const int token = (lane.index + k * warp_size) / Rows::pieces;
            row_token_[k] = token < octet_tokens ? token : never;
        }
        // Of c, the other direction's y, and z, a lane copies pieces of one.
        const int piece = lane.index % values_pieces;
        copies_ = lane.index / values_pieces;
        values_step_ = result_step_;
        value_token_ = -never;
        switch (copies_) {
            case 0:
                values_ = place(d.c, first_value) + piece * piece_bytes;
                break;
            case 1:
                values_ = place(direction_of(a, 1 - direction).y, first_value) + piece * piece_bytes;
                break;
            default:
                values_ = place(a.z, (row + piece) * a.z_stride + first_channel);
                values_step_ = way * octet_tokens * static_cast<int>(a.z_stride) * static_cast<int>(sizeof(T));
                value_token_ = piece - rest_step_;
                break;
        }
        // z and the other direction's y are fetched an octet later.
        if (copies_ != 0) values_ -= values_step_;
        values_late_ = copies_ == 0 ? 0 : never;
        bias_ = d.dt_bias[channel];
        skip_ = d.skip[channel];
        load_floats(d.decay + channel * octet_states + 4 * lane.q, rate_);
        const T* weight = static_cast<const T*>(d.dt_weight) + channel * Rank;
#pragma unroll
        for (int k = 0; k < Rank / 16; ++k) {
            const Four of = Four::at(reinterpret_cast<const char*>(weight + 16 * k + 4 * lane.q));
            // Zeros that the compiler does not know to be: it would write them anew for every octet.
            const unsigned zero = static_cast<unsigned>(a.directions) / 4U;
            weight_[k][0] = of.word(0), weight_[k][1] = zero, weight_[k][2] = of.word(1), weight_[k][3] = zero;
        }
    }

    __device__ int octets() const {
        return last_ + 1;
    }
    // Of octets on the walk, how many leave their y for the other direction to merge.
    template <bool One = true>
    __device__ int plain_octets() const {
        return plain_parts<One>(a_, octets(), octet_tokens, forward_);
    }
    __device__ int walked_octets() const {
        return walked_parts(a_, octets(), octet_tokens, forward_);
    }

    // Makes ready the first octet, and begins to fetch the next ones.
    template <Part part>
    __device__ void begin() {
#pragma unroll
        for (int i = 0; i < parts; ++i) fetch(memory_ + i * part_bytes);
        wait_for_copies<parts - 1>();
        __syncwarp();
        turn_and_project(memory_);
        activate<part>(memory_);
        give_steps(memory_);
        take_over();
        __syncwarp();
        fetch(memory_);
        take_steps(memory_, 0);
#pragma unroll
        for (int t = 0; t < ahead; ++t) find_decays(t, decay_[t]);
    }

    // Behind the meeting, with so many octets taken: fetches z and the other direction's y of those that are under way.
    __device__ void begin_merging(int image, int strip, int taken) {
        const int octet = forward_ ? taken : last_ - taken;
        const std::int64_t row = static_cast<std::int64_t>(image) * a_.tokens + octet * octet_tokens;
        result_ = place(a_.merged, (row + token_of_step(lane_.g)) * a_.merged_stride + strip * strip_channels +
                                       2 * channels_pair());
        result_step_ = rest_step_ * static_cast<int>(a_.merged_stride) * static_cast<int>(sizeof(T));
        wait_for_copies<0>();  // of zeros to the same places
        const bool wanted = copies_ == 2 || (copies_ == 1 && a_.directions == 2);
        values_late_ = wanted ? -1 : copies_ == 0 ? 0 : never;
        unsigned part = turn_;
#pragma unroll
        for (int before = parts; before > 0; --before) {
            part = part_behind(part);
            copy_async_or_clear(values_at(memory_ + part), values_ - before * static_cast<std::int64_t>(values_step_),
                                left_ + before > values_late_ && value_token_ < rest_ + before * rest_step_, wanted);
        }
        commit_copies();
        wait_for_copies<0>();
    }

    // The lane's states, to a warp that goes on with the strip, or from one.
    __device__ float4 states() const {
        return {state_[0], state_[1], state_[2], state_[3]};
    }
    __device__ void begin_with(const float4& states) {
        state_[0] = states.x, state_[1] = states.y, state_[2] = states.z, state_[3] = states.w;
    }

    // Takes so many octets.
    template <Part part>
    __device__ void take(int count) {
#pragma unroll 1
        for (; count > 0; --count) take_octet<part>();
    }

    // What the octets that Part::States took do to states, which began as zero: the lane's share.
    __device__ StateChange change() const {
        return {states(), sum_of_parts(time_)};
    }
    __device__ void apply(const StateChange& change) {
        apply_change(change, rate_, state_);
    }

private:
    __device__ int token_of_step(int step) const {
        return forward_ ? step : octet_tokens - 1 - step;
    }
    // Bytes from an octet's first value of the strip, in the order of c, to the lane's.
    __device__ int own_place() const {
        return (lane_.g % 4 * 4 + lane_.q) * 8 + lane_.g / 4 * 4;
    }
    // Of the four pairs of a token's channels, the one that the lane reads and writes: such that it has, where channels
    // and steps are exchanged, its own.
    __device__ int channels_pair() const {
        return lane_.q % 2 * 2 + lane_.q / 2;
    }

    __device__ static char* place(const void* array, std::int64_t element) {
        return keep_pointer(static_cast<const char*>(array) + element * static_cast<std::int64_t>(sizeof(T)));
    }

    // Begins to fetch the rows and c of the next octet on the walk; and of the one before, where it is wanted, z and
    // the other direction's y. Where there is nothing, zeros.
    __device__ void fetch(unsigned to) {
        const unsigned rows = to + copy_place_;
#pragma unroll
        for (int k = 0; k < row_copies; ++k)
            copy_async_or_clear(rows + Rows::place_of(k * warp_size), rows_ + k * warp_size * piece_bytes,
                                left_ > 0 && row_token_[k] < rest_);
        copy_async_or_clear(values_at(to), values_, left_ > values_late_ && value_token_ < rest_);
        commit_copies();
        rows_ += rows_step_;
        values_ += values_step_;
        rest_ -= rest_step_;
        --left_;
    }
    __device__ unsigned values_at(unsigned part) const {
        return part + c_at + lane_.index * piece_bytes;
    }
    // From the first byte of a part to that of the next one in turn.
    __device__ static unsigned part_behind(unsigned part) {
        return part == (parts - 1) * part_bytes ? 0 : part + part_bytes;
    }

    // Of making ready the octet that was fetched: B by states, of steps 2 q and 2 q + 1, and x of its time steps.
    __device__ void turn_and_project(unsigned to) {
        const unsigned row = to + row_place_;
        next_in_ = {load_shared<uint2>(row + 2 * Rank)};
        Four low_rank[Rank / 16];
#pragma unroll
        for (int k = 0; k < Rank / 16; ++k) low_rank[k] = {load_shared<uint2>(row + 32 * k)};
        next_out_ = {load_shared<uint2>(row + 2 * (Rank + octet_states))};
        turn(next_in_);
        float sum[4] = {bias_, bias_, 0.0F, 0.0F};
#pragma unroll
        for (int k = 0; k < Rank / 16; ++k)
            multiply_add<T>(sum, weight_[k], {low_rank[k].word(0), low_rank[k].word(1)});
        delta_[0] = sum[0], delta_[1] = sum[1];
    }
    __device__ static void load_two(unsigned from, float (&two)[2]) {
        Two{load_shared<unsigned>(from)}.to_floats(two);
    }
    // From x to time steps, drives and D c; or, where there is no y, time steps in its place.
    template <Part part>
    __device__ void activate(unsigned to) {
        float c[2];
        load_two(to + c_at + own_place(), c);
#pragma unroll
        for (int t = 0; t < 2; ++t) {
            delta_[t] = softplus<false>(delta_[t]);
            drive_[t] = delta_[t] * c[t];
            next_y_[t] = part == Part::States ? delta_[t] : skip_ * c[t];
        }
    }
    // Time steps to those who take them.
    __device__ void give_steps(unsigned to) const {
        store_shared(to + steps_place_, float2{delta_[0], delta_[1]});
    }
    // The octet that was prepared is the one at hand.
    __device__ void take_over() {
#pragma unroll
        for (int t = 0; t < 2; ++t) begin_y_[t] = next_y_[t];
        in_ = next_in_, out_ = next_out_;
        take_apart<T>(drive_, step_drive_);
    }

    __device__ void take_steps(unsigned from, int half) {
        load_steps(from + half * half_bytes, lane_.g, step_delta_);
    }
    // exp2(Delta A log2(e)) of the `t`th token of half an octet.
    __device__ void find_decays(int t, float (&decay)[lane_states]) const {
#pragma unroll
        for (int n = 0; n < lane_states; ++n) decay[n] = exp2_fast(step_delta_[t] * rate_[n]);
    }

    template <Part part>
    __device__ void take_octet() {
        const unsigned here = memory_ + turn_;
        turn_ = part_behind(turn_);
        // The octet behind is prepared there, and what of this one is fetched later lies there.
        const unsigned there = memory_ + turn_;
        wait_for_copies<parts - 1>();
        __syncwarp();
        float decay[half_steps][lane_states], added[2][4], before[lane_states], gate[2], sum[2] = {};
#pragma unroll
        for (int t = 0; t < ahead; ++t) {
#pragma unroll
            for (int n = 0; n < lane_states; ++n) decay[t][n] = decay_[t][n];
        }
#pragma unroll
        for (int t = 0; t < octet_tokens; ++t) {
            // Later tokens' decays are on their way while this one's states are taken on.
            const int later = t + ahead;
            if (later % half_steps == 0) take_steps(later == octet_tokens ? there : here, later / half_steps % 2);
            find_decays(later % half_steps, decay[later % half_steps]);
            if (t % 2 == 0) {
                const bool own = lane_.q == t / 2;
                find_added<T>(added, step_drive_, {own ? in_.word(0) : 0, own ? in_.word(1) : 0});
            }
#pragma unroll
            for (int n = 0; n < lane_states; ++n) {
                if (t % 2 == 1) before[n] = state_[n];
                state_[n] = fmaf(decay[t % half_steps][n], state_[n], added[n / 2][t % 2 * 2 + n % 2]);
            }
            if (part != Part::States && t % 2 == 1) {
                float products[4] = {};
                read_states<T>(products, before, state_, out_);
                if (lane_.q == t / 2) sum[0] = products[0], sum[1] = products[3];
            }
            if (t == 0) turn_and_project(there);
            if (t == 1) activate<part>(there);
            if (t == 2) {
                give_steps(there);
                if constexpr (part == Part::Merged) find_gate(there, gate);
            }
            if (t == 3) {
                __syncwarp();
                fetch(there);
            }
        }
#pragma unroll
        for (int t = 0; t < ahead; ++t) {
#pragma unroll
            for (int n = 0; n < lane_states; ++n) decay_[t][n] = decay[t][n];
        }
        if constexpr (part == Part::States) {
            time_ += begin_y_[0] + begin_y_[1];
        } else {
            float y[2];
#pragma unroll
            for (int t = 0; t < 2; ++t) y[t] = sum[t] + begin_y_[t];
            if constexpr (part == Part::Merged) {
#pragma unroll
                for (int t = 0; t < 2; ++t) y[t] *= gate[t];
                store_merged(y);
            } else {
                Two::of(y).put(result_);
            }
        }
        result_ += result_step_;
        __syncwarp();
        take_over();
    }

    // factor SiLU(z), and the other direction's y.
    __device__ void find_gate(unsigned part, float (&gate)[2]) {
        Two values{load_shared<unsigned>(part + z_at + token_of_step(lane_.g) * piece_bytes + channels_pair() * 4)};
        values.word(0) = transpose(values.word(0));
        float z[2], other[2] = {};
        values.to_floats(z);
        // Whose steps are the other way round.
        if (a_.directions == 2) load_two(part + other_y_at + own_place() + (3 - 2 * lane_.q) * 8, other);
#pragma unroll
        for (int t = 0; t < 2; ++t) {
            gate[t] = a_.factor * silu_for_16_bits(z[t]);
            begin_y_[t] += other[1 - t];
        }
    }
    __device__ void store_merged(const float (&y)[2]) const {
        Two values = Two::of(y);
        values.word(0) = transpose(values.word(0));
        // So many octets have been fetched since, and this one before.
        store_if(token_of_step(lane_.g) - (parts + 2) * rest_step_ < rest_, result_, values.word(0));
    }

    const Scan& a_;
    const Lane& lane_;
    const bool forward_;
    const int last_;  // octet
    const unsigned memory_;
    const unsigned row_place_, copy_place_, steps_place_;  // the lane's, in a part of memory
    // Where the next octet that is fetched begins, and the one at hand, of what the lane copies and stores; and how
    // many bytes further, or back, the next ones lie.
    char *rows_, *values_, *result_;
    int rows_step_, values_step_, result_step_;
    // Tokens from the first of the octet that is fetched next to the last of all, and octets that are left to fetch.
    int rest_, rest_step_, left_;
    // What a lane copies: of rows pieces of these tokens; of c (0), the other direction's y (1) or z (2) a piece of a
    // token, when so many octets are left.
    static constexpr int never = 1 << 30;
    int row_token_[row_copies], copies_, value_token_, values_late_;
    float bias_, skip_;
    unsigned weight_[Rank / 16][4];  // of dt_weight, as tensor cores take a left side whose rows g + 8 are zero
    float rate_[lane_states], state_[lane_states] = {};
    float time_ = 0;     // the lane's share of the sum of time steps of octets taken
    unsigned turn_ = 0;  // bytes from the first part of memory to that of the octet at hand
    Four in_, next_in_, out_, next_out_;
    float delta_[2], drive_[2], next_y_[2], begin_y_[2];
    // Time steps of half an octet; of the octet at hand drives, of the first steps of pairs and of the second ones, and
    // the first decays.
    float step_delta_[half_steps];
    unsigned step_drive_[2];
    static constexpr int ahead = 2;  // tokens
    float decay_[ahead][lane_states];
};

}  // namespace vimrt::cuda
