// scale: each column multiplied by its own factor. Behind a linear it goes into the packed weight (linear.cpp).
#include "lowering_rules.h"
#include "runtime/weights.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

struct ScaleStep {
    Operand in, out;
    std::int64_t rows, columns;
    const float* gamma;
};

void run_scale(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const ScaleStep*>(parameters);
    const Range rows = part_of(step.rows, frame.thread, frame.threads);
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        const float* in = floats(frame, step.in) + row * step.in.row_stride;
        float* out = floats(frame, step.out) + row * step.out.row_stride;
        for (std::int64_t i = 0; i < step.columns; i += kLanes) {
            const Mask mask = first_lanes(step.columns - i);
            store(out + i, mul(load(in + i, mask), load(step.gamma + i)), mask);
        }
    }
}

}  // namespace

int lower_scale(Lowering& lowering, int node) {
    const Node& scale = lowering.node(node);
    const ValueId result = scale.output(0);
    const Operand in = lowering.read(scale.input(0));
    const Operand out = in_place_or_new(lowering, node, result, scale.input(0));
    const ScaleStep step{in, out, rows_of(lowering, result), columns_of(lowering, result),
                         float_vector(lowering, scale.weight("gamma"), kLanes)};
    lowering.step("scale", run_scale, step, {in}, {out});
    return 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
