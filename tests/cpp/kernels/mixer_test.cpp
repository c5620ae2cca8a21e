// A direction of the mixer, from convolution to gate, against fp64, for one thread and for teams.
#include <cmath>
#include <functional>
#include <vector>

#include "check.h"
#include "kernel_table.h"
#include "random_data.h"

using namespace vimrt::cpu;

namespace {

struct Sizes {
    std::int64_t tokens, d_inner, d_state, dt_rank, width;
};

double silu(double x) {
    return x / (1 + std::exp(-x));
}
double softplus(double x) {
    return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
}

// The weights of a direction, plain and as the kernels want them.
struct Direction {
    Direction(const Sizes& sizes, const KernelTable& kernels)
        : s(sizes),
          taps(random_values(s.width * s.d_inner)),
          conv_bias(random_values(s.d_inner)),
          x_proj(random_values(s.d_inner * (s.dt_rank + 2 * s.d_state), -0.2F, 0.2F), s.d_inner,
                 s.dt_rank + 2 * s.d_state, kernels.lanes),
          dt_bias(random_values(s.d_inner, -5, 0)),
          decay(random_values(s.d_inner * s.d_state, -8, -0.1F)),
          skip(random_values(s.d_inner)),
          dt_plain(random_values(s.dt_rank * s.d_inner)) {
        const std::int64_t lanes = kernels.lanes;
        const std::int64_t channels = (s.d_inner + lanes - 1) / lanes * lanes;
        std::vector<float> dt_padded;
        for (std::int64_t r = 0; r < s.dt_rank; ++r) {
            for (std::int64_t e = 0; e < channels; ++e) dt_padded.push_back(e < s.d_inner ? dt_plain[at(r, e)] : 0.0F);
        }
        dt_proj = std::make_unique<PackedTestMatrix>(dt_padded, s.dt_rank, channels, kernels.lanes);
        for (std::int64_t w = 0; w < s.width; ++w) {
            for (std::int64_t e = 0; e < channels; ++e) taps_padded.push_back(e < s.d_inner ? taps[at(w, e)] : 0.0F);
        }
        for (std::int64_t first = 0; first < channels; first += lanes) {
            for (std::int64_t n = 0; n < s.d_state; ++n) {
                for (std::int64_t e = first; e < first + lanes; ++e) {
                    const double a = e < s.d_inner ? decay[static_cast<std::size_t>(e * s.d_state + n)] : 0.0;
                    rates.push_back(static_cast<float>(a * 1.4426950408889634));
                }
            }
        }
        conv_bias_padded = padded(conv_bias, kernels.lanes);
        dt_bias_padded = padded(dt_bias, kernels.lanes);
        skip_padded = padded(skip, kernels.lanes);
    }

    std::size_t at(std::int64_t row, std::int64_t e) const { return static_cast<std::size_t>(row * s.d_inner + e); }

    // y (tokens, d_inner) in fp64 for x (tokens, x_stride).
    std::vector<double> reference(const std::vector<float>& x, std::int64_t x_stride, bool reversed,
                                  bool descending) const {
        std::vector<double> c(static_cast<std::size_t>(s.tokens * s.d_inner)), y(c.size());
        for (std::int64_t t = 0; t < s.tokens; ++t) {
            for (std::int64_t e = 0; e < s.d_inner; ++e) {
                double sum = conv_bias[static_cast<std::size_t>(e)];
                for (std::int64_t w = 0; w < s.width; ++w) {
                    const std::int64_t from = reversed ? t + (s.width - 1 - w) : t - (s.width - 1 - w);
                    if (from >= 0 && from < s.tokens)
                        sum += double{taps[at(w, e)]} * x[static_cast<std::size_t>(from * x_stride + e)];
                }
                c[at(t, e)] = silu(sum);
            }
        }
        std::vector<double> h(static_cast<std::size_t>(s.d_inner * s.d_state));
        for (std::int64_t i = 0; i < s.tokens; ++i) step(c, descending ? s.tokens - 1 - i : i, h, y);
        return y;
    }

    Sizes s;
    std::vector<float> taps, conv_bias;
    PackedTestMatrix x_proj;
    std::vector<float> dt_bias, decay, skip, dt_plain;
    std::unique_ptr<PackedTestMatrix> dt_proj;
    std::vector<float> taps_padded, rates, conv_bias_padded, dt_bias_padded, skip_padded;

private:
    void step(const std::vector<double>& c, std::int64_t t, std::vector<double>& h, std::vector<double>& y) const {
        std::vector<double> p(static_cast<std::size_t>(s.dt_rank + 2 * s.d_state));
        for (std::size_t f = 0; f < p.size(); ++f) {
            for (std::int64_t e = 0; e < s.d_inner; ++e)
                p[f] += c[at(t, e)] * x_proj.at(e, static_cast<std::int64_t>(f));
        }
        for (std::int64_t e = 0; e < s.d_inner; ++e) {
            double raw = dt_bias[static_cast<std::size_t>(e)];
            for (std::int64_t r = 0; r < s.dt_rank; ++r) raw += p[static_cast<std::size_t>(r)] * dt_plain[at(r, e)];
            const double delta = softplus(raw);
            double sum = skip[static_cast<std::size_t>(e)] * c[at(t, e)];
            for (std::int64_t n = 0; n < s.d_state; ++n) {
                double& state = h[static_cast<std::size_t>(e * s.d_state + n)];
                state = std::exp(delta * decay[static_cast<std::size_t>(e * s.d_state + n)]) * state +
                        delta * c[at(t, e)] * p[static_cast<std::size_t>(s.dt_rank + n)];
                sum += p[static_cast<std::size_t>(s.dt_rank + s.d_state + n)] * state;
            }
            y[at(t, e)] = sum;
        }
    }
};

struct Mode {
    bool reversed, descending, gated, add;
};

float* aligned_scratch(std::vector<float>& storage, std::int64_t floats) {
    storage = poisoned(floats + 16);
    auto* p = storage.data();
    while (reinterpret_cast<std::uintptr_t>(p) % 64 != 0) ++p;
    return p;
}

void check_direction(const KernelTable& kernels, const Sizes& s, const Mode& mode, int threads) {
    const Direction weights(s, kernels);
    const std::int64_t x_stride = 2 * s.d_inner + 1;
    const std::int64_t out_stride = s.d_inner + 3;
    const std::vector<float> xz = random_values(s.tokens * x_stride, -2, 2);
    std::vector<float> out = poisoned(s.tokens * out_stride);
    std::vector<float> other = random_values(s.tokens * s.d_inner);
    for (std::int64_t t = 0; mode.add && t < s.tokens; ++t) {
        for (std::int64_t e = 0; e < s.d_inner; ++e)
            out[static_cast<std::size_t>(t * out_stride + e)] = other[weights.at(t, e)];
    }
    DirectionCase d;
    d.tokens = s.tokens;
    d.d_inner = s.d_inner;
    d.d_state = s.d_state;
    d.dt_rank = s.dt_rank;
    d.width = s.width;
    d.reversed = mode.reversed;
    d.descending = mode.descending;
    d.taps = weights.taps_padded.data();
    d.conv_bias = weights.conv_bias_padded.data();
    d.x_proj = weights.x_proj.packed;
    d.dt_proj = weights.dt_proj->packed;
    d.dt_bias = weights.dt_bias_padded.data();
    d.rates = weights.rates.data();
    d.skip = weights.skip_padded.data();
    d.x = xz.data();
    d.x_stride = x_stride;
    d.z = mode.gated ? xz.data() + s.d_inner : nullptr;
    d.z_stride = x_stride;
    d.add = mode.add;
    d.share = mode.add ? 0.5F : 1.0F;
    d.out = out.data();
    d.out_stride = out_stride;
    d.cut = s.tokens / 2;

    std::vector<float> storage;
    float* scratch = aligned_scratch(storage, kernels.direction_scratch(d));
    ThreadTeam team(threads);
    struct Call {
        const KernelTable& kernels;
        const DirectionCase& direction;
        float* scratch;
        ThreadTeam& team;
    } call{kernels, d, scratch, team};
    team.run(
        [](void* argument, int thread) {
            const Call& c = *static_cast<Call*>(argument);
            c.kernels.direction(c.direction, c.scratch, c.team, thread);
        },
        &call);

    const std::vector<double> y = weights.reference(xz, x_stride, mode.reversed, mode.descending);
    double error = 0;
    double norm = 0;
    bool gap_untouched = true;
    for (std::int64_t t = 0; t < s.tokens; ++t) {
        for (std::int64_t e = 0; e < out_stride; ++e) {
            const float found = out[static_cast<std::size_t>(t * out_stride + e)];
            if (e >= s.d_inner) {
                gap_untouched = gap_untouched && std::isnan(found);
                continue;
            }
            double expected = y[weights.at(t, e)];
            if (mode.add) expected = 0.5 * (expected + other[weights.at(t, e)]);
            if (mode.gated) expected *= silu(xz[static_cast<std::size_t>(t * x_stride + s.d_inner + e)]);
            error += (found - expected) * (found - expected);
            norm += expected * expected;
        }
    }
    CHECK(std::sqrt(error / norm) <= 2e-6);
    CHECK(gap_untouched);
}

constexpr Mode kForward{false, false, false, false};
constexpr Mode kBackward{true, true, true, true};

}  // namespace

TEST(directions_orders_and_endings) {
    for (const KernelTable& k : kernel_tables()) {
        for (const bool reversed : {false, true}) {
            for (const bool descending : {false, true}) {
                check_direction(k, {71, 48, 16, 3, 4}, {reversed, descending, false, false}, 1);
                check_direction(k, {71, 48, 16, 3, 4}, {reversed, descending, true, false}, 1);
                check_direction(k, {71, 48, 16, 3, 4}, {reversed, descending, true, true}, 1);
            }
        }
    }
}

TEST(any_number_of_tokens) {
    for (const KernelTable& k : kernel_tables()) {
        for (const std::int64_t tokens : {1, 2, 3, 5, 31, 32, 33, 64, 65, 66, 97, 131}) {
            check_direction(k, {tokens, 32, 16, 2, 4}, kForward, 1);
            check_direction(k, {tokens, 32, 16, 2, 4}, kBackward, 1);
        }
    }
}

TEST(any_number_of_channels) {
    for (const KernelTable& k : kernel_tables()) {
        for (const std::int64_t channels : {1, 7, 8, 9, 15, 17, 48, 77, 100}) {
            check_direction(k, {40, channels, 16, 5, 4}, kForward, 1);
            check_direction(k, {40, channels, 16, 5, 4}, kBackward, 1);
        }
    }
}

TEST(any_number_of_states_ranks_and_taps) {
    for (const KernelTable& k : kernel_tables()) {
        for (const std::int64_t states : {1, 2, 3, 5, 7, 8, 13, 31, 32, 64})
            check_direction(k, {37, 40, states, 4, 4}, kBackward, 1);
        for (const std::int64_t rank : {1, 2, 12, 24, 49}) check_direction(k, {37, 40, 16, rank, 4}, kBackward, 1);
        for (std::int64_t width = 1; width <= 8; ++width) {
            check_direction(k, {37, 40, 16, 4, width}, kForward, 1);
            check_direction(k, {3, 40, 16, 4, width}, kBackward, 1);
        }
    }
}

TEST(teams_that_share_channels) {
    for (const KernelTable& k : kernel_tables()) {
        for (const int threads : {2, 3, 4}) {
            check_direction(k, {67, 4 * k.panel_width, 16, 12, 4}, kBackward, threads);
            check_direction(k, {67, 4 * k.panel_width - 5, 16, 12, 4}, kForward, threads);
        }
    }
}

TEST(states_stay_accurate_over_long_sequences) {
    for (const KernelTable& k : kernel_tables()) check_direction(k, {4001, 16, 16, 2, 4}, kForward, 1);
}
