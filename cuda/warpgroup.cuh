// Products by the four warps of a warpgroup, of operands in shared memory, that are computed behind their back: compute
// capability 9.0 alone, in code compiled for 9.0a (PTX ISA, "wgmma.mma_async").
#pragma once

#include <cstdint>

#include "slab.cuh"

namespace vimrt::cuda {

constexpr int warpgroup_size = 128;  // threads
constexpr int warpgroup_rows = 64;   // of the left side
constexpr int panel_depth = slab;    // of an operand in shared memory

// An operand's rows from `at` on, which is a multiple of 1024; 16 bytes of a row lie as by place_in_slab().
// Adding panel_step goes 16 columns on.
constexpr std::uint64_t panel_step = 2;
__device__ inline std::uint64_t panel_at(unsigned at) {
    constexpr std::uint64_t rows_of_eight = std::uint64_t{1024 / 16} << 32, permuted = std::uint64_t{1} << 62;
    return permuted | rows_of_eight | std::uint64_t{1} << 16 | (at & 0x3FFFF) / 16;
}

#define VIMRT_SUM(j) "+f"(sum[j][0]), "+f"(sum[j][1]), "+f"(sum[j][2]), "+f"(sum[j][3])
#define VIMRT_SUM_12                                                                                                \
    VIMRT_SUM(0), VIMRT_SUM(1), VIMRT_SUM(2), VIMRT_SUM(3), VIMRT_SUM(4), VIMRT_SUM(5), VIMRT_SUM(6), VIMRT_SUM(7), \
        VIMRT_SUM(8), VIMRT_SUM(9), VIMRT_SUM(10), VIMRT_SUM(11)
#define VIMRT_48                                                                                                     \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
    "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define VIMRT_PRODUCT_96(type)                                                                                       \
    asm volatile(                                                                                                    \
        "{\n.reg .pred add;\nsetp.ne.b32 add, %50, 0;\n"                                                             \
        "wgmma.mma_async.sync.aligned.m64n96k16.f32." type "." type " {" VIMRT_48 "}, %48, %49, add, 1, 1, 0, 0;\n}" \
        : VIMRT_SUM_12                                                                                               \
        : "l"(left), "l"(right), "r"(add))
#define VIMRT_PRODUCT_128(type)                                                                            \
    asm volatile(                                                                                          \
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                                   \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" VIMRT_48                         \
        ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, add, 1, 1, 0, 0;\n}" \
        : VIMRT_SUM_12, VIMRT_SUM(12), VIMRT_SUM(13), VIMRT_SUM(14), VIMRT_SUM(15)                         \
        : "l"(left), "l"(right), "r"(add))
#else
#define VIMRT_PRODUCT_96(type) static_cast<void>(0)
#define VIMRT_PRODUCT_128(type) static_cast<void>(0)
#endif

// Begins sum[j] = (or, with `add`, +=) left right^T over a depth of 16: of 64 rows of the left side and 8 Blocks of the
// right one, in fp32. Warp w of the group has rows 16 w to 16 w + 15; of columns 8 j to 8 j + 7 its lanes have what
// they have of a sum in multiply_add().
template <typename T, int Blocks>
__device__ void begin_product(float (&sum)[Blocks][4], std::uint64_t left, std::uint64_t right, int add) {
    constexpr bool half = std::is_same_v<T, __half>;
    static_assert(Blocks == 12 || Blocks == 16);
    if constexpr (Blocks == 12 && half) VIMRT_PRODUCT_96("f16");
    if constexpr (Blocks == 12 && !half) VIMRT_PRODUCT_96("bf16");
    if constexpr (Blocks == 16 && half) VIMRT_PRODUCT_128("f16");
    if constexpr (Blocks == 16 && !half) VIMRT_PRODUCT_128("bf16");
}

#undef VIMRT_SUM
#undef VIMRT_SUM_12
#undef VIMRT_48
#undef VIMRT_PRODUCT_96
#undef VIMRT_PRODUCT_128

// Before the first of some products, and behind what has touched their sums.
template <int Blocks>
__device__ void ready_for_products(float (&sum)[Blocks][4]) {
#pragma unroll
    for (int j = 0; j < Blocks; ++j)
        asm volatile("" : "+f"(sum[j][0]), "+f"(sum[j][1]), "+f"(sum[j][2]), "+f"(sum[j][3]));
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
// Ends a group of products.
__device__ inline void commit_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until all but the last `Pending` groups are done: their operands may be overwritten.
template <int Pending>
__device__ void wait_for_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#endif
}
// Until all are done and their sums can be read.
template <int Blocks>
__device__ void wait_for_sums(float (&sum)[Blocks][4]) {
    wait_for_products<0>();
#pragma unroll
    for (int j = 0; j < Blocks; ++j)
        asm volatile("" : "+f"(sum[j][0]), "+f"(sum[j][1]), "+f"(sum[j][2]), "+f"(sum[j][3]));
}

}  // namespace vimrt::cuda
