// patch_embed: one product of the image's patches with the weight, added to bias, class tokens and positions. Class
// tokens' product is zero, so insert_tokens and add_position cost no step.
//
// A kernel gathers patches as rows from fp32 or uint8 pixels, normalising the latter, for a library's product with the
// weight as it lies in the file. Or one kernel takes fp32 pixels straight to its own product.
#include "patch_embed.h"

#include "constants.h"
#include "cpu/runtime/grid_tables.h"
#include "cpu/runtime/weights.h"
#include "launch.h"
#include "lowering_rules.h"
#include "matmul.h"
#include "storage.h"
#include "warpgroup.cuh"

namespace vimrt::cuda {

namespace {

// A token of an image: the corner of its patch and what its product is added to, but for its position.
struct Token {
    int image, place;
    bool has_patch;
    int top, left;
    const float* base;
};
__device__ Token token_of(const Patches& a, int row) {
    Token token;
    token.image = row / a.tokens;
    token.place = row - token.image * a.tokens;
    const bool is_first = token.place == a.first_at;
    const bool is_last = a.last != nullptr && token.place == a.tokens - 1;
    token.has_patch = !is_first && !is_last;
    token.base = is_first ? a.first : is_last ? a.last : a.bias;
    const int patch = token.has_patch ? token.place - (a.first_at >= 0 && token.place > a.first_at ? 1 : 0) : 0;
    token.top = patch / a.grid_columns * a.stride;
    token.left = patch % a.grid_columns * a.stride;
    return token;
}

// Where a pixel of fp32 lies.
__device__ const float* pixel_at(const Patches& a, int image, int channel, int row, int column) {
    const std::int64_t plane = (static_cast<std::int64_t>(image) * a.channels + channel) * a.height;
    return static_cast<const float*>(a.pixels) + (plane + row) * a.width + column;
}
__device__ float pixel(const Patches& a, int image, int channel, int row, int column) {
    if (a.pixels_dtype == DType::F32) return *pixel_at(a, image, channel, row, column);
    const std::int64_t line = static_cast<std::int64_t>(image) * a.height + row;
    const auto value = static_cast<const std::uint8_t*>(a.pixels)[(line * a.width + column) * a.channels + channel];
    return (static_cast<float>(value) / 255.0F - a.mean[channel]) / a.std[channel];
}

// Whether lines of all patches begin at multiples of 16 bytes.
bool lines_are_aligned(const Patches& a) {
    return reinterpret_cast<std::uintptr_t>(a.pixels) % 16 == 0 && a.width % 4 == 0 && a.stride % 4 == 0;
}

constexpr int warp_size = 32;
constexpr int threads_per_row = 128;

// So many neighbours of a patch's line are moved at a time, where all of them are fp32 and lie at multiples of 16
// bytes; else one.
constexpr int many_neighbours = 8;
int neighbours(const PatchRows& a) {
    const bool many = a.pixels_dtype == DType::F32 && a.patch_columns % many_neighbours == 0 && lines_are_aligned(a);
    return many ? many_neighbours : 1;
}

// A block gathers one token's row.
template <typename T, int Neighbours>
__global__ void __launch_bounds__(threads_per_row) gather(const PatchRows a) {
    const Token token = token_of(a, static_cast<int>(blockIdx.x));
    const int area = a.patch_rows * a.patch_columns;
    T* row = static_cast<T*>(a.rows) + static_cast<std::int64_t>(blockIdx.x) * a.channels * area;
    for (int k = static_cast<int>(threadIdx.x) * Neighbours; k < a.channels * area; k += threads_per_row * Neighbours) {
        float values[Neighbours] = {};
        if (token.has_patch) {
            const int channel = k / area, inside = k % area;
            const int line = token.top + inside / a.patch_columns, column = token.left + inside % a.patch_columns;
            if constexpr (Neighbours == 1)
                values[0] = pixel(a, token.image, channel, line, column);
            else
                load_floats(pixel_at(a, token.image, channel, line, column), values);
        }
        store_floats(row + k, values);
    }
    float* start = a.start + static_cast<std::int64_t>(blockIdx.x) * a.d_model;
    for (int d = static_cast<int>(threadIdx.x); d < a.d_model; d += threads_per_row) {
        const float position =
            a.positions != nullptr ? a.positions[static_cast<std::int64_t>(token.place) * a.d_model + d] : 0.0F;
        start[d] = (token.base != nullptr ? token.base[d] : 0.0F) + position;
    }
}

// The product's block takes 64 tokens and 192 features. Pixels come by asynchronous copies, each of the thread that
// makes of them, in registers, what its lane has of the left side; the weight by bulk copies into a few slots, panels
// of all features and two lines of a patch. Of a line's 16 pixels lane q has 4 q to 4 q + 3, where the tensor cores
// take two from each half of the depth, so the weight's columns are in another order: patch_product_place().
struct ProductSizes {
    static constexpr int side = 16;  // of a patch
    static constexpr int lines = 2, depth = lines * side;
    static constexpr int features = 192, blocks = features / 8;
    static constexpr int panel_bytes = features * depth * 2, slots = 3;
    static constexpr int copy_bytes = warpgroup_size * 16, stage_bytes = 2 * lines * copy_bytes, stages = 4;
    static constexpr int barriers = slots * panel_bytes + stages * stage_bytes;
    static constexpr int bytes = barriers + 2 * slots * 8;
    static constexpr int blocks_at_once = 3;
};

template <typename T, bool Aligned>
class ProductBlock {
    using S = ProductSizes;

public:
    __device__ ProductBlock(const PatchProduct& a, unsigned shared)
        : a_(a),
          slots_(shared),
          stages_(shared + S::slots * S::panel_bytes + threadIdx.x * 16),
          barriers_(shared + S::barriers),
          lane_(threadIdx.x % warp_size),
          part_(static_cast<int>(blockIdx.x) % (a.d_model / S::features)),
          panels_(a.channels * S::side / S::lines) {
        const int rows = a.batch * a.tokens, warp = static_cast<int>(threadIdx.x) / warp_size;
        const int first =
            static_cast<int>(blockIdx.x) / (a.d_model / S::features) * warpgroup_rows + warp * 16 + lane_ / 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            row_[i] = first + 8 * i;
            token_[i] = token_of(a, min(row_[i], rows - 1));
            from_[i] = pixel_at(a, token_[i].image, 0, token_[i].top, token_[i].left + lane_ % 4 * 4);
            token_[i].has_patch &= row_[i] < rows;
        }
    }

    __device__ void run() {
        if (threadIdx.x == 0) {
            for (int slot = 0; slot < S::slots; ++slot) {
                begin_barrier(is_there(slot), 1);
                begin_barrier(is_read(slot), warpgroup_size / warp_size);
            }
            announce_barriers();
            for (int panel = 0; panel < min(S::slots, panels_); ++panel) fetch_weight(panel);
        }
        wait_for_predecessor();
#pragma unroll
        for (int panel = 0; panel < S::stages - 1; ++panel) fetch_pixels(panel);
        float sum[S::blocks][4];
        load_start(sum);
        __syncthreads();
#pragma unroll 1
        for (int panel = 0; panel < panels_; ++panel) multiply(sum, panel);
        let_successor_begin();
        store(sum);
    }

private:
    // Barriers of a slot: what it was to get has come; all warps have read it.
    __device__ unsigned is_there(int slot) const {
        return barriers_ + slot * 8;
    }
    __device__ unsigned is_read(int slot) const {
        return barriers_ + (S::slots + slot) * 8;
    }

    __device__ void fetch_weight(int panel) const {
        const int slot = panel % S::slots;
        const auto* from =
            static_cast<const char*>(a_.weight) + static_cast<std::int64_t>(part_ * panels_ + panel) * S::panel_bytes;
        expect_bytes(is_there(slot), S::panel_bytes);
        copy_bulk(slots_ + slot * S::panel_bytes, from, S::panel_bytes, is_there(slot));
    }
    __device__ void fetch_pixels(int panel) const {
        if (panel < panels_) {
            const unsigned to = stages_ + panel % S::stages * S::stage_bytes;
#pragma unroll
            for (int j = 0; j < S::lines; ++j) {
                const int line = panel * S::lines + j, channel = line / S::side;
                const int at = (channel * a_.height + line % S::side) * a_.width;
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const unsigned place = to + (2 * j + i) * S::copy_bytes;
                    if constexpr (Aligned) {
                        copy_async_or_clear(place, from_[i] + at, token_[i].has_patch);
                    } else {
                        for (int k = 0; k < 4; ++k)
                            copy_four_or_clear(place + 4 * k, from_[i] + at + k, token_[i].has_patch);
                    }
                }
            }
        }
        commit_copies();
    }

    // The sums begin with what products are added to.
    __device__ void load_start(float (&sum)[S::blocks][4]) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const Token& token = token_[i];
            const float* position = a_.positions + static_cast<std::int64_t>(token.place) * a_.d_model;
#pragma unroll
            for (int j = 0; j < S::blocks; ++j) {
                const float2 base = token.base != nullptr ? load_two(token.base + feature(j)) : float2{};
                const float2 moved = a_.positions != nullptr ? load_two(position + feature(j)) : float2{};
                sum[j][2 * i] = base.x + moved.x, sum[j][2 * i + 1] = base.y + moved.y;
            }
        }
    }
    __device__ void store(const float (&sum)[S::blocks][4]) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (row_[i] >= a_.batch * a_.tokens) continue;
            float* out = a_.out + static_cast<std::int64_t>(row_[i]) * a_.d_model;
#pragma unroll
            for (int j = 0; j < S::blocks; ++j)
                *reinterpret_cast<float2*>(out + feature(j)) = {sum[j][2 * i], sum[j][2 * i + 1]};
        }
    }
    // The first of the lane's two in the `j`th block of 8.
    __device__ int feature(int j) const {
        return part_ * S::features + 8 * j + lane_ % 4 * 2;
    }
    __device__ static float2 load_two(const float* from) {
        return __ldg(reinterpret_cast<const float2*>(from));
    }

    __device__ void multiply(float (&sum)[S::blocks][4], int panel) const {
        unsigned left[S::lines][4];
        wait_for_copies<S::stages - 2>();
        const unsigned from = stages_ + panel % S::stages * S::stage_bytes;
#pragma unroll
        for (int j = 0; j < S::lines; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const auto four = load_shared<float4>(from + (2 * j + i) * S::copy_bytes);
                left[j][i] = kept(pack_two<T>(four.x, four.y));
                left[j][2 + i] = kept(pack_two<T>(four.z, four.w));
            }
        }
        fetch_pixels(panel + S::stages - 1);
        const int slot = panel % S::slots;
        wait_at(is_there(slot), panel / S::slots % 2);
        __syncwarp();
        ready_for_products(sum);
        const auto right = panel_at<S::depth>(slots_ + slot * S::panel_bytes);
#pragma unroll
        for (int j = 0; j < S::lines; ++j) add_wide_product<T>(sum, left[j], right + j * panel_step);
        commit_products();
        // Behind the products, where it costs nothing: the slot before is filled again.
        const int refilled = panel - 1 + S::slots;
        if (threadIdx.x == 0 && panel > 0 && refilled < panels_) {
            wait_at(is_read(refilled % S::slots), (panel - 1) / S::slots % 2);
            fetch_weight(refilled);
        }
        __syncwarp();
        wait_for_sums(sum);
        if (lane_ == 0) arrive_at(is_read(slot));
    }

    const PatchProduct& a_;
    const unsigned slots_, stages_, barriers_;
    const int lane_, part_, panels_;
    int row_[2];  // the lane's, eight apart
    Token token_[2];
    const float* from_[2];
};

template <typename T, bool Aligned>
__global__ void __launch_bounds__(warpgroup_size, ProductSizes::blocks_at_once)
    multiply_patches(const __grid_constant__ PatchProduct a) {
    if constexpr (has_warpgroup_products) {
        extern __shared__ __align__(1024) char memory[];
        ProductBlock<T, Aligned>(a, shared_address(memory)).run();
    }
}

// Of fewer, a gathering and a library's product take less time.
constexpr std::int64_t least_product_rows = 2048;

struct RowsStep {
    PatchRows fixed;
    Operand pixels, rows, start;
};

void run_rows(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const RowsStep*>(parameters);
    PatchRows a = step.fixed;
    a.pixels = address(frame, step.pixels);
    a.rows = address(frame, step.rows);
    a.start = frame.at<float>(step.start);
    patch_rows(a, stream_of(frame));
}

struct ProductStep {
    PatchProduct fixed;
    Operand pixels, out;
};

void run_product(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const ProductStep*>(parameters);
    PatchProduct a = step.fixed;
    a.pixels = address(frame, step.pixels);
    a.out = frame.at<float>(step.out);
    patch_product(a, stream_of(frame));
}

// The weight in the order of patch_product().
const void* product_weight(Lowering& lowering, const Weight& weight, DType dtype) {
    const std::int64_t rows = weight.shape[0], depth = weight.shape.elements() / rows;
    const auto fill = [&](void* out) {
        for (std::int64_t row = 0; row < rows; ++row) {
            for (std::int64_t column = 0; column < depth; ++column) {
                const float value = cpu::weight_element(weight, row * depth + column);
                store_element(out, patch_product_place(row, column, depth), value, dtype);
            }
        }
    };
    return engine_constant(lowering, "matrix for patch_product of " + weight.name,
                           static_cast<std::size_t>(rows * depth) * size_of(dtype), fill);
}

// Takes in the class tokens of the insert_tokens node `insert`.
void add_class_tokens(Lowering& lowering, const Node& insert, Patches& a) {
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

std::int64_t patch_product_place(std::int64_t row, std::int64_t column, std::int64_t depth) {
    using S = ProductSizes;
    // Of a line's pixels, those of lane q are columns 2 q, 2 q + 1, 2 q + 8 and 2 q + 9 of the depth.
    const std::int64_t pixel = column % S::side, lane = pixel / 4, own = pixel % 4;
    const std::int64_t at = column % S::depth - pixel + lane * 2 + own % 2 + own / 2 * 8;
    const std::int64_t panel = row / S::features * (depth / S::depth) + column / S::depth;
    const std::int64_t inside = row % S::features;
    return panel * S::features * S::depth + inside * S::depth + piece_in_panel(inside, at / 8, S::depth) * 8 + at % 8;
}

bool patch_product_takes(const PatchProduct& a, const DeviceProperties& device) {
    using S = ProductSizes;
    return device.warpgroup_products && size_of(a.dtype) == 2 && a.pixels_dtype == DType::F32 &&
           a.patch_rows == S::side && a.patch_columns == S::side && a.d_model % S::features == 0;
}

void patch_product(const PatchProduct& a, cudaStream_t stream) {
    using S = ProductSizes;
    const auto run = [&](auto type) {
        using T = decltype(type);
        const unsigned blocks = blocks_for(static_cast<std::int64_t>(a.batch) * a.tokens, warpgroup_rows);
        const Grid grid{.blocks = blocks * static_cast<unsigned>(a.d_model / S::features),
                        .threads = warpgroup_size,
                        .shared_bytes = S::bytes};
        launch("patch_product", lines_are_aligned(a) ? multiply_patches<T, true> : multiply_patches<T, false>, grid,
               stream, a);
    };
    a.dtype == DType::F16 ? run(__half{}) : run(__nv_bfloat16{});
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
    Patches a;
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

    const Operand input = lowering.read(embed.input(0)), out = lowering.write(result);
    PatchProduct product{a};
    product.dtype = target.operand_dtype();
    const std::int64_t rows = static_cast<std::int64_t>(a.batch) * a.tokens;
    if (patch_product_takes(product, target.device) && rows >= least_product_rows) {
        product.weight = product_weight(lowering, weight, product.dtype);
        lowering.step(step_name("patches+linear", embed).c_str(), run_product, ProductStep{product, input, out},
                      {input}, {out});
        return last - node + 1;
    }

    MatmulShape shape;
    shape.rows = rows;
    shape.depth = weight.shape.elements() / weight.shape[0];
    shape.features = a.d_model;
    shape.accumulate = true;
    RowsStep step{{a}, input, {}, out};
    step.fixed.row_dtype = target.operand_dtype();
    step.rows = lowering.scratch(static_cast<std::size_t>(rows * shape.depth) * size_of(step.fixed.row_dtype));
    step.rows.dtype = step.fixed.row_dtype;
    step.rows.row_stride = shape.depth;
    lowering.step(step_name("patches", embed).c_str(), run_rows, step, {input}, {step.rows, out});
    lower_product(lowering, target, "linear+add", embed, shape, step.rows, nullptr, nullptr, out);
    return last - node + 1;
}

}  // namespace vimrt::cuda
