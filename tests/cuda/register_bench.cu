// Times what registers cost to read: cycles of a scheduler for each multiply-add, by how many registers it reads; and
// the clock that the card keeps, with and without tensor cores. What docs/performance.md says of both comes from here.
#include <cuda_runtime.h>

#include <cstdio>

#include "device_array.h"
#include "event_timer.h"
#include "ptx.cuh"

using namespace vimrt;
using namespace vimrt::cuda::test;

namespace {

constexpr int threads = 384;  // three warps a scheduler, as in a relay
constexpr int warps_of_scheduler = 3;
constexpr int rounds = 300;
constexpr int instructions = 128;  // of a round
constexpr int sums = 32, factors = 16;

// How many registers a multiply-add reads.
enum class Reads { One, Two, Three };
constexpr const char* names[] = {"one register", "two registers", "three registers"};

struct Span {
    unsigned long long begin, end;
};

template <Reads reads>
__global__ void __launch_bounds__(threads, 1) multiply_add(float* out, Span* span, float x) {
    const float own = x + static_cast<float>(threadIdx.x);
    float sum[sums], left[factors], right[factors];
    for (int i = 0; i < sums; ++i) sum[i] = own * static_cast<float>(i);
    for (int i = 0; i < factors; ++i) left[i] = own + static_cast<float>(i), right[i] = own - static_cast<float>(i);
    __syncthreads();
    const auto begin = static_cast<unsigned long long>(clock64());
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
#pragma unroll
        for (int i = 0; i < instructions; ++i) {
            float& s = sum[i % sums];
            const float& r = right[i * 5 % factors];
            if constexpr (reads == Reads::One) asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(s));
            if constexpr (reads == Reads::Two) asm volatile("fma.rn.f32 %0, %1, %0, %0;" : "+f"(s) : "f"(r));
            if constexpr (reads == Reads::Three) {
                const float& l = left[i * 3 % factors];
                asm volatile("fma.rn.f32 %0, %1, %2, %0;" : "+f"(s) : "f"(l), "f"(r));
            }
        }
    }
    const auto end = static_cast<unsigned long long>(clock64());
    float all = 0;
    for (int i = 0; i < sums; ++i) all += sum[i];
    out[threadIdx.x] = all;
    atomicMin(&span->begin, begin);
    atomicMax(&span->end, end);
}

template <Reads reads>
void time_one(float* out, Span* span) {
    Span found{};
    for (int run = 0; run < 2; ++run) {  // the first one brings the clock up
        const Span none{~0ULL, 0};
        require(cudaMemcpy(span, &none, sizeof(none), cudaMemcpyHostToDevice));
        multiply_add<reads><<<1, threads>>>(out, span, 0.5F);
        require(cudaMemcpy(&found, span, sizeof(found), cudaMemcpyDeviceToHost));
    }
    std::printf("%-16s %.2f cycles\n", names[static_cast<int>(reads)],
                static_cast<double>(found.end - found.begin) / (rounds * instructions * warps_of_scheduler));
}

// Keeps a multiprocessor busy with multiply-adds, and with a tensor-core product behind so many of them.
constexpr int long_rounds = 40000;
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
        for (int i = 0; i < instructions; ++i)
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
    const DeviceArray out(threads, DType::F32), span(sizeof(Span) / sizeof(float), DType::F32);
    const auto all = [&]<Reads... reads>() {
        (time_one<reads>(out.floats(), static_cast<Span*>(span.data())), ...);
    };
    all.template operator()<Reads::One, Reads::Two, Reads::Three>();
    tell_clock<false>("multiply-adds", out.floats(), static_cast<Span*>(span.data()));
    tell_clock<true>("with a tensor-core product in 128", out.floats(), static_cast<Span*>(span.data()));
    return 0;
}
