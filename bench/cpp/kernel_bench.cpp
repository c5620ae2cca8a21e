// What one core does: multiply-adds, exponentials, and each part of a mixer, and what Vim-Ti at 224 x 224 comes to.
//
//     cmake -B build -DVIMRT_BENCH=ON && cmake --build build && build/bench/kernel_bench_avx512
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "mixer.h"
#include "timing.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

constexpr double kTokens = 197, kDInner = 384, kStates = 16, kBlocks = 24, kDirections = 2;

float* aligned(std::size_t floats, float low, float high) {
    static std::mt19937 generator(1);
    std::uniform_real_distribution<float> values(low, high);
    auto* data = static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64));
    for (std::size_t i = 0; i < floats; ++i) data[i] = values(generator);
    return data;
}

// Twelve chains hide the latency of four cycles on two units.
double fma_rate() {
    static float sink[kLanes];
    constexpr int steps = 100000;
    const double seconds = bench::seconds_of([] {
        const Vec factor = load(sink);
        Vec sums[12];
#pragma GCC unroll 12
        for (Vec& s : sums) s = factor;
        for (int i = 0; i < steps; ++i) {
#pragma GCC unroll 12
            for (Vec& s : sums) {
                s = fma(s, factor, factor);
                asm volatile("" : "+v"(s));
            }
        }
#pragma GCC unroll 12
        for (const Vec& s : sums) store(sink, add(load(sink), s));
    });
    return 12.0 * steps * kLanes / seconds;
}

// Elements per second of an elementwise function over 8 KB, in the first-level cache.
template <typename Function>
double elementwise_rate(const Function& function) {
    constexpr int count = 2048;
    static float* in = aligned(count, -8, 0);
    static float* out = aligned(count, 0, 1);
    const double seconds = bench::seconds_of([&] {
        for (int i = 0; i < count; i += kLanes) store(out + i, function(load(in + i)));
        asm volatile("" ::: "memory");
    });
    return count / seconds;
}

PackedMatrix random_matrix(std::int64_t depth, std::int64_t columns) {
    return {aligned(static_cast<std::size_t>(depth * round_up(columns, kLanes)), -0.05F, 0.05F), depth, columns};
}

struct Mixer {
    MixerShape shape{384, 16, 12};
    DirectionWeights weights;
    DirectionRun run;
    std::vector<float> out;

    Mixer() {
        weights.conv = {aligned(4 * 384, -0.5F, 0.5F), aligned(384, -0.1F, 0.1F), 4, 384, false};
        weights.x_proj = random_matrix(384, shape.projected());
        weights.dt_proj = random_matrix(12, 384);
        weights.dt_bias = aligned(384, -6, -2);
        weights.rates = aligned(384 * 16, -20, -1);
        weights.skip = aligned(384, 0.5F, 1.5F);
        run.shape = shape;
        run.weights = &weights;
        run.in = {aligned(197 * 768, -1, 1), 768, 197, 384};
        run.z = run.in.x + 384;
        run.z_stride = 768;
        out.resize(197 * 384);
        run.out = out.data();
        run.out_stride = 384;
        run.scratch = aligned(static_cast<std::size_t>(shape.scratch_floats()), 0, 0);
    }
};

// Prints one part: nanoseconds per token and direction, and milliseconds per image on one core.
double report(const char* name, double seconds_per_token, double runs) {
    const double image = seconds_per_token * runs * kTokens * kBlocks;
    std::printf("  %-26s %8.0f ns/token   %6.2f ms/image\n", name, 1e9 * seconds_per_token, 1e3 * image);
    return image;
}

double mixer_parts() {
    Mixer m;
    const Range tokens{64, 96};
    float* c = m.run.scratch;
    float* delta = c + kChunk * m.shape.stride();
    float* projected = delta + kChunk * m.shape.stride();
    float* states = projected + kChunk * m.shape.projected_stride();
    const Range channels{0, 384};
    const auto per_token = [](double seconds) { return seconds / kChunk; };

    double image = 0;
    const double conv = per_token(
        bench::seconds_of([&] { causal_conv_silu(m.weights.conv, m.run.in, tokens, channels, c, m.shape.stride()); }));
    image += report("convolution, SiLU", conv, kDirections);
    const double project = per_token(bench::seconds_of([&] { project_chunk(m.run, tokens, c, delta, projected); }));
    image += report("x_proj, dt_proj, softplus", project - conv, kDirections);
    std::vector<float> kept(delta, delta + kChunk * m.shape.stride());
    const double scan = per_token(bench::seconds_of([&] {
        for (std::size_t i = 0; i < kept.size(); ++i) delta[i] = kept[i];
        scan_chunk(m.run, kChunk, {}, c, delta, projected, states);
    }));
    image += report("scan", scan, kDirections);
    std::printf("  %-26s %8.2f G states/s\n", "", 1e-9 * kDInner * kStates / scan);
    image += report("gate", per_token(bench::seconds_of([&] { finish_chunk(m.run, Finish::Gate, tokens, delta); })), 1);
    const double whole = bench::seconds_of([&] { run_direction(m.run, {0, 197}, Finish::Gate); }) / kTokens;
    report("whole direction, gated", whole, kDirections);
    return image;
}

double gemm_seconds(std::int64_t rows, std::int64_t depth, std::int64_t columns) {
    const PackedMatrix b = random_matrix(depth, columns);
    float* a = aligned(static_cast<std::size_t>(rows * depth), -1, 1);
    float* out = aligned(static_cast<std::size_t>(rows * columns), 0, 0);
    return bench::seconds_of([&] { gemm(rows, a, depth, b, {0, panel_count(b)}, {}, out, columns); });
}

}  // namespace

int run_bench() {
    const double flops = 2 * fma_rate();
    const double exps = elementwise_rate([](Vec x) { return exp2_nonpositive(x); });
    std::printf("one core, %d lanes\n", kLanes);
    std::printf("  multiply-adds  %6.1f GFLOP/s\n  2^x            %6.2f G/s\n", 1e-9 * flops, 1e-9 * exps);
    std::printf("  e^x            %6.2f G/s\n", 1e-9 * elementwise_rate([](Vec x) { return exp(x); }));
    std::printf("  SiLU           %6.2f G/s\n", 1e-9 * elementwise_rate([](Vec x) { return silu(x); }));
    std::printf("  softplus       %6.2f G/s\n", 1e-9 * elementwise_rate([](Vec x) { return softplus(x); }));

    std::printf("Vim-Ti at 224 x 224, batch 1, one core\n");
    double image = mixer_parts();
    image += report("in_proj", gemm_seconds(197, 192, 768) / kTokens, 1);
    image += report("out_proj", gemm_seconds(197, 384, 192) / kTokens, 1);
    std::printf("  sum: %.1f ms; on two cores %.1f ms\n", 1e3 * image, 5e2 * image);
    return 0;
}

}  // namespace vimrt::cpu::VIMRT_ISA

int main() {
    return vimrt::cpu::VIMRT_ISA::run_bench();
}
