// add_position: the position table, resampled for the grid when the program is lowered, added to every image's tokens.
#include "cpu/runtime/grid_tables.h"
#include "lowering_rules.h"
#include "tokens.h"

namespace vimrt::cuda {

namespace {

__global__ void add(const float* in, const float* table, float* out, std::int64_t count, std::int64_t period) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) out[i] = in[i] + table[i % period];
}

struct PositionStep {
    Operand in, out;
    const float* table;
    std::int64_t batch, tokens, columns;
};

void run_position(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const PositionStep*>(parameters);
    add_position(frame.at<float>(step.in), step.table, frame.at<float>(step.out), step.batch, step.tokens, step.columns,
                 stream_of(frame));
}

}  // namespace

void add_position(const float* in, const float* table, float* out, std::int64_t batch, std::int64_t tokens,
                  std::int64_t columns, cudaStream_t stream) {
    constexpr int threads = 256;
    const std::int64_t count = batch * tokens * columns;
    add<<<blocks_for(count, threads), threads, 0, stream>>>(in, table, out, count, tokens * columns);
}

int lower_add_position(Lowering& lowering, int node, const Target& /*target*/) {
    const Node& position = lowering.node(node);
    const ValueInfo& info = lowering.value(position.input(0));
    const Operand in = stored_as(lowering, position.input(0), DType::F32);
    const Operand out = in_place_or_new(lowering, node, position.output(0), position.input(0), DType::F32);
    const PositionStep step{in,
                            out,
                            cpu::position_table(lowering, position, info.grid_rows, info.grid_columns),
                            info.shape[0],
                            info.shape[1],
                            info.shape[2]};
    lowering.step(step_name("add_position", position).c_str(), run_position, step, {in}, {out});
    return 1;
}

}  // namespace vimrt::cuda
