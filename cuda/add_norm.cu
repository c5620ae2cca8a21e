// add_norm: residual <- residual + hidden in fp32, normed <- RMSNorm or LayerNorm of it, stored for the next product.
//
// A warp owns a row and keeps it in registers, so that it is read once and its variance is taken about its mean. The
// addition is often done before, by the product that accumulates into the residual (linear.cu), and then only the norm
// is left.
#include "add_norm.h"

#include "constants.h"
#include "launch.h"
#include "lowering_rules.h"
#include "ptx.cuh"
#include "storage.h"

namespace vimrt::cuda {

namespace {

constexpr int warp_size = 32;
constexpr int rows_per_block = 4;

__device__ float warp_sum(float x) {
#pragma unroll
    for (int offset = warp_size / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(all_lanes, x, offset);
    return x;
}

// Each lane holds `Packs` packs of V neighbouring columns.
template <typename Normed, int V, int Packs>
__global__ void __launch_bounds__(warp_size* rows_per_block) add_norm_rows(const AddNorm a) {
    wait_for_predecessor();
    let_successor_begin();
    const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * rows_per_block + threadIdx.y;
    if (row >= a.rows) return;
    const auto column_of = [](int pack) { return (pack * warp_size + static_cast<int>(threadIdx.x)) * V; };
    // All of a row's loads are under way at once.
    const auto load_row = [&](const float* from, float(&to)[Packs][V]) {
#pragma unroll
        for (int p = 0; p < Packs; ++p) {
            if (column_of(p) < a.columns) load_floats(from + column_of(p), to[p]);
        }
    };
    float values[Packs][V] = {};
    load_row(a.hidden + row * a.hidden_stride, values);
    if (a.residual != nullptr) {
        float residual[Packs][V] = {};
        load_row(a.residual + row * a.columns, residual);
#pragma unroll
        for (int p = 0; p < Packs; ++p) {
#pragma unroll
            for (int i = 0; i < V; ++i) values[p][i] += residual[p][i];
        }
    }
    float sum = 0;
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
        if (column_of(p) >= a.columns) break;
        if (a.sum != nullptr) store_floats(a.sum + row * a.columns + column_of(p), values[p]);
#pragma unroll
        for (int i = 0; i < V; ++i) sum += values[p][i];
    }
    const float mean = a.centred ? warp_sum(sum) / static_cast<float>(a.columns) : 0.0F;
    float squares = 0;
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
        if (column_of(p) >= a.columns) break;
#pragma unroll
        for (int i = 0; i < V; ++i) squares += (values[p][i] - mean) * (values[p][i] - mean);
    }
    const float scale = rsqrtf(warp_sum(squares) / static_cast<float>(a.columns) + a.eps);
    auto* normed = static_cast<Normed*>(a.normed) + row * a.columns;
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
        const int column = column_of(p);
        if (column >= a.columns) break;
        float weight[V];
        float bias[V] = {};
        load_floats(a.weight + column, weight);
        if (a.bias != nullptr) load_floats(a.bias + column, bias);
#pragma unroll
        for (int i = 0; i < V; ++i) values[p][i] = (values[p][i] - mean) * scale * weight[i] + bias[i];
        store_floats(normed + column, values[p]);
    }
}

template <typename Normed, int V>
void launch_rows(const AddNorm& a, cudaStream_t stream) {
    const Grid grid{blocks_for(a.rows, rows_per_block), {warp_size, rows_per_block}};
    if (a.columns <= 2 * warp_size * V) {
        launch("add_norm", add_norm_rows<Normed, V, 2>, grid, stream, a);
    } else if (a.columns <= 8 * warp_size * V) {
        launch("add_norm", add_norm_rows<Normed, V, 8>, grid, stream, a);
    } else {
        launch("add_norm", add_norm_rows<Normed, V, 32>, grid, stream, a);
    }
}

struct AddNormStep {
    AddNorm fixed;
    Operand hidden, residual, sum, normed;  // buffer -1 where there is none
};

void run_add_norm(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const AddNormStep*>(parameters);
    AddNorm a = step.fixed;
    a.hidden = frame.at<float>(step.hidden);
    a.hidden_stride = step.hidden.row_stride;
    a.normed = address(frame, step.normed);
    if (step.residual.buffer >= 0) a.residual = frame.at<float>(step.residual);
    if (step.sum.buffer >= 0) a.sum = frame.at<float>(step.sum);
    add_norm(a, stream_of(frame));
}

AddNorm norm_of(Lowering& lowering, int node) {
    const Node& norm = lowering.node(node);
    const std::int64_t columns = columns_of(lowering, norm.output(0));
    if (columns > max_norm_columns(columns)) {
        lowering.fail(node,
                      "the CUDA backend normalises at most 4096 channels, or 1024 where 4 does not divide them; use "
                      "device=\"cpu\"");
    }
    AddNorm a;
    a.rows = rows_of(lowering, norm.output(0));
    a.columns = static_cast<int>(columns);
    a.weight = float_vector(lowering, norm.weight("weight"));
    if (norm.has_weight("bias")) a.bias = float_vector(lowering, norm.weight("bias"));
    a.eps = static_cast<float>(norm.number("eps"));
    a.centred = norm.is("norm", "layer");
    return a;
}

}  // namespace

void add_norm(const AddNorm& a, cudaStream_t stream) {
    with_storage(a.normed_dtype, [&](auto normed) {
        if (a.columns % 4 == 0) {
            launch_rows<decltype(normed), 4>(a, stream);
        } else {
            launch_rows<decltype(normed), 1>(a, stream);
        }
    });
}

int lower_norm_of_sum(Lowering& lowering, int node, ValueId sum, const Target& target) {
    if (const int taken = lower_before_scan(lowering, node, sum, target); taken > 0) return taken;
    const Node& norm = lowering.node(node);
    AddNormStep step{norm_of(lowering, node), stored_as(lowering, sum, DType::F32, true), {}, {}, {}};
    if (norm.output_count() == 2) {
        if (is_free(lowering, node, sum, DType::F32)) {
            lowering.in_place(norm.output(1), sum);
        } else {
            step.sum = lowering.write(norm.output(1));
        }
    }
    step.normed = lowering.write(norm.output(0), target.operand_dtype());
    step.fixed.normed_dtype = step.normed.dtype;
    const Operand& written = step.sum.buffer < 0 ? step.normed : step.sum;
    lowering.step(step_name("norm", norm).c_str(), run_add_norm, step, {step.hidden}, {step.normed, written});
    return 1;
}

int lower_add_norm(Lowering& lowering, int node, const Target& target) {
    const Node& norm = lowering.node(node);
    if (const int taken = lower_between_scans(lowering, node, target); taken > 0) return taken;
    if (norm.input_count() == 1) return lower_norm_of_sum(lowering, node, norm.input(0), target);
    const ValueId residual = norm.input(1);
    AddNormStep step{norm_of(lowering, node),
                     stored_as(lowering, norm.input(0), DType::F32),
                     stored_as(lowering, residual, DType::F32),
                     {},
                     {}};
    if (norm.output_count() == 2) step.sum = in_place_or_new(lowering, node, norm.output(1), residual, DType::F32);
    step.normed = lowering.write(norm.output(0), target.operand_dtype());
    step.fixed.normed_dtype = step.normed.dtype;
    const Operand& written = step.sum.buffer < 0 ? step.normed : step.sum;
    lowering.step(step_name("add_norm", norm).c_str(), run_add_norm, step, {step.hidden, step.residual},
                  {step.normed, written});
    return 1;
}

}  // namespace vimrt::cuda
