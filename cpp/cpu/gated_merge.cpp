// gated_merge: (y_forward + y_backward) / 2, or their sum, or y_forward alone, times SiLU(z). Behind a
// bidirectional_scan it is part of the mixer's step (bidirectional_scan.cpp).
#include "kernels/gate.h"
#include "lowering_rules.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

struct MergeStep {
    Operand y, other, z, out;  // other.buffer -1: one direction alone
    std::int64_t rows, columns;
    float share;
};

void run_merge(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const MergeStep*>(parameters);
    const Range rows = part_of(step.rows, frame.thread, frame.threads);
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        const float* other = step.other.buffer >= 0 ? floats(frame, step.other) + row * step.other.row_stride : nullptr;
        gate_row(floats(frame, step.y) + row * step.y.row_stride, other,
                 floats(frame, step.z) + row * step.z.row_stride, step.share, step.columns,
                 floats(frame, step.out) + row * step.out.row_stride);
    }
}

}  // namespace

int lower_gated_merge(Lowering& lowering, int node) {
    const Node& merge = lowering.node(node);
    const int inputs = merge.input_count();
    const ValueId result = merge.output(0);
    const Operand y = lowering.read(merge.input(0));
    const Operand z = lowering.read(merge.input(inputs - 1));
    const Operand other = inputs == 3 ? lowering.read(merge.input(1)) : Operand{};
    const Operand out = in_place_or_new(lowering, node, result, merge.input(0));
    const MergeStep step{y,
                         other,
                         z,
                         out,
                         rows_of(lowering, result),
                         columns_of(lowering, result),
                         merge.is("merge", "mean") ? 0.5F : 1.0F};
    if (inputs == 3) {
        lowering.step("gated_merge", run_merge, step, {y, other, z}, {out});
    } else {
        lowering.step("gated_merge", run_merge, step, {y, z}, {out});
    }
    return 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
