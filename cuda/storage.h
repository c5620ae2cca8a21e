// How activations are stored, and computed with: fp32, fp16 or bf16 in memory, fp32 in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <stdexcept>

#include "vimrt/tensor.h"

namespace vimrt::cuda {

__host__ __device__ inline float to_float(float x) {
    return x;
}
__host__ __device__ inline float to_float(__half x) {
    return __half2float(x);
}
__host__ __device__ inline float to_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

template <typename T>
__host__ __device__ T from_float(float x);
template <>
__host__ __device__ inline float from_float<float>(float x) {
    return x;
}
template <>
__host__ __device__ inline __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__host__ __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// V neighbours, moved by one instruction where 16 bytes suffice.
template <typename T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
    T lane[V];
};

#ifdef __CUDACC__
template <typename T, int V>
__device__ void load_floats(const T* from, float (&to)[V]) {
    const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = to_float(pack.lane[i]);
}

template <typename T, int V>
__device__ void store_floats(T* to, const float (&from)[V]) {
    Pack<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; ++i) pack.lane[i] = from_float<T>(from[i]);
    *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// Two numbers of 16 bits in a register.
template <typename T>
__device__ unsigned pack_two(float first, float second) {
    const Pack<T, 2> two{from_float<T>(first), from_float<T>(second)};
    return *reinterpret_cast<const unsigned*>(&two);
}
template <typename T>
__device__ float2 unpack_two(unsigned two) {
    const auto pack = *reinterpret_cast<const Pack<T, 2>*>(&two);
    return {to_float(pack.lane[0]), to_float(pack.lane[1])};
}
#endif

// Calls function(T{}) with the type that stores `dtype`.
template <typename F>
void with_storage(DType dtype, const F& function) {
    switch (dtype) {
        case DType::F32:
            return function(float{});
        case DType::F16:
            return function(__half{});
        case DType::BF16:
            return function(__nv_bfloat16{});
        case DType::U8:
            break;
    }
    throw std::logic_error("activations are never stored as uint8");
}

}  // namespace vimrt::cuda
