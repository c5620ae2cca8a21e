// select_tokens: one token of each image, or the mean of its first and last. Behind an add_norm whose other tokens
// nobody reads, only the selected ones are normalised (add_norm.cpp).
#include "kernels/select.h"
#include "lowering_rules.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

struct SelectStep {
    Operand in, out;
    std::int64_t images, tokens, columns;
    SelectedTokens selected;
};

void run_select(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const SelectStep*>(parameters);
    const Range images = part_of(step.images, frame.thread, frame.threads);
    for (std::int64_t image = images.begin; image < images.end; ++image) {
        const float* tokens = floats(frame, step.in) + image * step.tokens * step.in.row_stride;
        average_rows(tokens + step.selected.first * step.in.row_stride,
                     tokens + step.selected.second * step.in.row_stride, step.columns,
                     floats(frame, step.out) + image * step.out.row_stride);
    }
}

}  // namespace

SelectedTokens selected_tokens(const Node& select, std::int64_t tokens) {
    if (select.is("position", "middle")) return {(tokens - 1) / 2, (tokens - 1) / 2};
    if (select.is("position", "last")) return {tokens - 1, tokens - 1};
    return {0, select.is("position", "ends") ? tokens - 1 : 0};
}

int lower_select_tokens(Lowering& lowering, int node) {
    const Node& select = lowering.node(node);
    const Shape& shape = lowering.value(select.input(0)).shape;
    const Operand in = lowering.read(select.input(0));
    const Operand out = lowering.write(select.output(0));
    const SelectStep step{in, out, shape[0], shape[1], shape[2], selected_tokens(select, shape[1])};
    lowering.step("select_tokens", run_select, step, {in}, {out});
    return 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
