// Products by the four warps of a warpgroup, of operands in shared memory, that are computed behind their back: compute
// capability 9.0 alone, in code compiled for 9.0a (PTX ISA, "wgmma.mma_async").
#pragma once

#include <cstdint>

#include "slab.cuh"

namespace vimrt::cuda {

// Whether they are there in what is being compiled.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool has_warpgroup_products = true;
#else
constexpr bool has_warpgroup_products = false;
#endif

constexpr int warpgroup_size = 128;  // threads
constexpr int warpgroup_rows = 64;   // of the left side
constexpr int panel_depth = slab;    // of an operand in shared memory

// An operand's rows of `Depth` columns from `at` on, which is a multiple of 8 rows; 16 bytes of a row lie as by
// piece_in_panel(). Adding panel_step goes 16 columns on.
constexpr std::uint64_t panel_step = 2;
template <int Depth>
__device__ std::uint64_t panel_at(unsigned at) {
    static_assert(Depth == 64 || Depth == 32);
    constexpr std::uint64_t rows_of_eight = std::uint64_t{Depth} << 32;  // 8 rows' bytes / 16
    constexpr std::uint64_t permuted = std::uint64_t{Depth == 64 ? 1 : 2} << 62;
    return permuted | rows_of_eight | std::uint64_t{1} << 16 | (at & 0x3FFFF) / 16;
}
// Which 16 bytes of a row lie where its `piece`th would, and where those lie.
constexpr std::int64_t piece_in_panel(std::int64_t row, std::int64_t piece, std::int64_t depth) {
    return piece ^ (depth == 64 ? row % 8 : row / 2 % 4);
}

#define VIMRT_SUM(j) "+f"(sum[j][0]), "+f"(sum[j][1]), "+f"(sum[j][2]), "+f"(sum[j][3])
#define VIMRT_SUMS_3 VIMRT_SUM(0), VIMRT_SUM(1), VIMRT_SUM(2)
#define VIMRT_SUMS_4 VIMRT_SUMS_3, VIMRT_SUM(3)
#define VIMRT_SUMS_5 VIMRT_SUMS_4, VIMRT_SUM(4)
#define VIMRT_SUMS_6 VIMRT_SUMS_5, VIMRT_SUM(5)
#define VIMRT_SUMS_7 VIMRT_SUMS_6, VIMRT_SUM(6)
#define VIMRT_SUMS_9 VIMRT_SUMS_7, VIMRT_SUM(7), VIMRT_SUM(8)
#define VIMRT_SUMS_10 VIMRT_SUMS_9, VIMRT_SUM(9)
#define VIMRT_SUMS_12 VIMRT_SUMS_10, VIMRT_SUM(10), VIMRT_SUM(11)
#define VIMRT_SUMS_13 VIMRT_SUMS_12, VIMRT_SUM(12)
#define VIMRT_SUMS_14 VIMRT_SUMS_13, VIMRT_SUM(13)
#define VIMRT_SUMS_24                                                                                        \
    VIMRT_SUMS_14, VIMRT_SUM(14), VIMRT_SUM(15), VIMRT_SUM(16), VIMRT_SUM(17), VIMRT_SUM(18), VIMRT_SUM(19), \
        VIMRT_SUM(20), VIMRT_SUM(21), VIMRT_SUM(22), VIMRT_SUM(23)
#define VIMRT_12 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11"
#define VIMRT_16 VIMRT_12 ",%12,%13,%14,%15"
#define VIMRT_20 VIMRT_16 ",%16,%17,%18,%19"
#define VIMRT_24 VIMRT_20 ",%20,%21,%22,%23"
#define VIMRT_28 VIMRT_24 ",%24,%25,%26,%27"
#define VIMRT_36 VIMRT_28 ",%28,%29,%30,%31,%32,%33,%34,%35"
#define VIMRT_40 VIMRT_36 ",%36,%37,%38,%39"
#define VIMRT_48 VIMRT_40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define VIMRT_52 VIMRT_48 ",%48,%49,%50,%51"
#define VIMRT_56 VIMRT_52 ",%52,%53,%54,%55"
#define VIMRT_96                                                                                               \
    VIMRT_56                                                                                                   \
    ",%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81" \
    ",%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"

// The instruction for so many columns; behind the sums' operands are those of left, right and add.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define VIMRT_PRODUCT(type, columns, sums, left_at, right_at, add_at, ...)                                         \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" add_at ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns \
                 "k16.f32." type "." type " {" sums "}, %" left_at ", %" right_at ", add, 1, 1, 0, 0;\n}"          \
                 : __VA_ARGS__                                                                                     \
                 : "l"(left), "l"(right), "r"(add))
// Added to the sums of 192 columns, with a left side in registers.
#define VIMRT_WIDE_PRODUCT(type)                                                                                    \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %101, 0;\nwgmma.mma_async.sync.aligned.m64n192k16.f32." type \
                 "." type " {" VIMRT_96 "}, {%96,%97,%98,%99}, %100, add, 1, 1, 0;\n}"                              \
                 : VIMRT_SUMS_24                                                                                    \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "n"(1))
#else
#define VIMRT_PRODUCT(...) static_cast<void>(0)
#define VIMRT_WIDE_PRODUCT(...) static_cast<void>(0)
#endif
#define VIMRT_PRODUCTS(type)                                                                           \
    if constexpr (Blocks == 3) VIMRT_PRODUCT(type, "24", VIMRT_12, "12", "13", "14", VIMRT_SUMS_3);    \
    if constexpr (Blocks == 4) VIMRT_PRODUCT(type, "32", VIMRT_16, "16", "17", "18", VIMRT_SUMS_4);    \
    if constexpr (Blocks == 5) VIMRT_PRODUCT(type, "40", VIMRT_20, "20", "21", "22", VIMRT_SUMS_5);    \
    if constexpr (Blocks == 6) VIMRT_PRODUCT(type, "48", VIMRT_24, "24", "25", "26", VIMRT_SUMS_6);    \
    if constexpr (Blocks == 7) VIMRT_PRODUCT(type, "56", VIMRT_28, "28", "29", "30", VIMRT_SUMS_7);    \
    if constexpr (Blocks == 9) VIMRT_PRODUCT(type, "72", VIMRT_36, "36", "37", "38", VIMRT_SUMS_9);    \
    if constexpr (Blocks == 10) VIMRT_PRODUCT(type, "80", VIMRT_40, "40", "41", "42", VIMRT_SUMS_10);  \
    if constexpr (Blocks == 12) VIMRT_PRODUCT(type, "96", VIMRT_48, "48", "49", "50", VIMRT_SUMS_12);  \
    if constexpr (Blocks == 13) VIMRT_PRODUCT(type, "104", VIMRT_52, "52", "53", "54", VIMRT_SUMS_13); \
    if constexpr (Blocks == 14) VIMRT_PRODUCT(type, "112", VIMRT_56, "56", "57", "58", VIMRT_SUMS_14)

// Begins sum[j] = (or, with `add`, +=) left right^T over a depth of 16: of 64 rows of the left side and 8 Blocks of the
// right one, in fp32. Warp w of the group has rows 16 w to 16 w + 15; of columns 8 j to 8 j + 7 its lanes have what
// they have of a sum in multiply_add().
template <typename T, int Blocks>
__device__ void begin_product(float (&sum)[Blocks][4], std::uint64_t left, std::uint64_t right, int add) {
    static_assert(Blocks >= 3 && Blocks <= 14 && Blocks != 8 && Blocks != 11);
    if constexpr (std::is_same_v<T, __half>) {
        VIMRT_PRODUCTS("f16");
    } else {
        VIMRT_PRODUCTS("bf16");
    }
}

// Begins sum[j] += left right^T over a depth of 16, of 192 columns, with the left side in registers, which stay as they
// are until it is done: of the warp's 16 rows, lanes have what they have of a in multiply_add().
template <typename T>
__device__ void add_wide_product(float (&sum)[24][4], const unsigned (&left)[4], std::uint64_t right) {
    if constexpr (std::is_same_v<T, __half>) {
        VIMRT_WIDE_PRODUCT("f16");
    } else {
        VIMRT_WIDE_PRODUCT("bf16");
    }
}

#undef VIMRT_SUM
#undef VIMRT_SUMS_3
#undef VIMRT_SUMS_4
#undef VIMRT_SUMS_5
#undef VIMRT_SUMS_6
#undef VIMRT_SUMS_7
#undef VIMRT_SUMS_9
#undef VIMRT_SUMS_10
#undef VIMRT_SUMS_12
#undef VIMRT_SUMS_13
#undef VIMRT_SUMS_14
#undef VIMRT_SUMS_24
#undef VIMRT_12
#undef VIMRT_16
#undef VIMRT_20
#undef VIMRT_24
#undef VIMRT_28
#undef VIMRT_36
#undef VIMRT_40
#undef VIMRT_48
#undef VIMRT_52
#undef VIMRT_56
#undef VIMRT_96
#undef VIMRT_PRODUCT
#undef VIMRT_WIDE_PRODUCT
#undef VIMRT_PRODUCTS

// The same over a depth of `Depth`.
template <typename T, int Depth, int Blocks>
__device__ void begin_products(float (&sum)[Blocks][4], std::uint64_t left, std::uint64_t right, bool add) {
#pragma unroll
    for (int k = 0; k < Depth / 16; ++k)
        begin_product<T>(sum, left + k * panel_step, right + k * panel_step, add || k > 0);
}

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
