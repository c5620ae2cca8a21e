// gated_merge: (y_forward + y_backward)/2 SiLU(z), on its own; bidirectional_scan.cu takes it in where it can.
#include "activations.h"
#include "lowering_rules.h"
#include "storage.h"
#include "tokens.h"

namespace vimrt::cuda {

namespace {

template <typename T>
__global__ void merge(const T* forward, const T* backward, const T* z, std::int64_t z_stride, float factor, T* out,
                      std::int64_t count, std::int64_t columns) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float sum = to_float(forward[i]);
    if (backward != nullptr) sum += to_float(backward[i]);
    out[i] = from_float<T>(factor * sum * silu(to_float(z[i / columns * z_stride + i % columns])));
}

struct MergeStep {
    Operand forward, backward, z, out;  // backward: buffer -1 where there is none
    float factor;
    std::int64_t rows, columns;
};

void run_merge(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const MergeStep*>(parameters);
    gated_merge(address(frame, step.forward), step.backward.buffer < 0 ? nullptr : address(frame, step.backward),
                address(frame, step.z), step.z.row_stride, step.factor, address(frame, step.out), step.out.dtype,
                step.rows, step.columns, stream_of(frame));
}

}  // namespace

void gated_merge(const void* forward, const void* backward, const void* z, std::int64_t z_stride, float factor,
                 void* out, DType dtype, std::int64_t rows, std::int64_t columns, cudaStream_t stream) {
    constexpr int threads = 256;
    with_storage(dtype, [&](auto type) {
        using T = decltype(type);
        merge<<<blocks_for(rows * columns, threads), threads, 0, stream>>>(
            static_cast<const T*>(forward), static_cast<const T*>(backward), static_cast<const T*>(z), z_stride, factor,
            static_cast<T*>(out), rows * columns, columns);
    });
}

int lower_gated_merge(Lowering& lowering, int node, const Target& target) {
    const Node& merge = lowering.node(node);
    const bool both = merge.input_count() == 3;
    MergeStep step{};
    step.forward = stored_as(lowering, merge.input(0), target.dtype);
    step.backward = both ? stored_as(lowering, merge.input(1), target.dtype) : Operand{};
    step.z = stored_as(lowering, merge.input(merge.input_count() - 1), target.dtype, true);
    step.out = lowering.write(merge.output(0), target.dtype);
    step.factor = both && merge.is("merge", "mean") ? 0.5F : 1.0F;
    step.rows = rows_of(lowering, merge.output(0));
    step.columns = columns_of(lowering, merge.output(0));
    lowering.step(step_name("gated_merge", merge).c_str(), run_merge, step,
                  {step.forward, both ? step.backward : step.forward, step.z}, {step.out});
    return 1;
}

}  // namespace vimrt::cuda
