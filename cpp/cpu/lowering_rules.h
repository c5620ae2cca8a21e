// What the operators' lowering has in common, and the rules by which they fuse.
//
// Each operator has a file here, <operator>.cpp, with `int lower_<operator>(Lowering&, int node)`. It emits the steps
// of node `node` and returns how many graph nodes they compute: more than one where it took its successors in. A value
// may be fused away only where feeds_next() says that nobody else reads it.
#pragma once

#include "kernels/normalize.h"
#include "kernels/partition.h"
#include "lowering.h"

namespace vimrt::cpu::VIMRT_ISA {

VIMRT_INLINE float* floats(const Frame& frame, const Operand& operand) {
    return static_cast<float*>(frame.buffers[operand.buffer]) + operand.offset;
}

// All axes of `value` but the last, multiplied, and the last.
VIMRT_INLINE std::int64_t columns_of(const Lowering& lowering, ValueId value) {
    const Shape& shape = lowering.value(value).shape;
    return shape[shape.rank() - 1];
}
VIMRT_INLINE std::int64_t rows_of(const Lowering& lowering, ValueId value) {
    const Shape& shape = lowering.value(value).shape;
    std::int64_t rows = 1;
    for (int axis = 0; axis + 1 < shape.rank(); ++axis) rows *= shape[axis];
    return rows;
}

// Storage for `result`, an elementwise function of `source`: the source's own where nobody needs it any more.
VIMRT_INLINE Operand in_place_or_new(Lowering& lowering, int node, ValueId result, ValueId source) {
    return lowering.last_read_at(source, node) ? lowering.in_place(result, source) : lowering.write(result);
}

// The norm of an add_norm node, with its weights as the kernels want them.
Norm norm_of(Lowering& lowering, const Node& node);

// linear.cpp: emits the linear node `node` on the rows of `input`, each normalised first where `norm` is given,
// together with a scale behind it. Takes the addition of an add_norm behind those in too, unless `norm` is given:
// linear, add_norm, linear, add_norm, ... is cut into steps of one linear each. Returns the number of nodes taken.
int lower_linear_of(Lowering& lowering, int node, const Operand& input, const Norm* norm);

// add_norm.cpp: emits what is left of the add_norm node `node` when `sum`, with the storage of value `sum_source`,
// already holds hidden + residual, together with what follows it. Returns the number of nodes taken.
int lower_norm_of_sum(Lowering& lowering, int node, ValueId sum_source);

}  // namespace vimrt::cpu::VIMRT_ISA
