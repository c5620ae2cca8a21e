// bidirectional_scan: both directions of Vim's mixer, and the gated_merge behind it.
//
// The two directions of an image run at the same time on two threads, or teams of threads that share the channels.
// Forward begins at the first token and backward at the last; until they meet in the middle each stores its y, and
// after that each adds what the other has stored, gates it, and overwrites it: one (tokens, E) buffer serves both. A
// barrier in the middle makes the result independent of who is faster. With as many images as threads, each thread
// takes whole images, one direction after the other. Where one token alone is wanted, as behind the last block, the
// directions walk as far as that token, where they meet.
#include "lowering_rules.h"
#include "mixer.h"
#include "runtime/weights.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

struct MixerStep {
    MixerShape shape;
    int directions;
    DirectionWeights weights[2];  // forward, backward
    std::int64_t images, tokens;
    Operand x;
    bool gated;
    std::int64_t wanted = -1;  // the only token whose result is; -1: all are
    float share;
    Operand z, out;   // where gated
    Operand y[2];     // where not: of each direction
    Operand scratch;  // (threads, shape.scratch_floats())
};

// What a thread does for the images that are not shared out whole.
struct Place {
    std::int64_t image = 0;
    int slot = 0;       // of the scratch: the team's first thread
    int direction = 0;  // of its team; -1: one thread does both
    int member = 0;
    int team = 0;     // 0: the thread is idle
    int meeting = 0;  // barrier of the image's threads
};

// `images` images, at most as many as threads. A team is no larger than there are panels of channels to share.
Place place_of(const MixerStep& step, const Frame& frame, int images) {
    const int per_image = frame.threads / images;
    Place place;
    place.image = frame.thread / per_image;
    if (place.image >= images) return place;
    const int lane = frame.thread % per_image;
    place.meeting = 1 + frame.threads + static_cast<int>(place.image);
    if (per_image < step.directions) {
        place.slot = frame.thread;
        place.direction = -1;
        place.team = 1;
        return place;
    }
    const int panels = static_cast<int>(panel_count(step.weights[0].dt_proj));
    const int share = per_image / step.directions;
    const int team = share < panels ? share : panels;
    place.direction = lane / team;
    if (place.direction >= step.directions) return place;
    place.member = lane % team;
    place.slot = frame.thread - place.member;
    place.team = team;
    return place;
}

DirectionRun direction_run(const MixerStep& step, const Frame& frame, std::int64_t image, int direction, int slot) {
    DirectionRun run;
    run.shape = step.shape;
    run.weights = &step.weights[direction];
    const std::int64_t row = image * step.tokens;
    run.in = {floats(frame, step.x) + row * step.x.row_stride, step.x.row_stride, step.tokens, step.shape.d_inner};
    const Operand& out = step.gated ? step.out : step.y[direction];
    run.out = floats(frame, out) + row * out.row_stride;
    run.out_stride = out.row_stride;
    if (step.gated) {
        run.z = floats(frame, step.z) + row * step.z.row_stride;
        run.z_stride = step.z.row_stride;
        run.share = step.share;
    }
    run.scratch = floats(frame, step.scratch) + slot * step.shape.scratch_floats();
    run.far = step.tokens * step.x.row_stride * static_cast<std::int64_t>(sizeof(float)) > kNearBytes;
    run.threads = static_cast<ThreadTeam*>(frame.backend);
    run.barrier = 1 + slot;
    return run;
}

// What a direction walks for itself, and then with the other's y at hand.
struct Walk {
    Range alone, merged;
};

// `meeting`: the first token of those that the backward direction walks for itself.
Walk walk_of(const MixerStep& step, int direction, std::int64_t meeting) {
    const bool all = step.wanted < 0;
    if (step.directions == 1) return {{}, {0, all ? step.tokens : step.wanted + 1}};
    if (!all) meeting = step.wanted + 1;
    if (direction == 0) return {{0, meeting}, {meeting, all ? step.tokens : meeting}};
    return {{meeting, step.tokens}, {all ? 0 : step.wanted, meeting}};
}

Finish finish_of(const MixerStep& step) {
    if (!step.gated) return Finish::Store;
    return step.directions == 1 ? Finish::GateAlone : Finish::Gate;
}

// One thread, one image: one direction after the other.
void run_whole_image(const MixerStep& step, const Frame& frame, std::int64_t image) {
    for (int direction = 0; direction < step.directions; ++direction) {
        const DirectionRun run = direction_run(step, frame, image, direction, frame.thread);
        const Walk walk = walk_of(step, direction, step.tokens);
        clear_states(run);
        run_direction(run, walk.alone, Finish::Store);
        run_direction(run, walk.merged, finish_of(step));
    }
}

void run_shared_image(const MixerStep& step, const Frame& frame, const Place& place) {
    DirectionRun run = direction_run(step, frame, place.image, place.direction, place.slot);
    run.member = place.member;
    run.team = place.team;
    const bool meets = step.gated && step.directions == 2;
    const Walk walk = walk_of(step, place.direction, meets ? step.tokens / 2 : step.tokens);
    clear_states(run);
    run_direction(run, walk.alone, Finish::Store);
    if (meets) run.threads->wait(place.meeting, step.directions * place.team);
    run_direction(run, walk.merged, finish_of(step));
}

void run_mixer(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const MixerStep*>(parameters);
    const std::int64_t whole = step.images / frame.threads * frame.threads;
    for (std::int64_t image = frame.thread; image < whole; image += frame.threads) run_whole_image(step, frame, image);
    if (whole == step.images) return;
    // A team's scratch is its first thread's own, who may still be at work on a whole image.
    if (whole > 0) static_cast<ThreadTeam*>(frame.backend)->wait(0, frame.threads);
    Place place = place_of(step, frame, static_cast<int>(step.images - whole));
    place.image += whole;
    if (place.team == 0) return;
    if (place.direction < 0) {
        run_whole_image(step, frame, place.image);
    } else {
        run_shared_image(step, frame, place);
    }
}

// Roles of a direction's weights in the graph.
struct Roles {
    const char *conv_weight, *conv_bias, *x_proj, *dt_weight, *dt_bias, *a_log, *skip;
};
constexpr Roles kForward{
    "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D"};
constexpr Roles kBackward{
    "conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight", "dt_proj_b.weight", "dt_proj_b.bias", "A_b_log", "D_b"};

DirectionWeights direction_weights(Lowering& lowering, const Node& node, const Roles& roles) {
    const Weight& conv = node.weight(roles.conv_weight);
    DirectionWeights w;
    w.conv.taps = conv_taps(lowering, conv, kLanes);
    w.conv.bias = float_vector(lowering, node.weight(roles.conv_bias), kLanes);
    w.conv.width = conv.shape[2];
    w.conv.stride = round_up(conv.shape[0], kLanes);
    w.x_proj = packed_linear(lowering, node.weight(roles.x_proj), kLanes);
    w.dt_proj = packed_linear_padded(lowering, node.weight(roles.dt_weight), kLanes);
    w.dt_bias = float_vector(lowering, node.weight(roles.dt_bias), kLanes);
    w.rates = decay_rates(lowering, node.weight(roles.a_log), kLanes);
    w.skip = float_vector(lowering, node.weight(roles.skip), kLanes);
    return w;
}

MixerStep mixer_step(Lowering& lowering, const Node& node) {
    const Shape& shape = lowering.value(node.input(0)).shape;
    MixerStep step{};
    step.images = shape[0];
    step.tokens = shape[1];
    step.shape.d_inner = shape[2];
    step.shape.d_state = node.weight("A_log").shape[1];
    step.shape.dt_rank = node.weight("dt_proj.weight").shape[1];
    step.x = lowering.read(node.input(0));
    step.weights[0] = direction_weights(lowering, node, kForward);
    step.directions = 1;
    if (node.is("backward", "own")) {
        step.directions = 2;
        step.weights[1] = direction_weights(lowering, node, kBackward);
        step.weights[1].conv.reversed = true;
    } else if (node.is("backward", "shared")) {
        // The forward direction's c, delta, B, C and D, scanned from the last token on.
        step.directions = 2;
        step.weights[1] = step.weights[0];
        step.weights[1].rates = decay_rates(lowering, node.weight("A_b_log"), kLanes);
    }
    step.weights[1].descending = true;
    return step;
}

// True when a gated_merge behind the scan may be computed with it: it takes the directions in their order, and no one
// else reads them.
bool merge_follows(const Lowering& lowering, int node) {
    const Node& scan = lowering.node(node);
    for (int i = 0; i < scan.output_count(); ++i) {
        if (!lowering.feeds_next(node, scan.output(i), "gated_merge")) return false;
        if (lowering.node(node + 1).input(i) != scan.output(i)) return false;
    }
    return lowering.node(node + 1).input_count() == scan.output_count() + 1;
}

}  // namespace

int lower_bidirectional_scan(Lowering& lowering, int node) {
    const Node& scan = lowering.node(node);
    MixerStep step = mixer_step(lowering, scan);
    step.gated = merge_follows(lowering, node);
    const std::int64_t scratch_floats = lowering.threads() * step.shape.scratch_floats();
    if (step.gated) {
        const Node& merge = lowering.node(node + 1);
        step.share = merge.is("merge", "mean") ? 0.5F : 1.0F;
        step.wanted = lowering.token_selected_next(node + 1, merge.output(0));
        step.z = lowering.read(merge.input(merge.input_count() - 1));
        step.out = lowering.write(merge.output(0));
        step.scratch = lowering.scratch(static_cast<std::size_t>(scratch_floats) * sizeof(float));
        lowering.step("bidirectional_scan+gated_merge", run_mixer, step, {step.x, step.z}, {step.out, step.scratch});
        return 2;
    }
    for (int i = 0; i < scan.output_count(); ++i) step.y[i] = lowering.write(scan.output(i));
    step.scratch = lowering.scratch(static_cast<std::size_t>(scratch_floats) * sizeof(float));
    if (scan.output_count() == 2) {
        lowering.step("bidirectional_scan", run_mixer, step, {step.x}, {step.y[0], step.y[1], step.scratch});
    } else {
        lowering.step("bidirectional_scan", run_mixer, step, {step.x}, {step.y[0], step.scratch});
    }
    return 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
