// The vector functions against fp64, with the bounds that docs/cpu-kernels.md states.
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "kernel_table.h"
#include "random_data.h"

using namespace vimrt::cpu;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

std::vector<float> values_of(const KernelTable& kernels, Elementwise function, const std::vector<float>& in) {
    std::vector<float> out = poisoned(static_cast<std::int64_t>(in.size()));
    kernels.elementwise(function, in.data(), out.data(), static_cast<std::int64_t>(in.size()));
    return out;
}

float value_of(const KernelTable& kernels, Elementwise function, float x) {
    return values_of(kernels, function, {x})[0];
}

// `count` values spread evenly over [low, high], and as many with magnitudes spread evenly over the exponents.
std::vector<float> samples(double low, double high) {
    constexpr int count = 200001;
    std::vector<float> values;
    for (int i = 0; i < count; ++i) values.push_back(static_cast<float>(low + (high - low) * i / (count - 1)));
    for (int i = 0; i < count; ++i) {
        const double magnitude = std::exp2(-30.0 + 37.0 * i / (count - 1));
        for (const double x : {magnitude, -magnitude}) {
            if (x >= low && x <= high) values.push_back(static_cast<float>(x));
        }
    }
    return values;
}

template <typename Reference>
double worst_relative_error(const KernelTable& kernels, Elementwise function, double low, double high,
                            Reference reference) {
    const std::vector<float> in = samples(low, high);
    const std::vector<float> out = values_of(kernels, function, in);
    double worst = 0;
    for (std::size_t i = 0; i < in.size(); ++i) {
        const double expected = reference(static_cast<double>(in[i]));
        const double error = std::abs(out[i] - expected) / std::max(std::abs(expected), 1e-300);
        if (!(error <= worst)) worst = std::isnan(error) ? infinity : error;
    }
    return worst;
}

}  // namespace

TEST(there_is_a_table_to_test) {
    CHECK(!kernel_tables().empty());
}

TEST(exp2_is_within_2e_7_from_minus_126_to_128) {
    const auto exact = [](double x) { return std::exp2(x); };
    for (const KernelTable& k : kernel_tables()) {
        CHECK(worst_relative_error(k, Elementwise::Exp2, -125.99, 127.99, exact) < 2e-7);
        CHECK(worst_relative_error(k, Elementwise::Exp2Nonpositive, -125.99, 0, exact) < 2e-7);
        CHECK_EQ(value_of(k, Elementwise::Exp2, 0), 1.0F);
        CHECK_EQ(value_of(k, Elementwise::Exp2Nonpositive, -0.0F), 1.0F);
        CHECK_EQ(value_of(k, Elementwise::Exp2, 10), 1024.0F);
    }
}

// The memory of a state is 1 / (1 - decay): rounding of single decays averages out over tokens, a bias would not.
TEST(slow_decays_have_no_bias) {
    std::vector<float> in;
    for (int i = 0; i < 200000; ++i) in.push_back(-1e-3F - 5e-9F * static_cast<float>(i));
    for (const KernelTable& k : kernel_tables()) {
        for (const Elementwise f : {Elementwise::Exp2, Elementwise::Exp2Nonpositive}) {
            const std::vector<float> out = values_of(k, f, in);
            double bias = 0;
            for (std::size_t i = 0; i < in.size(); ++i)
                bias += (1.0 - out[i]) / -std::expm1(double{in[i]} * std::log(2.0)) - 1;
            CHECK(std::abs(bias / static_cast<double>(in.size())) < 3e-6);
        }
    }
}

TEST(exp2_outside_that_range_underflows_and_overflows) {
    for (const KernelTable& k : kernel_tables()) {
        for (const float x : {-127.0F, -150.0F, -1e4F, -1e30F, -infinity}) {
            CHECK(value_of(k, Elementwise::Exp2, x) >= 0 && value_of(k, Elementwise::Exp2, x) <= 0x1p-126F);
            CHECK(value_of(k, Elementwise::Exp2Nonpositive, x) >= 0);
            CHECK(value_of(k, Elementwise::Exp2Nonpositive, x) <= 0x1p-126F);
        }
        for (const float x : {128.0F, 1e4F, infinity}) CHECK_EQ(value_of(k, Elementwise::Exp2, x), infinity);
    }
}

TEST(exp_is_within_2e_7_where_it_neither_underflows_nor_overflows) {
    for (const KernelTable& k : kernel_tables()) {
        CHECK(worst_relative_error(k, Elementwise::Exp, -87.2, 88.6, [](double x) { return std::exp(x); }) < 2e-7);
    }
}

TEST(silu_is_within_3e_7_from_minus_87_up) {
    const auto exact = [](double x) { return x / (1 + std::exp(-x)); };
    for (const KernelTable& k : kernel_tables()) {
        CHECK(worst_relative_error(k, Elementwise::Silu, -87.2, 100, exact) < 3e-7);
        CHECK_EQ(value_of(k, Elementwise::Silu, 0), 0.0F);
        CHECK_EQ(value_of(k, Elementwise::Silu, 1e30F), 1e30F);
        CHECK(std::abs(value_of(k, Elementwise::Silu, -200)) < 1e-35F);
    }
}

TEST(softplus_is_within_4e_7_everywhere) {
    const auto exact = [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); };
    for (const KernelTable& k : kernel_tables()) {
        CHECK(worst_relative_error(k, Elementwise::Softplus, -87.2, 100, exact) < 4e-7);
        CHECK_EQ(value_of(k, Elementwise::Softplus, 1e30F), 1e30F);
        CHECK(value_of(k, Elementwise::Softplus, -1e30F) >= 0 && value_of(k, Elementwise::Softplus, -1e30F) < 1e-37F);
        CHECK_EQ(value_of(k, Elementwise::Softplus, infinity), infinity);
    }
}

TEST(nan_stays_nan_of_either_sign) {
    for (const KernelTable& k : kernel_tables()) {
        for (const Elementwise f : {Elementwise::Exp2, Elementwise::Exp2Nonpositive, Elementwise::Exp,
                                    Elementwise::Silu, Elementwise::Softplus}) {
            CHECK(std::isnan(value_of(k, f, not_a_number)));
            CHECK(std::isnan(value_of(k, f, -not_a_number)));
        }
    }
}

TEST(tiny_arguments_keep_their_relative_accuracy) {
    for (const KernelTable& k : kernel_tables()) {
        CHECK_EQ(value_of(k, Elementwise::Silu, 1e-30F), 5e-31F);
        for (const float x : {1e-30F, -1e-30F}) {
            CHECK(std::abs(value_of(k, Elementwise::Exp2, x) - 1.0F) <= 6e-8F);
            CHECK(std::abs(value_of(k, Elementwise::Exp2Nonpositive, -std::abs(x)) - 1.0F) <= 6e-8F);
        }
    }
}
