// insert_tokens: class tokens between the patches, on their own; patch_embed.cu takes them in where it can.
#include "constants.h"
#include "lowering_rules.h"
#include "tokens.h"

namespace vimrt::cuda {

namespace {

__global__ void insert(const float* in, const float* first, std::int64_t first_at, const float* second, float* out,
                       std::int64_t batch, std::int64_t tokens, std::int64_t columns) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= batch * tokens * columns) return;
    const std::int64_t column = i % columns;
    const std::int64_t token = i / columns % tokens;
    const std::int64_t image = i / columns / tokens;
    if (token == first_at) {
        out[i] = first[column];
    } else if (second != nullptr && token == tokens - 1) {
        out[i] = second[column];
    } else {
        const std::int64_t patches = tokens - (second != nullptr ? 2 : 1);
        out[i] = in[(image * patches + token - (token > first_at ? 1 : 0)) * columns + column];
    }
}

struct InsertStep {
    Operand in, out;
    const float* first;
    const float* second;
    std::int64_t first_at, batch, tokens, columns;
};

void run_insert(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const InsertStep*>(parameters);
    insert_tokens(frame.at<float>(step.in), step.first, step.first_at, step.second, frame.at<float>(step.out),
                  step.batch, step.tokens, step.columns, stream_of(frame));
}

}  // namespace

void insert_tokens(const float* in, const float* first, std::int64_t first_at, const float* second, float* out,
                   std::int64_t batch, std::int64_t tokens, std::int64_t columns, cudaStream_t stream) {
    constexpr int threads = 256;
    insert<<<blocks_for(batch * tokens * columns, threads), threads, 0, stream>>>(in, first, first_at, second, out,
                                                                                  batch, tokens, columns);
}

int lower_insert_tokens(Lowering& lowering, int node, const Target& /*target*/) {
    const Node& insert = lowering.node(node);
    const Shape shape = lowering.value(insert.output(0)).shape;
    InsertStep step{stored_as(lowering, insert.input(0), DType::F32),
                    lowering.write(insert.output(0)),
                    nullptr,
                    nullptr,
                    0,
                    shape[0],
                    shape[1],
                    shape[2]};
    const bool ends = insert.is("position", "ends");
    step.first = float_vector(lowering, insert.weight(ends ? "head" : "token"));
    if (ends) step.second = float_vector(lowering, insert.weight("tail"));
    if (insert.is("position", "middle")) step.first_at = (shape[1] - 1) / 2;
    if (insert.is("position", "tail")) step.first_at = shape[1] - 1;
    lowering.step(step_name("insert_tokens", insert).c_str(), run_insert, step, {step.in}, {step.out});
    return 1;
}

}  // namespace vimrt::cuda
