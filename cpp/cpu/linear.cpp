// linear: out = in W^T + bias.
//
// Before it, an add_norm whose result nobody else reads: each tile of rows is normalised into a scratch that stays in
// the first-level cache. Behind it, a scale, whose factors go into the packed weight, and the addition of the next
// add_norm, done in place on the residual as the product's tiles are stored.
#include "kernels/gemm.h"
#include "lowering_rules.h"
#include "runtime/weights.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

struct LinearStep {
    Operand in, out;
    std::int64_t rows;
    PackedMatrix weight;
    const float* bias;
    bool accumulate;  // out += rather than out =
    bool normalize;
    Norm norm;
    Operand scratch;  // (threads, rows_per_pass, depth), where `normalize`
};

// Rows are shared out while every thread gets a tile or more; panels of columns otherwise.
struct Share {
    Range rows, panels;
};

Share share_of(const LinearStep& step, const Frame& frame) {
    const std::int64_t panels = panel_count(step.weight);
    if (frame.threads == 1 || step.rows >= frame.threads * kTileRows || panels < frame.threads) {
        return {part_of(step.rows, frame.thread, frame.threads), {0, panels}};
    }
    return {{0, step.rows}, part_of(panels, frame.thread, frame.threads)};
}

void run_linear(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const LinearStep*>(parameters);
    const Share share = share_of(step, frame);
    const std::int64_t in_stride = step.in.row_stride;
    const std::int64_t out_stride = step.out.row_stride;
    const float* in = floats(frame, step.in) + share.rows.begin * in_stride;
    float* out = floats(frame, step.out) + share.rows.begin * out_stride;
    const Epilogue epilogue{step.bias, step.accumulate ? out : nullptr, out_stride};
    gemm(share.rows.size(), in, in_stride, step.weight, share.panels, epilogue, out, out_stride);
}

void run_norm_linear(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const LinearStep*>(parameters);
    const Share share = share_of(step, frame);
    const std::int64_t depth = step.weight.depth;
    const std::int64_t pass = rows_per_pass(step.weight);
    float* scratch = floats(frame, step.scratch) + frame.thread * pass * depth;
    const std::int64_t passes = ceil_div(share.rows.size(), pass);
    for (std::int64_t i = 0; i < passes; ++i) {
        const Range part = part_of(share.rows.size(), i, passes);
        const std::int64_t first = share.rows.begin + part.begin;
        const float* in = floats(frame, step.in) + first * step.in.row_stride;
        for (std::int64_t row = 0; row < part.size(); ++row) {
            normalize_row(step.norm, depth, in + row * step.in.row_stride, scratch + row * depth);
        }
        float* out = floats(frame, step.out) + first * step.out.row_stride;
        gemm(part.size(), scratch, depth, step.weight, share.panels, {step.bias, nullptr, 0}, out, step.out.row_stride);
    }
}

// The residual that the linear's result `hidden` may be added to in place: that of an add_norm which is all that
// reads `hidden`, where nobody reads the residual after it and the linear does not read it either. -1 where there is
// none.
ValueId residual_behind(Lowering& lowering, int node, ValueId hidden, const Operand& input) {
    if (!lowering.feeds_next(node, hidden, "add_norm")) return -1;
    const Node& add_norm = lowering.node(node + 1);
    if (add_norm.input_count() < 2) return -1;
    const ValueId residual = add_norm.input(add_norm.input(0) == hidden ? 1 : 0);
    return lowering.last_read_at(residual, node + 1) && lowering.read(residual).buffer != input.buffer ? residual : -1;
}

const char* step_name(const LinearStep& step) {
    if (step.normalize) return "norm+linear";
    return step.accumulate ? "linear+add" : "linear";
}

}  // namespace

int lower_linear_of(Lowering& lowering, int node, const Operand& input, const Norm* norm) {
    const Node& linear = lowering.node(node);
    int last = node;  // the last node taken
    ValueId result = linear.output(0);
    const Weight* gamma = nullptr;
    if (lowering.feeds_next(last, result, "scale")) {
        ++last;
        gamma = &lowering.node(last).weight("gamma");
        result = lowering.node(last).output(0);
    }
    const ValueId residual = norm == nullptr ? residual_behind(lowering, last, result, input) : -1;

    LinearStep step{};
    step.in = input;
    step.rows = rows_of(lowering, linear.output(0));
    step.weight = packed_linear(lowering, linear.weight("weight"), kLanes, gamma);
    if (linear.has_weight("bias")) step.bias = float_vector(lowering, linear.weight("bias"), kLanes, gamma);
    step.accumulate = residual >= 0;
    step.out = step.accumulate ? lowering.read(residual) : lowering.write(result);
    if (norm != nullptr) {
        step.normalize = true;
        step.norm = *norm;
        const std::int64_t scratch_floats = lowering.threads() * rows_per_pass(step.weight) * step.weight.depth;
        step.scratch = lowering.scratch(static_cast<std::size_t>(scratch_floats) * sizeof(float));
        lowering.step(step_name(step), run_norm_linear, step, {step.in}, {step.out, step.scratch});
    } else if (step.accumulate) {
        lowering.step(step_name(step), run_linear, step, {step.in, step.out}, {step.out});
        return last - node + 1 + lower_norm_of_sum(lowering, last + 1, residual);
    } else {
        lowering.step(step_name(step), run_linear, step, {step.in}, {step.out});
    }
    return last - node + 1;
}

int lower_linear(Lowering& lowering, int node) {
    return lower_linear_of(lowering, node, lowering.read(lowering.node(node).input(0)), nullptr);
}

}  // namespace vimrt::cpu::VIMRT_ISA
