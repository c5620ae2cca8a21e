#include "runtime/grid_tables.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "runtime/weights.h"

namespace vimrt::cpu {

namespace {

struct Grid {
    std::int64_t rows = 0;
    std::int64_t columns = 0;

    std::int64_t patches() const { return rows * columns; }
    friend bool operator==(const Grid&, const Grid&) = default;
};

Grid trained_grid(const Node& node) {
    const auto& grid = node.integers("grid");
    return {grid[0], grid[1]};
}

// The four taps that a bicubic resampling reads for one output coordinate, and their weights.
struct Taps {
    std::array<std::int64_t, 4> index{};
    std::array<float, 4> weight{};
};

// Keys' cubic convolution with a = -0.75, in fp32 throughout as PyTorch computes it.
Taps cubic_taps(std::int64_t out_index, std::int64_t in_size, std::int64_t out_size) {
    constexpr float a = -0.75F;
    const float scale = static_cast<float>(in_size) / static_cast<float>(out_size);
    const float source = scale * (static_cast<float>(out_index) + 0.5F) - 0.5F;
    const float base = std::floor(source);
    const float t = source - base;
    const auto near = [](float x) { return ((a + 2.0F) * x - (a + 3.0F)) * x * x + 1.0F; };
    const auto far = [](float x) { return ((a * x - 5.0F * a) * x + 8.0F * a) * x - 4.0F * a; };
    Taps taps;
    taps.weight = {far(t + 1.0F), near(t), near(1.0F - t), far(2.0F - t)};
    for (std::size_t i = 0; i < 4; ++i) {
        taps.index[i] = std::clamp<std::int64_t>(static_cast<std::int64_t>(base) + static_cast<std::int64_t>(i) - 1, 0,
                                                 in_size - 1);
    }
    return taps;
}

// (in.patches, width) -> (out.patches, width)
std::vector<float> resample(const std::vector<float>& table, Grid in, Grid out, std::int64_t width) {
    std::vector<float> result(static_cast<std::size_t>(out.patches() * width));
    for (std::int64_t r = 0; r < out.rows; ++r) {
        const Taps down = cubic_taps(r, in.rows, out.rows);
        for (std::int64_t c = 0; c < out.columns; ++c) {
            const Taps across = cubic_taps(c, in.columns, out.columns);
            for (std::int64_t d = 0; d < width; ++d) {
                float sum = 0;
                for (std::size_t i = 0; i < 4; ++i) {
                    float row = 0;
                    for (std::size_t j = 0; j < 4; ++j) {
                        const std::int64_t patch = down.index[i] * in.columns + across.index[j];
                        row += across.weight[j] * table[static_cast<std::size_t>(patch * width + d)];
                    }
                    sum += down.weight[i] * row;
                }
                result[static_cast<std::size_t>((r * out.columns + c) * width + d)] = sum;
            }
        }
    }
    return result;
}

// Where class tokens stand among `tokens` tokens, ascending.
std::vector<std::int64_t> class_token_indices(const Node& node, std::int64_t tokens) {
    if (node.is("class_token", "none")) return {};
    if (node.is("class_token", "head")) return {0};
    if (node.is("class_token", "tail")) return {tokens - 1};
    if (node.is("class_token", "ends")) return {0, tokens - 1};
    return {(tokens - 1) / 2};
}

struct PositionRequest {
    const Node* node;
    Grid grid;
};

void fill_position_table(void* out, const void* context) {
    const auto& request = *static_cast<const PositionRequest*>(context);
    const Node& node = *request.node;
    const Weight& weight = node.weight("position");
    const Grid trained = trained_grid(node);
    const std::int64_t width = weight.shape[2];
    const std::int64_t old_tokens = weight.shape[1];
    auto* table = static_cast<float*>(out);
    if (request.grid == trained) {
        for (std::int64_t i = 0; i < old_tokens * width; ++i) table[i] = weight_element(weight, i);
        return;
    }
    std::vector<std::int64_t> old_places = class_token_indices(node, old_tokens);
    const std::int64_t new_tokens = request.grid.patches() + static_cast<std::int64_t>(old_places.size());
    std::vector<std::int64_t> new_places = class_token_indices(node, new_tokens);
    if (node.flag("first_entry", false)) {
        for (std::size_t i = 0; i < old_places.size(); ++i)
            old_places[i] = new_places[i] = static_cast<std::int64_t>(i);
    }
    const auto is_in = [](const std::vector<std::int64_t>& places, std::int64_t token) {
        return std::find(places.begin(), places.end(), token) != places.end();
    };

    std::vector<float> patches;
    patches.reserve(static_cast<std::size_t>(trained.patches() * width));
    for (std::int64_t token = 0; token < old_tokens; ++token) {
        if (is_in(old_places, token)) continue;
        for (std::int64_t d = 0; d < width; ++d) patches.push_back(weight_element(weight, token * width + d));
    }
    const std::vector<float> resampled = resample(patches, trained, request.grid, width);

    const float* patch = resampled.data();
    std::size_t class_token = 0;
    for (std::int64_t token = 0; token < new_tokens; ++token) {
        float* row = table + token * width;
        if (is_in(new_places, token)) {
            const std::int64_t old = old_places[class_token++];
            for (std::int64_t d = 0; d < width; ++d) row[d] = weight_element(weight, old * width + d);
        } else {
            std::copy_n(patch, width, row);
            patch += width;
        }
    }
}

struct RopeRequest {
    const Node* node;
    Grid grid;
    std::int64_t width;
};

void fill_rope_tables(void* out, const void* context) {
    const auto& request = *static_cast<const RopeRequest*>(context);
    const std::int64_t width = request.width;
    const std::int64_t count = request.grid.patches() * width;
    auto* cos = static_cast<float*>(out);
    float* sin = cos + count;
    if (request.grid == trained_grid(*request.node)) {
        const Weight& cos_weight = request.node->weight("cos");
        const Weight& sin_weight = request.node->weight("sin");
        for (std::int64_t i = 0; i < count; ++i) {
            cos[i] = weight_element(cos_weight, i);
            sin[i] = weight_element(sin_weight, i);
        }
        return;
    }
    const std::int64_t half = width / 2;
    const auto base_grid = static_cast<double>(request.node->integer("base_grid", 14));
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t patch = i / width;
        const std::int64_t channel = i % width;
        const bool by_row = channel < half;
        const std::int64_t position = by_row ? patch / request.grid.columns : patch % request.grid.columns;
        const std::int64_t size = by_row ? request.grid.rows : request.grid.columns;
        const std::int64_t pair = (by_row ? channel : channel - half) / 2;
        const double frequency = std::pow(10000.0, -2.0 * static_cast<double>(pair) / static_cast<double>(half));
        const double angle = static_cast<double>(position) * base_grid / static_cast<double>(size) * frequency;
        cos[i] = static_cast<float>(std::cos(angle));
        sin[i] = static_cast<float>(std::sin(angle));
    }
}

}  // namespace

const float* position_table(Lowering& lowering, const Node& node, std::int64_t grid_rows, std::int64_t grid_columns) {
    const PositionRequest request{&node, {grid_rows, grid_columns}};
    const Weight& weight = node.weight("position");
    const std::int64_t extra = weight.shape[1] - trained_grid(node).patches();
    const std::int64_t elements = (request.grid.patches() + extra) * weight.shape[2];
    const std::string key = "positions of " + node.name();
    return static_cast<const float*>(lowering.program_constant(
        key.c_str(), static_cast<std::size_t>(elements) * sizeof(float), fill_position_table, &request));
}

RopeTables rope_tables(Lowering& lowering, const Node& node, std::int64_t grid_rows, std::int64_t grid_columns) {
    const Weight& weight = node.weight("cos");
    const RopeRequest request{&node, {grid_rows, grid_columns}, weight.shape[1]};
    const std::int64_t elements = request.grid.patches() * request.width;
    // Blocks share tables; the tensor's name tells them apart from other tables of other nodes.
    const std::string key = "rope tables of " + weight.name + " and " + node.weight("sin").name + " base " +
                            std::to_string(node.integer("base_grid", 14));
    const auto* cos = static_cast<const float*>(lowering.program_constant(
        key.c_str(), 2 * static_cast<std::size_t>(elements) * sizeof(float), fill_rope_tables, &request));
    return {cos, cos + elements};
}

}  // namespace vimrt::cpu
