// The part of cuBLASLt's C interface that vimrt calls, so that building vimrt needs no cuBLAS headers: the library is
// loaded when a program runs. Values and signatures are those of cuBLAS 12 and 13 (docs.nvidia.com/cuda/cublas);
// tests/cuda/cublaslt_api_test.cpp compares them with cublasLt.h wherever that is installed.
#pragma once

#include <driver_types.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>

namespace vimrt::cuda::lt {

using Handle = struct HandleOpaque*;
using MatmulDesc = struct MatmulDescOpaque*;
using MatrixLayout = struct MatrixLayoutOpaque*;
using MatmulPreference = struct MatmulPreferenceOpaque*;
using Stream = cudaStream_t;

using Status = int;
inline constexpr Status success = 0;

enum LayoutAttribute : int { layout_batch_count = 5, layout_batch_stride = 6 };
enum DescAttribute : int { desc_transpose_a = 3, desc_epilogue = 7, desc_bias_pointer = 8 };
enum PreferenceAttribute : int {
    preference_max_workspace_bytes = 1,
    preference_reduction_schemes = 3,
    preference_alignment_b = 6,
    preference_alignment_c = 7,
    preference_alignment_d = 8,
};
inline constexpr std::int32_t transpose = 1;
inline constexpr std::uint32_t epilogue_bias = 4;
inline constexpr std::uint32_t reduction_in_compute_type = 2;
inline constexpr std::uint32_t reduction_in_output_type = 4;
inline constexpr int compute_fp32 = 68;

struct Algorithm {
    std::uint64_t data[8];
};

struct HeuristicResult {
    Algorithm algorithm;
    std::size_t workspace_bytes;
    Status state;
    float waves;
    int reserved[4];
};

using Create = Status (*)(Handle*);
using Destroy = Status (*)(Handle);
using GetVersion = std::size_t (*)();
using StatusString = const char* (*)(Status);
using DescCreate = Status (*)(MatmulDesc*, int compute_type, cudaDataType_t scale_type);
using DescDestroy = Status (*)(MatmulDesc);
using DescSet = Status (*)(MatmulDesc, DescAttribute, const void*, std::size_t);
using LayoutCreate = Status (*)(MatrixLayout*, cudaDataType_t, std::uint64_t rows, std::uint64_t columns,
                                std::int64_t leading_dimension);
using LayoutDestroy = Status (*)(MatrixLayout);
using LayoutSet = Status (*)(MatrixLayout, LayoutAttribute, const void*, std::size_t);
using PreferenceCreate = Status (*)(MatmulPreference*);
using PreferenceDestroy = Status (*)(MatmulPreference);
using PreferenceSet = Status (*)(MatmulPreference, PreferenceAttribute, const void*, std::size_t);
using GetHeuristic = Status (*)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d,
                                MatmulPreference, int requested, HeuristicResult*, int* returned);
// d = alpha op(a) op(b) + beta c
using Matmul = Status (*)(Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout, const void* b,
                          MatrixLayout, const void* beta, const void* c, MatrixLayout, void* d, MatrixLayout,
                          const Algorithm*, void* workspace, std::size_t workspace_bytes, Stream);

}  // namespace vimrt::cuda::lt
