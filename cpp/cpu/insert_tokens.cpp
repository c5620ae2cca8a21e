// insert_tokens: class tokens put among the patches. Behind a patch_embed the patches are written to their final rows
// at once (patch_embed.cpp).
#include "kernels/partition.h"
#include "kernels/tokens.h"
#include "lowering_rules.h"
#include "runtime/weights.h"

namespace vimrt::cpu::VIMRT_ISA {

TokenPlaces token_places(Lowering& lowering, const Node& insert, std::int64_t patches) {
    TokenPlaces places;
    if (insert.is("position", "ends")) {
        places.count = 2;
        places.rows[1] = patches + 1;
        places.tokens[0] = float_vector(lowering, insert.weight("head"), kLanes);
        places.tokens[1] = float_vector(lowering, insert.weight("tail"), kLanes);
        return places;
    }
    places.count = 1;
    places.tokens[0] = float_vector(lowering, insert.weight("token"), kLanes);
    if (insert.is("position", "middle")) places.rows[0] = patches / 2;
    if (insert.is("position", "tail")) places.rows[0] = patches;
    return places;
}

namespace {

struct InsertStep {
    Operand in, out;
    std::int64_t images, patches, tokens, columns;
    TokenPlaces places;
};

void copy_row(const float* in, float* out, std::int64_t columns) {
    for (std::int64_t i = 0; i < columns; i += kLanes) {
        const Mask mask = first_lanes(columns - i);
        store(out + i, load(in + i, mask), mask);
    }
}

void run_insert(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const InsertStep*>(parameters);
    const Range part = part_of(step.images * step.patches, frame.thread, frame.threads);
    for (std::int64_t i = part.begin; i < part.end; ++i) {
        const std::int64_t row = i / step.patches * step.tokens + step.places.row_of(i % step.patches);
        copy_row(floats(frame, step.in) + i * step.in.row_stride, floats(frame, step.out) + row * step.out.row_stride,
                 step.columns);
    }
    const Range images = part_of(step.images, frame.thread, frame.threads);
    for (std::int64_t image = images.begin; image < images.end; ++image) {
        for (int i = 0; i < step.places.count; ++i) {
            const std::int64_t row = image * step.tokens + step.places.rows[i];
            copy_row(step.places.tokens[i], floats(frame, step.out) + row * step.out.row_stride, step.columns);
        }
    }
}

}  // namespace

int lower_insert_tokens(Lowering& lowering, int node) {
    const Node& insert = lowering.node(node);
    const Shape& in_shape = lowering.value(insert.input(0)).shape;
    const Operand in = lowering.read(insert.input(0));
    const Operand out = lowering.write(insert.output(0));
    const InsertStep step{in,
                          out,
                          in_shape[0],
                          in_shape[1],
                          lowering.value(insert.output(0)).shape[1],
                          in_shape[2],
                          token_places(lowering, insert, in_shape[1])};
    lowering.step("insert_tokens", run_insert, step, {in}, {out});
    return 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
