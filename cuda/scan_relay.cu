// The scan with a column's time shared out among the warps of a block, for shapes of few columns: they take turns at
// its octets (scan_octet.cuh). What does not depend on the states before a leg is computed ahead and kept in registers;
// then the warp waits for those states, hands on the ones behind the leg, and reads of all of them what y needs. So no
// exponential is computed twice.
//
// A leg is what a warp takes at a turn: an octet of a column; or, where columns are fewer still, two neighbouring
// octets of half a column. Either is 16 rows of 8 steps: a row is a channel, or one of 8 channels of one of the octets.
//
// What is computed ahead are the leg's decays and what its tokens add; the states then follow by a multiply-add for
// each token, while the next warp waits. Many warps wait for one another most of all. In a brief relay they compute the
// states from zero ahead, and how much is left of those before, so that only one multiply-add is waited for.
//
// Inputs are fetched two turns ahead. A column's two directions are the blocks of a cluster and meet once, half-way: a
// warp waits there for the other direction's y when it has all else of its first leg that is merged.
//
// Where relays leave multiprocessors idle, others may help them (scan_helper.cuh).
#include "launch.h"
#include "lowering_rules.h"
#include "scan_helper.cuh"

namespace vimrt::cuda {

namespace {

constexpr int max_warps = 12;  // by the registers that leaves a thread
// The warps' parts of shared memory, behind what they have in common. They begin with the barrier at which a warp waits
// for the states that it begins a leg with, and these. Barriers lie at the same places in every kernel: racecheck
// remembers them from one to the next. What is copied begins with a line: 16 bytes off, a copy took twice the sectors
// and three times the passes through shared memory.
constexpr int common_room = 6144;
constexpr int warp_room = 8448;
constexpr int left_out_at = 8;  // behind the barrier: HelpedLegs
constexpr int line = 128;
constexpr int inbox = line;
constexpr int inbox_bytes = column_channels * octet_states * 4;
constexpr int stages = 2;

// Of a leg: what it is made of, and what lies where in a warp's shared memory.
template <int Rank, bool Half>
struct Leg {
    static constexpr int octets = Half ? 2 : 1;
    static constexpr int channels = column_channels / octets;
    static constexpr int tokens = octets * octet_tokens;

    using Rows = FetchedRows<Rank>;
    // An element of each of its rows and steps, of 2 bytes.
    static constexpr int values_bytes = octet_elements * 2;

    static constexpr int c = tokens * Rows::stride;
    static constexpr int other_y = c + values_bytes;
    static constexpr int z = other_y + values_bytes;
    static constexpr int stage_bytes = z + values_bytes;

    static constexpr int stage = inbox + inbox_bytes;  // the first one
    static constexpr int steps = stage + stages * stage_bytes;
    static_assert(stage % line == 0 && stage_bytes % line == 0 && c % line == 0);
    static_assert(steps + steps_bytes <= warp_room);

    // What the warps of a block have in common: dt_weight; by lane, dt_bias and D, and A; and where of leg 0 the lane's
    // part lies: of rows and c, what merging takes, y and the merged results.
    static constexpr int biases = octets * weight_bytes(Rank);
    static constexpr int rates = biases + warp_size * 16;
    static constexpr int inputs = rates + 2 * warp_size * 16;
    static constexpr int gates = inputs + warp_size * 16;
    static constexpr int y = gates + warp_size * 16;
    static constexpr int merged = y + warp_size * 8;
    static_assert(merged + warp_size * 8 <= common_room);

    // Bytes from a leg's rows to the next one's, and from its values in the order of c.
    static constexpr int rows_step = tokens * Rows::bytes;
    static constexpr int values_step = octets * values_bytes;
};

// A block of helpers.
template <typename T, int Rank, bool Half>
__device__ void help_relays(const Scan& a, int block, unsigned memory) {
    using Own = Helper<T, Rank, Leg<Rank, Half>::octets>;
    // Behind where relays have a barrier, at a line as what they copy: else strips are a twentieth slower.
    constexpr int own_room = line;
    static_assert(own_room + Own::bytes <= warp_room);
    const Lane lane(static_cast<int>(threadIdx.x));
    const int warp = same_for_all_lanes(static_cast<int>(threadIdx.x) / warp_size);
    const int units = a.batch * (a.channels / Leg<Rank, Half>::channels);
    const int unit = block / a.directions * helped_units + warp / helping_warps;
    if (unit >= units) return;
    wait_for_predecessor();
    Own({a, units}, unit, block % a.directions, lane, warp, memory + common_room + warp * warp_room + own_room,
        warp_room)
        .run();
}

// A warp's part in a relay, brief or not. Lanes prepare, and store, a leg's elements in the order of c: [i][t] is
// channel_of(i) at step 2 q + t of own_octet(). They take states by rows: [i] is row g + 8 i.
template <typename T, int Rank, bool Half, bool Brief, bool Helped>
class Runner {
    using Sizes = Leg<Rank, Half>;
    using Fetched = FetchedRows<Rank>;
    using Values = Few<T, 4>;

public:
    // `unit`: column, or half column, of an image. `shared`: the block's memory.
    __device__ Runner(const Scan& a, int image, int unit, int direction, const Lane& lane, int warps, unsigned shared)
        : a_(a),
          lane_(lane),
          forward_(direction == 0),
          warp_(static_cast<int>(threadIdx.x) / warp_size),
          warps_(warps),
          last_octet_((a.tokens - 1) / octet_tokens),
          last_leg_((a.tokens - 1) / Sizes::tokens),
          room_{a, a.batch * (a.channels / Sizes::channels)},
          unit_(image * (a.channels / Sizes::channels) + unit),
          first_channel_(unit * Sizes::channels),
          common_(shared),
          memory_(memory_of(warp_)),
          next_memory_(memory_of((warp_ + 1) % warps)),
          zero_(static_cast<unsigned>(a.directions) / 4U) {
        if (warp_ == 0) store_common(image, direction);
    }

    __device__ void run() {
        int step = warp_;
        fetch(step, stage_, sources());
        commit_copies();
        fetch(step + warps_, next_stage(), sources());
        commit_copies();
        const int plain = plain_parts(a_, legs(), Sizes::tokens, forward_);
        const int walked = walked_parts(a_, legs(), Sizes::tokens, forward_);
        for (; step < plain; step += warps_) take_leg<false>(step);
        if (a_.directions == 2) arrive_at_cluster();
        if (step < walked) {
            take_leg<true, true>(step);
            step += warps_;
        } else if (a_.directions == 2) {
            wait_for_cluster();
        }
        for (; step < walked; step += warps_) take_leg<true>(step);
    }

    // The same with helpers, where both directions walk all legs.
    __device__ void run_helped() {
        const int plain = plain_parts<false>(a_, legs(), Sizes::tokens, forward_);
        int step = warp_;
        leave_out(helped_legs(0, plain));
        fetch(step, stage_, sources());
        commit_copies();
        fetch(ahead(step, 1), next_stage(), sources());
        commit_copies();
        take_part<false>(step, plain, 0);
        arrive_at_cluster();
        take_leg<true, true>(step);
        count_up(lane_, &progress(direction()).relay_done);
        step += warps_;
        take_part<true>(step, legs(), 1);
    }

private:
    __device__ int legs() const { return last_leg_ + 1; }
    // The leg that comes `step`th on the direction's walk, and the `i`th octet of it.
    __device__ int leg_at(int step) const { return forward_ ? step : last_leg_ - step; }
    __device__ int octet_in_leg(int i) const { return !Half || forward_ ? i : 1 - i; }
    __device__ int octet_of(int leg, int i) const { return leg * Sizes::octets + octet_in_leg(i); }
    // Which token of an octet a step is.
    __device__ int token_of_step(int step) const { return forward_ ? step : octet_tokens - 1 - step; }
    // Of the lane's elements, the octet, the channels, and the rows. By bits: the compiler does not know that lanes'
    // numbers are not negative, and takes four instructions for a remainder.
    __device__ int own_octet() const { return Half ? lane_.index >> 4 : 0; }
    __device__ int channel_of(int i) const { return first_channel_ + channel_of_row(Half ? lane_.g & 3 : lane_.g, i); }
    __device__ int row_of(int i) const { return Half ? 8 * own_octet() + (lane_.g & 3) + 4 * i : lane_.g + 8 * i; }
    // Where rows are tokens, the lane has step g of an octet, of its channels the own_place()th four.
    __device__ int token_octet() const { return Half ? lane_.q >> 1 : 0; }
    __device__ int own_place() const { return Half ? lane_.q & 1 : lane_.q; }

    __device__ unsigned next_stage() const { return 2 * Sizes::stage + Sizes::stage_bytes - stage_; }

    // What of a leg's z and the other direction's y a lane copies, of leg 0: the first 16 lanes y, the others z. From
    // leg to leg it is `step` bytes on, and it is there if its first token is, the `token`th of the leg.
    struct Gate {
        std::size_t from;
        int step, token;
    };
    __device__ Gate gate() const { return load_shared<Gate>(common_ + Sizes::gates + lane_.index * 16); }
    // Where a lane's copies of leg 0 come from besides.
    struct Sources {
        std::size_t rows, c;
    };
    __device__ Sources sources() const {
        const auto two = load_shared<ulonglong2>(common_ + Sizes::inputs + lane_.index * 16);
        return {two.x, two.y};
    }
    // Where a lane's results of leg 0 go.
    __device__ std::size_t place(int results) const {
        return load_shared<std::size_t>(common_ + results + lane_.index * 8);
    }
    // A place in global memory, `legs` legs of `step` bytes on.
    __device__ static char* leg_of(std::size_t place, int legs, int step) {
        return static_cast<char*>(__cvta_global_to_generic(place + static_cast<std::int64_t>(legs) * step));
    }

    // Begins to fetch a leg's rows and c; beyond the last token, zeros; beyond the last leg, nothing.
    __device__ void fetch(int step, unsigned stage, const Sources& from) const {
        const bool wanted = step < legs();
        const int leg = leg_at(step);
        const char* rows = leg_of(from.rows, leg, Sizes::rows_step);
        const int there =
            min(a_.tokens - leg * Sizes::tokens, Sizes::tokens) * Fetched::bytes - lane_.index * piece_bytes;
        const unsigned to = memory_ + stage + Fetched::place_of(lane_.index);
        constexpr int pieces = Sizes::tokens * Fetched::pieces;
#pragma unroll
        for (int k = 0; k < pieces; k += warp_size)
            copy_async_or_clear(to + Fetched::place_of(k), rows + k * piece_bytes, k * piece_bytes < there,
                                wanted && (k + warp_size <= pieces || k + lane_.index < pieces));
        copy_async_or_clear(memory_ + stage + Sizes::c + lane_.index * piece_bytes,
                            leg_of(from.c, leg, Sizes::values_step),
                            !Half || leg * Sizes::tokens + piece_token() < a_.tokens, wanted && lane_.index < 16);
    }
    // Until the other direction's y are there, which a warp wants for its first leg of those that are merged. Then what
    // else that leg needs, and the next one.
    __device__ void meet(int step) const {
        if (a_.directions == 2) wait_for_cluster();
        if constexpr (Helped) wait_for_count(lane_, &progress(1 - direction()).helpers_done, helping_warps);
        const Gate from = gate();
        fetch_gate(step, stage_, from);
        fetch_gate(ahead(step, 1), next_stage(), from);
        commit_copies();
        wait_for_copies<0>();
        __syncwarp();
    }
    // A leg's z, and the other direction's y.
    __device__ void fetch_gate(int step, unsigned stage, const Gate& from) const {
        const int leg = leg_at(step);
        copy_async_or_clear(memory_ + stage + Sizes::other_y + lane_.index * piece_bytes,
                            leg_of(from.from, leg, from.step), true,
                            step < legs() && leg * Sizes::tokens + from.token < a_.tokens);
    }
    // Of a leg's values in the order of c, and of its z, 16 bytes are for each of 16 lanes to copy: the first token
    // that they belong to.
    __device__ int piece_token() const {
        return Half ? octet_in_leg(lane_.index >> 3 & 1) * octet_tokens : 0;
    }
    __device__ int z_token() const {
        return Half ? lane_.index & 15 : (lane_.index & 15) >> 1;
    }

    // Takes the warp's legs of a part of the walk, up to step `end`: those in front of its helpers' but for the last,
    // that one, and those behind. In rounds, for the code of a leg to be there once.
    template <bool Merged>
    __device__ void take_part(int& step, int end, int part) {
        const HelpedLegs helped = left_out();
#pragma unroll 1
        for (int round = 0;; ++round) {
            if (round == 1 && step == helped.begin - 1) next_memory_ = memory_;
            const int to = round == 2 ? end : helped.begin - 1 + round;
#pragma unroll 1
            for (; step < to; step += warps_) take_leg<Merged>(step);
            if (round == 2) return;
            if (round == 0) continue;
            if (next_memory_ == memory_) cross(part);
            step += helped.end - helped.begin;
            if (part == 0) leave_out(helped_legs(end, legs()));
        }
    }
    // The warp with the leg in front of the helpers' has handed its states on to itself, and now hands on those behind
    // their legs. (A leg of another kind for that would be code that is not in the cache while all wait for it.)
    __device__ void cross(int part) {
        next_memory_ = memory_of((warp_ + 1) % warps_);
        States before = {}, behind, rate;
        receive(before, 0);
        wait_for_count(lane_, &progress(direction()).told[part], strips_of_unit(Sizes::octets));
        load_rates(rate);
#pragma unroll
        for (int i = 0; i < handed; ++i) {
            float(&states)[lane_states] = behind[2 - handed + i];
#pragma unroll
            for (int n = 0; n < lane_states; ++n) states[n] = before[i][n];
            apply_change(room_.mail(unit_, direction()).change[part][0][place_in_mail(i)], rate[i], states);
        }
        hand_on(behind);
#pragma unroll
        for (int i = 0; i < handed; ++i) {
            const float(&s)[lane_states] = before[i];
            room_.mail(unit_, direction()).before[part][0][place_in_mail(i)] = float4{s[0], s[1], s[2], s[3]};
        }
        count_up(lane_, &progress(direction()).begun[part]);
    }
    // Where a lane's states of its rows g + 8 i lie among those of strips.
    __device__ int place_in_mail(int i) const {
        return Half ? lane_.index : lane_.g / 4 * warp_size + (lane_.g % 4 + 4 * i) * 4 + lane_.q;
    }
    __device__ int direction() const {
        return forward_ ? 0 : 1;
    }
    __device__ Progress& progress(int direction) const {
        return room_.progress(unit_, direction);
    }
    __device__ unsigned memory_of(int warp) const {
        return common_ + common_room + warp * warp_room;
    }

    // Which legs helpers take of the part of the walk that inputs are fetched of, in the warp's shared memory.
    __device__ void leave_out(const HelpedLegs& legs) const {
        __syncwarp();
        if (lane_.index == 0) store_shared(memory_ + left_out_at, legs);
        __syncwarp();
    }
    __device__ HelpedLegs left_out() const {
        return load_shared<HelpedLegs>(memory_ + left_out_at);
    }
    // The step of the warp's so many turns later.
    __device__ int ahead(int step, int turns) const {
        const int later = step + turns * warps_;
        if constexpr (!Helped) return later;
        const HelpedLegs helped = left_out();
        return step < helped.begin && later >= helped.begin ? later + (helped.end - helped.begin) : later;
    }

    // `First`: of the warp's legs that are merged.
    template <bool Merged, bool First = false>
    __device__ void take_leg(int step) {
        wait_for_copies<1>();
        __syncwarp();
        Factors added;
        give_steps(added);
        __syncwarp();
        States left[octet_tokens], state[octet_tokens];
        compute_ahead(added, left, state);
        States before = {};
        if constexpr (Brief) {
            if (step > 0) receive(before, nothing_of(left[octet_tokens - 1], state[octet_tokens - 1]));
            if (step < last_leg_) hand_on_at_once(left, before, state);
            take_on_at_once(left, before, state);
        } else {
            if (step > 0) receive(before, 0);
            take_on(left, before, state);
            if (step < last_leg_) hand_on(state[octet_tokens - 1]);
        }
        // Where these lie is asked for before it is wanted; of the gate there is no room to keep it.
        const Sources from = sources();
        const std::size_t results = place(Merged ? Sizes::merged : Sizes::y);
        float y[2][2];
        read(state, y);
        if constexpr (First) meet(step);
        finish<Merged>(leg_at(step), results, y);
        __syncwarp();
        const int later = ahead(step, 2);
        fetch(later, stage_, from);
        if constexpr (Merged) fetch_gate(later, stage_, gate());
        commit_copies();
        stage_ = next_stage();
    }

    // The lane's row of an octet of the leg, that of step g.
    __device__ unsigned row_at(int i) const {
        return memory_ + stage_ + (octet_in_leg(i) * octet_tokens + token_of_step(lane_.g)) * Fetched::stride;
    }
    __device__ static Values values_at(unsigned at) {
        return {load_shared<uint2>(at)};
    }
    __device__ void load_values(unsigned at, float (&values)[4]) const {
        values_at(at).to_floats(values);
    }

    // What a step adds to the states of all rows, drive B, is a product over steps of which all others are left out.
    // [t]: of steps of that parity. `drive`, the left side: of rows g and g + 8. `in`, the right side: [k] of states 2
    // k and 2 k + 1 of each lane's four. With one octet they hold its eight steps; with two, the parity's four of
    // either, in turn those of the first and of the second.
    struct Factors {
        unsigned drive[2][2];
        unsigned in[2][2];
    };
    // Time steps to those who take them.
    __device__ void give_steps(Factors& added) const {
        // Nothing is read behind the first store: the compiler would have to wait for what comes before.
        float delta[2][2], drive[2][2], c[4];
        Values in[Sizes::octets];
#pragma unroll
        for (int i = 0; i < Sizes::octets; ++i) in[i] = values_at(row_at(i) + (Rank + 4 * lane_.q) * 2);
        load_values(memory_ + stage_ + Sizes::c + lane_.index * 8, c);
        project(delta);
        for_each_element([&](int i, int t) {
            delta[i][t] = softplus<false>(delta[i][t]);
            drive[i][t] = delta[i][t] * c[2 * i + t];
        });
#pragma unroll
        for (int i = 0; i < 2; ++i)
            store_shared(memory_ + Sizes::steps + steps_place(lane_, row_of(i), half_bytes),
                         float2{delta[i][0], delta[i][1]});
        unsigned both[2];  // steps, by rows
#pragma unroll
        for (int i = 0; i < 2; ++i) both[i] = pack_two<T>(drive[i][0], drive[i][1]);
        if constexpr (Half) exchange_rows(both[0], both[1]);
#pragma unroll
        for (int i = 0; i < Sizes::octets; ++i) turn(in[i]);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            if constexpr (Half) {
                const unsigned of[2] = {in[0].word(k), in[1].word(k)};
                added.in[0][k] = __byte_perm(of[0], of[1], 0x5410), added.in[1][k] = __byte_perm(of[0], of[1], 0x7632);
            } else {
                added.in[0][k] = added.in[1][k] = in[0].word(k);
            }
        }
#pragma unroll
        for (int t = 0; t < 2; ++t) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const unsigned alone = step_alone(both[i], t);
                added.drive[t][i] = !Half || i == t ? alone : t == 0 ? alone << 16 : alone >> 16;
            }
        }
    }

    // dt_bias of the lane's channels, and D.
    __device__ float4 load_biases() const {
        return load_shared<float4>(common_ + Sizes::biases + lane_.index * 16);
    }
    // x = dt_weight delta + dt_bias of the lane's elements. With two octets the weights are there twice, for each octet
    // with zeros in the other's rows, so that both products go to one sum.
    __device__ void project(float (&x)[2][2]) const {
        const float4 biases = load_biases();
        float sum[4] = {biases.x, biases.x, biases.y, biases.y};
#pragma unroll
        for (int o = 0; o < Sizes::octets; ++o) {
#pragma unroll
            for (int k = 0; k < Rank / 16; ++k) {
                const auto weight =
                    load_shared<uint4>(common_ + o * weight_bytes(Rank) + (k * warp_size + lane_.index) * 16);
                const Values low_rank = values_at(row_at(o) + (16 * k + 4 * lane_.q) * 2);
                multiply_add<T>(sum, {weight.x, weight.y, weight.z, weight.w}, {low_rank.word(0), low_rank.word(1)});
            }
        }
        for_each_element([&](int i, int t) { x[i][t] = sum[2 * i + t]; });
    }

    // Of every row and step: how much is left of the states before it, and what is added to them. In a brief relay: how
    // much is left of the states before its octet, and the states if those are zero.
    __device__ void compute_ahead(const Factors& added, States (&left)[octet_tokens],
                                  States (&state)[octet_tokens]) const {
        States rate;
        load_rates(rate);
        float delta[2][half_steps];
#pragma unroll
        for (int t = 0; t < octet_tokens; ++t) {
            if (t % half_steps == 0) {
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    load_steps(memory_ + Sizes::steps + t / half_steps * half_bytes, lane_.g + 8 * i, delta[i]);
            }
            const bool own = lane_.q == t / 2;
            const unsigned drive[2] = {own ? added.drive[t % 2][0] : 0, own ? added.drive[t % 2][1] : 0};
            float in[2][4];
            find_added<T>(in, drive, added.in[t % 2]);
            for_each_state([&](int i, int n) {
                const float decay = exp2_fast(delta[i][t % half_steps] * rate[i][n]);
                const float more = in[n / 2][2 * i + n % 2];
                const bool first = t == 0 || !Brief;
                left[t][i][n] = first ? decay : decay * left[t - 1][i][n];
                state[t][i][n] = first ? more : fmaf(decay, state[t - 1][i][n], more);
            });
        }
    }

    // A log2(e) of the lane's states.
    __device__ void load_rates(States& rate) const {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            load_four(common_ + Sizes::rates + ((Half ? 0 : i) * warp_size + lane_.index) * 16, rate[i]);
    }

    // Zero, but only once these are there: the compiler would compute them while others wait for this warp.
    __device__ unsigned nothing_of(const States& left, const States& state) const {
        unsigned all = 0;
        for_each_state([&](int i, int n) { all |= __float_as_uint(left[i][n]) | __float_as_uint(state[i][n]); });
        return all & zero_;
    }

    // From what is computed ahead to the states behind each step, a token after the other, an octet after the other.
    __device__ static void take_on(const States (&decay)[octet_tokens], const States& before,
                                   States (&state)[octet_tokens]) {
#pragma unroll
        for (int o = 0; o < Sizes::octets; ++o) {
#pragma unroll
            for (int t = 0; t < octet_tokens; ++t) {
                for_each_state([&](int i, int n) {
                    if (Half && i != o) return;
                    const float first = o == 0 ? before[i][n] : state[octet_tokens - 1][0][n];
                    state[t][i][n] = fmaf(decay[t][i][n], t == 0 ? first : state[t - 1][i][n], state[t][i][n]);
                });
            }
        }
    }
    // The same in a brief relay, all tokens at once.
    __device__ static void take_on_at_once(const States (&left)[octet_tokens], States& before,
                                           States (&state)[octet_tokens]) {
        for_each_state([&](int i, int n) {
            if (Half && i == 1)
                before[1][n] = fmaf(left[octet_tokens - 1][0][n], before[0][n], state[octet_tokens - 1][0][n]);
        });
#pragma unroll
        for (int t = 0; t < octet_tokens; ++t)
            for_each_state([&](int i, int n) { state[t][i][n] = fmaf(left[t][i][n], before[i][n], state[t][i][n]); });
    }

    // States before a leg: of half a column, before its first octet, in [0].
    static constexpr int handed = Half ? 1 : 2;
    __device__ void receive(States& before, unsigned nothing) {
        wait_at(memory_, parity_ ^ nothing);
        parity_ ^= 1;
#pragma unroll
        for (int i = 0; i < handed; ++i) load_four(memory_ + inbox + (lane_.index + i * warp_size) * 16, before[i]);
    }
    // The states behind a leg; with two octets, those behind the second. What arriving returns.
    __device__ unsigned hand_on(const States& states) const {
#pragma unroll
        for (int i = 0; i < handed; ++i)
            store_four(next_memory_ + inbox + (lane_.index + i * warp_size) * 16, states[2 - handed + i]);
        return arrive_at(next_memory_);
    }
    // The same in a brief relay, from what is computed ahead.
    __device__ void hand_on_at_once(const States (&left)[octet_tokens], States& before,
                                    const States (&state)[octet_tokens]) const {
        constexpr int last = octet_tokens - 1;
        States behind;
#pragma unroll
        for (int i = 0; i < handed; ++i) {
#pragma unroll
            for (int n = 0; n < lane_states; ++n) {
                float& s = behind[2 - handed + i][n];
                s = fmaf(left[last][i][n], before[i][n], state[last][i][n]);
                if constexpr (Half) s = fmaf(left[last][1][n], s, state[last][1][n]);
            }
        }
        // What others do not wait for is not computed before.
        const unsigned nothing = hand_on(behind) & zero_;
#pragma unroll
        for (int i = 0; i < handed; ++i) {
#pragma unroll
            for (int n = 0; n < lane_states; ++n)
                before[i][n] = __uint_as_float(__float_as_uint(before[i][n]) | nothing);
        }
    }

    // What C reads of the states, by rows and steps. Products with C of eight steps are taken of a step's states, of
    // which one counts. With two octets these are four steps of each, and the other four in a second set, such that a
    // lane has of both octets the same steps in the end: of set s in column t, C of octet (t / 2 + s) % 2.
    __device__ void read(const States (&state)[octet_tokens], float (&y)[2][2]) const {
        Values out[Sizes::octets];
#pragma unroll
        for (int s = 0; s < Sizes::octets; ++s) {
            const int octet = Half ? ((lane_.g >> 1) + s) & 1 : 0;
            out[s] = values_at(row_at(octet) + (Rank + octet_states + 4 * lane_.q) * 2);
        }
        for_each_element([&](int i, int t) { y[i][t] = 0; });
#pragma unroll
        for (int t = 0; t < octet_tokens; ++t) {
            const int set = Half ? t / 2 % 2 : 0;
            const int steps[2] = {t, Half ? t ^ 2 : t};  // of rows g, and of rows g + 8
            const float(&upper)[4] = state[steps[0]][0];
            const float(&lower)[4] = state[steps[1]][1];
            float products[4] = {};
            read_states<T>(products, upper, lower, out[set]);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (lane_.q == steps[i] / 2) y[i][t % 2] = products[2 * i + t % 2];
            }
        }
        if constexpr (Half) exchange_rows(y[0][0], y[1][0]), exchange_rows(y[0][1], y[1][1]);
    }

    // With two octets, from what a lane has of its rows to that of its elements, or back: each has one of the other's
    // in lane ^ 16.
    template <typename V>
    __device__ void exchange_rows(V& first, V& second) const {
        const V kept = own_octet() == 0 ? first : second;
        const V other = __shfl_xor_sync(all_lanes, own_octet() == 0 ? second : first, 16);
        first = own_octet() == 0 ? kept : other;
        second = own_octet() == 0 ? other : kept;
    }

    // Adds D c, merges, and stores.
    template <bool Merged>
    __device__ void finish(int leg, std::size_t results, float (&y)[2][2]) const {
        float c[4];
        load_values(memory_ + stage_ + Sizes::c + lane_.index * 8, c);
        const float4 biases = load_biases();
        for_each_element([&](int i, int t) { y[i][t] = fmaf(i == 0 ? biases.z : biases.w, c[2 * i + t], y[i][t]); });
        if constexpr (Merged) {
            float other[4] = {}, z[4];
            // Whose steps are the other way round.
            if (a_.directions == 2) load_values(memory_ + stage_ + Sizes::other_y + (lane_.index ^ 3) * 8, other);
            Values values =
                values_at(memory_ + stage_ + Sizes::z + own_row() * (Sizes::channels * 2) + own_place() * 8);
            turn(values);
            values.to_floats(z);
            for_each_element([&](int i, int t) {
                y[i][t] = (y[i][t] + other[2 * i + 1 - t]) * (a_.factor * silu_for_16_bits(z[2 * i + t]));
            });
            values = Values::of({y[0][0], y[0][1], y[1][0], y[1][1]});
            turn(values);
            if (leg * Sizes::tokens + own_row() < a_.tokens)
                values.put(leg_of(results, leg, row_bytes(a_.merged_stride) * Sizes::tokens));
        } else {
            if (!Half || octet_of(leg, own_octet()) <= last_octet_)
                Values::of({y[0][0], y[0][1], y[1][0], y[1][1]}).put(leg_of(results, leg, Sizes::values_step));
        }
    }

    __device__ static int row_bytes(std::int64_t stride) {
        return static_cast<int>(stride) * static_cast<int>(sizeof(T));
    }
    // Where the lane's own step, its g, lies in a leg whose rows are tokens.
    __device__ int own_row() const {
        return octet_in_leg(token_octet()) * octet_tokens + token_of_step(lane_.g);
    }

    // What the block's warps have in common, by one of them.
    __device__ void store_common(int image, int direction) const {
        const ScanDirection& d = direction_of(a_, direction);
        const int channels[2] = {channel_of(0), channel_of(1)};
#pragma unroll
        for (int o = 0; o < Sizes::octets; ++o)
            store_weights<T, Rank>(common_ + o * weight_bytes(Rank), d.dt_weight, channels, lane_, own_octet() == o);
        store_shared(common_ + Sizes::biases + lane_.index * 16,
                     float4{d.dt_bias[channels[0]], d.dt_bias[channels[1]], d.skip[channels[0]], d.skip[channels[1]]});
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int channel = Half ? first_channel_ + channel_of_row(lane_.g % 4, lane_.g / 4) : channels[i];
            store_shared(common_ + Sizes::rates + (i * warp_size + lane_.index) * 16,
                         *reinterpret_cast<const float4*>(d.decay + channel * octet_states + 4 * lane_.q));
        }
        const std::int64_t first_row = static_cast<std::int64_t>(image) * a_.tokens;
        const std::int64_t columns_before =
            static_cast<std::int64_t>(image) * (a_.channels / column_channels) + first_channel_ / column_channels;
        const std::int64_t first =
            columns_before * (last_octet_ + 1) * octet_elements + first_channel_ % column_channels * octet_tokens;
        const auto at = [](const void* array, std::int64_t byte) {
            return __cvta_generic_to_global(static_cast<const char*>(array) + byte);
        };
        const std::int64_t values = first * static_cast<int>(sizeof(T)), octet_bytes = Sizes::values_bytes;
        const std::int64_t piece =
            values + piece_token() / octet_tokens * octet_bytes + (lane_.index & (Half ? 7 : 15)) * piece_bytes;
        const std::int64_t channel = first_channel_ * static_cast<int>(sizeof(T));
        const bool takes_z = lane_.index >= 16;
        store_shared(
            common_ + Sizes::inputs + lane_.index * 16,
            ulonglong2{at(d.projected, first_row * Fetched::bytes + lane_.index * piece_bytes), at(d.c, piece)});
        const int never = a_.tokens;  // the first one that is not there
        const Gate gate = takes_z ? Gate{at(a_.z, (first_row + z_token()) * row_bytes(a_.z_stride) + channel +
                                                      (Half ? 0 : (lane_.index & 1) * piece_bytes)),
                                         row_bytes(a_.z_stride) * Sizes::tokens, z_token()}
                                  : Gate{at(direction_of(a_, 1 - direction).y, piece), Sizes::values_step,
                                         a_.directions == 2 ? piece_token() : never};
        store_shared(common_ + Sizes::gates + lane_.index * 16, gate);
        store_shared(common_ + Sizes::y + lane_.index * 8,
                     at(d.y, values + octet_in_leg(own_octet()) * octet_bytes +
                                 (lane_.index & (warp_size / Sizes::octets - 1)) * 8));
        store_shared(common_ + Sizes::merged + lane_.index * 8,
                     at(a_.merged, (first_row + own_row()) * row_bytes(a_.merged_stride) + channel + own_place() * 8));
    }

    const Scan& a_;
    const Lane lane_;
    const bool forward_;
    const int warp_, warps_;
    const int last_octet_, last_leg_;
    const HelperRoom room_;
    const int unit_;  // of all images
    const int first_channel_;
    const unsigned common_, memory_;
    unsigned next_memory_;
    const unsigned zero_;            // which the compiler does not know
    unsigned stage_ = Sizes::stage;  // bytes from the warp's memory to the inputs at hand
    unsigned parity_ = 0;            // of the times that the warp has waited
};

template <typename T, int Rank, bool Half, bool Brief, bool Helped>
__global__ void __launch_bounds__(max_warps* warp_size, 1) scan_relay_of(const __grid_constant__ Scan a) {
    extern __shared__ float4 shared[];
    const unsigned memory = kept(shared_address(shared));
    const int warps = static_cast<int>(blockDim.x) / warp_size;
    const int units = a.channels / Leg<Rank, Half>::channels;
    int block = static_cast<int>(blockIdx.x);
    if constexpr (Helped) {
        const int helpers = static_cast<int>(helper_blocks(a.batch * units, a.directions));
        if (block < helpers) return help_relays<T, Rank, Half>(a, block, memory);
        block -= helpers;
    }
    let_successor_begin();
    // One by each warp: racecheck does not follow a warp that begins several.
    const unsigned own_barrier = memory + common_room + threadIdx.x / warp_size * warp_room;
    if (threadIdx.x % warp_size == 0) begin_barrier(own_barrier, warp_size);
    __syncthreads();
    const int index = block / a.directions;
    const Lane lane(static_cast<int>(threadIdx.x));
    // Until here only weights are read.
    Runner<T, Rank, Half, Brief, Helped> runner(a, index / units, index % units, block % a.directions, lane, warps,
                                                memory);
    __syncthreads();
    wait_for_predecessor();
    if constexpr (Helped) {
        runner.run_helped();
    } else {
        runner.run();
    }
    __syncthreads();
    if (threadIdx.x % warp_size == 0) end_barrier(own_barrier);
}

constexpr int block_bytes(int warps) {
    return common_room + warps * warp_room;
}

// Calls function.operator()<Half, Brief, Helped>() for a form.
constexpr int brief_from = 8;  // warps
static_assert(helped_warps >= brief_from && helped_warps <= max_warps);
template <typename F>
void with_legs(const ScanForm& form, const F& function) {
    const auto of_units = [&]<bool Half>() {
        if (form.helped) return function.template operator()<Half, true, true>();
        if (form.warps >= brief_from) return function.template operator()<Half, true, false>();
        return function.template operator()<Half, false, false>();
    };
    return form.kind == ScanForm::Halves ? of_units.template operator()<true>() : of_units.template operator()<false>();
}

// Columns, or halves of them, of all images.
int units_of(const Scan& a, const ScanForm& form) {
    return a.batch * (a.channels / column_channels) * (form.kind == ScanForm::Halves ? 2 : 1);
}

unsigned blocks_of(const Scan& a, const ScanForm& form) {
    const int units = units_of(a, form);
    return static_cast<unsigned>(units * a.directions) + (form.helped ? helper_blocks(units, a.directions) : 0);
}

// Whether helpers can help: they need warps, walks and multiprocessors enough.
bool takes_help(const Scan& a, const ScanForm& form, const DeviceProperties& device) {
    return form.warps == helped_warps && a.directions == 2 && a.wanted < 0 && a.tokens >= least_helped_tokens &&
           blocks_of(a, form) <= static_cast<unsigned>(device.multiprocessors);
}

}  // namespace

bool scan_relay_takes(const Scan& a, const ScanForm& form, const DeviceProperties& device) {
    if (!device.clusters || !takes_octets(a) || a.z_stride % 8 != 0 || form.warps < 2 || form.warps > max_warps)
        return false;
    if (form.helped && !takes_help(a, form, device)) return false;
    return block_bytes(form.warps) <= device.shared_bytes_per_block;
}

std::size_t scan_relay_room(const Scan& a, const ScanForm& form) {
    return form.helped ? HelperRoom::bytes(units_of(a, form) * a.directions) : 0;
}

std::size_t scan_relay_zeros(const Scan& a, const ScanForm& form) {
    return form.helped ? HelperRoom::progress_bytes(units_of(a, form) * a.directions) : 0;
}

// Set up early, a relay begins sooner. But the convolution of many tokens has many blocks and lets it begin with its
// first ones, and relays crowd on the multiprocessors that come free: one image of B at 1248² takes 2% longer then.
void scan_relay(const Scan& a, const ScanForm& form, cudaStream_t stream) {
    with_rank(a, [&]<typename T, int Rank>() {
        with_legs(form, [&]<bool Half, bool Brief, bool Helped>() {
            launch("scan_relay", scan_relay_of<T, Rank, Half, Brief, Helped>,
                   {blocks_of(a, form), static_cast<unsigned>(form.warps * warp_size),
                    static_cast<std::size_t>(block_bytes(form.warps)), static_cast<unsigned>(a.directions),
                    a.tokens <= early_relay_tokens || a.set_up_early, Helped},
                   stream, a);
        });
    });
}

}  // namespace vimrt::cuda
