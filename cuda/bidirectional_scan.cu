// bidirectional_scan with its gated_merge: convolution, projection of delta, B and C, and the scan, in three steps.
//
// The convolution's results c lie in the storage of the merged result, with room for the other direction's behind it;
// the scan overwrites them, so that a block needs no memory for y.
#include "bidirectional_scan.h"

#include <algorithm>
#include <cmath>

#include "causal_conv1d.h"
#include "constants.h"
#include "cpu/runtime/weights.h"
#include "lowering_rules.h"
#include "matmul.h"

namespace vimrt::cuda {

namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}
std::int64_t round_up(std::int64_t a, std::int64_t b) {
    return ceil_div(a, b) * b;
}

// Forms of the wavefront, and the walks for each multiprocessor (images x channels x directions) from which each was
// the fastest of its neighbours on an H100 with 16 states (tests/cuda/scan_bench.cu; docs/performance.md). With few
// walks, parallelism comes from time; with many, from channels.
struct Choice {
    ScanForm form;
    std::int64_t walks = 0;
};
constexpr Choice wavefront_forms[] = {
    {{1, 1, 2}, 360}, {{1, 1, 3}, 140}, {{8, 2, 2}, 35}, {{8, 2, 4}, 17}, {{16, 4, 8}, 0}, {{16, 4, 4}, 0},
};
// Fewer tokens fill too little of a tile of 64 or 128.
constexpr int least_tokens_along_time = 64;

}  // namespace

std::vector<ScanForm> scan_forms(const Scan& a, const DeviceProperties& device) {
    std::vector<ScanForm> forms{{}};
    for (const Choice& choice : wavefront_forms) {
        if (!scan_wavefront_takes(a, choice.form)) continue;
        if (scan_wavefront_shared_bytes(a, choice.form) > static_cast<std::size_t>(device.shared_bytes_per_block))
            continue;
        forms.push_back(choice.form);
    }
    return forms;
}

ScanForm choose_scan_form(const Scan& a, const DeviceProperties& device) {
    const std::vector<ScanForm> forms = scan_forms(a, device);
    const std::int64_t walks = static_cast<std::int64_t>(a.batch) * a.channels * a.directions / device.multiprocessors;
    ScanForm best;
    for (const Choice& choice : wavefront_forms) {
        if (std::find(forms.begin(), forms.end(), choice.form) == forms.end()) continue;
        best = choice.form;
        if (walks >= choice.walks || a.tokens < least_tokens_along_time) break;
    }
    return best;
}

int ticket_count(const Scan& a, const ScanForm& form) {
    if (form.time_lanes == 0) return 0;
    return 1 + a.batch * static_cast<int>(ceil_div(a.channels, form.channels_per_block()));
}

void bidirectional_scan(const Scan& a, const ScanForm& form, cudaStream_t stream) {
    if (form.time_lanes > 0) {
        scan_wavefront(a, form, stream);
    } else {
        scan_over_channels(a, stream);
    }
}

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
    sizes.padded_states = 8;
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

// x_proj of every direction, one behind the other, with rows of zeros that pad delta, B and C.
const void* packed_x_proj(Lowering& lowering, const Node& scan, const Sizes& sizes, bool own, DType dtype) {
    const Weight* weights[2] = {&scan.weight("x_proj.weight"), own ? &scan.weight("x_proj_b.weight") : nullptr};
    const auto fill = [&](void* out) {
        std::int64_t at = 0;
        const auto copy_rows = [&](const Weight& weight, std::int64_t first, std::int64_t count, std::int64_t padded) {
            for (std::int64_t i = 0; i < padded * sizes.channels; ++i) {
                const bool real = i < count * sizes.channels;
                store_element(out, at++, real ? cpu::weight_element(weight, first * sizes.channels + i) : 0.0F, dtype);
            }
        };
        for (const Weight* weight : weights) {
            if (weight == nullptr) continue;
            copy_rows(*weight, 0, sizes.rank, sizes.padded_rank);
            copy_rows(*weight, sizes.rank, sizes.states, sizes.padded_states);
            copy_rows(*weight, sizes.rank + sizes.states, sizes.states, sizes.padded_states);
        }
    };
    const std::int64_t elements = (own ? 2 : 1) * sizes.row() * sizes.channels;
    return engine_constant(lowering, "padded " + weights[0]->name + (own ? " and " + weights[1]->name : ""),
                           static_cast<std::size_t>(elements) * size_of(dtype), fill);
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
    Operand x, forward, backward, tickets;  // backward, tickets: buffer -1 where there are none
};

void run_conv(const void* parameters, const Frame& frame) {
    const auto& step = *static_cast<const ConvStep*>(parameters);
    CausalConv a = step.fixed;
    a.x = address(frame, step.x);
    a.forward = address(frame, step.forward);
    if (step.backward.buffer >= 0) a.backward = address(frame, step.backward);
    if (step.tickets.buffer >= 0) a.clear = reinterpret_cast<unsigned*>(address(frame, step.tickets));
    causal_conv1d(a, stream_of(frame));
}

struct ScanStep {
    Scan fixed;
    ScanForm form;
    Operand forward_c, backward_c, forward_projected, backward_projected, forward_y, backward_y;
    Operand z, merged, tickets;  // buffer -1 where there are none
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
        a.z_stride = step.z.row_stride;
    }
    if (step.tickets.buffer >= 0) a.tickets = reinterpret_cast<unsigned*>(address(frame, step.tickets));
    bidirectional_scan(a, step.form, stream_of(frame));
}

// The gated_merge behind the scan, where it is all that reads the scan's results; null otherwise.
const Node* merge_behind(const Lowering& lowering, int node) {
    const Node& scan = lowering.node(node);
    for (int i = 0; i < scan.output_count(); ++i) {
        if (!feeds_next(lowering, node, scan.output(i), "gated_merge")) return nullptr;
    }
    const Node& merge = lowering.node(node + 1);
    const ValueId z = merge.input(merge.input_count() - 1);
    const bool fits = merge.input_count() == scan.output_count() + 1 && z != scan.output(0) &&
                      (scan.output_count() == 1 || z != scan.output(1));
    return fits ? &merge : nullptr;
}

Operand behind(Operand operand, std::int64_t elements) {
    operand.offset += elements;
    return operand;
}

// Lowers one bidirectional_scan node.
class ScanLowering {
public:
    ScanLowering(Lowering& lowering, int node, const Target& target)
        : lowering_(lowering),
          scan_(lowering.node(node)),
          target_(target),
          merge_(merge_behind(lowering, node)),
          sizes_(sizes_of(lowering, node)),
          own_(scan_.is("backward", "own")),
          rows_(rows_of(lowering, scan_.input(0))),
          elements_(rows_ * sizes_.channels) {}

    int lower() {
        describe();
        place();
        lower_conv();
        lower_projection();
        lower_scan();
        return merge_ != nullptr ? 2 : 1;
    }

private:
    void describe() {
        const Shape shape = lowering_.value(scan_.input(0)).shape;
        Scan& a = step_.fixed;
        a.directions = scan_.output_count();
        a.batch = static_cast<int>(shape[0]);
        a.tokens = static_cast<int>(shape[1]);
        a.channels = static_cast<int>(shape[2]);
        a.states = static_cast<int>(sizes_.padded_states);
        a.rank = static_cast<int>(sizes_.padded_rank);
        a.dtype = target_.dtype;
        a.factor = merge_ != nullptr && merge_->is("merge", "mean") ? 0.5F : 1.0F;
        if (merge_ != nullptr) a.z_stride = lowering_.read(merge_->input(merge_->input_count() - 1)).row_stride;
        add_weights(lowering_, scan_, forward_roles, sizes_, a.dtype, a.forward);
        if (a.directions == 2)
            add_weights(lowering_, scan_, own_ ? backward_roles : shared_roles, sizes_, a.dtype, a.backward);
        step_.form = choose_scan_form(a, target_.device);
    }

    // Decides where c, y and the merged result lie.
    void place() {
        x_ = stored_as(lowering_, scan_.input(0), target_.dtype, true);
        const bool both = step_.fixed.directions == 2;
        if (merge_ != nullptr) {
            step_.z = stored_as(lowering_, merge_->input(merge_->input_count() - 1), target_.dtype, true);
            step_.merged = lowering_.write(merge_->output(0), target_.dtype, both ? elements_ : 0);
            step_.forward_y = step_.merged;
            step_.backward_y = behind(step_.merged, elements_);
        } else {
            step_.forward_y = lowering_.write(scan_.output(0), target_.dtype);
            if (both) step_.backward_y = lowering_.write(scan_.output(1), target_.dtype);
        }
        // The scan may overwrite c with y where each direction has both to itself, one behind the other.
        if (merge_ != nullptr && (own_ || !both)) {
            c_ = step_.forward_y;
        } else {
            c_ = lowering_.scratch(static_cast<std::size_t>((own_ ? 2 : 1) * elements_) * size_of(target_.dtype));
            c_.dtype = target_.dtype;
            c_.row_stride = sizes_.channels;
        }
        step_.forward_c = c_;
        step_.backward_c = own_ ? behind(c_, elements_) : c_;
        projected_ =
            lowering_.scratch(static_cast<std::size_t>((own_ ? 2 : 1) * rows_ * sizes_.row()) * size_of(target_.dtype));
        projected_.dtype = target_.dtype;
        projected_.row_stride = sizes_.row();
        step_.forward_projected = projected_;
        step_.backward_projected = own_ ? behind(projected_, rows_ * sizes_.row()) : projected_;
        if (const int count = ticket_count(step_.fixed, step_.form); count > 0) {
            step_.tickets = lowering_.scratch(static_cast<std::size_t>(count) * sizeof(unsigned));
        }
    }

    void lower_conv() {
        ConvStep conv{};
        conv.x = x_;
        conv.forward = c_;
        conv.backward = own_ ? step_.backward_c : Operand{};
        conv.tickets = step_.tickets;
        CausalConv& a = conv.fixed;
        a.x_stride = x_.row_stride;
        a.forward_taps = transposed(lowering_, scan_.weight(forward_roles.conv_weight), sizes_.width);
        a.forward_bias = float_vector(lowering_, scan_.weight(forward_roles.conv_bias));
        if (own_) {
            a.backward_taps = transposed(lowering_, scan_.weight(backward_roles.conv_weight), sizes_.width);
            a.backward_bias = float_vector(lowering_, scan_.weight(backward_roles.conv_bias));
        }
        a.batch = step_.fixed.batch;
        a.tokens = step_.fixed.tokens;
        a.channels = step_.fixed.channels;
        a.width = static_cast<int>(sizes_.width);
        a.dtype = target_.dtype;
        a.clear_count = ticket_count(step_.fixed, step_.form);
        const Operand cleared = step_.tickets.buffer >= 0 ? step_.tickets : c_;
        lowering_.step(step_name("causal_conv1d", scan_).c_str(), run_conv, conv, {x_}, {c_, cleared});
    }

    void lower_projection() {
        MatmulShape shape;
        shape.rows = rows_;
        shape.depth = sizes_.channels;
        shape.features = sizes_.row();
        shape.batch = own_ ? 2 : 1;
        shape.in_batch_stride = elements_;
        shape.out_batch_stride = rows_ * sizes_.row();
        lower_matmul(lowering_, target_, step_name("x_proj", scan_), shape, c_,
                     packed_x_proj(lowering_, scan_, sizes_, own_, target_.dtype), nullptr, projected_);
    }

    void lower_scan() {
        const Operand y = step_.forward_y;
        const Operand other = merge_ == nullptr && step_.fixed.directions == 2 ? step_.backward_y : y;
        const Operand z = merge_ != nullptr ? step_.z : c_;
        const Operand tickets = step_.tickets.buffer >= 0 ? step_.tickets : y;
        lowering_.step(step_name(merge_ != nullptr ? "scan+merge" : "scan", scan_).c_str(), run_scan, step_,
                       {c_, projected_, z}, {y, other, tickets});
    }

    Lowering& lowering_;
    const Node& scan_;
    const Target& target_;
    const Node* merge_;  // taken in; null where it is not
    const Sizes sizes_;
    const bool own_;  // the backward direction has its own parameters
    const std::int64_t rows_;
    const std::int64_t elements_;  // of c in one direction
    ScanStep step_{};
    Operand x_, c_, projected_;
};

}  // namespace

int lower_bidirectional_scan(Lowering& lowering, int node, const Target& target) {
    return ScanLowering(lowering, node, target).lower();
}

}  // namespace vimrt::cuda
