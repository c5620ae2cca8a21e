// pool: the mean or the maximum over an image's tokens. Each block owns 32 columns; its rows of threads take turns at
// the tokens and are reduced in a fixed order, so that results repeat bit by bit.
#include <cmath>

#include "lowering_rules.h"
#include "storage.h"
#include "tokens.h"

namespace vimrt::cuda {

namespace {

constexpr int columns_per_block = 32;
constexpr int rows_per_block = 16;

template <typename T>
__global__ void pool_tokens(const T* in, bool maximum, T* out, std::int64_t tokens, std::int64_t columns) {
    __shared__ float partial[rows_per_block][columns_per_block];
    const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * columns_per_block + threadIdx.x;
    const std::int64_t image = blockIdx.y;
    float value = maximum ? -INFINITY : 0.0F;
    if (column < columns) {
        for (std::int64_t token = threadIdx.y; token < tokens; token += rows_per_block) {
            const float x = to_float(in[(image * tokens + token) * columns + column]);
            value = maximum ? fmaxf(value, x) : value + x;
        }
    }
    partial[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    for (int row = 1; row < rows_per_block; ++row) {
        value = maximum ? fmaxf(value, partial[row][threadIdx.x]) : value + partial[row][threadIdx.x];
    }
    out[image * columns + column] = from_float<T>(maximum ? value : value / static_cast<float>(tokens));
}

struct PoolStep {
    Operand in, out;
    bool maximum;
    std::int64_t batch, tokens, columns;
};

void run_pool(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const PoolStep*>(parameters);
    pool(address(frame, step.in), step.maximum, address(frame, step.out), step.in.dtype, step.batch, step.tokens,
         step.columns, stream_of(frame));
}

}  // namespace

void pool(const void* in, bool maximum, void* out, DType dtype, std::int64_t batch, std::int64_t tokens,
          std::int64_t columns, cudaStream_t stream) {
    const dim3 threads(columns_per_block, rows_per_block);
    const dim3 blocks(blocks_for(columns, columns_per_block), static_cast<unsigned>(batch));
    with_storage(dtype, [&](auto type) {
        using T = decltype(type);
        pool_tokens<<<blocks, threads, 0, stream>>>(static_cast<const T*>(in), maximum, static_cast<T*>(out), tokens,
                                                    columns);
    });
}

int lower_pool(Lowering& lowering, int node, const Target& /*target*/) {
    const Node& pool = lowering.node(node);
    const Shape shape = lowering.value(pool.input(0)).shape;
    const Operand in = stored_as(lowering, pool.input(0), lowering.read(pool.input(0)).dtype);
    const PoolStep step{in,      lowering.write(pool.output(0), in.dtype), pool.is("mode", "max"), shape[0], shape[1],
                        shape[2]};
    lowering.step(step_name("pool", pool).c_str(), run_pool, step, {step.in}, {step.out});
    return 1;
}

}  // namespace vimrt::cuda
