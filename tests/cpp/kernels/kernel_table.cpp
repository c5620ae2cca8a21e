// Compiled once for each instruction set.
#include "kernel_table.h"

#include "mixer.h"

#include "kernels/normalize.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

Vec apply(Elementwise function, Vec x) {
    switch (function) {
        case Elementwise::Exp2:
            return exp2(x);
        case Elementwise::Exp2Nonpositive:
            return exp2_nonpositive(x);
        case Elementwise::Exp:
            return exp(x);
        case Elementwise::Silu:
            return silu(x);
        case Elementwise::Softplus:
            return softplus(x);
    }
    return zero();
}

void run_elementwise(Elementwise function, const float* in, float* out, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += kLanes) {
        const Mask mask = first_lanes(count - i);
        store(out + i, apply(function, load(in + i, mask)), mask);
    }
}

void run_gemm(const GemmCase& g) {
    gemm(g.rows, g.a, g.a_stride, g.b, {0, panel_count(g.b)}, {g.bias, g.addend, g.addend_stride}, g.out, g.out_stride);
}

void run_normalize(const NormCase& norm, const float* in, float* out) {
    normalize_row({norm.centred, norm.weight, norm.bias, norm.eps}, norm.columns, in, out);
}

std::int64_t direction_scratch(const DirectionCase& d) {
    return MixerShape{d.d_inner, d.d_state, d.dt_rank}.scratch_floats();
}

void run_one_direction(const DirectionCase& d, float* scratch, ThreadTeam& threads, int member) {
    DirectionWeights weights;
    weights.conv = {d.taps, d.conv_bias, d.width, round_up(d.d_inner, kLanes), d.reversed};
    weights.x_proj = d.x_proj;
    weights.dt_proj = d.dt_proj;
    weights.dt_bias = d.dt_bias;
    weights.rates = d.rates;
    weights.skip = d.skip;
    weights.descending = d.descending;
    DirectionRun run;
    run.shape = {d.d_inner, d.d_state, d.dt_rank};
    run.weights = &weights;
    run.in = {d.x, d.x_stride, d.tokens, d.d_inner};
    run.z = d.z;
    run.z_stride = d.z_stride;
    run.out = d.out;
    run.out_stride = d.out_stride;
    run.share = d.share;
    run.scratch = scratch;
    run.threads = &threads;
    run.barrier = 1;
    run.member = member;
    run.team = threads.threads();
    const Finish finish = d.z == nullptr ? Finish::Store : d.add ? Finish::Gate : Finish::GateAlone;
    const Range low{0, d.cut};
    const Range high{d.cut, d.tokens};
    clear_states(run);
    run_direction(run, d.descending ? high : low, finish);
    run_direction(run, d.descending ? low : high, finish);
}

}  // namespace

#define VIMRT_TEXT_OF(name) #name
#define VIMRT_TEXT(name) VIMRT_TEXT_OF(name)

const KernelTable& kernel_table() {
    static constexpr KernelTable table{VIMRT_TEXT(VIMRT_ISA), kLanes,           kPanelWidth,
                                       run_elementwise,       run_gemm,         run_normalize,
                                       direction_scratch,     run_one_direction};
    return table;
}

}  // namespace vimrt::cpu::VIMRT_ISA
