// pool: the mean or the maximum over an image's tokens.
#include "lowering_rules.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

// Tokens summed before the sum joins the total, so that rounding grows with neither count.
constexpr std::int64_t kTokensPerSum = 128;

struct PoolStep {
    Operand in, out;
    std::int64_t images, tokens, columns;
    bool mean;
};

Vec mean_of(const float* in, std::int64_t stride, std::int64_t tokens, Mask mask) {
    Vec total = zero();
    for (std::int64_t first = 0; first < tokens; first += kTokensPerSum) {
        const std::int64_t end = min_of(first + kTokensPerSum, tokens);
        Vec part = zero();
        for (std::int64_t t = first; t < end; ++t) part = add(part, load(in + t * stride, mask));
        total = add(total, part);
    }
    return div(total, set1(static_cast<float>(tokens)));
}

// NaN where any token is NaN, as PyTorch's maximum is.
Vec max_of(const float* in, std::int64_t stride, std::int64_t tokens, Mask mask) {
    Vec largest = load(in, mask);
    for (std::int64_t t = 1; t < tokens; ++t) largest = max_or_nan(largest, load(in + t * stride, mask));
    return largest;
}

void run_pool(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const PoolStep*>(parameters);
    const std::int64_t vectors = ceil_div(step.columns, kLanes);
    const Range part = part_of(step.images * vectors, frame.thread, frame.threads);
    for (std::int64_t i = part.begin; i < part.end; ++i) {
        const std::int64_t image = i / vectors;
        const std::int64_t column = i % vectors * kLanes;
        const Mask mask = first_lanes(step.columns - column);
        const float* in = floats(frame, step.in) + image * step.tokens * step.in.row_stride + column;
        const Vec result = step.mean ? mean_of(in, step.in.row_stride, step.tokens, mask)
                                     : max_of(in, step.in.row_stride, step.tokens, mask);
        store(floats(frame, step.out) + image * step.out.row_stride + column, result, mask);
    }
}

}  // namespace

int lower_pool(Lowering& lowering, int node) {
    const Node& pool = lowering.node(node);
    const Shape& shape = lowering.value(pool.input(0)).shape;
    const Operand in = lowering.read(pool.input(0));
    const Operand out = lowering.write(pool.output(0));
    const PoolStep step{in, out, shape[0], shape[1], shape[2], pool.is("mode", "mean")};
    lowering.step("pool", run_pool, step, {in}, {out});
    return 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
