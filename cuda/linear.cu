// linear: out = in W^T + bias, on cuBLASLt (matmul.h).
//
// A scale behind it goes into the weights. Where an add_norm follows, the product is added to the fp32 residual in
// place, unrounded, and the add_norm is left with the norm alone. An out_proj of few rows has a kernel for that
// (out_proj.h).
#include "constants.h"
#include "lowering_rules.h"
#include "matmul.h"
#include "out_proj_step.h"

namespace vimrt::cuda {

namespace {

// The residual that the product `hidden` may be added to in place: that of an add_norm which is all that reads
// `hidden`, where nobody reads the residual after it. -1 where there is none.
ValueId residual_behind(Lowering& lowering, int node, ValueId hidden, const Operand& in) {
    if (!lowering.feeds_next(node, hidden, "add_norm")) return -1;
    const Node& add_norm = lowering.node(node + 1);
    if (add_norm.input_count() < 2) return -1;
    const ValueId residual = add_norm.input(add_norm.input(0) == hidden ? 1 : 0);
    const bool free =
        is_free(lowering, node + 1, residual, DType::F32, true) && lowering.read(residual).buffer != in.buffer;
    return free ? residual : -1;
}

// What a product or a scan reads is stored for it; everything else, the residual stream and the logits, in fp32.
DType result_dtype(const Lowering& lowering, int node, ValueId result, const Target& target) {
    return lowering.feeds_next(node, result, "split") || lowering.feeds_next(node, result, "linear") ? target.dtype
                                                                                                     : DType::F32;
}

struct AddOutProjStep {
    OutProjStep out;
    AddOutProj fixed;
};

void run_add_out_proj(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const AddOutProjStep*>(parameters);
    AddOutProj a = step.fixed;
    a.out = out_proj_of(step.out, frame);
    add_out_proj(a, stream_of(frame));
}

// The product added to `residual` by add_out_proj(), where that serves the shape; false, and nothing is emitted,
// elsewhere.
bool lower_add_out_proj(Lowering& lowering, const Target& target, const Node& linear, const MatmulShape& shape,
                        const Operand& y, const Weight* gamma, const Operand& residual) {
    if (target.parts || size_of(target.dtype) != 2 || linear.has_weight("bias") ||
        !out_proj_takes(y, linear, shape.features, target.dtype) || residual.row_stride != shape.features ||
        residual.offset % 4 != 0)
        return false;
    AddOutProjStep step;
    AddOutProj& a = step.fixed;
    a.dtype = target.dtype;
    a.width = static_cast<int>(shape.features);
    a.rows = shape.rows;
    a.block_rows = add_out_proj_rows(a, target.device);
    if (a.block_rows == 0) return false;
    step.out.residual = step.out.sum = residual;
    place_out_proj(lowering, step.out, y, linear, gamma, target.dtype);
    lowering.step(step_name("linear+add", linear).c_str(), run_add_out_proj, step, {y, residual}, {residual});
    return true;
}

}  // namespace

int lower_linear(Lowering& lowering, int node, const Target& target) {
    if (const int taken = lower_between_scans(lowering, node, target); taken > 0) return taken;
    const Node& linear = lowering.node(node);
    const Operand in =
        target.parts ? lowering.read(linear.input(0)) : stored_as(lowering, linear.input(0), target.dtype, true);
    int last = node;  // the last node taken
    ValueId result = linear.output(0);
    const Weight* gamma = nullptr;
    if (lowering.feeds_next(last, result, "scale")) {
        ++last;
        gamma = &lowering.node(last).weight("gamma");
        result = lowering.node(last).output(0);
    }
    const ValueId residual = residual_behind(lowering, last, result, in);

    const Weight& weight = linear.weight("weight");
    MatmulShape shape;
    shape.rows = rows_of(lowering, linear.output(0));
    shape.depth = weight.shape[1];
    shape.features = weight.shape[0];
    shape.accumulate = residual >= 0;
    const Operand out = shape.accumulate ? lowering.read(residual)
                                         : lowering.write(result, result_dtype(lowering, last, result, target));
    if (!shape.accumulate || !lower_add_out_proj(lowering, target, linear, shape, in, gamma, out)) {
        // cuBLASLt reads a bias of the output's dtype.
        const void* bias = nullptr;
        if (linear.has_weight("bias")) {
            bias = out.dtype == DType::F32 ? float_vector(lowering, linear.weight("bias"), gamma)
                                           : matrix(lowering, linear.weight("bias"), out.dtype, gamma);
        }
        lower_product(lowering, target, shape.accumulate ? "linear+add" : "linear", linear, shape, in, gamma, bias,
                      out);
    }
    if (!shape.accumulate) return last - node + 1;
    return last - node + 1 + lower_norm_of_sum(lowering, last + 1, residual, target);
}

}  // namespace vimrt::cuda
