// One direction of Vim's mixer, over a chunk of tokens at a time:
//
//     c <- SiLU(causal conv(x)),  (delta', B, C) <- x_proj(c),  delta <- softplus(dt_proj(delta')),  y <- scan
//
// A chunk's c, delta, B and C live in a scratch of some 100 KB that stays in the second-level cache; only y leaves it.
#pragma once

#include "kernels/causal_conv.h"
#include "kernels/gate.h"
#include "kernels/gemm.h"
#include "kernels/selective_scan.h"
#include "lowering.h"
#include "runtime/thread_team.h"

namespace vimrt::cpu::VIMRT_ISA {

// Sizes of a mixer and of its scratch. E inner width, N states, R rank of delta.
struct MixerShape {
    std::int64_t d_inner = 0;
    std::int64_t d_state = 0;
    std::int64_t dt_rank = 0;

    std::int64_t channels() const { return round_up(d_inner, kLanes); }
    // Floats from token to token in c and delta. An odd number of cache lines, so that a register of channels walks
    // through all of the first-level cache's sets and not a few of them.
    std::int64_t stride() const { return (ceil_div(d_inner, 16) | 1) * 16; }
    std::int64_t projected() const { return dt_rank + 2 * d_state; }
    std::int64_t projected_stride() const { return round_up(projected(), 16); }
    std::int64_t state_floats() const { return round_up(channels() * d_state, 16); }
    // c, delta, the projections, and the states.
    std::int64_t scratch_floats() const { return kChunk * (2 * stride() + projected_stride()) + state_floats(); }
};

struct DirectionWeights {
    ConvWeights conv;
    PackedMatrix x_proj;   // E -> R + 2N
    PackedMatrix dt_proj;  // R -> E
    const float* dt_bias = nullptr;
    const float* rates = nullptr;  // decay_rates() of A_log
    const float* skip = nullptr;   // D
    bool descending = false;       // scans the last token first
};

// What is done with a chunk's y.
enum class Finish {
    Store,      // to `out`
    Gate,       // (y + `out`, where the other direction has stored its own) * share * SiLU(z), to `out`
    GateAlone,  // y * SiLU(z), to `out`
};

// The tokens of one image in one direction, as one thread or `team` threads work on them.
struct DirectionRun {
    MixerShape shape;
    const DirectionWeights* weights = nullptr;
    ConvInput in;
    const float* z = nullptr;  // where gated
    std::int64_t z_stride = 0;
    float* out = nullptr;
    std::int64_t out_stride = 0;
    float share = 1;           // 1/2 where the directions are averaged
    float* scratch = nullptr;  // shape.scratch_floats(), shared by the team
    bool far = false;          // x, z and out come from memory rather than from the caches

    ThreadTeam* threads = nullptr;  // whose barrier `barrier` the team meets at
    int barrier = 0;
    int member = 0;  // of the team: owns a share of the channels
    int team = 1;
};

// Panels of dt_proj are what channels are shared out by.
VIMRT_INLINE Range channels_of(const DirectionRun& run) {
    const Range panels = part_of(panel_count(run.weights->dt_proj), run.member, run.team);
    return {panels.begin * kPanelWidth, min_of(panels.end * kPanelWidth, run.shape.channels())};
}

VIMRT_INLINE void meet(const DirectionRun& run) {
    if (run.team > 1) run.threads->wait(run.barrier, run.team);
}

// c, the projections and delta of tokens [tokens.begin, tokens.end), for the channels of this member of the team.
static inline void project_chunk(const DirectionRun& run, Range tokens, float* c, float* delta, float* projected) {
    const MixerShape& shape = run.shape;
    const DirectionWeights& w = *run.weights;
    const std::int64_t stride = shape.stride();
    const std::int64_t projected_stride = shape.projected_stride();
    const Range channels = channels_of(run);
    causal_conv_silu(w.conv, run.in, tokens, channels, c, stride);
    meet(run);

    const Range rows = part_of(tokens.size(), run.member, run.team);
    gemm(rows.size(), c + rows.begin * stride, stride, w.x_proj, {0, panel_count(w.x_proj)}, {},
         projected + rows.begin * projected_stride, projected_stride);
    meet(run);

    const Range panels = part_of(panel_count(w.dt_proj), run.member, run.team);
    for (std::int64_t row = 0; row < tokens.size(); row += kTileRows) {
        const std::int64_t count = min_of(kTileRows, tokens.size() - row);
        float* tile = delta + row * stride;
        gemm(count, projected + row * projected_stride, projected_stride, w.dt_proj, panels, {w.dt_bias, nullptr, 0},
             tile, stride);
        for (std::int64_t i = 0; i < count; ++i) {
            for (std::int64_t e = channels.begin; e < channels.end; e += kLanes) {
                store(tile + i * stride + e, softplus(load(tile + i * stride + e)));
            }
        }
    }
}

// Images whose x is larger than this, in bytes, are far: a processor's second-level cache holds no more.
constexpr std::int64_t kNearBytes = 1 << 20;

// What is read after a chunk's scan: x of the next chunk, z and `out` of this one. The scan needs the processor and not
// the memory, so they are sent for while it runs. Rows are too short for the processor to see them coming by itself.
struct Upcoming {
    Range x, z, out;  // tokens
};

static inline Upcoming upcoming(const DirectionRun& run, Finish finish, Range chunk, Range next) {
    if (!run.far) return {};
    return {next, finish == Finish::Store ? Range{} : chunk, finish == Finish::GateAlone ? Range{} : chunk};
}

// The cache lines of `tokens` that hold a register of channels.
VIMRT_INLINE void prefetch(const float* rows, std::int64_t stride, Range tokens, std::int64_t channel) {
    for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
        _mm_prefetch(reinterpret_cast<const char*>(rows + token * stride + channel), _MM_HINT_T1);
    }
}

// Scans a chunk of `tokens` tokens for the channels of this member; delta becomes y.
static inline void scan_chunk(const DirectionRun& run, std::int64_t tokens, const Upcoming& next, const float* c,
                              float* delta, const float* projected, float* states) {
    const MixerShape& shape = run.shape;
    const std::int64_t first = run.weights->descending ? tokens - 1 : 0;
    const std::int64_t sign = run.weights->descending ? -1 : 1;
    ScanChunk chunk;
    chunk.tokens = tokens;
    chunk.states = shape.d_state;
    chunk.stride = sign * shape.stride();
    chunk.state_stride = sign * shape.projected_stride();
    chunk.b = projected + first * shape.projected_stride() + shape.dt_rank;
    chunk.c_out = chunk.b + shape.d_state;
    const Range channels = channels_of(run);
    for (std::int64_t e = channels.begin; e < channels.end; e += kLanes) {
        chunk.c = c + first * shape.stride() + e;
        chunk.delta = delta + first * shape.stride() + e;
        chunk.rates = run.weights->rates + e * shape.d_state;
        chunk.skip = run.weights->skip + e;
        chunk.h = states + e * shape.d_state;
        prefetch(run.in.x, run.in.stride, next.x, e);
        prefetch(run.z, run.z_stride, next.z, e);
        prefetch(run.out, run.out_stride, next.out, e);
        selective_scan(chunk);
    }
}

static inline void finish_chunk(const DirectionRun& run, Finish finish, Range tokens, const float* y) {
    const Range channels = channels_of(run);
    const std::int64_t count = min_of(channels.end, run.shape.d_inner) - channels.begin;
    for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
        const float* row = y + (token - tokens.begin) * run.shape.stride() + channels.begin;
        float* out = run.out + token * run.out_stride + channels.begin;
        if (finish == Finish::Store) {
            for (std::int64_t i = 0; i < count; i += kLanes) store(out + i, load(row + i), first_lanes(count - i));
        } else {
            const float* other = finish == Finish::Gate ? out : nullptr;
            gate_row(row, other, run.z + token * run.z_stride + channels.begin, run.share, count, out);
        }
    }
}

// The state before the first token.
static inline void clear_states(const DirectionRun& run) {
    float* states = run.scratch + kChunk * (2 * run.shape.stride() + run.shape.projected_stride());
    const Range channels = channels_of(run);
    for (std::int64_t i = channels.begin * run.shape.d_state; i < channels.end * run.shape.d_state; i += kLanes) {
        store(states + i, zero());
    }
}

// Tokens [tokens.begin, tokens.end), which follow those of the call before in the order of the scan.
static inline void run_direction(const DirectionRun& run, Range tokens, Finish finish) {
    float* c = run.scratch;
    float* delta = c + kChunk * run.shape.stride();
    float* projected = delta + kChunk * run.shape.stride();
    float* states = projected + kChunk * run.shape.projected_stride();
    const std::int64_t chunks = ceil_div(tokens.size(), kChunk);
    const auto chunk_at = [&](std::int64_t i) {
        if (i == chunks) return Range{};
        const Range part = part_of(tokens.size(), run.weights->descending ? chunks - 1 - i : i, chunks);
        return Range{tokens.begin + part.begin, tokens.begin + part.end};
    };
    for (std::int64_t i = 0; i < chunks; ++i) {
        const Range chunk = chunk_at(i);
        project_chunk(run, chunk, c, delta, projected);
        scan_chunk(run, chunk.size(), upcoming(run, finish, chunk, chunk_at(i + 1)), c, delta, projected, states);
        finish_chunk(run, finish, chunk, delta);
    }
}

}  // namespace vimrt::cpu::VIMRT_ISA
