// out_proj as a program's steps keep it: operands instead of addresses.
#pragma once

#include "constants.h"
#include "lowering_rules.h"
#include "out_proj.h"

namespace vimrt::cuda {

struct OutProjStep {
    OutProj fixed;
    Operand y, residual, sum;  // y, sum: buffer -1 where there is none
};

inline OutProj out_proj_of(const OutProjStep& step, const Frame& frame) {
    OutProj a = step.fixed;
    a.residual = frame.at<float>(step.residual);
    if (step.y.buffer < 0) return a;
    a.y = address(frame, step.y);
    a.sum = frame.at<float>(step.sum);
    return a;
}

// Whether the kernels read such a y: rows of twice as many columns as the residual has, 16 bytes at a time.
inline bool out_proj_takes(const Operand& y, const Node& out_proj, std::int64_t width, DType dtype) {
    return out_proj.weight("weight").shape[1] == 2 * width && y.dtype == dtype && y.row_stride % 8 == 0 &&
           y.offset % 8 == 0;
}
// `gamma`: a scale behind out_proj, or null.
inline void place_out_proj(Lowering& lowering, OutProjStep& step, const Operand& y, const Node& out_proj,
                           const Weight* gamma, DType dtype) {
    step.y = y;
    step.fixed.y_stride = y.row_stride;
    step.fixed.weight = matrix(lowering, out_proj.weight("weight"), dtype, gamma);
}

}  // namespace vimrt::cuda
