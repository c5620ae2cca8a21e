// Matrix products and norms against fp64.
#include <cmath>
#include <vector>

#include "check.h"
#include "kernel_table.h"
#include "random_data.h"

using namespace vimrt::cpu;

namespace {

struct Size {
    std::int64_t rows, depth, columns;
};

// The largest error of out = A B + bias + addend, and whether anything outside the result was written.
void check_product(const KernelTable& kernels, const Size& s, bool with_bias, bool accumulate) {
    const std::int64_t a_stride = s.depth + 3;
    const std::int64_t out_stride = s.columns + 5;
    const std::vector<float> a = random_values(s.rows * a_stride);
    const PackedTestMatrix b(random_values(s.depth * s.columns), s.depth, s.columns, kernels.lanes);
    const std::vector<float> bias = padded(random_values(s.columns), kernels.lanes);
    std::vector<float> out = poisoned(s.rows * out_stride);
    if (accumulate) {
        for (std::int64_t m = 0; m < s.rows; ++m) {
            for (std::int64_t n = 0; n < s.columns; ++n) out[static_cast<std::size_t>(m * out_stride + n)] = 0.25F;
        }
    }
    GemmCase g{s.rows, a.data(), a_stride, b.packed, nullptr, nullptr, 0, out.data(), out_stride};
    if (with_bias) g.bias = bias.data();
    if (accumulate) {
        g.addend = out.data();
        g.addend_stride = out_stride;
    }
    kernels.gemm(g);

    double worst = 0;
    bool gap_untouched = true;
    for (std::int64_t m = 0; m < s.rows; ++m) {
        for (std::int64_t n = 0; n < out_stride; ++n) {
            const float found = out[static_cast<std::size_t>(m * out_stride + n)];
            if (n >= s.columns) {
                gap_untouched = gap_untouched && std::isnan(found);
                continue;
            }
            double expected = accumulate ? 0.25 : 0.0;
            if (with_bias) expected += bias[static_cast<std::size_t>(n)];
            for (std::int64_t k = 0; k < s.depth; ++k)
                expected += a[static_cast<std::size_t>(m * a_stride + k)] * b.at(k, n);
            const double error = std::abs(found - expected);
            if (!(error <= worst)) worst = error;
        }
    }
    // Sums of `depth` terms below 1: rounding adds up like a random walk; the bound is several times what it usually
    // comes to.
    CHECK(worst <= 5e-6 * std::sqrt(static_cast<double>(s.depth)));
    CHECK(gap_untouched);
}

}  // namespace

TEST(products_of_every_tile_height_and_panel_width) {
    for (const KernelTable& k : kernel_tables()) {
        for (std::int64_t rows = 1; rows <= 19; ++rows) check_product(k, {rows, 37, 101}, true, false);
        for (std::int64_t columns = 1; columns <= 2 * k.panel_width + 1; ++columns)
            check_product(k, {5, 11, columns}, true, false);
    }
}

TEST(products_of_the_sizes_of_vim) {
    for (const KernelTable& k : kernel_tables()) {
        for (const Size& s : {Size{197, 192, 768}, Size{61, 384, 192}, Size{32, 384, 44}, Size{32, 12, 384},
                              Size{1, 192, 1000}, Size{67, 768, 1536}}) {
            check_product(k, s, false, false);
        }
    }
}

TEST(products_with_bias_and_accumulation) {
    for (const KernelTable& k : kernel_tables()) {
        for (const bool bias : {false, true}) {
            for (const bool accumulate : {false, true}) check_product(k, {23, 50, 77}, bias, accumulate);
        }
    }
}

TEST(norms_of_rows_of_any_width) {
    for (const KernelTable& k : kernel_tables()) {
        for (const std::int64_t columns : {1, 7, 8, 15, 16, 17, 50, 192, 200}) {
            for (const bool centred : {false, true}) {
                const std::vector<float> in = random_values(columns, 2, 4);
                const std::vector<float> weight = padded(random_values(columns), k.lanes);
                const std::vector<float> bias = padded(random_values(columns), k.lanes);
                std::vector<float> out = poisoned(columns + 1);
                const float eps = 1e-5F;
                k.normalize({centred, weight.data(), bias.data(), eps, columns}, in.data(), out.data());

                double mean = 0;
                for (const float x : in) mean += x;
                mean = centred ? mean / static_cast<double>(columns) : 0.0;
                double variance = 0;
                for (const float x : in) variance += (x - mean) * (x - mean);
                variance /= static_cast<double>(columns);
                double worst = 0;
                for (std::size_t i = 0; i < in.size(); ++i) {
                    const double expected = (in[i] - mean) / std::sqrt(variance + double{eps}) * weight[i] + bias[i];
                    const double error = std::abs(out[i] - expected);
                    if (!(error <= worst)) worst = error;
                }
                // One column centred is 0 up to rounding of the mean, divided by sqrt(eps).
                CHECK(worst <= (centred && columns == 1 ? 1e-4 : 3e-6));
                CHECK(std::isnan(out.back()));
            }
        }
    }
}
