// select_tokens: one token of each image, without a copy where nobody needs the others any more; or the mean of its
// first and last. Of an add_norm in front whose other tokens nobody reads, only those two are normalised
// (add_norm.cpp).
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

int lower_select_tokens(Lowering& lowering, int node) {
    if (lowering.view_selected_token(node)) return 1;
    const Node& select = lowering.node(node);
    const Shape& shape = lowering.value(select.input(0)).shape;
    const Operand in = lowering.read(select.input(0));
    const Operand out = lowering.write(select.output(0));
    const SelectStep step{in, out, shape[0], shape[1], shape[2], selected_tokens(select, shape[1])};
    lowering.step("select_tokens", run_select, step, {in}, {out});
    return 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
