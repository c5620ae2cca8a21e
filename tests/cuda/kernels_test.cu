// Every kernel but the scan against fp64, at odd sizes too, with poisoned outputs.
#include <algorithm>
#include <deque>
#include <limits>
#include <numeric>
#include <utility>

#include "add_norm.h"
#include "before_scan.h"
#include "between_scans.h"
#include "bidirectional_scan.h"
#include "causal_conv1d.h"
#include "check.h"
#include "conv_x_proj.h"
#include "cublaslt.h"
#include "device_array.h"
#include "matmul.h"
#include "out_proj.h"
#include "parts.h"
#include "patch_embed.h"
#include "tokens.h"

using namespace vimrt;
using namespace vimrt::cuda;
using namespace vimrt::cuda::test;

namespace {

std::size_t product(std::initializer_list<std::int64_t> sizes) {
    std::int64_t count = 1;
    for (const std::int64_t size : sizes) count *= size;
    return static_cast<std::size_t>(count);
}

// Row-major (rows, columns) into one normalised row.
void norm_row(const double* x, int columns, const std::vector<double>& weight, const std::vector<double>* bias,
              double eps, bool centred, double* out) {
    double mean = 0;
    double square = 0;
    for (int i = 0; centred && i < columns; ++i) mean += x[i] / columns;
    for (int i = 0; i < columns; ++i) square += (x[i] - mean) * (x[i] - mean) / columns;
    for (int i = 0; i < columns; ++i) {
        const auto at = static_cast<std::size_t>(i);
        out[i] = (x[i] - mean) / std::sqrt(square + eps) * weight[at] + (bias != nullptr ? (*bias)[at] : 0.0);
    }
}

void check_add_norm(int rows, int columns, DType dtype, bool residual, bool centred, std::int64_t step) {
    const std::vector<double> hidden = rounded(normal(product({rows * step, columns}), 1.0, 0.3), DType::F32);
    const std::vector<double> stream = rounded(normal(product({rows, columns})), DType::F32);
    const std::vector<double> weight = rounded(normal(static_cast<std::size_t>(columns), 0.2, 1.0), DType::F32);
    const std::vector<double> bias = rounded(normal(static_cast<std::size_t>(columns)), DType::F32);
    const DeviceArray device_hidden(hidden, DType::F32);
    const DeviceArray device_stream(stream, DType::F32);
    const DeviceArray device_weight(weight, DType::F32);
    const DeviceArray device_bias(bias, DType::F32);
    const DeviceArray normed(product({rows, columns}), dtype);
    AddNorm a;
    a.hidden = device_hidden.floats();
    a.hidden_stride = step * columns;
    if (residual) a.residual = a.sum = device_stream.floats();
    a.normed = normed.data();
    a.weight = device_weight.floats();
    if (centred) a.bias = device_bias.floats();
    a.normed_dtype = dtype;
    a.rows = rows;
    a.columns = columns;
    a.eps = 1e-5F;
    a.centred = centred;
    add_norm(a, nullptr);
    require(cudaGetLastError());

    std::vector<double> expected(product({rows, columns}));
    std::vector<double> sums = stream;
    for (int row = 0; row < rows; ++row) {
        const auto from = static_cast<std::size_t>(row * step * columns);
        std::vector<double> sum(hidden.begin() + static_cast<std::ptrdiff_t>(from),
                                hidden.begin() + static_cast<std::ptrdiff_t>(from) + columns);
        const auto to = static_cast<std::size_t>(row * columns);
        for (std::size_t i = 0; residual && i < sum.size(); ++i) sum[i] += stream[to + i];
        for (std::size_t i = 0; i < sum.size(); ++i) sums[to + i] = sum[i];
        norm_row(sum.data(), columns, weight, centred ? &bias : nullptr, 1e-5, centred,
                 expected.data() + row * columns);
    }
    CHECK(relative_error(normed.values(), expected) <= tolerance(dtype));
    if (residual) CHECK(relative_error(device_stream.values(), sums) <= 1e-7);
}

// A convolution's inputs and outputs, on the host as the device sees them, and on the device. Rows of x are twice as
// long as they need be, as those of x and z together are.
struct Convolution {
    Convolution(DType dtype, int width, int tokens, int channels, bool both, int images = 2)
        : batch(images),
          half(product({batch, tokens, channels})),
          x(rounded(normal(product({batch, tokens, 2 * channels})), dtype)),
          taps(rounded(normal(product({2, width, channels}), 0.5), DType::F32)),
          bias(rounded(normal(product({2, channels}), 0.1), DType::F32)),
          device_x(x, dtype),
          device_taps(taps, DType::F32),
          device_bias(bias, DType::F32),
          out((both ? 2 : 1) * half, dtype) {
        a.x = device_x.data();
        a.x_stride = 2 * channels;
        a.forward = out.data();
        if (both) a.backward = out.at(half);
        a.forward_taps = device_taps.floats();
        a.backward_taps = both ? device_taps.floats() + width * channels : nullptr;
        a.forward_bias = device_bias.floats();
        a.backward_bias = both ? device_bias.floats() + channels : nullptr;
        a.batch = batch;
        a.tokens = tokens;
        a.channels = channels;
        a.width = width;
        a.dtype = dtype;
    }

    void check() const {
        require(cudaGetLastError());
        CHECK(relative_error(out.values(), expected()) <= tolerance(a.dtype));
    }

    // c of both directions, by rows.
    std::vector<double> expected() const {
        std::vector<double> c(out.values().size());
        for (std::size_t i = 0; i < c.size(); ++i) c[i] = silu(sum(i));
        return c;
    }

    // Taps and biases as before_scan() takes them.
    std::vector<double> before_scan_filters() const {
        std::vector<double> filters(product({a.channels, before_scan_filter_floats}));
        for (int i = 0; i < a.channels; ++i) {
            for (const int direction : {0, 1}) {
                const auto put = [&](int tap, double value) {
                    filters[product({i, before_scan_filter_floats}) + before_scan_filter_place(direction, tap)] =
                        value / 2;
                };
                for (int tap = 0; tap < a.width; ++tap)
                    put(tap, taps[product({direction * a.width + tap, a.channels}) + i]);
                put(a.width, bias[product({direction, a.channels}) + i]);
            }
        }
        return filters;
    }

    // Before SiLU.
    double sum(std::size_t i) const {
        const bool back = i >= half;
        const auto channel = static_cast<int>(i % static_cast<std::size_t>(a.channels));
        const auto row = static_cast<int>(i % half / static_cast<std::size_t>(a.channels));
        double sum = bias[static_cast<std::size_t>((back ? a.channels : 0) + channel)];
        for (int j = 0; j < a.width; ++j) {
            const int token = row % a.tokens + (back ? a.width - 1 - j : j - (a.width - 1));
            if (token < 0 || token >= a.tokens) continue;
            sum += taps[static_cast<std::size_t>(((back ? a.width : 0) + j) * a.channels + channel)] *
                   x[static_cast<std::size_t>((row / a.tokens * a.tokens + token) * a.x_stride + channel)];
        }
        return sum;
    }

    int batch;
    std::size_t half;  // elements of a direction
    std::vector<double> x, taps, bias;
    DeviceArray device_x, device_taps, device_bias, out;
    CausalConv a;
};

}  // namespace

TEST(add_norm_of_any_width) {
    for (const DType dtype : storages) {
        for (const int columns : {1, 8, 50, 77, 192, 384, 768, 1024, 1280, 4096}) {
            if (columns > max_norm_columns(columns)) continue;
            for (const bool centred : {false, true}) {
                if (columns == 1 && centred) continue;  // a single value less its mean is nothing
                check_add_norm(7, columns, dtype, true, centred, 1);
                check_add_norm(5, columns, dtype, false, centred, 3);
            }
        }
    }
}

TEST(causal_conv1d_of_both_directions) {
    for (const DType dtype : storages) {
        for (const int width : {1, 3, 4, 7}) {
            for (const int tokens : {1, 3, 8, 65}) {
                for (const int channels : {8, 77, 192}) {
                    for (const bool both : {false, true}) {
                        const Convolution convolution(dtype, width, tokens, channels, both);
                        causal_conv1d(convolution.a, nullptr);
                        convolution.check();
                    }
                }
            }
        }
    }
}

// c of both directions from octets' order to rows. What stands for no token must be zero.
std::vector<double> rows_of_octets(std::vector<double> stored, const CausalConv& a) {
    std::vector<double> rows;
    for (const bool backward : {false, true}) {
        for (int row = 0; row < a.batch * a.tokens; ++row) {
            for (int channel = 0; channel < a.channels; ++channel) {
                const std::int64_t at =
                    octet_order_index(a.tokens, a.channels, row / a.tokens, row % a.tokens, channel, backward);
                rows.push_back(
                    std::exchange(stored[static_cast<std::size_t>(at) + (backward ? stored.size() / 2 : 0)], 0.0));
            }
        }
    }
    CHECK(std::all_of(stored.begin(), stored.end(), [](double value) { return value == 0.0; }));
    return rows;
}

// left right^T of row-major matrices, `depth` columns.
std::vector<double> times_transposed(const std::vector<double>& left, const std::vector<double>& right,
                                     std::size_t depth) {
    std::vector<double> result;
    for (std::size_t i = 0; i < left.size(); i += depth) {
        for (std::size_t j = 0; j < right.size(); j += depth)
            result.push_back(std::inner_product(&left[i], &left[i] + depth, &right[j], 0.0));
    }
    return result;
}

// x_proj's weights of both directions with their columns in the order of conv_x_proj_channel().
std::vector<double> in_conv_x_proj_order(const std::vector<double>& weights, int channels) {
    std::vector<double> ordered(weights.size());
    for (std::size_t i = 0; i < weights.size(); ++i) {
        const auto column = static_cast<std::int64_t>(i) % channels;
        ordered[i] = weights[i - static_cast<std::size_t>(column - conv_x_proj_channel(column))];
    }
    return ordered;
}

// c times x_proj's weights, direction by direction, of which each holds half.
std::vector<double> projected_of(const std::vector<double>& c, const std::vector<double>& weights, int channels) {
    std::vector<double> result;
    for (const std::ptrdiff_t direction : {0, 1}) {
        const auto part = [&](const std::vector<double>& both) {
            const auto size = static_cast<std::ptrdiff_t>(both.size() / 2);
            return std::vector<double>(both.begin() + direction * size, both.begin() + (direction + 1) * size);
        };
        const auto product = times_transposed(part(c), part(weights), static_cast<std::size_t>(channels));
        result.insert(result.end(), product.begin(), product.end());
    }
    return result;
}

void check_conv_x_proj(DType dtype, int batch, int tokens, int channels, int features, const TokenRun& run = {4, 1}) {
    const Convolution convolution(dtype, 4, tokens, channels, true, batch);
    const auto weight = rounded(normal(product({2, features, channels}), 0.1), dtype);
    const DeviceArray device_weight(in_conv_x_proj_order(weight, channels), dtype);
    const std::int64_t rows = std::int64_t{batch} * tokens;
    const DeviceArray projected(product({2, rows, features}), dtype);
    const auto half = static_cast<std::size_t>(batch * scan_elements(tokens, channels, ScanOrder::Octets));
    const DeviceArray octets(2 * half, dtype);
    ConvXProj a;
    a.conv = convolution.a;
    a.conv.forward = octets.data();
    a.conv.backward = octets.at(half);
    a.weight = device_weight.data();
    a.projected = projected.data();
    a.features = features;
    a.run = run;
    CHECK(conv_x_proj_takes(a));
    conv_x_proj(a, nullptr);
    require(cudaGetLastError());

    const std::vector<double> c = rows_of_octets(octets.values(), a.conv);
    CHECK(relative_error(c, convolution.expected()) <= tolerance(dtype));
    CHECK(relative_error(projected.values(), projected_of(c, weight, channels)) <= tolerance(dtype));
}

TEST(convolution_and_projection_in_one) {
    for (const DType dtype : {DType::F16, DType::BF16}) {
        for (const int features : {48, 64, 80}) {
            for (const int tokens : {1, 31, 32, 33, 197}) {
                for (const int channels : {64, 384}) check_conv_x_proj(dtype, 2, tokens, channels, features);
            }
            check_conv_x_proj(dtype, 84, 197, 64, features);
            if (!find_device(0).clusters) continue;
            for (const int blocks : {2, 3, 6}) check_conv_x_proj(dtype, 2, 37, 384, features, {4, blocks});
            check_conv_x_proj(dtype, 84, 197, 128, features, {4, 2});
        }
        for (const int tokens : {1, 63, 64, 65, 197}) check_conv_x_proj(dtype, 2, tokens, 384, 80, {8, 1});
        check_conv_x_proj(dtype, 84, 197, 64, 80, {8, 1});
        if (!find_device(0).clusters) continue;
        for (const int blocks : {2, 3, 4}) check_conv_x_proj(dtype, 3, 71, 768, 80, {8, blocks});
    }
}

// What lies between a residual and a scan: norm, in_proj, convolution and x_proj, for the kernels that do all of it.
struct ScanFront {
    ScanFront(DType storage, int columns, int batch, int tokens)
        : dtype(storage),
          width(columns),
          rows(std::int64_t{batch} * tokens),
          half(static_cast<std::size_t>(batch * scan_elements(tokens, inner, ScanOrder::Octets))),
          convolution(dtype, 4, tokens, inner, true, batch),
          residual(rounded(normal(product({rows, width}), 1.0, 0.2), DType::F32)),
          norm_weight(rounded(normal(static_cast<std::size_t>(width), 0.2, 1.0), DType::F32)),
          in_weight(rounded(normal(product({2 * inner, width}), 0.1), dtype)),
          x_proj(rounded(normal(product({2, features, inner}), 0.1), dtype)),
          device_residual(residual, DType::F32),
          device_norm(norm_weight, DType::F32),
          z(product({rows, inner}), dtype),
          projected(product({2, rows, features}), dtype),
          octets(2 * half, dtype) {
        behind.conv = convolution.a;
        behind.conv.x = nullptr;
        behind.conv.forward = octets.data();
        behind.conv.backward = octets.at(half);
        behind.projected = projected.data();
        behind.features = features;
    }

    // The kernel's inputs and outputs, `in_proj` and `projection` its weights in the kernel's order.
    template <typename Kernel>
    void describe(Kernel& a, const DeviceArray& in_proj, const DeviceArray& projection) const {
        a.out.residual = device_residual.floats();
        a.norm_weight = device_norm.floats();
        a.eps = 1e-5F;
        a.in_weight = in_proj.data();
        a.z = z.data();
        a.behind = behind;
        a.behind.weight = projection.data();
        a.width = width;
    }

    // `sum`: the residual that is normalised.
    void check(const std::vector<double>& sum) {
        const auto depth = static_cast<std::size_t>(width);
        std::vector<double> normed(sum.size());
        for (std::size_t i = 0; i < normed.size(); i += depth)
            norm_row(&sum[i], width, norm_weight, nullptr, 1e-5, false, &normed[i]);
        const auto xz = times_transposed(rounded(normed, dtype), in_weight, depth);
        std::vector<double> expected_z;
        for (auto row = xz.begin(); row != xz.end(); row += 2 * inner)
            expected_z.insert(expected_z.end(), row + inner, row + 2 * inner);
        CHECK(relative_error(z.values(), expected_z) <= tolerance(dtype));
        const std::vector<double> c = rows_of_octets(octets.values(), behind.conv);
        convolution.x = xz;  // never stored
        CHECK(relative_error(c, convolution.expected()) <= 2 * tolerance(dtype));
        CHECK(relative_error(projected.values(), projected_of(c, x_proj, inner)) <= tolerance(dtype));
    }

    DType dtype;
    int width;
    int inner = 2 * width;
    int features = width == 192 ? 48 : width == 384 ? 64 : 80;
    std::int64_t rows;
    std::size_t half;  // elements of a direction of c
    Convolution convolution;
    std::vector<double> residual, norm_weight, in_weight, x_proj;
    DeviceArray device_residual, device_norm, z, projected, octets;
    ConvXProj behind;  // without its weight
};

// What out_proj adds to such a kernel's residual.
struct Addition {
    Addition(DType dtype, int width, std::int64_t rows)
        : depth(2 * width),
          y_stride(depth + 8),
          y(rounded(normal(product({rows, y_stride})), dtype)),
          weight(rounded(normal(product({width, depth}), 0.05), dtype)),
          device_y(y, dtype),
          device_weight(weight, dtype),
          sum(product({rows, width}), DType::F32) {}

    void describe(OutProj& out) const {
        out.y = device_y.data();
        out.y_stride = y_stride;
        out.weight = device_weight.data();
        out.sum = sum.floats();
    }
    // Checks the kernel's sums. What they were to be.
    std::vector<double> check(const std::vector<double>& residual) const {
        std::vector<double> sums = expected(residual);
        CHECK(relative_error(sum.values(), sums) <= 1e-6);
        return sums;
    }
    std::vector<double> expected(std::vector<double> residual) const {
        std::vector<double> dense;
        for (auto row = y.begin(); row != y.end(); row += y_stride) dense.insert(dense.end(), row, row + depth);
        const auto products = times_transposed(dense, weight, static_cast<std::size_t>(depth));
        for (std::size_t i = 0; i < products.size(); ++i) residual[i] += products[i];
        return residual;
    }

    std::int64_t depth, y_stride;
    std::vector<double> y, weight;
    DeviceArray device_y, device_weight, sum;
};

// `adds`: with an out_proj in front.
void check_between_scans(DType dtype, int width, const TokenRun& run, int batch, int tokens, bool adds) {
    ScanFront front(dtype, width, batch, tokens);
    const Addition addition(dtype, width, front.rows);
    const DeviceArray device_in(front.in_weight, dtype),
        device_x_proj(in_conv_x_proj_order(front.x_proj, front.inner), dtype);
    BetweenScans a;
    if (adds) addition.describe(a.out);
    front.describe(a, device_in, device_x_proj);
    CHECK(between_scans_takes(a, find_device(0)));
    a.run = run;
    a.shared_bytes = between_scans_shared_bytes(a, find_device(0));
    between_scans(a, nullptr);
    require(cudaGetLastError());
    front.check(adds ? addition.check(front.residual) : front.residual);
}

TEST(between_scans_in_one) {
    if (!find_device(0).clusters) return;
    for (const DType dtype : {DType::F16, DType::BF16}) {
        for (const int width : {192, 384}) {
            for (const TokenRun& of : between_scans_runs(width)) {
                const int run = of.octets * 8;
                for (const bool adds : {true, false}) {
                    for (const int tokens : {1, 2, 7, 13, run, run + 1, run + 2, 2 * run - 3, 197})
                        check_between_scans(dtype, width, of, tokens == 197 ? 1 : 3, tokens, adds);
                }
            }
        }
    }
}

void check_before_scan(DType dtype, int width, const TokenRun& run, int batch, int tokens, bool adds,
                       bool lets_begin_first = false) {
    ScanFront front(dtype, width, batch, tokens);
    const Addition addition(dtype, width, front.rows);
    std::vector<double> in_weight, x_proj;
    for (std::size_t i = 0; i < front.in_weight.size(); ++i) {
        const auto [row, column] = before_scan_in_element(width, static_cast<std::int64_t>(i));
        in_weight.push_back(front.in_weight[static_cast<std::size_t>(row * width + column)]);
    }
    for (std::size_t i = 0; i < front.x_proj.size(); ++i) {
        const auto [direction, element] = before_scan_x_proj_element(front.features, static_cast<std::int64_t>(i));
        x_proj.push_back(front.x_proj[static_cast<std::size_t>(
            (direction * front.features + element.row) * front.inner + element.column)]);
    }
    const DeviceArray device_in(in_weight, dtype), device_x_proj(x_proj, dtype),
        device_filters(front.convolution.before_scan_filters(), DType::F32);
    BeforeScan a;
    if (adds) addition.describe(a.out);
    a.adds = adds;
    front.describe(a, device_in, device_x_proj);
    a.filters = device_filters.floats();
    a.behind.conv.forward_taps = a.behind.conv.backward_taps = nullptr;
    a.behind.conv.forward_bias = a.behind.conv.backward_bias = nullptr;
    a.run = run;
    const DeviceArray room(1003, DType::F32);
    a.zeros = static_cast<unsigned*>(room.data());
    a.zeros_count = 999;
    a.lets_begin_first = lets_begin_first;
    CHECK(before_scan_takes(a, find_device(0)));
    before_scan(a, nullptr);
    require(cudaGetLastError());
    front.check(adds ? addition.check(front.residual) : front.residual);
    const std::vector<double> written = room.values();
    CHECK(std::all_of(written.begin(), written.begin() + 999, [](double x) { return x == 0; }));
    CHECK(std::all_of(written.begin() + 999, written.end(), [](double x) { return x != 0; }));  // as it was
}

void check_before_scan(bool adds, bool z_by_all) {
    if (!find_device(0).warpgroup_products) return;
    for (const DType dtype : {DType::F16, DType::BF16}) {
        for (const int width : {192, 384, 768}) {
            for (const TokenRun& of : before_scan_runs(width, adds)) {
                if ((of.z == ZBy::All) != z_by_all) continue;
                const int run = of.octets * 8;
                bool first = dtype == DType::BF16;  // in turn, and each length either way
                for (const int tokens : {1, 9, run - 1, run, run + 1, 2 * run + 3}) {
                    check_before_scan(dtype, width, of, 2, tokens, adds, first);
                    first = !first;
                }
                if (of.z == ZBy::Others) check_before_scan(dtype, width, of, 3, 3, adds);  // an odd number of runs
            }
        }
    }
}

TEST(before_scan_in_one) {
    check_before_scan(false, true);
}

TEST(out_proj_before_scan) {
    check_before_scan(true, true);
}

TEST(z_by_other_clusters) {
    check_before_scan(false, false);
}

TEST(z_by_a_third_of_a_cluster) {
    check_before_scan(true, false);
}

void check_add_out_proj(DType dtype, int width, int rows, int block_rows) {
    const Addition addition(dtype, width, rows);
    const std::vector<double> residual = rounded(normal(product({rows, width})), DType::F32);
    const DeviceArray sum(residual, DType::F32);
    AddOutProj a;
    addition.describe(a.out);
    a.out.residual = a.out.sum = sum.floats();
    a.dtype = dtype;
    a.width = width;
    a.rows = rows;
    a.block_rows = block_rows;
    add_out_proj(a, nullptr);
    require(cudaGetLastError());
    CHECK(relative_error(sum.values(), addition.expected(residual)) <= 1e-6);
}

TEST(out_proj_and_addition) {
    for (const DType dtype : {DType::F16, DType::BF16}) {
        for (const int width : {384, 768}) {
            for (const int block_rows : add_out_proj_block_rows(width)) {
                for (const int rows : {1, 17, block_rows, block_rows + 1, 2 * block_rows + 3, 197})
                    check_add_out_proj(dtype, width, rows, block_rows);
            }
        }
    }
}

template <typename Kernel>
Kernel of_shape(int width, int batch, int tokens) {
    Kernel a;
    a.width = width;
    a.behind.conv.batch = batch;
    a.behind.conv.tokens = tokens;
    return a;
}

TEST(runs_are_those_that_were_measured) {
    DeviceProperties hopper;
    hopper.multiprocessors = 132;
    hopper.shared_bytes_per_block = 232448;
    hopper.clusters = true;
    const auto before = [&](int width, int batch, int tokens, bool alone = true) {
        return before_scan_run(of_shape<BeforeScan>(width, batch, tokens), hopper, alone);
    };
    CHECK((before(192, 4, 197) == TokenRun{3, 2}));
    CHECK((before(192, 8, 197) == TokenRun{4, 2}));
    CHECK((before(192, 12, 197) == TokenRun{5, 2}));
    CHECK((before(192, 16, 197) == TokenRun{4, 1}));
    CHECK((before(192, 22, 197) == TokenRun{9, 2}));
    CHECK((before(192, 24, 197) == TokenRun{5, 1}));
    CHECK((before(192, 64, 197) == TokenRun{13, 1}));
    CHECK((before(192, 1, 1025) == TokenRun{3, 2}));
    CHECK((before(192, 1, 2305) == TokenRun{5, 2}));
    CHECK((before(192, 1, 2305, false) == TokenRun{6, 1}));
    CHECK((before(192, 1, 4097) == TokenRun{4, 1}));
    CHECK((before(192, 1, 6085) == TokenRun{6, 1}));
    CHECK((before(192, 8, 6085) == TokenRun{12, 1}));
    CHECK((before(384, 2, 197) == TokenRun{3, 4, ZBy::Others}));
    CHECK((before(384, 3, 197) == TokenRun{3, 4}));
    CHECK((before(384, 4, 197) == TokenRun{5, 4, ZBy::Others}));
    CHECK((before(384, 1, 577) == TokenRun{4, 4, ZBy::Others}));
    CHECK((before(384, 6, 197) == TokenRun{5, 4}));
    CHECK((before(384, 8, 197) == TokenRun{9, 4}));
    CHECK((before(384, 12, 197) == TokenRun{5, 2}));
    CHECK((before(384, 22, 197) == TokenRun{9, 2}));
    CHECK((before(384, 1, 1025) == TokenRun{5, 4}));
    CHECK((before(384, 1, 2305) == TokenRun{5, 2}));
    CHECK((before(384, 1, 4097) == TokenRun{9, 2}));
    CHECK((before(384, 2, 577, false).octets == 0));  // a kernel for each step
    CHECK((before(384, 1, 6085) == TokenRun{6, 1}));
    CHECK((before(768, 1, 197) == TokenRun{3, 8, ZBy::Others}));
    CHECK((before(768, 2, 197) == TokenRun{5, 8, ZBy::Others}));
    CHECK((before(768, 3, 197) == TokenRun{5, 8}));
    CHECK((before(768, 1, 577) == TokenRun{5, 8}));
    CHECK((before(768, 4, 197).octets == 0));
    CHECK((before(768, 128, 197).octets == 0));
    CHECK((before(768, 8, 6085).octets == 0));

    const auto adding = [&](int width, int batch, int tokens, bool alone = true) {
        auto a = of_shape<BeforeScan>(width, batch, tokens);
        a.adds = true;
        return before_scan_run(a, hopper, alone);
    };
    CHECK((adding(192, 4, 197) == TokenRun{3, 3, ZBy::Third}));
    CHECK((adding(192, 5, 197) == TokenRun{3, 2}));
    CHECK((adding(192, 1, 785) == TokenRun{3, 3, ZBy::Third}));
    CHECK((adding(192, 8, 197) == TokenRun{4, 2}));
    CHECK((adding(192, 12, 197) == TokenRun{5, 2}));
    CHECK((adding(192, 16, 197).octets == 0));  // out_proj by itself
    CHECK((adding(192, 1, 1025) == TokenRun{3, 2}));
    CHECK((adding(192, 1, 2305) == TokenRun{5, 2}));
    CHECK((adding(192, 1, 2305, false).octets == 0));
    CHECK((adding(192, 1, 4097).octets == 0));
    CHECK((adding(384, 2, 197).octets == 0));
    CHECK((adding(768, 1, 197).octets == 0));

    const auto block_rows = [&](int width, std::int64_t rows) {
        AddOutProj a;
        a.width = width;
        a.rows = rows;
        return add_out_proj_rows(a, hopper);
    };
    CHECK(block_rows(192, 197) == 0);  // a library's product
    CHECK(block_rows(384, 2 * 197) == 32);
    CHECK(block_rows(384, 3 * 197) == 48);
    CHECK(block_rows(384, 4 * 197) == 64);
    CHECK(block_rows(384, 6 * 197) == 0);
    CHECK(block_rows(768, 197) == 32);
    CHECK(block_rows(768, 2 * 197) == 0);
    CHECK(block_rows(768, std::int64_t{1} << 40) == 0);

    const auto convolving = [&](int batch, int tokens, bool alone = true) {  // of B
        ConvXProj a;
        a.conv.batch = batch;
        a.conv.tokens = tokens;
        a.conv.channels = 1536;
        a.features = 80;
        return conv_x_proj_run(a, hopper, alone);
    };
    CHECK((convolving(4, 197) == TokenRun{4, 8}));
    CHECK((convolving(8, 197) == TokenRun{4, 6}));
    CHECK((convolving(8, 197, false) == TokenRun{4, 4}));
    CHECK((convolving(16, 197, false) == TokenRun{4, 2}));
    CHECK((convolving(32, 197, false) == TokenRun{8, 2}));
    CHECK((convolving(64, 197, false) == TokenRun{8, 1}));
    CHECK((convolving(8, 577, false) == TokenRun{8, 2}));
    CHECK((convolving(4, 1025) == TokenRun{8, 3}));
    CHECK((convolving(1, 2305) == TokenRun{4, 4}));
    CHECK((convolving(2, 2305) == TokenRun{8, 3}));
    CHECK((convolving(1, 6085) == TokenRun{4, 2}));
    CHECK((convolving(8, 6085) == TokenRun{8, 1}));

    const auto between = [&](int width, int batch, int tokens) {
        return between_scans_run(of_shape<BetweenScans>(width, batch, tokens), hopper);
    };
    CHECK((between(192, 1, 197) == TokenRun{2, 8}));
    CHECK((between(192, 2, 197) == TokenRun{3, 4}));
    CHECK((between(192, 3, 197) == TokenRun{3, 4}));
    CHECK((between(192, 1, 577) == TokenRun{3, 4}));
    CHECK((between(192, 4, 197).octets == 0));
    CHECK((between(384, 1, 197) == TokenRun{2, 8}));
    CHECK((between(384, 2, 197).octets == 0));
}

// Images and what is made of their patches, on the host and on the device. Class tokens: none, one in the middle, or
// one at either end.
struct PatchInputs {
    enum class Classes { None, Middle, Ends };

    // Pixels lie `offset` elements behind where an allocation begins.
    PatchInputs(Patches sizes, Classes classes, bool bytes, std::size_t offset = 0)
        : a(sizes),
          grid_rows((a.height - a.patch_rows) / a.stride + 1),
          pixels(rounded(normal(product({a.batch, a.channels, a.height, a.width}) + offset), DType::F32)),
          first_pixel(offset),
          photographs(bytes ? pixels.size() : 0) {
        for (auto& value : photographs) value = static_cast<std::uint8_t>(generator()());
        a.grid_columns = (a.width - a.patch_columns) / a.stride + 1;
        patches = grid_rows * a.grid_columns;
        a.tokens = patches + (classes == Classes::None ? 0 : classes == Classes::Middle ? 1 : 2);
        const auto random = [&](int rows) { return rounded(normal(product({rows, a.d_model})), DType::F32); };
        first = random(1), last = random(1), bias = random(1), positions = random(a.tokens);
        for (const auto* values : {&pixels, &first, &last, &bias, &positions}) device.emplace_back(*values, DType::F32);
        if (bytes)
            require(cudaMemcpy(device[0].data(), photographs.data(), photographs.size(), cudaMemcpyHostToDevice));
        a.pixels = bytes ? device[0].data() : device[0].at(offset);
        a.pixels_dtype = bytes ? DType::U8 : DType::F32;
        for (int i = 0; i < 3; ++i) {
            a.mean[i] = 0.4F + 0.05F * static_cast<float>(i);
            a.std[i] = 0.2F + 0.02F * static_cast<float>(i);
        }
        if (classes != Classes::None) {
            a.first = device[1].floats();
            a.first_at = classes == Classes::Middle ? patches / 2 : 0;
        }
        if (classes == Classes::Ends) a.last = device[2].floats();
        a.bias = device[3].floats();
        a.positions = device[4].floats();
    }

    int depth() const { return a.channels * a.patch_rows * a.patch_columns; }
    // (batch, tokens, depth)
    std::vector<double> rows() const {
        std::vector<double> result(product({a.batch, a.tokens, depth()}), 0.0);
        for (int image = 0, token = 0; image < a.batch; ++image) {
            for (int place = 0, patch = 0; place < a.tokens; ++place, ++token) {
                if (place == a.first_at || (a.last != nullptr && place == a.tokens - 1)) continue;
                for (int k = 0; k < depth(); ++k) {
                    const int area = a.patch_rows * a.patch_columns;
                    const int channel = k / area, i = k / a.patch_columns % a.patch_rows, j = k % a.patch_columns;
                    const int row = patch / a.grid_columns * a.stride + i;
                    const int column = patch % a.grid_columns * a.stride + j;
                    result[product({token, depth()}) + static_cast<std::size_t>(k)] =
                        pixel(image, channel, row, column);
                }
                ++patch;
            }
        }
        return result;
    }
    // (batch, tokens, d_model)
    std::vector<double> start() const {
        std::vector<double> result;
        for (int token = 0; token < a.batch * a.tokens; ++token) {
            const int place = token % a.tokens;
            const bool is_last = a.last != nullptr && place == a.tokens - 1;
            for (int d = 0; d < a.d_model; ++d) {
                const auto at = static_cast<std::size_t>(d);
                const double base = place == a.first_at ? first[at] : is_last ? last[at] : a.bias ? bias[at] : 0.0;
                result.push_back(base + (a.positions ? positions[product({place, a.d_model}) + at] : 0.0));
            }
        }
        return result;
    }

    Patches a;

private:
    double pixel(int image, int channel, int row, int column) const {
        if (photographs.empty()) {
            const auto line = static_cast<std::int64_t>(image * a.channels + channel) * a.height + row;
            return pixels[first_pixel + product({line, a.width}) + static_cast<std::size_t>(column)];
        }
        const auto value = photographs[product({((image * a.height + row) * a.width + column) * 3 + channel})];
        return (value / 255.0 - static_cast<double>(a.mean[channel])) / static_cast<double>(a.std[channel]);
    }

    int grid_rows, patches = 0;
    std::vector<double> pixels, first, last, bias, positions;
    std::size_t first_pixel;
    std::vector<std::uint8_t> photographs;
    std::deque<DeviceArray> device;
};

// Patches of 16x16 at that distance.
Patches patches_of(int batch, int channels, int height, int width, int stride, int d_model) {
    Patches a;
    a.batch = batch;
    a.channels = channels;
    a.height = height;
    a.width = width;
    a.patch_rows = a.patch_columns = 16;
    a.stride = stride;
    a.d_model = d_model;
    return a;
}

TEST(patches_of_floats_and_bytes) {
    for (const DType dtype : storages) {
        for (const bool bytes : {false, true}) {
            // Lines that begin at multiples of 16 bytes, and not.
            for (const auto [stride, width] : {std::array<int, 2>{16, 70}, {8, 70}, {16, 72}, {8, 72}, {10, 72}}) {
                const PatchInputs inputs(patches_of(2, 3, 53, width, stride, 24), PatchInputs::Classes::Ends, bytes);
                const std::vector<double> expected = inputs.rows(), expected_start = inputs.start();
                const DeviceArray rows(expected.size(), dtype), start(expected_start.size(), DType::F32);
                patch_rows({inputs.a, rows.data(), dtype, start.floats()}, nullptr);
                require(cudaGetLastError());
                CHECK(relative_error(rows.values(), expected) <= tolerance(dtype));
                CHECK(relative_error(start.values(), expected_start) <= 1e-7);
            }
        }
    }
}

void check_patch_product(const PatchInputs& inputs, DType dtype) {
    PatchProduct a{inputs.a};
    a.dtype = dtype;
    CHECK(patch_product_takes(a, find_device(0)));
    const int depth = inputs.depth(), columns = a.d_model;
    const std::vector<double> weight = rounded(normal(product({columns, depth}), 0.05), dtype);
    std::vector<double> placed(weight.size(), std::numeric_limits<double>::quiet_NaN());
    for (int row = 0; row < columns; ++row) {
        for (int column = 0; column < depth; ++column)
            placed[static_cast<std::size_t>(patch_product_place(row, column, depth))] =
                weight[product({row, depth}) + static_cast<std::size_t>(column)];
    }
    const DeviceArray device_weight(placed, dtype);
    std::vector<double> expected = inputs.start();
    const std::vector<double> rows = rounded(inputs.rows(), dtype);
    for (std::size_t row = 0; row < expected.size() / static_cast<std::size_t>(columns); ++row) {
        for (std::size_t d = 0; d < static_cast<std::size_t>(columns); ++d) {
            const auto* left = rows.data() + row * static_cast<std::size_t>(depth);
            const auto* right = weight.data() + d * static_cast<std::size_t>(depth);
            expected[row * static_cast<std::size_t>(columns) + d] += std::inner_product(left, left + depth, right, 0.0);
        }
    }
    const DeviceArray out(expected.size(), DType::F32);
    a.weight = device_weight.data();
    a.out = out.floats();
    patch_product(a, nullptr);
    require(cudaGetLastError());
    CHECK(relative_error(out.values(), expected) <= 3e-6);
}

TEST(patches_times_the_weight) {
    const DeviceProperties device = find_device(0);
    if (!device.warpgroup_products) return;
    using Classes = PatchInputs::Classes;
    for (const DType dtype : {DType::F16, DType::BF16}) {
        // One token; 64, that is, one block; 63 and 65 of several images; lines at multiples of 16 bytes and not.
        check_patch_product({patches_of(1, 3, 16, 16, 16, 192), Classes::None, false}, dtype);
        check_patch_product({patches_of(1, 3, 128, 128, 16, 192), Classes::None, false}, dtype);
        check_patch_product({patches_of(3, 3, 48, 112, 16, 192), Classes::None, false}, dtype);
        check_patch_product({patches_of(13, 3, 32, 32, 16, 384), Classes::Middle, false}, dtype);
        check_patch_product({patches_of(2, 3, 224, 224, 16, 192), Classes::Middle, false}, dtype);
        check_patch_product({patches_of(1, 3, 53, 70, 8, 384), Classes::Ends, false}, dtype);
        check_patch_product({patches_of(2, 3, 53, 72, 10, 192), Classes::Ends, false}, dtype);
        check_patch_product({patches_of(2, 3, 53, 72, 8, 192), Classes::Ends, false, 1}, dtype);
        check_patch_product({patches_of(2, 3, 37, 72, 4, 768), Classes::Middle, false}, dtype);
        // Fewer panels of the weight than there are slots cannot be: a channel has eight.
        check_patch_product({patches_of(3, 1, 64, 80, 16, 192), Classes::Middle, false}, dtype);
        check_patch_product({patches_of(2, 5, 64, 48, 16, 192), Classes::Ends, false}, dtype);
        PatchInputs bare(patches_of(3, 3, 48, 64, 16, 192), Classes::Middle, false);
        bare.a.bias = bare.a.positions = nullptr;
        check_patch_product(bare, dtype);
    }
    PatchProduct a{patches_of(1, 3, 224, 224, 16, 192)};
    CHECK(patch_product_takes(a, device));
    const auto refuses = [&](auto change) {
        PatchProduct other = a;
        change(other);
        return !patch_product_takes(other, device);
    };
    CHECK(refuses([](auto& b) { b.dtype = DType::F32; }));
    CHECK(refuses([](auto& b) { b.pixels_dtype = DType::U8; }));
    CHECK(refuses([](auto& b) { b.patch_rows = 8; }));
    CHECK(refuses([](auto& b) { b.patch_columns = 32; }));
    CHECK(refuses([](auto& b) { b.d_model = 128; }));
}

TEST(insert_tokens_at_any_place) {
    const int batch = 3, patches = 5, columns = 9;
    const auto in = rounded(normal(product({batch, patches, columns})), DType::F32);
    const auto token = rounded(normal(columns), DType::F32), end = rounded(normal(columns), DType::F32);
    const DeviceArray device_in(in, DType::F32), device_token(token, DType::F32), device_end(end, DType::F32);
    for (const bool both : {false, true}) {
        for (const int place : {0, 2, 5}) {
            if (both && place != 0) continue;
            const int tokens = patches + (both ? 2 : 1);
            const DeviceArray out(product({batch, tokens, columns}), DType::F32);
            insert_tokens(device_in.floats(), device_token.floats(), place, both ? device_end.floats() : nullptr,
                          out.floats(), batch, tokens, columns, nullptr);
            std::vector<double> expected;
            for (int b = 0; b < batch; ++b) {
                int patch = 0;
                for (int t = 0; t < tokens; ++t) {
                    const bool last = both && t == tokens - 1;
                    for (int d = 0; d < columns; ++d) {
                        const auto at = static_cast<std::size_t>(d);
                        expected.push_back(t == place ? token[at]
                                           : last     ? end[at]
                                                  : in[static_cast<std::size_t>((b * patches + patch) * columns + d)]);
                    }
                    if (t != place && !last) ++patch;
                }
            }
            CHECK(out.values() == expected);
        }
    }
}

TEST(add_position_repeats_for_every_image) {
    const int batch = 3, tokens = 7, columns = 11;
    const auto in = rounded(normal(product({batch, tokens, columns})), DType::F32);
    const auto table = rounded(normal(product({tokens, columns})), DType::F32);
    const DeviceArray device(in, DType::F32), device_table(table, DType::F32);
    add_position(device.floats(), device_table.floats(), device.floats(), batch, tokens, columns, nullptr);
    std::vector<double> expected = in;
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += table[i % table.size()];
    CHECK(relative_error(device.values(), expected) <= 1e-7);
}

TEST(rope_turns_pairs) {
    for (const DType dtype : storages) {
        const int batch = 2, tokens = 7, columns = 12;
        const auto in = rounded(normal(product({batch, tokens, columns})), dtype);
        const auto cos = rounded(normal(product({tokens, columns})), DType::F32),
                   sin = rounded(normal(product({tokens, columns})), DType::F32);
        const DeviceArray device(in, dtype), device_cos(cos, DType::F32), device_sin(sin, DType::F32);
        rope(device.data(), device_cos.floats(), device_sin.floats(), device.data(), dtype, batch, tokens, columns,
             nullptr);
        std::vector<double> expected(in.size());
        for (std::size_t i = 0; i < in.size(); ++i) {
            const double partner = i % 2 == 0 ? -in[i + 1] : in[i - 1];
            expected[i] = in[i] * cos[i % cos.size()] + partner * sin[i % sin.size()];
        }
        CHECK(relative_error(device.values(), expected) <= tolerance(dtype));
    }
}

TEST(scale_select_and_pool) {
    for (const DType dtype : storages) {
        const int batch = 3, tokens = 45, columns = 77;
        const auto in = rounded(normal(product({batch, tokens, columns})), dtype);
        const auto gamma = rounded(normal(columns), DType::F32);
        const DeviceArray device_in(in, dtype), device_gamma(gamma, DType::F32);
        const DeviceArray scaled(in.size(), dtype);
        const DeviceArray selected(product({batch, columns}), dtype), mean(product({batch, columns}), dtype),
            largest(product({batch, columns}), dtype);
        scale(device_in.data(), device_gamma.floats(), scaled.data(), dtype, batch * tokens, columns, nullptr);
        select_tokens(device_in.data(), 3, tokens - 1, selected.data(), dtype, batch, tokens, columns, nullptr);
        pool(device_in.data(), false, mean.data(), dtype, batch, tokens, columns, nullptr);
        pool(device_in.data(), true, largest.data(), dtype, batch, tokens, columns, nullptr);
        require(cudaGetLastError());
        std::vector<double> by_gamma = in, two(product({batch, columns})), average(two.size(), 0.0),
                            maximum(two.size(), -INFINITY);
        for (std::size_t i = 0; i < in.size(); ++i) {
            const std::size_t column = i % columns, token = i / columns % tokens, image = i / columns / tokens;
            by_gamma[i] *= gamma[column];
            const std::size_t at = image * columns + column;
            if (token == 3 || token == tokens - 1) two[at] += 0.5 * in[i];
            average[at] += in[i] / tokens;
            maximum[at] = std::max(maximum[at], in[i]);
        }
        CHECK(relative_error(scaled.values(), by_gamma) <= tolerance(dtype));
        CHECK(relative_error(selected.values(), two) <= tolerance(dtype));
        CHECK(relative_error(mean.values(), average) <= tolerance(dtype));
        CHECK(largest.values() == maximum);
    }
}

TEST(gated_merge_of_one_direction_and_two) {
    for (const DType dtype : storages) {
        for (const bool both : {false, true}) {
            const int rows = 31, columns = 13;
            const std::int64_t stride = 20;
            const auto forward = rounded(normal(product({rows, columns})), dtype),
                       backward = rounded(normal(product({rows, columns})), dtype);
            const auto z = rounded(normal(product({rows, stride})), dtype);
            const DeviceArray device_forward(forward, dtype), device_backward(backward, dtype), device_z(z, dtype),
                out(forward.size(), dtype);
            gated_merge(device_forward.data(), both ? device_backward.data() : nullptr, device_z.data(), stride, 0.5F,
                        out.data(), dtype, rows, columns, nullptr);
            std::vector<double> expected(forward.size());
            for (std::size_t i = 0; i < expected.size(); ++i) {
                expected[i] = 0.5 * (forward[i] + (both ? backward[i] : 0.0)) *
                              silu(z[i / columns * static_cast<std::size_t>(stride) + i % columns]);
            }
            CHECK(relative_error(out.values(), expected) <= tolerance(dtype));
        }
    }
}

TEST(parts_of_operands) {
    for (const DType in_dtype : storages) {
        for (const DType dtype : {DType::F16, DType::BF16}) {
            const int rows = 29, columns = 77;
            const std::int64_t stride = 80;
            const auto in = rounded(normal(product({rows, stride})), in_dtype);
            const DeviceArray device_in(in, in_dtype), out(product({rows, 3, columns}), dtype);
            split_in_parts(device_in.data(), stride, in_dtype, out.data(), dtype, rows, columns, nullptr);
            std::vector<double> x(product({rows, columns})), high(x.size()), low(x.size()), again(x.size());
            const std::vector<double> parts = out.values();
            for (std::size_t i = 0; i < x.size(); ++i) {
                const std::size_t row = i / columns, column = i % columns, at = row * 3 * columns + column;
                x[i] = in[row * static_cast<std::size_t>(stride) + column];
                high[i] = parts[at], low[i] = parts[at + columns], again[i] = parts[at + 2 * columns];
            }
            CHECK(high == rounded(x, dtype));
            CHECK(again == high);
            for (std::size_t i = 0; i < x.size(); ++i) high[i] += low[i];
            CHECK(relative_error(high, x) <= (dtype == DType::F16 ? 1e-6 : 1e-5));
        }
    }
}

TEST(parts_of_what_overflows_are_infinite_and_zero) {
    const double infinity = std::numeric_limits<double>::infinity();
    const std::vector<double> in{1e5, -1e5, infinity, 2.0};
    const DeviceArray device_in(in, DType::F32), out(3 * in.size(), DType::F16);
    split_in_parts(device_in.data(), 4, DType::F32, out.data(), DType::F16, 1, 4, nullptr);
    const std::vector<double> high{infinity, -infinity, infinity, 2.0};
    std::vector<double> expected = high;
    expected.resize(8, 0.0);
    expected.insert(expected.end(), high.begin(), high.end());
    CHECK(out.values() == expected);
}

TEST(matmul_in_every_storage_with_bias_addition_and_batch) {
    const CublasLt blas;
    MatmulAlgorithms algorithms(blas);
    const Launch launch{nullptr, &blas};
    for (const DType in_dtype : storages) {
        for (const DType out_dtype : {in_dtype, DType::F32}) {
            for (const bool accumulate : {false, true}) {
                for (const std::int64_t batch : {1, 2}) {
                    for (const auto [rows, depth, features] :
                         {std::array<std::int64_t, 3>{1, 192, 1000}, {197, 384, 44}, {65, 50, 7}, {33, 77, 154}}) {
                        const auto in = rounded(normal(product({batch, rows, depth})), in_dtype);
                        const auto weight =
                            rounded(normal(product({batch, features, depth}), 1.0 / std::sqrt(depth)), in_dtype);
                        const auto bias = rounded(normal(static_cast<std::size_t>(features)), out_dtype);
                        const auto before = rounded(normal(product({batch, rows, features})), out_dtype);
                        const DeviceArray device_in(in, in_dtype), device_weight(weight, in_dtype),
                            device_bias(bias, out_dtype);
                        const DeviceArray fresh(before.size(), out_dtype), filled(before, out_dtype);
                        MatmulShape shape;
                        shape.rows = rows;
                        shape.depth = depth;
                        shape.features = features;
                        shape.batch = batch;
                        shape.in_stride = depth;
                        shape.out_stride = features;
                        shape.in_batch_stride = rows * depth;
                        shape.out_batch_stride = rows * features;
                        shape.in_dtype = in_dtype;
                        shape.out_dtype = out_dtype;
                        shape.accumulate = accumulate;
                        shape.bias = batch == 1;
                        shape.in_alignment = static_cast<int>(size_of(in_dtype));
                        shape.out_alignment = static_cast<int>(size_of(out_dtype));
                        const Matmul matmul = algorithms.choose(shape);
                        const DeviceArray workspace(matmul.workspace_bytes / 4 + 1, DType::F32);
                        const DeviceArray& out = accumulate ? filled : fresh;
                        run_matmul(matmul, launch, device_in.data(), device_weight.data(),
                                   batch == 1 ? device_bias.data() : nullptr, out.data(), workspace.data());
                        std::vector<double> expected(before.size());
                        for (std::size_t i = 0; i < expected.size(); ++i) {
                            const std::size_t feature = i % static_cast<std::size_t>(features),
                                              row = i / static_cast<std::size_t>(features);
                            const std::size_t item = row / static_cast<std::size_t>(rows);
                            double sum = (batch == 1 ? bias[feature] : 0.0) + (accumulate ? before[i] : 0.0);
                            for (std::size_t k = 0; k < static_cast<std::size_t>(depth); ++k) {
                                sum += in[row * static_cast<std::size_t>(depth) + k] *
                                       weight[(item * static_cast<std::size_t>(features) + feature) *
                                                  static_cast<std::size_t>(depth) +
                                              k];
                            }
                            expected[i] = sum;
                        }
                        CHECK(relative_error(out.values(), expected) <= tolerance(out_dtype));
                    }
                }
            }
        }
    }
}
