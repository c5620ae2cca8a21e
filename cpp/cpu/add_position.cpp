// add_position: the position table, resampled to the image's grid when the program was made, added to every image.
// Behind a patch_embed the products' epilogue adds it (patch_embed.cpp).
#include "lowering_rules.h"
#include "runtime/grid_tables.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

struct PositionStep {
    Operand in, out;
    std::int64_t rows, tokens, columns;  // rows = images * tokens
    const float* table;                  // (tokens, columns)
};

void run_add_position(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const PositionStep*>(parameters);
    const Range rows = part_of(step.rows, frame.thread, frame.threads);
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        const float* in = floats(frame, step.in) + row * step.in.row_stride;
        const float* position = step.table + row % step.tokens * step.columns;
        float* out = floats(frame, step.out) + row * step.out.row_stride;
        for (std::int64_t i = 0; i < step.columns; i += kLanes) {
            const Mask mask = first_lanes(step.columns - i);
            store(out + i, add(load(in + i, mask), load(position + i, mask)), mask);
        }
    }
}

}  // namespace

int lower_add_position(Lowering& lowering, int node) {
    const Node& add_position = lowering.node(node);
    const ValueId result = add_position.output(0);
    const ValueInfo& info = lowering.value(add_position.input(0));
    const Operand in = lowering.read(add_position.input(0));
    const Operand out = in_place_or_new(lowering, node, result, add_position.input(0));
    const PositionStep step{in,
                            out,
                            rows_of(lowering, result),
                            info.shape[1],
                            info.shape[2],
                            position_table(lowering, add_position, info.grid_rows, info.grid_columns)};
    lowering.step("add_position", run_add_position, step, {in}, {out});
    return 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
