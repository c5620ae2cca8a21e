// patch_embed: a convolution whose kernel is the patch, as a product of gathered patches with the packed weight.
//
// A tile of patches at a time is gathered into a scratch that stays in cache, from normalised fp32 NCHW pixels or from
// 8-bit NHWC ones, which are normalised on the way. insert_tokens and add_position behind it are taken in: patches are
// written to their final rows with their position added, and so are the class tokens.
#include <cstdio>

#include "kernels/gemm.h"
#include "kernels/tokens.h"
#include "lowering_rules.h"
#include "runtime/grid_tables.h"
#include "runtime/weights.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

struct PatchStep {
    Operand pixels, out;
    std::int64_t images, channels, height, width;
    std::int64_t patch_height, patch_width, stride;
    std::int64_t patches, grid_columns;  // of one image
    std::int64_t tokens;                 // rows of one image in `out`
    PackedMatrix weight;
    const float* bias;
    TokenPlaces places;
    const float* positions;  // (tokens, D), or null
    const float* mean;  // for 8-bit pixels: the channel means, repeated over a patch's row of patch_width * channels
    const float* std;   // likewise
    Operand scratch;    // (threads, rows_per_pass, depth)
};

// Patch `patch` of an fp32 image (channels, height, width), as (channels, patch_height, patch_width).
void gather_floats(const PatchStep& step, const float* image, std::int64_t patch, float* out) {
    const std::int64_t top = patch / step.grid_columns * step.stride;
    const std::int64_t left = patch % step.grid_columns * step.stride;
    for (std::int64_t channel = 0; channel < step.channels; ++channel) {
        for (std::int64_t row = 0; row < step.patch_height; ++row, out += step.patch_width) {
            const float* in = image + (channel * step.height + top + row) * step.width + left;
            for (std::int64_t i = 0; i < step.patch_width; i += kLanes) {
                const Mask mask = first_lanes(step.patch_width - i);
                store(out + i, load(in + i, mask), mask);
            }
        }
    }
}

// Patch `patch` of an 8-bit image (height, width, channels), as (patch_height, patch_width, channels), normalised with
// the very operations of vimrt::normalize(), so that both ways of giving an image agree.
void gather_bytes(const PatchStep& step, const std::uint8_t* image, std::int64_t patch, float* out) {
    const std::int64_t top = patch / step.grid_columns * step.stride;
    const std::int64_t left = patch % step.grid_columns * step.stride;
    const std::int64_t count = step.patch_width * step.channels;
    for (std::int64_t row = 0; row < step.patch_height; ++row, out += count) {
        const std::uint8_t* in = image + ((top + row) * step.width + left) * step.channels;
        std::int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) {
            const Vec value = div(load_bytes(in + i), set1(255.0F));
            store(out + i, div(sub(value, load(step.mean + i)), load(step.std + i)));
        }
        for (; i < count; ++i) out[i] = (static_cast<float>(in[i]) / 255.0F - step.mean[i]) / step.std[i];
    }
}

void gather(const PatchStep& step, const Frame& frame, std::int64_t image, std::int64_t patch, float* out) {
    const std::int64_t offset = image * step.channels * step.height * step.width;
    const void* pixels = frame.buffers[step.pixels.buffer];
    if (step.mean != nullptr) {
        gather_bytes(step, static_cast<const std::uint8_t*>(pixels) + offset, patch, out);
    } else {
        gather_floats(step, static_cast<const float*>(pixels) + offset, patch, out);
    }
}

// Patches of one image that stand in consecutive rows of `out`.
void embed(const PatchStep& step, const Frame& frame, std::int64_t image, Range patches) {
    const std::int64_t depth = step.weight.depth;
    const std::int64_t pass = rows_per_pass(step.weight);
    float* scratch = floats(frame, step.scratch) + frame.thread * pass * depth;
    const std::int64_t passes = ceil_div(patches.size(), pass);
    for (std::int64_t i = 0; i < passes; ++i) {
        const Range part = part_of(patches.size(), i, passes);
        for (std::int64_t k = 0; k < part.size(); ++k) {
            gather(step, frame, image, patches.begin + part.begin + k, scratch + k * depth);
        }
        const std::int64_t row = step.places.row_of(patches.begin + part.begin);
        Epilogue epilogue{step.bias, nullptr, 0};
        if (step.positions != nullptr) {
            epilogue.addend = step.positions + row * step.weight.columns;
            epilogue.addend_stride = step.weight.columns;
        }
        gemm(part.size(), scratch, depth, step.weight, {0, panel_count(step.weight)}, epilogue,
             floats(frame, step.out) + (image * step.tokens + row) * step.out.row_stride, step.out.row_stride);
    }
}

void write_tokens(const PatchStep& step, const Frame& frame, std::int64_t image) {
    for (int t = 0; t < step.places.count; ++t) {
        const std::int64_t row = step.places.rows[t];
        float* out = floats(frame, step.out) + (image * step.tokens + row) * step.out.row_stride;
        for (std::int64_t i = 0; i < step.weight.columns; i += kLanes) {
            const Mask mask = first_lanes(step.weight.columns - i);
            Vec token = load(step.places.tokens[t] + i);
            if (step.positions != nullptr)
                token = add(token, load(step.positions + row * step.weight.columns + i, mask));
            store(out + i, token, mask);
        }
    }
}

void run_patch_embed(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const PatchStep*>(parameters);
    const Range all = part_of(step.images * step.patches, frame.thread, frame.threads);
    for (std::int64_t i = all.begin; i < all.end;) {
        const std::int64_t image = i / step.patches;
        const std::int64_t first = i % step.patches;
        std::int64_t end = min_of(step.patches, first + all.end - i);
        // Up to the next class token.
        for (int t = step.places.count - 1; t >= 0; --t) {
            const std::int64_t before = step.places.rows[t] - t;  // patches that stand before it
            if (before > first) end = min_of(end, before);
        }
        embed(step, frame, image, {first, end});
        i += end - first;
    }
    const Range images = part_of(step.images, frame.thread, frame.threads);
    for (std::int64_t image = images.begin; image < images.end; ++image) write_tokens(step, frame, image);
}

struct Pattern {
    const float* values;  // by channel
    std::int64_t channels, count;
};

void fill_pattern(void* out, const void* context) {
    const auto& pattern = *static_cast<const Pattern*>(context);
    for (std::int64_t i = 0; i < pattern.count; ++i) {
        static_cast<float*>(out)[i] = pattern.values[i % pattern.channels];
    }
}

// The channels' `values` repeated over a patch's row of pixels.
const float* repeated(Lowering& lowering, const char* name, const float* values, const PatchStep& step) {
    const Pattern pattern{values, step.channels, step.patch_width * step.channels};
    char key[64];
    std::snprintf(key, sizeof(key), "%s over %lld", name, static_cast<long long>(pattern.count));
    return static_cast<const float*>(lowering.program_constant(
        key, static_cast<std::size_t>(pattern.count) * sizeof(float), fill_pattern, &pattern));
}

PatchStep patch_step(Lowering& lowering, const Node& node) {
    const ValueInfo& out = lowering.value(node.output(0));
    const Shape& pixels = lowering.value(node.input(0)).shape;
    const Weight& weight = node.weight("weight");
    PatchStep step{};
    step.pixels = lowering.read(node.input(0));
    step.images = pixels[0];
    step.channels = pixels[1];
    step.height = pixels[2];
    step.width = pixels[3];
    step.patch_height = weight.shape[2];
    step.patch_width = weight.shape[3];
    step.stride = node.integer("stride");
    step.patches = out.shape[1];
    step.grid_columns = out.grid_columns;
    step.tokens = step.patches;
    const bool bytes = step.pixels.dtype == DType::U8;
    step.weight = packed_patches(lowering, weight, kLanes, bytes);
    if (node.has_weight("bias")) step.bias = float_vector(lowering, node.weight("bias"), kLanes);
    if (bytes) {
        step.mean = repeated(lowering, "means", lowering.input_mean(), step);
        step.std = repeated(lowering, "standard deviations", lowering.input_std(), step);
    }
    return step;
}

}  // namespace

int lower_patch_embed(Lowering& lowering, int node) {
    const Node& patch_embed = lowering.node(node);
    PatchStep step = patch_step(lowering, patch_embed);
    int last = node;
    ValueId result = patch_embed.output(0);
    if (lowering.feeds_next(last, result, "insert_tokens")) {
        const Node& insert = lowering.node(++last);
        result = insert.output(0);
        step.places = token_places(lowering, insert, step.patches);
        step.tokens += step.places.count;
    }
    if (lowering.feeds_next(last, result, "add_position")) {
        const Node& add_position = lowering.node(++last);
        result = add_position.output(0);
        const ValueInfo& info = lowering.value(result);
        step.positions = position_table(lowering, add_position, info.grid_rows, info.grid_columns);
    }
    step.out = lowering.write(result);
    const std::int64_t scratch_floats = lowering.threads() * rows_per_pass(step.weight) * step.weight.depth;
    step.scratch = lowering.scratch(static_cast<std::size_t>(scratch_floats) * sizeof(float));
    lowering.step("patch_embed", run_patch_embed, step, {step.pixels}, {step.out, step.scratch});
    return last - node + 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
