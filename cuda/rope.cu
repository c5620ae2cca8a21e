// rope: each patch turned by its place in the grid, v cos + rot(v) sin, where rot pairs channels (a, b) -> (-b, a).
#include "cpu/runtime/grid_tables.h"
#include "lowering_rules.h"
#include "storage.h"
#include "tokens.h"

namespace vimrt::cuda {

namespace {

// A thread turns one pair of channels.
template <typename T>
__global__ void turn(const T* in, const float* cos, const float* sin, T* out, std::int64_t count, std::int64_t period) {
    const std::int64_t i = 2 * (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const std::int64_t at = i % period;
    float v[2];
    load_floats(in + i, v);
    const float turned[2] = {v[0] * cos[at] - v[1] * sin[at], v[1] * cos[at + 1] + v[0] * sin[at + 1]};
    store_floats(out + i, turned);
}

struct RopeStep {
    Operand in, out;
    const float* cos;
    const float* sin;
    std::int64_t batch, tokens, columns;
};

void run_rope(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const RopeStep*>(parameters);
    rope(address(frame, step.in), step.cos, step.sin, address(frame, step.out), step.in.dtype, step.batch, step.tokens,
         step.columns, stream_of(frame));
}

}  // namespace

void rope(const void* in, const float* cos, const float* sin, void* out, DType dtype, std::int64_t batch,
          std::int64_t tokens, std::int64_t columns, cudaStream_t stream) {
    constexpr int threads = 256;
    const std::int64_t count = batch * tokens * columns;
    with_storage(dtype, [&](auto type) {
        using T = decltype(type);
        turn<<<blocks_for(count / 2, threads), threads, 0, stream>>>(static_cast<const T*>(in), cos, sin,
                                                                     static_cast<T*>(out), count, tokens * columns);
    });
}

int lower_rope(Lowering& lowering, int node, const Target& /*target*/) {
    const Node& rope = lowering.node(node);
    const ValueInfo& info = lowering.value(rope.input(0));
    const Operand in = stored_as(lowering, rope.input(0), lowering.read(rope.input(0)).dtype);
    const Operand out = in_place_or_new(lowering, node, rope.output(0), rope.input(0), in.dtype);
    const cpu::RopeTables tables = cpu::rope_tables(lowering, rope, info.grid_rows, info.grid_columns);
    const RopeStep step{in, out, tables.cos, tables.sin, info.shape[0], info.shape[1], info.shape[2]};
    lowering.step(step_name("rope", rope).c_str(), run_rope, step, {in}, {out});
    return 1;
}

}  // namespace vimrt::cuda
