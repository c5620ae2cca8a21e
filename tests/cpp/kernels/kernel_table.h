// The kernels of one instruction set as plain functions, for tests that are compiled for no set in particular.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/thread_team.h"
#include "runtime/weights.h"

namespace vimrt::cpu {

enum class Elementwise { Exp2, Exp2Nonpositive, Exp, Silu, Softplus };

struct GemmCase {
    std::int64_t rows = 0;
    const float* a = nullptr;
    std::int64_t a_stride = 0;
    PackedMatrix b;
    const float* bias = nullptr;
    const float* addend = nullptr;
    std::int64_t addend_stride = 0;
    float* out = nullptr;
    std::int64_t out_stride = 0;
};

struct NormCase {
    bool centred = false;
    const float* weight = nullptr;
    const float* bias = nullptr;
    float eps = 0;
    std::int64_t columns = 0;
};

// One direction of one image, run by `team` threads from end to end in two calls that meet at token `cut`.
struct DirectionCase {
    std::int64_t tokens = 0, d_inner = 0, d_state = 0, dt_rank = 0, width = 0;
    bool reversed = false;             // the convolution
    bool descending = false;           // the scan
    const float* taps = nullptr;       // (width, d_inner padded)
    const float* conv_bias = nullptr;  // padded
    PackedMatrix x_proj, dt_proj;
    const float* dt_bias = nullptr;  // padded
    const float* rates = nullptr;    // (d_inner padded / lanes, d_state, lanes)
    const float* skip = nullptr;     // padded
    const float* x = nullptr;
    std::int64_t x_stride = 0;
    const float* z = nullptr;  // null: y is stored as it is
    std::int64_t z_stride = 0;
    bool add = false;  // `out` holds the other direction's y
    float share = 1;
    float* out = nullptr;
    std::int64_t out_stride = 0;
    std::int64_t cut = 0;
};

struct KernelTable {
    const char* name = nullptr;
    int lanes = 0;
    int panel_width = 0;
    void (*elementwise)(Elementwise function, const float* in, float* out, std::int64_t count) = nullptr;
    void (*gemm)(const GemmCase& gemm) = nullptr;
    void (*normalize)(const NormCase& norm, const float* in, float* out) = nullptr;
    std::int64_t (*direction_scratch)(const DirectionCase& direction) = nullptr;  // floats
    void (*direction)(const DirectionCase& direction, float* scratch, ThreadTeam& threads, int member) = nullptr;
};

namespace avx2 {
const KernelTable& kernel_table();
}
namespace avx512 {
const KernelTable& kernel_table();
}

// Those of the sets that this processor has.
inline std::vector<KernelTable> kernel_tables() {
    std::vector<KernelTable> tables;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(avx2::kernel_table());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        tables.push_back(avx512::kernel_table());
    }
    return tables;
}

}  // namespace vimrt::cpu
