// select_tokens: one token of each image, without a copy where nobody needs the others any more; or the mean of its two
// ends.
#include "lowering_rules.h"
#include "storage.h"
#include "tokens.h"

namespace vimrt::cuda {

namespace {

template <typename T>
__global__ void select(const T* in, std::int64_t first, std::int64_t second, T* out, std::int64_t batch,
                       std::int64_t tokens, std::int64_t columns) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= batch * columns) return;
    const T* image = in + i / columns * tokens * columns + i % columns;
    out[i] = from_float<T>(0.5F * (to_float(image[first * columns]) + to_float(image[second * columns])));
}

struct SelectStep {
    Operand in, out;
    std::int64_t first, second, batch, tokens, columns;
};

void run_select(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const SelectStep*>(parameters);
    select_tokens(address(frame, step.in), step.first, step.second, address(frame, step.out), step.in.dtype, step.batch,
                  step.tokens, step.columns, stream_of(frame));
}

}  // namespace

void select_tokens(const void* in, std::int64_t first, std::int64_t second, void* out, DType dtype, std::int64_t batch,
                   std::int64_t tokens, std::int64_t columns, cudaStream_t stream) {
    constexpr int threads = 256;
    with_storage(dtype, [&](auto type) {
        using T = decltype(type);
        select<<<blocks_for(batch * columns, threads), threads, 0, stream>>>(
            static_cast<const T*>(in), first, second, static_cast<T*>(out), batch, tokens, columns);
    });
}

int lower_select_tokens(Lowering& lowering, int node, const Target& /*target*/) {
    if (lowering.view_selected_token(node)) return 1;
    const Node& select = lowering.node(node);
    const Shape shape = lowering.value(select.input(0)).shape;
    const auto [first, second] = selected_tokens(select, shape[1]);
    const Operand in = stored_as(lowering, select.input(0), lowering.read(select.input(0)).dtype);
    const SelectStep step{in, lowering.write(select.output(0), in.dtype), first, second, shape[0], shape[1], shape[2]};
    lowering.step(step_name("select_tokens", select).c_str(), run_select, step, {step.in}, {step.out});
    return 1;
}

}  // namespace vimrt::cuda
