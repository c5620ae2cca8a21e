// bidirectional_scan with its gated_merge: convolution, projection of delta, B and C, and the scan, in three steps; in
// two where one kernel does both of the first, or those and what lies in front of them.
//
// The scan overwrites c with its directions' y, and x, or z where x is never stored, with the merged result, so that
// neither needs memory of its own.
#include "bidirectional_scan.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "before_scan.h"
#include "between_scans.h"
#include "causal_conv1d.h"
#include "constants.h"
#include "conv_x_proj.h"
#include "cpu/runtime/weights.h"
#include "lowering_rules.h"
#include "matmul.h"
#include "out_proj_step.h"

namespace vimrt::cuda {

namespace {

// The weights' names of a direction.
struct Roles {
    const char* conv_weight;
    const char* conv_bias;
    const char* x_proj;
    const char* dt_weight;
    const char* dt_bias;
    const char* a_log;
    const char* skip;
};
constexpr Roles forward_roles{
    "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D"};
constexpr Roles backward_roles{
    "conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight", "dt_proj_b.weight", "dt_proj_b.bias", "A_b_log", "D_b"};
// Of mixers whose backward direction has its own A alone.
constexpr Roles shared_roles{
    "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_b_log", "D"};

struct Sizes {
    std::int64_t channels = 0;
    std::int64_t states = 0, padded_states = 0;
    std::int64_t rank = 0, padded_rank = 0;
    std::int64_t width = 0;

    std::int64_t row() const { return padded_rank + 2 * padded_states; }
};

constexpr std::int64_t max_rank = 128;

Sizes sizes_of(const Lowering& lowering, int node) {
    const Node& scan = lowering.node(node);
    Sizes sizes;
    sizes.channels = scan.weight("A_log").shape[0];
    sizes.states = scan.weight("A_log").shape[1];
    sizes.rank = scan.weight("dt_proj.weight").shape[1];
    sizes.width = scan.weight("conv1d.weight").shape[2];
    if (sizes.states > 64) lowering.fail(node, "the CUDA backend scans up to 64 states; use device=\"cpu\"");
    if (sizes.rank > max_rank)
        lowering.fail(node, "the CUDA backend takes time steps of rank up to 128; use device=\"cpu\"");
    sizes.padded_states = 16;
    while (sizes.padded_states < sizes.states) sizes.padded_states *= 2;
    sizes.padded_rank = round_up(sizes.rank, 16);
    return sizes;
}

// Weight (rows, columns) transposed to (padded columns, rows), fp32, padded with zeros.
const float* transposed(Lowering& lowering, const Weight& weight, std::int64_t padded_columns) {
    const std::int64_t rows = weight.shape[0];
    const std::int64_t columns = weight.shape[-1];
    const auto fill = [&](void* out) {
        auto* to = static_cast<float*>(out);
        for (std::int64_t column = 0; column < padded_columns; ++column) {
            for (std::int64_t row = 0; row < rows; ++row) {
                *to++ = column < columns ? cpu::weight_element(weight, row * columns + column) : 0.0F;
            }
        }
    };
    const std::string key = "transposed to " + std::to_string(padded_columns) + " rows of " + weight.name;
    return static_cast<const float*>(
        engine_constant(lowering, key, static_cast<std::size_t>(padded_columns * rows) * sizeof(float), fill));
}

// -exp(A_log) log2(e) as (channels, padded states). Padding decays by nothing, and nothing is ever added to it.
const float* decay_rates(Lowering& lowering, const Weight& a_log, const Sizes& sizes) {
    constexpr double log2_e = 1.4426950408889634;
    const auto fill = [&](void* out) {
        auto* to = static_cast<float*>(out);
        for (std::int64_t e = 0; e < sizes.channels; ++e) {
            for (std::int64_t n = 0; n < sizes.padded_states; ++n) {
                const bool real = n < sizes.states;
                *to++ = real ? static_cast<float>(-std::exp(double{cpu::weight_element(a_log, e * sizes.states + n)}) *
                                                  log2_e)
                             : 0.0F;
            }
        }
    };
    return static_cast<const float*>(
        engine_constant(lowering, "decay rates of " + a_log.name,
                        static_cast<std::size_t>(sizes.channels * sizes.padded_states) * sizeof(float), fill));
}

// x_proj's weight with rows of zeros that pad delta, B and C.
float x_proj_element(const Weight& weight, const Sizes& sizes, std::int64_t row, std::int64_t channel) {
    std::int64_t first = 0, count = sizes.rank;  // rows of the part
    if (row >= sizes.padded_rank) {
        first = sizes.rank + (row - sizes.padded_rank) / sizes.padded_states * sizes.states;
        count = sizes.states;
        row = (row - sizes.padded_rank) % sizes.padded_states;
    }
    return row < count ? cpu::weight_element(weight, (first + row) * sizes.channels + channel) : 0.0F;
}

// The same of every direction, element i the one that `element_of(i)` names; in the order of `what`, a key.
template <typename F>
const void* packed_x_proj(Lowering& lowering, const Node& scan, const Sizes& sizes, bool own, DType dtype,
                          const std::string& what, const F& element_of) {
    const Weight* weights[2] = {&scan.weight("x_proj.weight"), own ? &scan.weight("x_proj_b.weight") : nullptr};
    const std::int64_t elements = (own ? 2 : 1) * sizes.row() * sizes.channels;
    const auto fill = [&](void* out) {
        for (std::int64_t i = 0; i < elements; ++i) {
            const auto [direction, element] = element_of(i);
            store_element(out, i, x_proj_element(*weights[direction], sizes, element.row, element.column), dtype);
        }
    };
    return engine_constant(lowering, "padded " + weights[0]->name + (own ? " and " + weights[1]->name : "") + what,
                           static_cast<std::size_t>(elements) * size_of(dtype), fill);
}

// One direction behind the other, features by channels. `fused`: channels in the order of conv_x_proj_channel().
const void* x_proj_by_rows(Lowering& lowering, const Node& scan, const Sizes& sizes, bool own, bool fused,
                           DType dtype) {
    return packed_x_proj(lowering, scan, sizes, own, dtype, fused ? " for conv_x_proj" : "", [&](std::int64_t i) {
        const std::int64_t row = i / sizes.channels, column = i % sizes.channels;
        return DirectedElement{static_cast<int>(row / sizes.row()),
                               {row % sizes.row(), fused ? conv_x_proj_channel(column) : column}};
    });
}

// in_proj's weight in the order of before_scan().
const void* in_weight_before_scan(Lowering& lowering, const Weight& weight, DType dtype) {
    const std::int64_t width = weight.shape[1];
    const auto fill = [&](void* out) {
        for (std::int64_t i = 0; i < weight.shape.elements(); ++i) {
            const MatrixElement element = before_scan_in_element(static_cast<int>(width), i);
            store_element(out, i, cpu::weight_element(weight, element.row * width + element.column), dtype);
        }
    };
    return engine_constant(lowering, "matrix for before_scan of " + weight.name,
                           static_cast<std::size_t>(weight.shape.elements()) * size_of(dtype), fill);
}

// The convolutions' taps and biases of both directions in the order of before_scan().
const float* filters_before_scan(Lowering& lowering, const Node& scan) {
    const Weight* const of_taps[2] = {&scan.weight(forward_roles.conv_weight),
                                      &scan.weight(backward_roles.conv_weight)};
    const Weight* const of_bias[2] = {&scan.weight(forward_roles.conv_bias), &scan.weight(backward_roles.conv_bias)};
    const std::int64_t channels = of_taps[0]->shape[0], taps = of_taps[0]->shape[-1];
    const std::size_t floats = static_cast<std::size_t>(channels) * before_scan_filter_floats;
    const auto fill = [&](void* out) {
        auto* to = static_cast<float*>(out);
        std::fill_n(to, floats, 0.0F);
        for (std::int64_t channel = 0; channel < channels; ++channel, to += before_scan_filter_floats) {
            for (const int direction : {0, 1}) {
                for (std::int64_t tap = 0; tap <= taps; ++tap) {
                    const float value = tap < taps ? cpu::weight_element(*of_taps[direction], channel * taps + tap)
                                                   : cpu::weight_element(*of_bias[direction], channel);
                    to[before_scan_filter_place(direction, static_cast<int>(tap))] = 0.5F * value;
                }
            }
        }
    };
    const std::string key = "filters for before_scan of " + of_taps[0]->name + " and " + of_taps[1]->name;
    return static_cast<const float*>(engine_constant(lowering, key, floats * sizeof(float), fill));
}

// dt_proj's weight as (channels, padded rank).
const void* padded_dt_weight(Lowering& lowering, const Weight& weight, const Sizes& sizes, DType dtype) {
    const auto fill = [&](void* out) {
        for (std::int64_t i = 0; i < sizes.channels * sizes.padded_rank; ++i) {
            const std::int64_t r = i % sizes.padded_rank;
            const bool real = r < sizes.rank;
            store_element(out, i, real ? cpu::weight_element(weight, i / sizes.padded_rank * sizes.rank + r) : 0.0F,
                          dtype);
        }
    };
    return engine_constant(lowering, "padded " + weight.name,
                           static_cast<std::size_t>(sizes.channels * sizes.padded_rank) * size_of(dtype), fill);
}

void add_weights(Lowering& lowering, const Node& scan, const Roles& roles, const Sizes& sizes, DType dtype,
                 ScanDirection& direction) {
    direction.dt_weight = padded_dt_weight(lowering, scan.weight(roles.dt_weight), sizes, dtype);
    direction.dt_bias = float_vector(lowering, scan.weight(roles.dt_bias));
    direction.decay = decay_rates(lowering, scan.weight(roles.a_log), sizes);
    direction.skip = float_vector(lowering, scan.weight(roles.skip));
}

struct ConvStep {
    CausalConv fixed;
    Operand x, forward, backward;  // x, backward: buffer -1 where there is none
};

CausalConv conv_of(const ConvStep& step, const Frame& frame) {
    CausalConv a = step.fixed;
    if (step.x.buffer >= 0) a.x = address(frame, step.x);
    a.forward = address(frame, step.forward);
    if (step.backward.buffer >= 0) a.backward = address(frame, step.backward);
    return a;
}

void run_conv(const void* parameters, const Frame& frame) {
    causal_conv1d(conv_of(*static_cast<const ConvStep*>(parameters), frame), stream_of(frame));
}

struct ConvXProjStep {
    ConvStep conv;
    ConvXProj fixed;
    Operand projected;
};

ConvXProj conv_x_proj_of(const ConvXProjStep& step, const Frame& frame) {
    ConvXProj a = step.fixed;
    a.conv = conv_of(step.conv, frame);
    a.projected = address(frame, step.projected);
    return a;
}

void run_conv_x_proj(const void* parameters, const Frame& frame) {
    conv_x_proj(conv_x_proj_of(*static_cast<const ConvXProjStep*>(parameters), frame), stream_of(frame));
}

struct BetweenScansStep {
    OutProjStep out;
    ConvXProjStep behind;
    BetweenScans fixed;
    Operand z;
};

void run_between_scans(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const BetweenScansStep*>(parameters);
    BetweenScans a = step.fixed;
    a.out = out_proj_of(step.out, frame);
    a.z = address(frame, step.z);
    a.behind = conv_x_proj_of(step.behind, frame);
    between_scans(a, stream_of(frame));
}

struct BeforeScanStep {
    OutProjStep out;
    ConvXProjStep behind;
    BeforeScan fixed;
    Operand z;
    Operand zeros;  // buffer -1 where there are none
};

void run_before_scan(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const BeforeScanStep*>(parameters);
    BeforeScan a = step.fixed;
    a.out = out_proj_of(step.out, frame);
    a.z = address(frame, step.z);
    a.behind = conv_x_proj_of(step.behind, frame);
    if (step.zeros.buffer >= 0) a.zeros = frame.at<unsigned>(step.zeros);
    before_scan(a, stream_of(frame));
}

struct ScanStep {
    Scan fixed;
    ScanForm form;
    Operand forward_c, backward_c, forward_projected, backward_projected, forward_y, backward_y;
    Operand z, merged, chunk_states;  // buffer -1 where there are none
};

void run_scan(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const ScanStep*>(parameters);
    Scan a = step.fixed;
    a.forward.c = address(frame, step.forward_c);
    a.forward.projected = address(frame, step.forward_projected);
    a.forward.y = address(frame, step.forward_y);
    if (a.directions == 2) {
        a.backward.c = address(frame, step.backward_c);
        a.backward.projected = address(frame, step.backward_projected);
        a.backward.y = address(frame, step.backward_y);
    }
    if (step.merged.buffer >= 0) {
        a.merged = address(frame, step.merged);
        a.z = address(frame, step.z);
    }
    if (step.chunk_states.buffer >= 0) a.chunk_states = address(frame, step.chunk_states);
    bidirectional_scan(a, step.form, stream_of(frame));
}

// The gated_merge behind the scan, where it is all that reads the scan's results; null otherwise.
const Node* merge_behind(const Lowering& lowering, int node) {
    const Node& scan = lowering.node(node);
    for (int i = 0; i < scan.output_count(); ++i) {
        if (!lowering.feeds_next(node, scan.output(i), "gated_merge")) return nullptr;
    }
    const Node& merge = lowering.node(node + 1);
    const ValueId z = merge.input(merge.input_count() - 1);
    const bool fits = merge.input_count() == scan.output_count() + 1 && z != scan.output(0) &&
                      (scan.output_count() == 1 || z != scan.output(1));
    return fits ? &merge : nullptr;
}

// What a form is chosen by: the sizes of scan `node`, its results merged or not, and c in octets' order.
Scan scan_of_sizes(const Lowering& lowering, int node, const Sizes& sizes, DType dtype) {
    const Node& scan = lowering.node(node);
    const Shape& shape = lowering.value(scan.input(0)).shape;
    static char somewhere;  // for whether results are merged is all that matters until the scan runs
    Scan a;
    a.order = ScanOrder::Octets;
    if (const Node* merge = merge_behind(lowering, node); merge != nullptr) {
        a.merged = &somewhere;
        a.wanted = static_cast<int>(lowering.token_selected_next(node + 1, merge->output(0)));
    }
    a.directions = scan.output_count();
    a.batch = static_cast<int>(shape[0]);
    a.tokens = static_cast<int>(shape[1]);
    a.channels = static_cast<int>(shape[2]);
    a.states = static_cast<int>(sizes.padded_states);
    a.rank = static_cast<int>(sizes.padded_rank);
    a.dtype = dtype;
    return a;
}

Operand behind(Operand operand, std::int64_t elements) {
    operand.offset += elements;
    return operand;
}

// True when what lies in x, or in the value that x is a part of, may be overwritten by node `node`.
bool may_overwrite(const Lowering& lowering, int node, ValueId x) {
    if (!lowering.last_read_at(x, node)) return false;
    for (int i = 0; i < node; ++i) {
        const Node& before = lowering.node(i);
        if (before.op() != "split") continue;
        for (int k = 0; k < before.output_count(); ++k) {
            if (before.output(k) == x) return lowering.last_read_at(before.input(0), node);
        }
    }
    return true;
}

// The nodes from one scan to the next, or from the first norm to the first scan.
struct NodesBetween {
    const Node* out_proj = nullptr;  // with `scale`, may be null: then there is but the norm of one value
    const Node* scale = nullptr;     // may be null
    const Node* norm = nullptr;
    ValueId residual = -1;  // that out_proj is added to; without it, what is normalised
    const Node* in_proj = nullptr;
    ValueId z = -1;
    int scan = -1;  // node
};

// Fills in those behind the norm, node `at`, where all that is between them is read by the next alone, and the scan's
// directions have filters and projections of their own; else false.
bool find_nodes_behind_norm(const Lowering& lowering, int at, NodesBetween& nodes) {
    if (nodes.norm->output_count() != 2 || !nodes.norm->is("norm", "rms") || nodes.norm->has_weight("bias") ||
        !lowering.feeds_next(at, nodes.norm->output(0), "linear"))
        return false;
    nodes.in_proj = &lowering.node(++at);
    if (nodes.in_proj->has_weight("bias") || !lowering.feeds_next(at, nodes.in_proj->output(0), "split")) return false;
    const Node& split = lowering.node(++at);
    if (split.output_count() != 2 || !lowering.feeds_next(at, split.output(0), "bidirectional_scan")) return false;
    nodes.scan = at + 1;
    nodes.z = split.output(1);
    const Node* merge = merge_behind(lowering, nodes.scan);
    return merge != nullptr && merge->input(merge->input_count() - 1) == nodes.z &&
           lowering.node(nodes.scan).is("backward", "own");
}

// Those from node `node` on, an out_proj or the first norm, likewise.
std::optional<NodesBetween> nodes_between(const Lowering& lowering, int node) {
    NodesBetween nodes;
    int at = node;
    if (lowering.node(at).op() == "linear") {
        nodes.out_proj = &lowering.node(at);
        ValueId hidden = nodes.out_proj->output(0);
        if (lowering.feeds_next(at, hidden, "scale")) {
            nodes.scale = &lowering.node(++at);
            hidden = nodes.scale->output(0);
        }
        if (nodes.out_proj->has_weight("bias") || !lowering.feeds_next(at, hidden, "add_norm")) return {};
        nodes.norm = &lowering.node(++at);
        if (nodes.norm->input_count() != 2) return {};
        nodes.residual = nodes.norm->input(nodes.norm->input(0) == hidden ? 1 : 0);
    } else {
        nodes.norm = &lowering.node(at);
        if (nodes.norm->input_count() != 1) return {};
        nodes.residual = nodes.norm->input(0);
    }
    if (!find_nodes_behind_norm(lowering, at, nodes)) return {};
    return nodes;
}

// Lowers one bidirectional_scan node.
class ScanLowering {
public:
    ScanLowering(Lowering& lowering, int node, const Target& target)
        : lowering_(lowering),
          node_(node),
          scan_(lowering.node(node)),
          target_(target),
          merge_(merge_behind(lowering, node)),
          sizes_(sizes_of(lowering, node)),
          own_(scan_.is("backward", "own")),
          rows_(rows_of(lowering, scan_.input(0))) {}

    int lower() {
        x_ = stored_as(lowering_, scan_.input(0), target_.dtype, true);
        describe_conv();
        add_filters();
        describe();
        merge_over_x();
        choose();
        place();
        lower_conv_and_projection();
        lower_scan();
        return merge_ != nullptr ? 2 : 1;
    }

    // The scan together with the nodes in front of it, from node `first` on. False, and nothing is lowered, where they
    // are better apart.
    bool lower_with(const NodesBetween& nodes, int first) {
        return lower_between(nodes, first) || (nodes.out_proj != nullptr && lower_before(nodes, first));
    }

    // The same by before_scan(), also where out_proj is a step of its own and nodes.residual what is normalised.
    bool lower_before(const NodesBetween& nodes, int first) {
        BeforeScanStep step;
        describe_front(nodes, step.fixed);
        step.fixed.adds = nodes.out_proj != nullptr;
        if (!before_scan_takes(step.fixed, target_.device) || !takes_residual(nodes, first, step.fixed.width))
            return false;
        step.fixed.run = before_scan_run(step.fixed, target_.device, lowering_.alone());
        if (step.fixed.run.octets == 0) return false;
        place_sum(nodes, step.out);
        step.fixed.in_weight = in_weight_before_scan(lowering_, nodes.in_proj->weight("weight"), target_.dtype);
        step.fixed.filters = filters_before_scan(lowering_, scan_);
        place_front(nodes, step, true);
        fused_.weight = packed_x_proj(lowering_, scan_, sizes_, own_, target_.dtype, " for before_scan",
                                      [&](std::int64_t i) { return before_scan_x_proj_element(fused_.features, i); });
        step_.fixed.set_up_early = true;
        step.fixed.lets_begin_first = lowering_.alone() && scan_set_up_first(step_.form);
        if (const std::size_t bytes = scan_zeros(step_.fixed, step_.form); bytes > 0) {
            step.zeros = step_.chunk_states;
            step.fixed.zeros_count = static_cast<int>(bytes / sizeof(unsigned));
        }
        lower_front(nodes, run_before_scan, step, step.zeros);
        return true;
    }

private:
    // The same by between_scans().
    bool lower_between(const NodesBetween& nodes, int first) {
        BetweenScansStep step;
        describe_front(nodes, step.fixed);
        if (!between_scans_takes(step.fixed, target_.device) || !takes_residual(nodes, first, step.fixed.width))
            return false;
        step.fixed.run = between_scans_run(step.fixed, target_.device);
        if (step.fixed.run.octets == 0) return false;
        step.fixed.shared_bytes = between_scans_shared_bytes(step.fixed, target_.device);
        place_sum(nodes, step.out);
        add_filters();
        step.fixed.in_weight = matrix(lowering_, nodes.in_proj->weight("weight"), target_.dtype);
        place_front(nodes, step, false);
        fused_.weight = x_proj_by_rows(lowering_, scan_, sizes_, own_, true, target_.dtype);
        lower_front(nodes, run_between_scans, step, {});
        return true;
    }

    // Whether out_proj's operands are as such kernels read them; without it, whether the residual is, and may be kept
    // as the sum.
    bool takes_residual(const NodesBetween& nodes, int first, int width) {
        if (nodes.out_proj == nullptr) return is_free(lowering_, first, nodes.residual, DType::F32);
        return out_proj_takes(lowering_.read(nodes.out_proj->input(0)), *nodes.out_proj, width, target_.dtype);
    }
    void place_sum(const NodesBetween& nodes, OutProjStep& step) {
        step.residual = stored_as(lowering_, nodes.residual, DType::F32);
        if (nodes.out_proj == nullptr) {
            lowering_.in_place(nodes.norm->output(1), nodes.residual);
            return;
        }
        place_out_proj(lowering_, step, lowering_.read(nodes.out_proj->input(0)), *nodes.out_proj,
                       nodes.scale != nullptr ? &nodes.scale->weight("gamma") : nullptr, target_.dtype);
        step.sum = lowering_.write(nodes.norm->output(1));
    }
    // The kernel's step, named after all nodes whose products it computes, and the scan's. `zeros`: what it writes
    // besides, buffer -1 where there is none.
    template <typename FrontStep>
    void lower_front(const NodesBetween& nodes, void (*run)(const void*, const Frame&), FrontStep& step,
                     const Operand& zeros) {
        step.behind = {conv_, fused_, projected_};
        const OutProjStep& out = step.out;
        const bool adds = nodes.out_proj != nullptr;
        const std::string name = (adds ? "linear+norm+linear+causal_conv1d+x_proj " + nodes.out_proj->name() + ", "
                                       : "norm+linear+causal_conv1d+x_proj ") +
                                 nodes.in_proj->name() + ", " + scan_.name();
        lowering_.step(name.c_str(), run, step, {adds ? out.y : out.residual, out.residual},
                       {adds ? out.sum : step.z, step.z, c_, projected_, zeros.buffer >= 0 ? zeros : step.z});
        lower_scan();
    }

    // Of a kernel for what lies in front of the scan, what says whether it takes the shape.
    template <typename Front>
    void describe_front(const NodesBetween& nodes, Front& front) {
        describe_conv();
        front.width = static_cast<int>(columns_of(lowering_, nodes.residual));
        front.behind.conv = conv_.fixed;
        front.behind.features = static_cast<int>(sizes_.row());
    }
    // The norm's parameters, and where such a kernel's results and the scan's go. `many_tokens`: the kernel for these,
    // behind which the result may lie in the place of z, and which writes scan_zeros().
    template <typename FrontStep>
    void place_front(const NodesBetween& nodes, FrontStep& step, bool many_tokens) {
        step.fixed.norm_weight = float_vector(lowering_, nodes.norm->weight("weight"));
        step.fixed.eps = static_cast<float>(nodes.norm->number("eps"));
        step.z = lowering_.write(nodes.z, target_.dtype);
        describe();
        choose(many_tokens && lowering_.alone());
        merge_over_z(many_tokens);
        place();
    }

    void describe() {
        Scan& a = step_.fixed;
        a = scan_of_sizes(lowering_, node_, sizes_, target_.dtype);
        a.factor = merge_ != nullptr && merge_->is("merge", "mean") ? 0.5F : 1.0F;
        add_weights(lowering_, scan_, forward_roles, sizes_, a.dtype, a.forward);
        if (a.directions == 2)
            add_weights(lowering_, scan_, own_ ? backward_roles : shared_roles, sizes_, a.dtype, a.backward);
        if (merge_ == nullptr) return;
        step_.z = stored_as(lowering_, merge_->input(merge_->input_count() - 1), target_.dtype, true);
        a.z_stride = step_.z.row_stride;
    }

    // The merged result in the place of x, where nobody needs it any more.
    void merge_over_x() {
        if (merge_ == nullptr) return;
        const ValueId x = scan_.input(0);
        place_merged(x, lowering_.read(x).buffer == x_.buffer && may_overwrite(lowering_, node_, x));
    }
    // Where x is never stored: with `may_take_z` in the place of z, as whoever writes a token's result has read its z,
    // but where that is slower.
    void merge_over_z(bool may_take_z) {
        const ValueId z = merge_->input(merge_->input_count() - 1);
        place_merged(z, may_take_z && scan_merges_over_z(step_.fixed, step_.form) &&
                            lowering_.read(z).buffer == step_.z.buffer &&
                            lowering_.feeds_next(node_, z, "gated_merge"));
    }
    void place_merged(ValueId over, bool in_place) {
        const ValueId merged = merge_->output(0);
        step_.merged = in_place ? lowering_.in_place(merged, over) : lowering_.write(merged, target_.dtype);
        step_.fixed.merged_stride = step_.merged.row_stride;
    }

    void describe_conv() {
        conv_.x = x_;
        CausalConv& a = conv_.fixed;
        a.x_stride = x_.row_stride;
        const Shape shape = lowering_.value(scan_.input(0)).shape;
        a.batch = static_cast<int>(shape[0]);
        a.tokens = static_cast<int>(shape[1]);
        a.channels = static_cast<int>(shape[2]);
        a.width = static_cast<int>(sizes_.width);
        a.dtype = target_.dtype;
    }
    // For kernels other than before_scan(), which has them in an order of its own.
    void add_filters() {
        CausalConv& a = conv_.fixed;
        a.forward_taps = transposed(lowering_, scan_.weight(forward_roles.conv_weight), sizes_.width);
        a.forward_bias = float_vector(lowering_, scan_.weight(forward_roles.conv_bias));
        if (!own_) return;
        a.backward_taps = transposed(lowering_, scan_.weight(backward_roles.conv_weight), sizes_.width);
        a.backward_bias = float_vector(lowering_, scan_.weight(backward_roles.conv_bias));
    }

    // Whether one kernel does convolution and projection, which leaves c in octets' order, and the scan's form.
    void choose(bool may_be_helped = false) {
        Scan& a = step_.fixed;
        fused_.conv = conv_.fixed;
        fused_.features = static_cast<int>(sizes_.row());
        const bool aligned = merge_ == nullptr || (step_.merged.offset % 8 == 0 && step_.z.offset % 8 == 0);
        is_fused_ = own_ && x_.offset % 8 == 0 && aligned && conv_x_proj_takes(fused_) && scan_octets_takes(a);
        if (!is_fused_) a.order = ScanOrder::Rows;
        if (is_fused_) fused_.run = conv_x_proj_run(fused_, target_.device, lowering_.alone());
        if (aligned) step_.form = choose_scan_form(a, target_.device, may_be_helped);
    }

    // Decides where c, the projections and the directions' y lie. Where each direction has its c to itself and only the
    // merged result is wanted, the scan may overwrite it with y.
    void place() {
        const Scan& a = step_.fixed;
        const std::int64_t elements = a.batch * scan_elements(a.tokens, a.channels, a.order);
        c_ = scratch((own_ ? 2 : 1) * elements, sizes_.channels);
        step_.forward_c = conv_.forward = c_;
        step_.backward_c = own_ ? behind(c_, elements) : c_;
        if (own_) conv_.backward = step_.backward_c;
        projected_ = scratch((own_ ? 2 : 1) * rows_ * sizes_.row(), sizes_.row());
        step_.forward_projected = projected_;
        step_.backward_projected = own_ ? behind(projected_, rows_ * sizes_.row()) : projected_;
        if (const std::size_t bytes = scan_room(a, step_.form); bytes > 0)
            step_.chunk_states = lowering_.scratch(bytes);
        if (merge_ == nullptr) {
            step_.forward_y = lowering_.write(scan_.output(0), target_.dtype);
            step_.backward_y = a.directions == 2 ? lowering_.write(scan_.output(1), target_.dtype) : step_.forward_y;
        } else if (own_ || a.directions == 1) {
            step_.forward_y = step_.forward_c;
            step_.backward_y = step_.backward_c;
        } else {
            step_.forward_y = scratch(2 * elements, sizes_.channels);
            step_.backward_y = behind(step_.forward_y, elements);
        }
    }
    Operand scratch(std::int64_t elements, std::int64_t row_stride) {
        Operand operand = lowering_.scratch(static_cast<std::size_t>(elements) * size_of(target_.dtype));
        operand.dtype = target_.dtype;
        operand.row_stride = row_stride;
        return operand;
    }

    void lower_conv_and_projection() {
        const void* weight = x_proj_by_rows(lowering_, scan_, sizes_, own_, is_fused_, target_.dtype);
        if (is_fused_) {
            fused_.weight = weight;
            lowering_.step(step_name("causal_conv1d+x_proj", scan_).c_str(), run_conv_x_proj,
                           ConvXProjStep{conv_, fused_, projected_}, {x_}, {c_, projected_});
            return;
        }
        lowering_.step(step_name("causal_conv1d", scan_).c_str(), run_conv, conv_, {x_}, {c_});
        MatmulShape shape;
        shape.rows = rows_;
        shape.depth = sizes_.channels;
        shape.features = sizes_.row();
        shape.batch = own_ ? 2 : 1;
        shape.in_batch_stride = rows_ * sizes_.channels;
        shape.out_batch_stride = rows_ * sizes_.row();
        lower_matmul(lowering_, target_, step_name("x_proj", scan_), shape, c_, weight, nullptr, projected_);
    }

    void lower_scan() {
        const Operand z = merge_ != nullptr ? step_.z : c_;
        const Operand merged = merge_ != nullptr ? step_.merged : step_.forward_y;
        const Operand room = step_.chunk_states.buffer >= 0 ? step_.chunk_states : merged;
        lowering_.step(step_name(merge_ != nullptr ? "scan+merge" : "scan", scan_).c_str(), run_scan, step_,
                       {c_, projected_, z}, {step_.forward_y, step_.backward_y, merged, room});
    }

    Lowering& lowering_;
    const int node_;
    const Node& scan_;
    const Target& target_;
    const Node* merge_;  // taken in; null where it is not
    const Sizes sizes_;
    const bool own_;  // the backward direction has its own parameters
    const std::int64_t rows_;
    ConvStep conv_{};
    ConvXProj fused_;
    bool is_fused_ = false;
    ScanStep step_{};
    Operand x_, c_, projected_;  // x: buffer -1 where it is never stored
};

}  // namespace

int lower_bidirectional_scan(Lowering& lowering, int node, const Target& target) {
    return ScanLowering(lowering, node, target).lower();
}

std::vector<Round> preferred_rounds(const Lowering& lowering, const Target& target) {
    for (int node = 0; node < lowering.node_count(); ++node) {
        const Node& scan = lowering.node(node);
        if (scan.op() != "bidirectional_scan") continue;
        Scan a = scan_of_sizes(lowering, node, sizes_of(lowering, node), target.dtype);
        if (!scan.is("backward", "own") || !scan_octets_takes(a)) return {};
        std::vector<Round> rounds;
        for (const int images : scan_rounds(a, target.device)) {
            a.batch = images;
            rounds.push_back({images, scan_branches(a, target.device)});
        }
        return rounds;
    }
    return {};
}

int lower_before_scan(Lowering& lowering, int node, ValueId sum, const Target& target) {
    NodesBetween nodes;
    nodes.norm = &lowering.node(node);
    nodes.residual = sum;
    if (target.parts || !find_nodes_behind_norm(lowering, node, nodes) ||
        !ScanLowering(lowering, nodes.scan, target).lower_before(nodes, node))
        return 0;
    return nodes.scan + 2 - node;
}

int lower_between_scans(Lowering& lowering, int node, const Target& target) {
    if (target.parts) return 0;
    const auto nodes = nodes_between(lowering, node);
    if (!nodes || !ScanLowering(lowering, nodes->scan, target).lower_with(*nodes, node)) return 0;
    return nodes->scan + 2 - node;
}

}  // namespace vimrt::cuda
