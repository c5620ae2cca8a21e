// Times what a scheduler's instructions cost: multiply-adds by how many registers they read, multiply-adds beside
// exponentials, and an octet's instructions as the scan has them, but without one waiting for another; and the clock
// that the card keeps, with and without tensor cores. What docs/performance.md says of them comes from here.
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <utility>

#include "device_array.h"
#include "event_timer.h"
#include "ptx.cuh"

using namespace vimrt;
using namespace vimrt::cuda::test;

namespace {

constexpr int threads = 384;  // three warps a scheduler, as in a relay
constexpr int warps_of_scheduler = 3;
constexpr int rounds = 300;

struct Span {
    unsigned long long begin, end;
};

// Instructions: multiply-adds by the registers they read, products on tensor cores by their depth.
enum Kind { Add1, Add2, Add3, Multiply, Sum, Exponential, Pack, Product8, Product16, Select, Minimum, Permute, kinds };

// So many of each in a round.
struct Mix {
    int add1 = 0, add2 = 0, add3 = 0, multiply = 0, sum = 0, exponential = 0, pack = 0, product8 = 0, product16 = 0,
        select = 0, minimum = 0, permute = 0;

    // By kinds.
    constexpr std::array<int, kinds> counts() const {
        return {add1, add2, add3, multiply, sum, exponential, pack, product8, product16, select, minimum, permute};
    }
    constexpr int size() const {
        int all = 0;
        for (const int count : counts()) all += count;
        return all;
    }
};

// The rounds that are timed. Of a quarter of an octet: two tokens' instructions of scan_octets_of<__half, 16>, as its
// machine code counts them.
enum Round { OneRegister, TwoRegisters, ThreeRegisters, Exponentials, With64, With96, With128, QuarterOctet };
constexpr Mix mixes[] = {{.add1 = 128},
                         {.add2 = 128},
                         {.add3 = 128},
                         {.exponential = 16},
                         {.add1 = 64, .exponential = 16},
                         {.add1 = 96, .exponential = 16},
                         {.add1 = 128, .exponential = 16},
                         {.add2 = 12,
                          .add3 = 16,
                          .multiply = 19,
                          .sum = 7,
                          .exponential = 15,
                          .pack = 9,
                          .product8 = 4,
                          .product16 = 2,
                          .select = 10,
                          .minimum = 3,
                          .permute = 4}};

// Of a round's instructions the kinds, in an order drawn by `seed`; by 0, each kind is spread evenly.
template <Round round>
constexpr std::array<Kind, mixes[round].size()> order_of(unsigned seed) {
    std::array<Kind, mixes[round].size()> kind{};
    std::array<int, mixes[round].size()> place{};
    int size = 0;
    for (int k = 0; k < kinds; ++k) {
        const int count = mixes[round].counts()[k];
        for (int i = 0; i < count; ++i, ++size)
            kind[size] = static_cast<Kind>(k), place[size] = (2 * i + 1) * 10000 / count;
    }
    std::uint32_t drawn = seed;
    for (int i = 1; i < size; ++i) {
        int to = i;
        if (seed == 0) {
            while (to > 0 && place[to - 1] > place[i]) --to;
        } else {
            drawn = drawn * 1664525U + 1013904223U;
            to = static_cast<int>((drawn >> 8U) % static_cast<unsigned>(i + 1));
        }
        for (int j = i; j > to; --j) std::swap(kind[j], kind[j - 1]), std::swap(place[j], place[j - 1]);
    }
    return kind;
}

// What instructions of a mix read and write: none waits for another but the next one of its kind that has its turn
// here.
struct Registers {
    float sum[32], value[16], factor[16];
    unsigned word[8], side[4][4], flag;

    __device__ Registers(float x, unsigned flag) : flag(flag) {
        const float own = x + static_cast<float>(threadIdx.x);
        for (int i = 0; i < 32; ++i) sum[i] = own * static_cast<float>(i);
        for (int i = 0; i < 16; ++i) value[i] = 0, factor[i] = own - static_cast<float>(i);
        for (int i = 0; i < 8; ++i) word[i] = threadIdx.x + i;
        for (int i = 0; i < 16; ++i) side[i / 4][i % 4] = threadIdx.x + i;
    }

    // The `i`th instruction of a round.
    __device__ void issue(Kind kind, int i) {
        float &s = sum[i % 32], &v = value[i % 16];
        const float &a = factor[i * 3 % 16], &b = factor[i * 5 % 16];
        unsigned &w = word[i % 8], (&left)[4] = side[i % 4];
        const unsigned other = word[(i + 3) % 8];
        float product[4] = {};
        switch (kind) {
            case Add1:
                asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(s));
                break;
            case Add2:
                asm volatile("fma.rn.f32 %0, %1, %0, %0;" : "+f"(s) : "f"(b));
                break;
            case Add3:
                asm volatile("fma.rn.f32 %0, %1, %2, %0;" : "+f"(s) : "f"(a), "f"(b));
                break;
            case Multiply:
                asm volatile("mul.rn.f32 %0, %0, %1;" : "+f"(v) : "f"(a));
                break;
            case Sum:
                asm volatile("add.rn.f32 %0, %0, %1;" : "+f"(s) : "f"(a));
                break;
            case Exponential:
                asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(v));
                break;
            case Pack:
                asm volatile("{.reg .f32 low; mov.b32 low, %0; cvt.rn.f16x2.f32 %0, low, %1;}" : "+r"(w) : "f"(a));
                break;
            case Product8:
                cuda::multiply_add<__half>(product, {left[0], left[1]}, flag);
                break;
            case Product16:
                cuda::multiply_add<__half>(product, {left[0], left[1], left[2], left[3]}, {flag, flag});
                break;
            case Select:
                asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; selp.b32 %0, %0, %1, p;}"
                             : "+r"(w)
                             : "r"(other), "r"(flag));
                break;
            case Minimum:
                asm volatile("min.f32 %0, %0, %1;" : "+f"(s) : "f"(a));
                break;
            case Permute:
                asm volatile("prmt.b32 %0, %0, %1, 0x7632;" : "+r"(w) : "r"(other));
                break;
            default:
                break;
        }
        if (kind == Product8 || kind == Product16) {
            for (int k = 0; k < 4; ++k) left[k] = __float_as_uint(product[k]);
        }
    }

    // Something of all of them.
    __device__ float digest() const {
        float all = 0;
        for (const float s : sum) all += s;
        for (const float v : value) all += v;
        for (const unsigned w : word) all += __uint_as_float(w);
        for (int i = 0; i < 16; ++i) all += __uint_as_float(side[i / 4][i % 4]);
        return all;
    }
};

template <Round round, unsigned seed>
__global__ void __launch_bounds__(threads, 1) issue_mix(float* out, Span* span, float x, unsigned flag) {
    constexpr auto order = order_of<round>(seed);
    Registers registers(x, flag);
    __syncthreads();
    const auto begin = static_cast<unsigned long long>(clock64());
#pragma unroll 1
    for (int turn = 0; turn < rounds; ++turn) {
#pragma unroll
        for (int i = 0; i < mixes[round].size(); ++i) registers.issue(order[i], i);
    }
    const auto end = static_cast<unsigned long long>(clock64());
    out[threadIdx.x] = registers.digest();
    atomicMin(&span->begin, begin);
    atomicMax(&span->end, end);
}

// Cycles of a scheduler for a warp's round.
template <Round round, unsigned seed = 0>
double cycles(float* out, Span* span) {
    Span found{};
    for (int run = 0; run < 2; ++run) {  // the first one brings the clock up
        const Span none{~0ULL, 0};
        require(cudaMemcpy(span, &none, sizeof(none), cudaMemcpyHostToDevice));
        issue_mix<round, seed><<<1, threads>>>(out, span, 0.5F, 1U);
        require(cudaMemcpy(&found, span, sizeof(found), cudaMemcpyDeviceToHost));
    }
    return static_cast<double>(found.end - found.begin) / (rounds * warps_of_scheduler);
}

// Keeps a multiprocessor busy with multiply-adds, and with a tensor-core product behind so many of them.
constexpr int long_rounds = 40000, long_instructions = 128, sums = 32;
template <bool products>
__global__ void __launch_bounds__(threads, 1) keep_busy(float* out, Span* span, float x) {
    float sum[sums];
    for (int i = 0; i < sums; ++i) sum[i] = x * static_cast<float>(threadIdx.x + i);
    float product[4] = {};
    __syncthreads();
    const auto begin = static_cast<unsigned long long>(clock64());
#pragma unroll 1
    for (int round = 0; round < long_rounds; ++round) {
#pragma unroll
        for (int i = 0; i < long_instructions; ++i)
            asm volatile("fma.rn.f32 %0, %0, %0, %1;" : "+f"(sum[i % sums]) : "f"(x));
        if constexpr (products) cuda::multiply_add<__half>(product, {1U, 2U, 3U, 4U}, {__float_as_uint(sum[0]), 5U});
    }
    const auto end = static_cast<unsigned long long>(clock64());
    float all = product[0];
    for (int i = 0; i < sums; ++i) all += sum[i];
    out[threadIdx.x] = all;
    if (blockIdx.x != 0) return;
    atomicMin(&span->begin, begin);
    atomicMax(&span->end, end);
}

template <bool products>
void tell_clock(const char* name, float* out, Span* span) {
    int blocks = 0;
    require(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, 0));
    const EventTimer timer;
    Span found{};
    float ms = 0;
    for (int run = 0; run < 5; ++run) {  // the last one counts
        const Span none{~0ULL, 0};
        require(cudaMemcpy(span, &none, sizeof(none), cudaMemcpyHostToDevice));
        ms = timer.ms([&] { keep_busy<products><<<blocks, threads>>>(out, span, 0.5F); });
        require(cudaMemcpy(&found, span, sizeof(found), cudaMemcpyDeviceToHost));
    }
    std::printf("%-34s %.2f GHz\n", name, static_cast<double>(found.end - found.begin) / ms * 1e-6);
}

}  // namespace

int main() {
    const DeviceArray out(threads, DType::F32), span_memory(sizeof(Span) / sizeof(float), DType::F32);
    float* sink = out.floats();
    auto* span = static_cast<Span*>(span_memory.data());
    std::printf("a multiply-add of one register %.2f cycles, of two %.2f, of three %.2f\n",
                cycles<OneRegister>(sink, span) / 128, cycles<TwoRegisters>(sink, span) / 128,
                cycles<ThreeRegisters>(sink, span) / 128);
    std::printf(
        "16 exponentials by themselves %.0f cycles; with 64, 96, 128 multiply-adds of one register %.0f, %.0f, %.0f\n",
        cycles<Exponentials>(sink, span), cycles<With64>(sink, span), cycles<With96>(sink, span),
        cycles<With128>(sink, span));
    std::printf("a quarter of an octet, in eight orders:");
    const auto orders = [&]<unsigned... seed>(std::integer_sequence<unsigned, seed...> /*seeds*/) {
        (std::printf(" %.0f", cycles<QuarterOctet, seed>(sink, span)), ...);
    };
    orders(std::make_integer_sequence<unsigned, 8>{});
    std::printf(" cycles\n");
    tell_clock<false>("multiply-adds", sink, span);
    tell_clock<true>("with a tensor-core product in 128", sink, span);
    return 0;
}
