// Copies a matrix row by row, converting its elements between fp32, fp16 and bf16.
#include "lowering_rules.h"
#include "storage.h"

namespace vimrt::cuda {

namespace {

template <typename From, typename To>
__global__ void convert(const From* from, std::int64_t from_stride, To* to, std::int64_t to_stride, std::int64_t rows,
                        std::int64_t columns) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= rows * columns) return;
    const std::int64_t row = i / columns;
    const std::int64_t column = i % columns;
    to[row * to_stride + column] = from_float<To>(to_float(from[row * from_stride + column]));
}

struct ConvertStep {
    Operand from, to;
    std::int64_t rows, columns;
};

void run_convert(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const ConvertStep*>(parameters);
    constexpr int threads = 256;
    with_storage(step.from.dtype, [&](auto from) {
        with_storage(step.to.dtype, [&](auto to) {
            convert<<<blocks_for(step.rows * step.columns, threads), threads, 0, stream_of(frame)>>>(
                static_cast<const decltype(from)*>(address(frame, step.from)), step.from.row_stride,
                static_cast<decltype(to)*>(address(frame, step.to)), step.to.row_stride, step.rows, step.columns);
        });
    });
}

}  // namespace

void lower_copy(Lowering& lowering, const char* name, const Operand& source, const Operand& destination,
                std::int64_t rows, std::int64_t columns) {
    lowering.step(name, run_convert, ConvertStep{source, destination, rows, columns}, {source}, {destination});
}

Operand stored_as(Lowering& lowering, ValueId value, DType dtype, bool strided) {
    const Operand source = lowering.read(value);
    if (source.dtype == dtype && (strided || is_dense(lowering, value, source))) return source;
    const std::int64_t rows = rows_of(lowering, value);
    const std::int64_t columns = columns_of(lowering, value);
    Operand copy = lowering.scratch(static_cast<std::size_t>(rows * columns) * size_of(dtype));
    copy.dtype = dtype;
    copy.row_stride = columns;
    lower_copy(lowering, "convert", source, copy, rows, columns);
    return copy;
}

}  // namespace vimrt::cuda
