// rope: v cos + rot(v) sin, where rot pairs channels (0, 1), (2, 3), ...: (a, b) -> (-b, a).
#include "lowering_rules.h"
#include "runtime/grid_tables.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

struct RopeStep {
    Operand in, out;
    std::int64_t rows, patches, columns;  // rows = images * patches
    RopeTables tables;                    // (patches, columns)
};

void run_rope(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const RopeStep*>(parameters);
    const Range rows = part_of(step.rows, frame.thread, frame.threads);
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        const float* in = floats(frame, step.in) + row * step.in.row_stride;
        float* out = floats(frame, step.out) + row * step.out.row_stride;
        const float* cos = step.tables.cos + row % step.patches * step.columns;
        const float* sin = step.tables.sin + row % step.patches * step.columns;
        for (std::int64_t i = 0; i < step.columns; i += kLanes) {
            const Mask mask = first_lanes(step.columns - i);
            const Vec v = load(in + i, mask);
            const Vec turned = mul(swap_pairs(v), load(sin + i, mask));
            store(out + i, fma(v, load(cos + i, mask), negate_even(turned)), mask);
        }
    }
}

}  // namespace

int lower_rope(Lowering& lowering, int node) {
    const Node& rope = lowering.node(node);
    const ValueId result = rope.output(0);
    const ValueInfo& info = lowering.value(rope.input(0));
    const Operand in = lowering.read(rope.input(0));
    const Operand out = in_place_or_new(lowering, node, result, rope.input(0));
    const RopeStep step{in,
                        out,
                        rows_of(lowering, result),
                        info.shape[1],
                        info.shape[2],
                        rope_tables(lowering, rope, info.grid_rows, info.grid_columns)};
    lowering.step("rope", run_rope, step, {in}, {out});
    return 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
