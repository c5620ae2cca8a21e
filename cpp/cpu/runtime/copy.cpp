#include "runtime/copy.h"

#include <cstring>

namespace vimrt::cpu {

namespace {

struct CopyStep {
    Operand source, destination;
    std::int64_t rows, columns;
};

void run_copy(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const CopyStep*>(parameters);
    const std::int64_t begin = step.rows * frame.thread / frame.threads;
    const std::int64_t end = step.rows * (frame.thread + 1) / frame.threads;
    for (std::int64_t row = begin; row < end; ++row) {
        std::memcpy(frame.at<float>(step.destination) + row * step.destination.row_stride,
                    frame.at<const float>(step.source) + row * step.source.row_stride,
                    static_cast<std::size_t>(step.columns) * sizeof(float));
    }
}

}  // namespace

void lower_copy(Lowering& lowering, const Operand& source, const Operand& destination, std::int64_t rows,
                std::int64_t columns) {
    lowering.step("copy", run_copy, CopyStep{source, destination, rows, columns}, {source}, {destination});
}

}  // namespace vimrt::cpu
