// add_norm: residual <- residual + hidden, normed <- RMSNorm or LayerNorm of it.
//
// Three forms: on its own (below); without the addition, where the linear before it has already accumulated into the
// residual (linear.cpp); and without a step of its own, where one linear alone reads the normed tokens and normalises
// them tile by tile.
#include "kernels/select.h"
#include "lowering_rules.h"
#include "runtime/copy.h"
#include "runtime/weights.h"

namespace vimrt::cpu::VIMRT_ISA {

Norm norm_of(Lowering& lowering, const Node& node) {
    Norm norm;
    norm.centred = node.is("norm", "layer");
    norm.weight = float_vector(lowering, node.weight("weight"), kLanes);
    if (node.has_weight("bias")) norm.bias = float_vector(lowering, node.weight("bias"), kLanes);
    norm.eps = static_cast<float>(node.number("eps"));
    return norm;
}

namespace {

struct AddNormStep {
    Operand hidden;    // buffer -1: `sum` holds the sum already
    Operand residual;  // buffer -1: there is none
    Operand sum;       // where residual + hidden goes; may be either's storage
    Operand normed;    // may be the storage of `sum`
    std::int64_t rows, columns;
    Norm norm;
};

void add_rows(const float* a, const float* b, float* out, std::int64_t columns) {
    for (std::int64_t i = 0; i < columns; i += kLanes) {
        const Mask mask = first_lanes(columns - i);
        store(out + i, add(load(a + i, mask), load(b + i, mask)), mask);
    }
}

void run_add_norm(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const AddNormStep*>(parameters);
    const Range rows = part_of(step.rows, frame.thread, frame.threads);
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        float* sum = floats(frame, step.sum) + row * step.sum.row_stride;
        if (step.residual.buffer >= 0) {
            add_rows(floats(frame, step.hidden) + row * step.hidden.row_stride,
                     floats(frame, step.residual) + row * step.residual.row_stride, sum, step.columns);
        }
        normalize_row(step.norm, step.columns, sum, floats(frame, step.normed) + row * step.normed.row_stride);
    }
}

// The rows that a select_tokens behind the norm reads; the others are never normalised.
struct SelectNormStep {
    Operand sum, out;
    std::int64_t images, tokens, columns;
    SelectedTokens selected;
    Norm norm;
    Operand scratch;  // (threads, 2, columns padded to registers)
};

void run_select_norm(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const SelectNormStep*>(parameters);
    const std::int64_t stride = round_up(step.columns, kLanes);
    float* first = floats(frame, step.scratch) + frame.thread * 2 * stride;
    float* second = first + stride;
    const Range images = part_of(step.images, frame.thread, frame.threads);
    for (std::int64_t image = images.begin; image < images.end; ++image) {
        const float* tokens = floats(frame, step.sum) + image * step.tokens * step.sum.row_stride;
        float* out = floats(frame, step.out) + image * step.out.row_stride;
        normalize_row(step.norm, step.columns, tokens + step.selected.first * step.sum.row_stride, first);
        normalize_row(step.norm, step.columns, tokens + step.selected.second * step.sum.row_stride, second);
        average_rows(first, second, step.columns, out);
    }
}

int lower_select_norm(Lowering& lowering, int node, const Operand& sum, const Norm& norm) {
    const Node& select = lowering.node(node + 1);
    const Shape& shape = lowering.value(select.input(0)).shape;
    SelectNormStep step{sum,      lowering.write(select.output(0)),  shape[0], shape[1],
                        shape[2], selected_tokens(select, shape[1]), norm,     {}};
    const std::int64_t scratch_floats = lowering.threads() * 2 * round_up(step.columns, kLanes);
    step.scratch = lowering.scratch(static_cast<std::size_t>(scratch_floats) * sizeof(float));
    lowering.step("select_tokens+norm", run_select_norm, step, {sum}, {step.out, step.scratch});
    return 2;
}

// The residual output takes over the storage of `source`, or a copy of it where others still need `source` as it is.
Operand lower_residual(Lowering& lowering, int node, ValueId source) {
    const Node& add_norm = lowering.node(node);
    const Operand from = lowering.read(source);
    if (add_norm.output_count() < 2) return from;
    if (lowering.last_read_at(source, node)) return lowering.in_place(add_norm.output(1), source);
    const Operand copy = lowering.write(add_norm.output(1));
    lower_copy(lowering, from, copy, rows_of(lowering, source), columns_of(lowering, source));
    return copy;
}

}  // namespace

int lower_norm_of_sum(Lowering& lowering, int node, ValueId sum_source) {
    const Node& add_norm = lowering.node(node);
    const ValueId normed = add_norm.output(0);
    const Norm norm = norm_of(lowering, add_norm);
    const Operand sum = lower_residual(lowering, node, sum_source);
    if (lowering.feeds_next(node, normed, "linear")) return 1 + lower_linear_of(lowering, node + 1, sum, &norm);
    if (lowering.feeds_next(node, normed, "select_tokens")) return lower_select_norm(lowering, node, sum, norm);

    const bool sum_is_free = add_norm.output_count() < 2 && lowering.last_read_at(sum_source, node);
    const Operand out = sum_is_free ? lowering.in_place(normed, sum_source) : lowering.write(normed);
    const AddNormStep step{{}, {}, sum, out, rows_of(lowering, normed), columns_of(lowering, normed), norm};
    lowering.step("norm", run_add_norm, step, {sum}, {out});
    return 1;
}

int lower_add_norm(Lowering& lowering, int node) {
    const Node& add_norm = lowering.node(node);
    if (add_norm.input_count() == 1) return lower_norm_of_sum(lowering, node, add_norm.input(0));

    const ValueId hidden = add_norm.input(0);
    const ValueId residual = add_norm.input(1);
    const ValueId normed = add_norm.output(0);
    const Operand hidden_in = lowering.read(hidden);
    const Operand residual_in = lowering.read(residual);
    Operand sum;
    if (add_norm.output_count() == 2) sum = in_place_or_new(lowering, node, add_norm.output(1), residual);
    const Operand out = hidden != residual && lowering.last_read_at(hidden, node) ? lowering.in_place(normed, hidden)
                                                                                  : lowering.write(normed);
    if (add_norm.output_count() == 1) sum = out;
    const AddNormStep step{hidden_in,
                           residual_in,
                           sum,
                           out,
                           rows_of(lowering, normed),
                           columns_of(lowering, normed),
                           norm_of(lowering, add_norm)};
    lowering.step("add_norm", run_add_norm, step, {hidden_in, residual_in}, {sum, out});
    return 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
