#include "parts.h"

#include "launch.h"
#include "lowering_rules.h"
#include "storage.h"

namespace vimrt::cuda {

namespace {

template <typename From, typename To>
__global__ void split(const From* from, std::int64_t stride, To* to, std::int64_t count, std::int64_t columns) {
    wait_for_predecessor();
    let_successor_begin();
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t row = i / columns, column = i % columns;
    const float x = to_float(from[row * stride + column]);
    const To high = from_float<To>(x);
    To* place = to + row * 3 * columns + column;
    place[0] = place[2 * columns] = high;
    const float rest = x - to_float(high);
    place[columns] = from_float<To>(isfinite(rest) ? rest : 0.0F);  // what overflows stays infinite, as with one part
}

struct PartsStep {
    Operand in, out;
    std::int64_t rows, columns;
};

void run_parts(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const PartsStep*>(parameters);
    split_in_parts(address(frame, step.in), step.in.row_stride, step.in.dtype, address(frame, step.out), step.out.dtype,
                   step.rows, step.columns, stream_of(frame));
}

}  // namespace

void split_in_parts(const void* in, std::int64_t in_stride, DType in_dtype, void* out, DType out_dtype,
                    std::int64_t rows, std::int64_t columns, cudaStream_t stream) {
    constexpr int threads = 256;
    const std::int64_t count = rows * columns;
    with_storage(in_dtype, [&](auto from) {
        with_storage(out_dtype, [&](auto to) {
            launch("parts", split<decltype(from), decltype(to)>, {blocks_for(count, threads), threads}, stream,
                   static_cast<const decltype(from)*>(in), in_stride, static_cast<decltype(to)*>(out), count, columns);
        });
    });
}

bool needs_parts(const Lowering& lowering) {
    for (int i = 0; i < lowering.node_count(); ++i) {
        const Node& node = lowering.node(i);
        if (node.op() == "gated_merge" && !(node.input_count() == 3 && node.is("merge", "mean"))) return true;
    }
    return false;
}

Operand in_parts(Lowering& lowering, const std::string& name, const Operand& in, std::int64_t rows,
                 std::int64_t columns, DType dtype) {
    Operand out = lowering.scratch(static_cast<std::size_t>(3 * rows * columns) * size_of(dtype));
    out.dtype = dtype;
    out.row_stride = 3 * columns;
    lowering.step(name.c_str(), run_parts, PartsStep{in, out, rows, columns}, {in}, {out});
    return out;
}

}  // namespace vimrt::cuda
