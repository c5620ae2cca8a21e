#include "matmul.h"

#include <algorithm>

#include "constants.h"
#include "vimrt/error.h"

namespace vimrt::cuda {

namespace {

// More would help no product of these models, and it counts as activations.
constexpr std::uint64_t max_workspace_bytes = 4 << 20;
constexpr std::size_t max_known_shapes = 4096;

cudaDataType_t cuda_type(DType dtype) {
    switch (dtype) {
        case DType::F16:
            return CUDA_R_16F;
        case DType::BF16:
            return CUDA_R_16BF;
        default:
            return CUDA_R_32F;
    }
}

// cuBLASLt's matrices are column-major: the row-major out (rows, features) is its features x rows, so that the weight
// (features, depth) is its transposed first operand and `in` its second.
class Problem {
public:
    Problem(const CublasLt& blas, const MatmulShape& shape, const void* bias) : blas_(blas) {
        const auto create = [&](lt::MatrixLayout& layout, DType dtype, std::int64_t rows, std::int64_t columns,
                                std::int64_t stride, std::int64_t batch_stride) {
            const auto count = static_cast<std::int32_t>(shape.batch);
            blas.check(blas.layout_create(&layout, cuda_type(dtype), static_cast<std::uint64_t>(rows),
                                          static_cast<std::uint64_t>(columns), stride),
                       "a matrix cannot be described to cuBLASLt");
            set(blas.layout_set, layout, lt::layout_batch_count, count);
            set(blas.layout_set, layout, lt::layout_batch_stride, batch_stride);
        };
        blas.check(blas.desc_create(&desc, lt::compute_fp32, CUDA_R_32F), "a product cannot be described to cuBLASLt");
        set(blas.desc_set, desc, lt::desc_transpose_a, lt::transpose);
        if (shape.bias) {
            set(blas.desc_set, desc, lt::desc_epilogue, lt::epilogue_bias);
            set(blas.desc_set, desc, lt::desc_bias_pointer, bias);
        }
        create(weight, shape.in_dtype, shape.depth, shape.features, shape.depth, shape.features * shape.depth);
        create(in, shape.in_dtype, shape.depth, shape.rows, shape.in_stride, shape.in_batch_stride);
        create(out, shape.out_dtype, shape.features, shape.rows, shape.out_stride, shape.out_batch_stride);
    }
    ~Problem() {
        if (out != nullptr) blas_.layout_destroy(out);
        if (in != nullptr) blas_.layout_destroy(in);
        if (weight != nullptr) blas_.layout_destroy(weight);
        if (desc != nullptr) blas_.desc_destroy(desc);
    }
    Problem(const Problem&) = delete;
    Problem& operator=(const Problem&) = delete;

    lt::MatmulDesc desc = nullptr;
    lt::MatrixLayout weight = nullptr;
    lt::MatrixLayout in = nullptr;
    lt::MatrixLayout out = nullptr;

private:
    template <typename Set, typename Object, typename Key, typename Value>
    void set(Set function, Object object, Key key, const Value& value) {
        blas_.check(function(object, key, &value, sizeof(value)), "a product cannot be described to cuBLASLt");
    }

    const CublasLt& blas_;
};

class Preference {
public:
    Preference(const CublasLt& blas, const MatmulShape& shape) : blas_(blas) {
        blas.check(blas.preference_create(&get), "cuBLASLt cannot be asked for an algorithm");
        set(lt::preference_max_workspace_bytes, max_workspace_bytes);
        // Not INPLACE, whose atomic additions come in any order: results repeat bit by bit.
        set(lt::preference_reduction_schemes, lt::reduction_in_compute_type | lt::reduction_in_output_type);
        set(lt::preference_alignment_b, static_cast<std::uint32_t>(shape.in_alignment));
        set(lt::preference_alignment_c, static_cast<std::uint32_t>(shape.out_alignment));
        set(lt::preference_alignment_d, static_cast<std::uint32_t>(shape.out_alignment));
    }
    ~Preference() { blas_.preference_destroy(get); }
    Preference(const Preference&) = delete;
    Preference& operator=(const Preference&) = delete;

    lt::MatmulPreference get = nullptr;

private:
    template <typename Value>
    void set(lt::PreferenceAttribute key, const Value& value) {
        blas_.check(blas_.preference_set(get, key, &value, sizeof(value)), "cuBLASLt cannot be asked for an algorithm");
    }

    const CublasLt& blas_;
};

// The largest power of two, up to 256, that divides every one of `bytes`.
int alignment_of(std::initializer_list<std::int64_t> bytes) {
    std::int64_t bits = 256;
    for (const std::int64_t count : bytes) bits |= count;
    return static_cast<int>(bits & -bits);
}

struct MatmulStep {
    Matmul matmul;
    Operand in, out, workspace;
    const void* weight;
    const void* bias;
};

void run_step(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const MatmulStep*>(parameters);
    void* workspace = step.workspace.buffer < 0 ? nullptr : address(frame, step.workspace);
    run_matmul(step.matmul, *static_cast<const Launch*>(frame.backend), address(frame, step.in), step.weight, step.bias,
               address(frame, step.out), workspace);
}

}  // namespace

Matmul MatmulAlgorithms::choose(const MatmulShape& shape) {
    const std::lock_guard lock(mutex_);
    if (const auto found = known_.find(shape); found != known_.end()) return found->second;
    const Problem problem(blas_, shape, nullptr);
    const Preference preference(blas_, shape);
    lt::HeuristicResult result{};
    int count = 0;
    const lt::Status status = blas_.find_algorithms(blas_.handle, problem.desc, problem.weight, problem.in, problem.out,
                                                    problem.out, preference.get, 1, &result, &count);
    if (status != lt::success || count == 0) {
        throw DeviceError("cuBLASLt has no algorithm for a product of " + std::to_string(shape.rows) + "x" +
                          std::to_string(shape.depth) + " and " + std::to_string(shape.depth) + "x" +
                          std::to_string(shape.features) + " " + std::string(name_of(shape.in_dtype)) +
                          " matrices; give dtype=\"fp32\", or use device=\"cpu\"");
    }
    if (known_.size() >= max_known_shapes) known_.clear();
    return known_[shape] = {shape, result.algorithm, result.workspace_bytes};
}

void run_matmul(const Matmul& matmul, const Launch& launch, const void* in, const void* weight, const void* bias,
                void* out, void* workspace) {
    const Problem problem(*launch.blas, matmul.shape, bias);
    const float one = 1.0F;
    const float beta = matmul.shape.accumulate ? 1.0F : 0.0F;
    launch.blas->check(launch.blas->matmul(launch.blas->handle, problem.desc, &one, weight, problem.weight, in,
                                           problem.in, &beta, out, problem.out, out, problem.out, &matmul.algorithm,
                                           workspace, matmul.workspace_bytes, launch.stream),
                       "cuBLASLt failed");
}

void lower_matmul(Lowering& lowering, const Target& target, const std::string& name, MatmulShape shape,
                  const Operand& in, const void* weight, const void* bias, const Operand& out) {
    const auto in_bytes = static_cast<std::int64_t>(size_of(in.dtype));
    const auto out_bytes = static_cast<std::int64_t>(size_of(out.dtype));
    shape.in_stride = in.row_stride;
    shape.out_stride = out.row_stride;
    shape.in_dtype = in.dtype;
    shape.out_dtype = out.dtype;
    shape.bias = bias != nullptr;
    shape.in_alignment = alignment_of({in.offset * in_bytes, shape.in_batch_stride * in_bytes});
    shape.out_alignment = alignment_of({out.offset * out_bytes, shape.out_batch_stride * out_bytes});

    MatmulStep step{target.algorithms->choose(shape), in, out, {}, weight, bias};
    const Operand& added_to = shape.accumulate ? out : in;
    if (step.matmul.workspace_bytes == 0) {
        lowering.step(name.c_str(), run_step, step, {in, added_to}, {out});
        return;
    }
    step.workspace = lowering.scratch(step.matmul.workspace_bytes);
    lowering.step(name.c_str(), run_step, step, {in, added_to}, {out, step.workspace});
}

void lower_product(Lowering& lowering, const Target& target, const char* what, const Node& node, MatmulShape shape,
                   const Operand& in, const Weight* gamma, const void* bias, const Operand& out) {
    const Weight& weight = node.weight("weight");
    if (!target.parts) {
        return lower_matmul(lowering, target, step_name(what, node), shape, in,
                            matrix(lowering, weight, target.dtype, gamma), bias, out);
    }
    const Operand parts = in_parts(lowering, step_name("parts", node), in, shape.rows, shape.depth, target.dtype);
    shape.depth *= 3;
    lower_matmul(lowering, target, step_name(what, node), shape, parts,
                 matrix_in_parts(lowering, weight, target.dtype, gamma), bias, out);
}

}  // namespace vimrt::cuda
