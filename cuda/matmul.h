// out = in W^T (+ bias) (+ out), on cuBLASLt: everything row-major, tokens by channels.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>

#include "cublaslt.h"
#include "lowering_rules.h"

namespace vimrt::cuda {

// Products are summed in fp32. fp32 operands are multiplied as fp32, never rounded to TF32.
struct MatmulShape {
    std::int64_t rows = 0;      // of in and out, in each of the batch
    std::int64_t depth = 0;     // K: columns of in and W
    std::int64_t features = 0;  // rows of W, columns of out
    std::int64_t batch = 1;
    std::int64_t in_stride = 0;  // elements from row to row
    std::int64_t out_stride = 0;
    std::int64_t in_batch_stride =
        0;  // elements from one of the batch to the next; the weights lie one behind the other
    std::int64_t out_batch_stride = 0;
    DType in_dtype = DType::F32;  // of in and W
    DType out_dtype = DType::F32;
    bool accumulate = false;
    bool bias = false;      // stored as out_dtype
    int in_alignment = 16;  // bytes, of in's first element and of its batch stride
    int out_alignment = 16;

    friend auto operator<=>(const MatmulShape&, const MatmulShape&) = default;
};

// What a step keeps of a product.
struct Matmul {
    MatmulShape shape;
    lt::Algorithm algorithm{};
    std::size_t workspace_bytes = 0;
};

// Chooses algorithms by cuBLASLt's heuristic, once for each shape.
class MatmulAlgorithms {
public:
    explicit MatmulAlgorithms(const CublasLt& blas) : blas_(blas) {}

    // Throws DeviceError where cuBLASLt has no algorithm for the shape.
    Matmul choose(const MatmulShape& shape);

private:
    const CublasLt& blas_;
    std::mutex mutex_;
    std::map<MatmulShape, Matmul> known_;
};

// Enqueues the product.
void run_matmul(const Matmul& matmul, const Launch& launch, const void* in, const void* weight, const void* bias,
                void* out, void* workspace);

// Emits a step that computes the product. `weight` and `bias` are constants; `bias` may be null.
void lower_matmul(Lowering& lowering, const Target& target, const std::string& name, MatmulShape shape,
                  const Operand& in, const void* weight, const void* bias, const Operand& out);

// The same of a node's own "weight", its rows multiplied by `gamma` unless that is null; `in` is stored as
// target.operand_dtype() or target.dtype. `what` begins the step's name.
void lower_product(Lowering& lowering, const Target& target, const char* what, const Node& node, MatmulShape shape,
                   const Operand& in, const Weight* gamma, const void* bias, const Operand& out);

}  // namespace vimrt::cuda
