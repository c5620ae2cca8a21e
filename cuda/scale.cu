// scale: a factor for each channel, on its own; a linear before it takes it into its weights.
#include "constants.h"
#include "lowering_rules.h"
#include "storage.h"
#include "tokens.h"

namespace vimrt::cuda {

namespace {

template <typename T>
__global__ void scale_columns(const T* in, const float* gamma, T* out, std::int64_t count, std::int64_t columns) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) out[i] = from_float<T>(to_float(in[i]) * gamma[i % columns]);
}

struct ScaleStep {
    Operand in, out;
    const float* gamma;
    std::int64_t rows, columns;
};

void run_scale(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const ScaleStep*>(parameters);
    scale(address(frame, step.in), step.gamma, address(frame, step.out), step.in.dtype, step.rows, step.columns,
          stream_of(frame));
}

}  // namespace

void scale(const void* in, const float* gamma, void* out, DType dtype, std::int64_t rows, std::int64_t columns,
           cudaStream_t stream) {
    constexpr int threads = 256;
    with_storage(dtype, [&](auto type) {
        using T = decltype(type);
        scale_columns<<<blocks_for(rows * columns, threads), threads, 0, stream>>>(
            static_cast<const T*>(in), gamma, static_cast<T*>(out), rows * columns, columns);
    });
}

int lower_scale(Lowering& lowering, int node, const Target& /*target*/) {
    const Node& scale = lowering.node(node);
    const Operand in = stored_as(lowering, scale.input(0), lowering.read(scale.input(0)).dtype);
    const ScaleStep step{in, in_place_or_new(lowering, node, scale.output(0), scale.input(0), in.dtype),
                         float_vector(lowering, scale.weight("gamma")), rows_of(lowering, scale.output(0)),
                         columns_of(lowering, scale.output(0))};
    lowering.step(step_name("scale", scale).c_str(), run_scale, step, {step.in}, {step.out});
    return 1;
}

}  // namespace vimrt::cuda
