// The scan with a column's time shared out among the warps of a block, for shapes of few columns: each takes every
// fourth octet (scan_octet.cuh). What does not depend on the states before an octet, its decays and what its tokens
// add, is computed ahead and kept in registers; then the warp waits for the states, takes them through the octet by one
// multiply-add each, hands them to the next warp, and reads of them what y needs. So no state is computed twice.
//
// A column's two directions are the blocks of a cluster and meet once, half-way.
#include "launch.h"
#include "lowering_rules.h"
#include "scan_octet.cuh"

namespace vimrt::cuda {

namespace {

constexpr int warps = 4;
constexpr int barrier_bytes = 8;
// Barriers lie at the same place for all ranks: racecheck remembers them from one kernel to the next.
constexpr int barriers_bytes = 64;
constexpr int blocks_of_multiprocessor = 3;                       // by the registers that leaves a thread
constexpr int states_bytes = column_channels * octet_states * 4;  // of a column

template <typename T, int Rank>
class RelayWalk {
    using Own = Column<T, Rank, 1>;

public:
    static constexpr int warp_bytes = Own::bytes + states_bytes;
    static constexpr int block_bytes = barriers_bytes + warps * warp_bytes;

    // `memory`: of all warps, one behind the other; `barriers`: one for each, at which it waits for states.
    __device__ RelayWalk(const Scan& a, int image, int column, int direction, const Lane& lane, unsigned memory,
                         unsigned barriers)
        : lane_(lane),
          warp_(static_cast<int>(threadIdx.x) / warp_size),
          states_(states_of(memory, warp_)),
          next_states_(states_of(memory, (warp_ + 1) % warps)),
          barrier_(barriers + warp_ * barrier_bytes),
          next_barrier_(barriers + (warp_ + 1) % warps * barrier_bytes),
          column_(a, image, column, direction, lane, memory + warp_ * warp_bytes) {
        column_.load_rates(rate_);
    }

    __device__ void walk(bool both) {
        column_.fetch(column_.octet_at(warp_));
        int step = warp_;
        for (; step < column_.plain_octets(); step += warps) take_octet<false>(step);
        if (both) meet_cluster();
        for (; step < column_.octets(); step += warps) take_octet<true>(step);
    }

private:
    // The lane's place in the states that are handed to a warp.
    __device__ unsigned states_of(unsigned memory, int warp) const {
        return memory + warp * warp_bytes + Own::bytes + lane_.index * 16;
    }

    template <bool Merged>
    __device__ void take_octet(int step) {
        const int octet = column_.octet_at(step);
        Octet work;
        typename Own::Values out;
        column_.spread_and_project(column_.buffer(0), work, out);
        for_each_element([&](int i, int t) { column_.activate(i, t, work); });
        column_.give_steps(column_.buffer(0), work);
        __syncwarp();
        States decay[octet_tokens], state[octet_tokens];
        find_changes(decay, state);
        States before = {};
        if (step > 0) receive(before);
#pragma unroll
        for (int t = 0; t < octet_tokens; ++t) {
            for_each_state([&](int i, int n) {
                const float former = t == 0 ? before[i][n] : state[t - 1][i][n];
                state[t][i][n] = fmaf(decay[t][i][n], former, state[t][i][n]);
            });
        }
        if (step + 1 < column_.octets()) hand_on(state[octet_tokens - 1]);
        if constexpr (Merged) column_.fetch_gate(octet);
        column_.fetch(column_.octet_at(step + warps));
        read(state, out, work.y);
        if constexpr (Merged) {
            column_.turn_z();
            for_each_element(
                [&](int i, int t) { work.y[i][t] = (work.y[i][t] + column_.other(i, t)) * column_.gate(i, t); });
            column_.store_merged(octet, work.y);
        } else {
            column_.store(octet, work.y);
        }
        __syncwarp();
    }

    // Of every token: how much is left of the states, and what is added to them.
    __device__ void find_changes(States (&decay)[octet_tokens], States (&added)[octet_tokens]) const {
        typename Own::Pair steps[2];
#pragma unroll
        for (int t = 0; t < octet_tokens; ++t) {
            if (t % 2 == 0) column_.take_steps(column_.buffer(0), t / 2, steps);
            float in[lane_states];
            column_.load_in(column_.buffer(0), t, in);
            for_each_state([&](int i, int n) {
                decay[t][i][n] = exp2_fast(steps[i].delta[t % 2] * rate_[i][n]);
                added[t][i][n] = steps[i].drive[t % 2] * in[n];
            });
        }
    }

    // Adds to y what C reads of the states.
    __device__ void read(const States (&state)[octet_tokens], const typename Own::Values& out_values,
                         float (&y)[2][2]) const {
        float out[4], sum[2][2] = {};
        out_values.to_floats(out);
#pragma unroll
        for (int t = 0; t < octet_tokens; ++t) column_.read(t, state[t], out, sum);
        for_each_element([&](int i, int t) { y[i][t] = fmaf(sum[i][t], Own::uncut, y[i][t]); });
    }

    __device__ void receive(States& before) {
        wait_at(barrier_, turns_++ % 2);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const auto four = load_shared<float4>(states_ + i * warp_size * 16);
            before[i][0] = four.x, before[i][1] = four.y, before[i][2] = four.z, before[i][3] = four.w;
        }
    }
    __device__ void hand_on(const States& states) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float(&s)[4] = states[i];
            store_shared(next_states_ + i * warp_size * 16, float4{s[0], s[1], s[2], s[3]});
        }
        arrive_at(next_barrier_);
    }

    const Lane& lane_;
    const int warp_;
    const unsigned states_, next_states_;  // the lane's, handed to the warp and to the next one
    const unsigned barrier_, next_barrier_;
    int turns_ = 0;  // that the warp has waited
    Own column_;
    States rate_;
};

template <typename T, int Rank>
__global__ void __launch_bounds__(warps* warp_size, blocks_of_multiprocessor)
    scan_relay_of(const __grid_constant__ Scan a) {
    extern __shared__ float4 shared[];
    const unsigned barriers = shared_address(shared);
    const unsigned own_barrier = barriers + threadIdx.x * barrier_bytes;
    wait_for_predecessor();
    let_successor_begin();
    if (threadIdx.x < warps) begin_barrier(own_barrier, warp_size);
    __syncthreads();
    const int columns = a.channels / column_channels;
    const int index = static_cast<int>(blockIdx.x) / a.directions;
    const Lane lane(static_cast<int>(threadIdx.x));
    RelayWalk<T, Rank> walk(a, index / columns, index % columns, static_cast<int>(blockIdx.x) % a.directions, lane,
                            barriers + barriers_bytes, barriers);
    walk.walk(a.directions == 2);
    __syncthreads();
    if (threadIdx.x < warps) end_barrier(own_barrier);
}

}  // namespace

bool scan_relay_takes(const Scan& a) {
    return takes_octets(a);
}

void scan_relay(const Scan& a, cudaStream_t stream) {
    const unsigned directions = static_cast<unsigned>(a.directions);
    const unsigned columns = static_cast<unsigned>(a.batch) * static_cast<unsigned>(a.channels / column_channels);
    with_rank(a, [&]<typename T, int Rank>() {
        const auto kernel = scan_relay_of<T, Rank>;
        constexpr int bytes = RelayWalk<T, Rank>::block_bytes;
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
              "scan_relay: shared memory");
        launch("scan_relay", kernel, {columns * directions, warps * warp_size, bytes, directions}, stream, a);
    });
}

}  // namespace vimrt::cuda
