// patch_embed: one product of the image's patches, gathered as rows, with the weight as it lies in the file.
//
// The kernel gathers patches from fp32 or uint8 pixels, normalising the latter, and writes what the product is added
// to: bias, class tokens and positions. Class tokens get a row of zeros, so insert_tokens and add_position cost no
// step.
#include "patch_embed.h"

#include "constants.h"
#include "cpu/runtime/grid_tables.h"
#include "lowering_rules.h"
#include "matmul.h"
#include "storage.h"

namespace vimrt::cuda {

namespace {

constexpr int threads_per_row = 128;

// Where a pixel of fp32 lies.
__device__ const float* pixel_at(const PatchRows& a, int image, int channel, int row, int column) {
    const std::int64_t plane = (static_cast<std::int64_t>(image) * a.channels + channel) * a.height;
    return static_cast<const float*>(a.pixels) + (plane + row) * a.width + column;
}
__device__ float pixel(const PatchRows& a, int image, int channel, int row, int column) {
    if (a.pixels_dtype == DType::F32) return *pixel_at(a, image, channel, row, column);
    const std::int64_t line = static_cast<std::int64_t>(image) * a.height + row;
    const auto value = static_cast<const std::uint8_t*>(a.pixels)[(line * a.width + column) * a.channels + channel];
    return (static_cast<float>(value) / 255.0F - a.mean[channel]) / a.std[channel];
}

// So many neighbours of a patch's line are moved at a time, where all of them are fp32 and lie at multiples of 16
// bytes; else one.
constexpr int many_neighbours = 8;
int neighbours(const PatchRows& a) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(a.pixels) % 16 == 0 && a.width % 4 == 0 && a.stride % 4 == 0;
    return aligned && a.pixels_dtype == DType::F32 && a.patch_columns % many_neighbours == 0 ? many_neighbours : 1;
}

// A block gathers one token's row.
template <typename T, int Neighbours>
__global__ void __launch_bounds__(threads_per_row) gather(const PatchRows a) {
    const int image = static_cast<int>(blockIdx.x / static_cast<unsigned>(a.tokens));
    const int token = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.tokens));
    const bool is_first = token == a.first_at;
    const bool is_last = a.last != nullptr && token == a.tokens - 1;
    const int patch = token - (a.first_at >= 0 && token > a.first_at ? 1 : 0);
    const int top = patch / a.grid_columns * a.stride;
    const int left = patch % a.grid_columns * a.stride;

    const int area = a.patch_rows * a.patch_columns;
    T* row = static_cast<T*>(a.rows) + static_cast<std::int64_t>(blockIdx.x) * a.channels * area;
    for (int k = static_cast<int>(threadIdx.x) * Neighbours; k < a.channels * area; k += threads_per_row * Neighbours) {
        float values[Neighbours] = {};
        if (!is_first && !is_last) {
            const int channel = k / area, inside = k % area;
            const int line = top + inside / a.patch_columns, column = left + inside % a.patch_columns;
            if constexpr (Neighbours == 1)
                values[0] = pixel(a, image, channel, line, column);
            else
                load_floats(pixel_at(a, image, channel, line, column), values);
        }
        store_floats(row + k, values);
    }
    const float* base = is_first ? a.first : is_last ? a.last : a.bias;
    float* start = a.start + static_cast<std::int64_t>(blockIdx.x) * a.d_model;
    for (int d = static_cast<int>(threadIdx.x); d < a.d_model; d += threads_per_row) {
        const float position =
            a.positions != nullptr ? a.positions[static_cast<std::int64_t>(token) * a.d_model + d] : 0.0F;
        start[d] = (base != nullptr ? base[d] : 0.0F) + position;
    }
}

struct PatchStep {
    PatchRows fixed;
    Operand pixels, rows, start;
};

void run_patch_rows(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const PatchStep*>(parameters);
    PatchRows a = step.fixed;
    a.pixels = address(frame, step.pixels);
    a.rows = address(frame, step.rows);
    a.start = frame.at<float>(step.start);
    patch_rows(a, stream_of(frame));
}

// Takes in the class tokens of the insert_tokens node `insert`.
void add_class_tokens(Lowering& lowering, const Node& insert, PatchRows& a) {
    const bool ends = insert.is("position", "ends");
    a.tokens = static_cast<int>(lowering.value(insert.output(0)).shape[1]);
    a.first = float_vector(lowering, insert.weight(ends ? "head" : "token"));
    if (ends) a.last = float_vector(lowering, insert.weight("tail"));
    a.first_at = insert.is("position", "middle") ? (a.tokens - 1) / 2
                 : insert.is("position", "tail") ? a.tokens - 1
                                                 : 0;
}

}  // namespace

void patch_rows(const PatchRows& a, cudaStream_t stream) {
    with_storage(a.row_dtype, [&](auto type) {
        const auto kernel = neighbours(a) == 1 ? gather<decltype(type), 1> : gather<decltype(type), many_neighbours>;
        kernel<<<static_cast<unsigned>(a.batch * a.tokens), threads_per_row, 0, stream>>>(a);
    });
}

int lower_patch_embed(Lowering& lowering, int node, const Target& target) {
    const Node& embed = lowering.node(node);
    const Weight& weight = embed.weight("weight");
    const Shape pixels = lowering.value(embed.input(0)).shape;
    const ValueInfo& info = lowering.value(embed.output(0));
    if (pixels.elements() > INT32_MAX || info.shape[0] * info.shape[1] > INT32_MAX / 2) {
        lowering.fail(node,
                      "the images have more pixels than the CUDA backend takes in one batch; use a smaller batch");
    }
    PatchStep step{};
    PatchRows& a = step.fixed;
    a.pixels_dtype = lowering.input_dtype();
    if (a.pixels_dtype == DType::U8 && pixels[1] != 3) lowering.fail(node, "8-bit pixels must have 3 channels");
    for (int i = 0; i < 3; ++i) {
        a.mean[i] = lowering.input_mean()[i];
        a.std[i] = lowering.input_std()[i];
    }
    a.batch = static_cast<int>(pixels[0]);
    a.channels = static_cast<int>(pixels[1]);
    a.height = static_cast<int>(pixels[2]);
    a.width = static_cast<int>(pixels[3]);
    a.patch_rows = static_cast<int>(weight.shape[2]);
    a.patch_columns = static_cast<int>(weight.shape[3]);
    a.stride = static_cast<int>(embed.integer("stride"));
    a.grid_columns = static_cast<int>(info.grid_columns);
    a.tokens = static_cast<int>(info.shape[1]);
    a.d_model = static_cast<int>(info.shape[2]);
    if (embed.has_weight("bias")) a.bias = float_vector(lowering, embed.weight("bias"));

    int last = node;  // the last node taken
    ValueId result = embed.output(0);
    if (lowering.feeds_next(last, result, "insert_tokens")) {
        ++last;
        add_class_tokens(lowering, lowering.node(last), a);
        result = lowering.node(last).output(0);
    }
    if (lowering.feeds_next(last, result, "add_position")) {
        ++last;
        a.positions = cpu::position_table(lowering, lowering.node(last), info.grid_rows, info.grid_columns);
        result = lowering.node(last).output(0);
    }

    MatmulShape shape;
    shape.rows = static_cast<std::int64_t>(a.batch) * a.tokens;
    shape.depth = weight.shape.elements() / weight.shape[0];
    shape.features = a.d_model;
    shape.accumulate = true;
    a.row_dtype = target.operand_dtype();
    step.pixels = lowering.read(embed.input(0));
    step.start = lowering.write(result);
    step.rows = lowering.scratch(static_cast<std::size_t>(shape.rows * shape.depth) * size_of(a.row_dtype));
    step.rows.dtype = a.row_dtype;
    step.rows.row_stride = shape.depth;
    lowering.step(step_name("patches", embed).c_str(), run_patch_rows, step, {step.pixels}, {step.rows, step.start});
    lower_product(lowering, target, "linear+add", embed, shape, step.rows, nullptr, nullptr, step.start);
    return last - node + 1;
}

}  // namespace vimrt::cuda
