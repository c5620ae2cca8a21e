// Instructions that CUDA C++ has no name for, each behind a function. A warp's lane is g = lane / 4, q = lane % 4 where
// a matrix is spread over its registers (PTX ISA, "Matrix Fragments").
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

namespace vimrt::cuda {

constexpr unsigned all_lanes = 0xFFFFFFFFU;  // of a warp

// sum += a b, 16x16 and 16x8, of T (16 bits), fp32 sums. Lane: sum = rows g, g, g + 8, g + 8, columns 2 q, 2 q + 1 of
// each; a = row g, then g + 8, columns 2 q and 2 q + 1, then both rows 8 columns on; b = rows 2 q, 2 q + 1 of column g,
// then 8 rows on.
template <typename T>
__device__ inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (std::is_same_v<T, __half>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
}

// The same of half the depth, 16x8 and 8x8. Lane: a = row g, then g + 8, columns 2 q and 2 q + 1; b = rows 2 q, 2 q + 1
// of column g.
template <typename T>
__device__ inline void multiply_add(float (&sum)[4], const unsigned (&a)[2], unsigned b) {
    if constexpr (std::is_same_v<T, __half>) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(b));
    } else {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(b));
    }
}

// x of a warp's first lane, for the compiler to know that it is the same for all of them, and what follows from it.
// Warpgroups' products must not lie behind branches that it takes for divergent.
__device__ inline int same_for_all_lanes(int x) {
    return __shfl_sync(all_lanes, x, 0);
}

// x, which the compiler cannot compute anew and so keeps in a register.
__device__ inline unsigned kept(unsigned x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Where p lies in shared memory.
__device__ inline unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

template <typename V>
__device__ V load_shared(unsigned at) {
    return *static_cast<const V*>(__cvta_shared_to_generic(at));
}
template <typename V>
__device__ void store_shared(unsigned at, const V& value) {
    *static_cast<V*>(__cvta_shared_to_generic(at)) = value;
}

// 8x8 matrices of 16-bit elements from shared memory, whose rows of 16 bytes lanes point to, the first 8 lanes to those
// of the first and so on: elements 2 q and 2 q + 1 of row g of each.
__device__ inline void load_matrices(unsigned (&to)[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}
// The same, transposed: elements 2 q and 2 q + 1 of column g.
__device__ inline void load_transposed(unsigned (&to)[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}
// An 8x8 matrix of 16-bit elements in registers, transposed. Volatile, as it hangs where lanes are apart: else the
// compiler may move it behind a branch that only some take, if only they need it.
__device__ inline unsigned transpose(unsigned matrix) {
    unsigned result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
    return result;
}

// Stores to global memory where `wanted`, without a branch.
__device__ inline void store_if(bool wanted, void* to, unsigned one) {
    asm volatile(
        "{\n.reg .pred wanted;\n"
        "setp.ne.b32 wanted, %2, 0;\n"
        "@wanted st.global.b32 [%0], %1;\n}" ::"l"(to),
        "r"(one), "r"(static_cast<int>(wanted))
        : "memory");
}
__device__ inline void store_if(bool wanted, void* to, const uint2& two) {
    asm volatile(
        "{\n.reg .pred wanted;\n"
        "setp.ne.b32 wanted, %3, 0;\n"
        "@wanted st.global.v2.b32 [%0], {%1,%2};\n}" ::"l"(to),
        "r"(two.x), "r"(two.y), "r"(static_cast<int>(wanted))
        : "memory");
}

// Copies 16 bytes to shared memory behind the thread's back, through the second-level cache alone. That is to get all
// of the line's 128 bytes from memory: scans whose results go in the place of z are up to 4% slower without it.
__device__ inline void copy_async(unsigned to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
}
// The same, or zeros where there is nothing; without a branch where it is not wanted.
__device__ inline void copy_async_or_clear(unsigned to, const void* from, bool there, bool wanted = true) {
    asm volatile(
        "{\n.reg .pred wanted;\n"
        "setp.ne.b32 wanted, %3, 0;\n"
        "@wanted cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n}" ::"r"(to),
        "l"(from), "r"(there ? 16 : 0), "r"(static_cast<int>(wanted))
        : "memory");
}
// The same of 4 bytes, which need not lie at a multiple of 16.
__device__ inline void copy_four_or_clear(unsigned to, const void* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" : : "r"(to), "l"(from), "r"(there ? 4 : 0) : "memory");
}
// Ends a group of the thread's copies.
__device__ inline void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all but the last `Pending` groups are there.
template <int Pending>
__device__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// `bytes` bytes, a multiple of 16, to the block's shared memory behind the thread's back, and tells the block's
// barrier.
__device__ inline void copy_bulk(unsigned to, const void* from, int bytes, unsigned barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
#endif
}
// What the thread wrote to shared memory before can be read by products of a warpgroup behind a barrier.
__device__ inline void show_to_products() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Until `threads` threads of the block, of whole warps, have come to their barrier `number`, of 16.
__device__ inline void meet(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Adds one to a number in global memory: what the warp wrote before can be read by whoever waits for it.
__device__ inline void count_up(unsigned* number) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(number)) : "memory");
}
// Until it is `count` or more.
__device__ inline void wait_for_count(const unsigned* number, unsigned count) {
    for (;;) {
        unsigned now;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                     : "=r"(now)
                     : "l"(__cvta_generic_to_global(number))
                     : "memory");
        if (now >= count) return;
        __nanosleep(50);
    }
}

// Behind begin_barrier(), for barriers that other blocks of the cluster know of.
__device__ inline void announce_barriers() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// A thread's arrival at its block's barrier, at which `bytes` are then to come from blocks of the cluster.
__device__ inline void expect_bytes(unsigned barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#endif
}
// Sends to a place in a block of the cluster, and tells its barrier, both by place_in_block().
__device__ inline void send(unsigned to, const float4& four, unsigned barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(to),
        "f"(four.x), "f"(four.y), "f"(four.z), "f"(four.w), "r"(barrier)
        : "memory");
#endif
}
__device__ inline void send(unsigned to, const float2& two, unsigned barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, [%3];" ::"r"(to),
                 "f"(two.x), "f"(two.y), "r"(barrier)
                 : "memory");
#endif
}
// Until what was expected has come.
__device__ inline void wait_for_bytes(unsigned barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred there;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 there, [%0], %1;\n"
        "@!there bra again;\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
#endif
}

// All threads of the cluster arrive and wait; what they wrote before they arrived can be read behind the wait.
__device__ inline void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
// The same, where what they wrote does not matter.
__device__ inline void arrive_empty_handed() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}
__device__ inline void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
__device__ inline void meet_cluster() {
    arrive_at_cluster();
    wait_for_cluster();
}

// Where in the shared memory of a block of the cluster lies what has the place `at` in one's own.
__device__ inline unsigned place_in_block(unsigned at, int block) {
    unsigned there = at;
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(block));
#endif
    return there;
}

// 16 bytes of the shared memory of a block of the cluster, from where they lie in one's own.
__device__ inline float4 load_from_block(unsigned at, int block) {
    float4 four;
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w)
                 : "r"(place_in_block(at, block))
                 : "memory");
#else
    four = load_shared<float4>(at);
#endif
    return four;
}

// A barrier in shared memory at which `threads` threads arrive: what they wrote can be read behind it.
__device__ inline void begin_barrier(unsigned at, int threads) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(threads) : "memory");
}
// Behind all its uses.
__device__ inline void end_barrier(unsigned at) {
    asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(at) : "memory");
}
// What it returns is there behind the arrival.
__device__ inline unsigned arrive_at(unsigned at) {
    unsigned long long state;
    asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(at) : "memory");
    return static_cast<unsigned>(state);
}
// Until all have arrived: the first time with parity 0, then with 1 and 0 in turn.
__device__ inline void wait_at(unsigned at, unsigned parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred there;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared.b64 there, [%0], %1;\n"
        "@!there bra again;\n}" ::"r"(at),
        "r"(parity)
        : "memory");
#endif
}

}  // namespace vimrt::cuda
