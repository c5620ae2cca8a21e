// What the operators' lowering has in common.
//
// Each operator has a file here, <operator>.cu, with its kernel, the function that launches it, and
// `int lower_<operator>(Lowering&, int node, const Target&)`, which emits the steps of node `node` and returns how many
// graph nodes they compute. Everything between operators is a matrix of tokens by channels. The residual stream, and
// what is added to it, is stored in fp32; what matrix products read is stored in Target::operand_dtype().
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "device.h"
#include "lowering.h"

namespace vimrt::cuda {

class MatmulAlgorithms;
class CublasLt;

// What programs are lowered for.
struct Target {
    DType dtype = DType::F32;
    DeviceProperties device;
    MatmulAlgorithms* algorithms = nullptr;
    // Whether products take fp32 operands, as two parts of `dtype` (parts.h), instead of rounding them to it.
    bool parts = false;

    // What the operands of products are stored as before.
    DType operand_dtype() const { return parts ? DType::F32 : dtype; }
};

// Frame::backend of a step.
struct Launch {
    cudaStream_t stream = nullptr;
    const CublasLt* blas = nullptr;
};

inline cudaStream_t stream_of(const Frame& frame) {
    return static_cast<const Launch*>(frame.backend)->stream;
}

inline std::int64_t columns_of(const Lowering& lowering, ValueId value) {
    return lowering.value(value).shape[-1];
}
inline std::int64_t rows_of(const Lowering& lowering, ValueId value) {
    const Shape& shape = lowering.value(value).shape;
    return shape.elements() / shape[-1];
}

inline bool is_dense(const Lowering& lowering, ValueId value, const Operand& operand) {
    return operand.row_stride == columns_of(lowering, value);
}

// True when the storage of `value`, dense and of `dtype`, may be overwritten by node `node`. With `strided`, its rows
// may lie further apart.
inline bool is_free(Lowering& lowering, int node, ValueId value, DType dtype, bool strided = false) {
    const Operand operand = lowering.read(value);
    return lowering.last_read_at(value, node) && operand.dtype == dtype &&
           (strided || is_dense(lowering, value, operand));
}

// Storage of `dtype` for `result`, an elementwise function of `source`: the source's own where nobody needs it any
// more.
inline Operand in_place_or_new(Lowering& lowering, int node, ValueId result, ValueId source, DType dtype) {
    return is_free(lowering, node, source, dtype) ? lowering.in_place(result, source) : lowering.write(result, dtype);
}

inline void* address(const Frame& frame, const Operand& operand) {
    return static_cast<char*>(frame.buffers[operand.buffer]) +
           operand.offset * static_cast<std::int64_t>(size_of(operand.dtype));
}

inline std::string step_name(const char* what, const Node& node) {
    return std::string(what) + " " + node.name();
}

// convert.cu: `value` as a dense matrix of `dtype`: its own storage, or a copy made by a step before. With `strided`,
// rows may lie further apart.
Operand stored_as(Lowering& lowering, ValueId value, DType dtype, bool strided = false);
// convert.cu: copies a matrix, converting its elements.
void lower_copy(Lowering& lowering, const char* name, const Operand& source, const Operand& destination,
                std::int64_t rows, std::int64_t columns);

// parts.cu: whether 16-bit products of the graph need their operands in two parts: where blocks merge their directions
// by anything but the mean, what rounding them costs is up to twice as much.
bool needs_parts(const Lowering& lowering);
// parts.cu: `in`, a matrix of fp32 or `dtype`, as the left side of a product with matrix_in_parts() (constants.h).
Operand in_parts(Lowering& lowering, const std::string& name, const Operand& in, std::int64_t rows,
                 std::int64_t columns, DType dtype);

// add_norm.cu: emits the add_norm node `node` when the value `sum` already holds hidden + residual, with what follows
// it.
int lower_norm_of_sum(Lowering& lowering, int node, ValueId sum, const Target& target);

// bidirectional_scan.cu: emits all nodes from node `node`, an out_proj or the first norm, to the scan behind it and its
// gated_merge, where few tokens make it better to compute what lies in front of the scan in one kernel; returns how
// many nodes that was. 0, and nothing is emitted, elsewhere.
int lower_between_scans(Lowering& lowering, int node, const Target& target);

// bidirectional_scan.cu: the same for many tokens, from the norm on, node `node`, of the value `sum`.
int lower_before_scan(Lowering& lowering, int node, ValueId sum, const Target& target);

// bidirectional_scan.cu: see Backend::preferred_rounds().
std::vector<Round> preferred_rounds(const Lowering& lowering, const Target& target);

// Blocks of `threads` threads that together have `count`.
inline unsigned blocks_for(std::int64_t count, int threads) {
    return static_cast<unsigned>((count + threads - 1) / threads);
}

}  // namespace vimrt::cuda
