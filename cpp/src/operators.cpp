#include "operators.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <sstream>

#include "quote.h"
#include "vimrt/error.h"

namespace vimrt {

namespace {

constexpr std::int64_t any = INT64_MAX;  // in expect_weight(): any positive size

// Tokens that insert_tokens adds, by position.
std::int64_t class_tokens(const std::string& position) {
    if (position == "none") return 0;
    return position == "ends" ? 2 : 1;
}

void infer_patch_embed(const ShapeInference& s) {
    s.expect_rank(0, 4);
    const Shape& pixels = s.input(0).shape;
    s.expect_weight("weight", {any, pixels[1], any, any});
    const Shape& weight = s.node().weight("weight").shape;
    s.expect_weight_if_any("bias", {weight[0]});
    const std::int64_t stride = s.node().integer("stride");
    s.expect(stride > 0, "the stride is 0");
    s.expect(pixels[2] >= weight[2] && pixels[3] >= weight[3],
             "the image of " + std::to_string(pixels[2]) + "x" + std::to_string(pixels[3]) +
                 " is smaller than one patch of " + std::to_string(weight[2]) + "x" + std::to_string(weight[3]));
    const std::int64_t rows = (pixels[2] - weight[2]) / stride + 1;
    const std::int64_t columns = (pixels[3] - weight[3]) / stride + 1;
    s.output(0, {pixels[0], s.elements({rows, columns}), weight[0]}, rows, columns);
}

void infer_insert_tokens(const ShapeInference& s) {
    s.expect_rank(0, 3);
    s.expect_text("position", {"middle", "head", "tail", "ends"});
    const Shape& in = s.input(0).shape;
    const std::string& position = s.node().text("position");
    if (position == "ends") {
        s.expect_weight("head", {1, 1, in[2]});
        s.expect_weight("tail", {1, 1, in[2]});
    } else {
        s.expect_weight("token", {1, 1, in[2]});
    }
    s.output(0, {in[0], in[1] + class_tokens(position), in[2]}, s.input(0));
}

void infer_add_position(const ShapeInference& s) {
    s.expect_rank(0, 3);
    s.expect_text("class_token", {"none", "middle", "head", "tail", "ends"});
    const Shape& in = s.input(0).shape;
    const std::int64_t extra = class_tokens(s.node().text("class_token"));
    const auto& grid = s.node().integers("grid");
    s.expect(grid.size() == 2 && grid[0] > 0 && grid[1] > 0, "\"grid\" must hold rows and columns");
    const std::int64_t trained = s.elements({grid[0], grid[1]});
    s.expect(trained <= INT64_MAX - extra, "\"grid\" is too large");
    s.expect_weight("position", {1, trained + extra, in[2]});
    const ValueInfo& info = s.input(0);
    s.expect(in[1] == s.elements({info.grid_rows, info.grid_columns}) + extra,
             "there are " + std::to_string(in[1]) + " tokens where " + std::to_string(info.grid_rows) + "x" +
                 std::to_string(info.grid_columns) + " patches and " + std::to_string(extra) +
                 " class tokens were expected");
    s.output(0, in, info);
}

void infer_rope(const ShapeInference& s) {
    s.expect_rank(0, 3);
    const Shape& in = s.input(0).shape;
    const auto& grid = s.node().integers("grid");
    s.expect(grid.size() == 2 && grid[0] > 0 && grid[1] > 0, "\"grid\" must hold rows and columns");
    s.expect(s.node().integer("base_grid", 14) > 0, "\"base_grid\" must be positive");
    s.expect(in[2] % 4 == 0, "the width " + std::to_string(in[2]) + " is no multiple of 4");
    const std::int64_t trained = s.elements({grid[0], grid[1]});
    s.expect_weight("cos", {trained, in[2]});
    s.expect_weight("sin", {trained, in[2]});
    const ValueInfo& info = s.input(0);
    s.expect(in[1] == s.elements({info.grid_rows, info.grid_columns}),
             "there are " + std::to_string(in[1]) + " tokens where one for each of the " +
                 std::to_string(info.grid_rows) + "x" + std::to_string(info.grid_columns) + " patches was expected");
    s.output(0, in, info);
}

void infer_add_norm(const ShapeInference& s) {
    const Shape& hidden = s.input(0).shape;
    s.expect(hidden.rank() >= 2, "the input " + hidden.to_string() + " has fewer than 2 dimensions");
    if (s.node().input_count() == 2) {
        s.expect(s.input(1).shape == hidden,
                 "hidden " + hidden.to_string() + " and residual " + s.input(1).shape.to_string() + " differ in shape");
    }
    s.expect_text("norm", {"rms", "layer"});
    const double eps = s.node().number("eps");
    s.expect(eps >= 0 && eps < 1, "\"eps\" must be from 0 to 1");
    s.expect_weight("weight", {hidden[-1]});
    s.expect_weight_if_any("bias", {hidden[-1]});
    for (int i = 0; i < s.node().output_count(); ++i) s.output(i, hidden, s.input(0));
}

Shape with_last(const Shape& shape, std::int64_t last) {
    std::array<std::int64_t, Shape::max_rank> dims{};
    const auto rank = static_cast<std::size_t>(std::max(shape.rank(), 1));
    std::copy(shape.begin(), shape.end(), dims.begin());
    dims[rank - 1] = last;
    return Shape(std::span<const std::int64_t>(dims.data(), rank));
}

void infer_linear(const ShapeInference& s) {
    const Shape& in = s.input(0).shape;
    s.expect(in.rank() >= 2, "the input " + in.to_string() + " has fewer than 2 dimensions");
    s.expect_weight("weight", {any, in[-1]});
    const std::int64_t features = s.node().weight("weight").shape[0];
    s.expect_weight_if_any("bias", {features});
    s.output(0, with_last(in, features), s.input(0));
}

void infer_split(const ShapeInference& s) {
    const Shape& in = s.input(0).shape;
    s.expect(in.rank() >= 2, "the input " + in.to_string() + " has fewer than 2 dimensions");
    const auto& sizes = s.node().integers("sizes");
    s.expect(static_cast<int>(sizes.size()) == s.node().output_count(),
             "\"sizes\" must hold one entry for each output");
    std::int64_t left = in[-1];
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        s.expect(sizes[i] > 0 && sizes[i] <= left, "\"sizes\" must be positive and sum to " + std::to_string(in[-1]));
        left -= sizes[i];
        s.output(static_cast<int>(i), with_last(in, sizes[i]), s.input(0));
    }
    s.expect(left == 0, "\"sizes\" must sum to " + std::to_string(in[-1]));
}

void infer_bidirectional_scan(const ShapeInference& s) {
    s.expect_rank(0, 3);
    s.expect_text("backward", {"own", "shared", "none"});
    const Node& node = s.node();
    const std::int64_t d_inner = s.input(0).shape[2];
    s.expect_weight("A_log", {d_inner, any});
    s.expect_weight("dt_proj.weight", {d_inner, any});
    s.expect_weight("conv1d.weight", {d_inner, 1, any});
    const std::int64_t d_state = node.weight("A_log").shape[1];
    const std::int64_t dt_rank = node.weight("dt_proj.weight").shape[1];
    const std::int64_t d_conv = node.weight("conv1d.weight").shape[2];
    s.expect(d_state <= 1024 && dt_rank <= 65536 && d_conv <= 64,
             "the state size, time-step rank or convolution width is beyond 1024, 65536 or 64");

    const auto expect_direction = [&](const std::string& suffix, const char* a_log, const char* d) {
        s.expect_weight(("conv1d" + suffix + ".weight").c_str(), {d_inner, 1, d_conv});
        s.expect_weight(("conv1d" + suffix + ".bias").c_str(), {d_inner});
        s.expect_weight(("x_proj" + suffix + ".weight").c_str(), {dt_rank + 2 * d_state, d_inner});
        s.expect_weight(("dt_proj" + suffix + ".weight").c_str(), {d_inner, dt_rank});
        s.expect_weight(("dt_proj" + suffix + ".bias").c_str(), {d_inner});
        s.expect_weight(a_log, {d_inner, d_state});
        s.expect_weight(d, {d_inner});
    };
    expect_direction("", "A_log", "D");
    if (node.is("backward", "own")) expect_direction("_b", "A_b_log", "D_b");
    if (node.is("backward", "shared")) s.expect_weight("A_b_log", {d_inner, d_state});

    const int directions = node.is("backward", "none") ? 1 : 2;
    s.expect(node.output_count() == directions, "there are " + std::to_string(node.output_count()) + " outputs where " +
                                                    std::to_string(directions) + " were expected");
    for (int i = 0; i < directions; ++i) s.output(i, s.input(0).shape, s.input(0));
}

void infer_gated_merge(const ShapeInference& s) {
    s.expect_text("merge", {"mean", "sum"});
    for (int i = 1; i < s.node().input_count(); ++i) {
        s.expect(s.input(i).shape == s.input(0).shape, "the inputs " + s.input(0).shape.to_string() + " and " +
                                                           s.input(i).shape.to_string() + " differ in shape");
    }
    s.expect_rank(0, 3);
    s.output(0, s.input(0).shape, s.input(0));
}

void infer_scale(const ShapeInference& s) {
    const Shape& in = s.input(0).shape;
    s.expect(in.rank() >= 2, "the input " + in.to_string() + " has fewer than 2 dimensions");
    s.expect_weight("gamma", {in[-1]});
    s.output(0, in, s.input(0));
}

void infer_select_tokens(const ShapeInference& s) {
    s.expect_rank(0, 3);
    s.expect_text("position", {"middle", "head", "last", "ends"});
    s.output(0, {s.input(0).shape[0], s.input(0).shape[2]});
}

void infer_pool(const ShapeInference& s) {
    s.expect_rank(0, 3);
    s.expect_text("mode", {"mean", "max"});
    s.output(0, {s.input(0).shape[0], s.input(0).shape[2]});
}

constexpr const char* scan_weights =
    "conv1d.weight conv1d.bias x_proj.weight dt_proj.weight dt_proj.bias A_log D "
    "conv1d_b.weight? conv1d_b.bias? x_proj_b.weight? dt_proj_b.weight? dt_proj_b.bias? A_b_log? D_b?";

// name, inputs from..to, outputs from..to, weights, attributes, shape rule, whether it selects early
constexpr Operator operators[] = {
    {"add_norm", 1, 2, 1, 2, "weight bias?", "norm:text eps:number", infer_add_norm, true},
    {"add_position", 1, 1, 1, 1, "position", "grid:ints class_token:text first_entry:bool?", infer_add_position},
    {"bidirectional_scan", 1, 1, 1, 2, scan_weights, "backward:text", infer_bidirectional_scan},
    {"gated_merge", 2, 3, 1, 1, "", "merge:text", infer_gated_merge},
    {"insert_tokens", 1, 1, 1, 1, "token? head? tail?", "position:text", infer_insert_tokens},
    {"linear", 1, 1, 1, 1, "weight bias?", "", infer_linear, true},
    {"patch_embed", 1, 1, 1, 1, "weight bias?", "stride:int", infer_patch_embed},
    {"pool", 1, 1, 1, 1, "", "mode:text", infer_pool},
    {"rope", 1, 1, 1, 1, "cos sin", "grid:ints base_grid:int?", infer_rope},
    {"scale", 1, 1, 1, 1, "gamma", "", infer_scale, true},
    {"select_tokens", 1, 1, 1, 1, "", "position:text", infer_select_tokens},
    {"split", 1, 1, 1, 16, "", "sizes:ints", infer_split},
};

std::vector<std::string> words(const char* text) {
    std::istringstream stream(text);
    std::vector<std::string> list;
    for (std::string word; stream >> word;) list.push_back(word);
    return list;
}

// Splits a trailing '?' off.
bool take_optional(std::string& word) {
    if (word.empty() || word.back() != '?') return false;
    word.pop_back();
    return true;
}

void check_attribute_type(const Node& node, const std::string& key, const std::string& type) {
    if (type == "int") {
        node.integer(key.c_str());
    } else if (type == "number") {
        node.number(key.c_str());
    } else if (type == "text") {
        node.text(key.c_str());
    } else if (type == "bool") {
        node.flag(key.c_str(), false);
    } else {
        node.integers(key.c_str());
    }
}

void check_count(int have, int least, int most, const char* what, const std::string& place) {
    if (have >= least && have <= most) return;
    const std::string expected =
        least == most ? std::to_string(least) : std::to_string(least) + " to " + std::to_string(most);
    throw FormatError(place + ": has " + std::to_string(have) + " " + what + " where " + expected + " were expected");
}

}  // namespace

void ShapeInference::output(int i, const Shape& shape, const ValueInfo& grid_of) const {
    output(i, shape, grid_of.grid_rows, grid_of.grid_columns);
}

void ShapeInference::output(int i, const Shape& shape, std::int64_t grid_rows, std::int64_t grid_columns) const {
    elements(shape);  // refuses what overflows
    values_[static_cast<std::size_t>(node_.output(i))] = {shape, grid_rows, grid_columns};
}

std::int64_t ShapeInference::elements(const Shape& shape) const {
    try {
        return shape.elements();
    } catch (const InvalidArgument& error) {
        fail(error.what());
    }
}

void ShapeInference::fail(const std::string& what) const {
    throw InvalidArgument(place_ + ", node " + in_quotes(node_.name()) + ": " + what);
}

void ShapeInference::expect_rank(int i, int rank) const {
    const Shape& shape = input(i).shape;
    expect(shape.rank() == rank, "the input " + shape.to_string() + " has " + std::to_string(shape.rank()) +
                                     " dimensions where " + std::to_string(rank) + " were expected");
}

void ShapeInference::expect_weight(const char* role, const Shape& shape) const {
    expect(node_.has_weight(role), std::string("the weight \"") + role + "\" is missing");
    const Weight& weight = node_.weight(role);
    bool fits = weight.shape.rank() == shape.rank();
    for (int axis = 0; fits && axis < shape.rank(); ++axis) {
        fits = shape[axis] == any ? weight.shape[axis] > 0 : weight.shape[axis] == shape[axis];
    }
    if (fits) return;
    std::string expected = shape.to_string();
    const std::string any_text = std::to_string(any);
    for (auto at = expected.find(any_text); at != std::string::npos; at = expected.find(any_text)) {
        expected.replace(at, any_text.size(), "any");
    }
    fail(std::string("the weight \"") + role + "\" (tensor " + in_quotes(weight.name) + ") has the shape " +
         weight.shape.to_string() + " where " + expected + " was expected");
}

void ShapeInference::expect_weight_if_any(const char* role, const Shape& shape) const {
    if (node_.has_weight(role)) expect_weight(role, shape);
}

void ShapeInference::expect_text(const char* key, std::initializer_list<const char*> choices) const {
    std::string list;
    for (const char* choice : choices) {
        if (node_.is(key, choice)) return;
        list += (list.empty() ? "" : ", ") + std::string(choice);
    }
    fail(std::string("the attribute \"") + key + "\" is " + in_quotes(node_.text(key)) + " where one of " + list +
         " was expected");
}

const Operator* find_operator(const std::string& name) {
    const auto* found =
        std::find_if(std::begin(operators), std::end(operators), [&](const Operator& op) { return name == op.name; });
    return found == std::end(operators) ? nullptr : found;
}

std::string operator_names() {
    std::string names;
    for (const Operator& op : operators) names += (names.empty() ? "" : ", ") + std::string(op.name);
    return names;
}

void check_signature(const Operator& op, const Node& node, const std::string& place) {
    check_count(node.input_count(), op.min_inputs, op.max_inputs, "inputs", place);
    check_count(node.output_count(), op.min_outputs, op.max_outputs, "outputs", place);

    std::vector<std::string> known;
    for (std::string role : words(op.weights)) {
        const bool optional = take_optional(role);
        if (!optional && !node.has_weight(role.c_str())) {
            throw FormatError(place + ": the weight \"" + role + "\" is missing");
        }
        known.push_back(role);
    }
    for (const auto& [role, weight] : node.weights_) {
        if (std::find(known.begin(), known.end(), role) == known.end()) {
            throw FormatError(place + ": the operator " + op.name + " has no weight " + in_quotes(role));
        }
    }

    known.clear();
    for (std::string word : words(op.attributes)) {
        const bool optional = take_optional(word);
        const std::string key = word.substr(0, word.find(':'));
        const std::string type = word.substr(word.find(':') + 1);
        known.push_back(key);
        if (optional && !node.has_attribute(key.c_str())) continue;
        try {
            check_attribute_type(node, key, type);
        } catch (const FormatError& error) {
            throw FormatError(place + ": " + error.what());
        }
    }
    for (const auto& [key, value] : node.attributes_) {
        if (std::find(known.begin(), known.end(), key) == known.end()) {
            throw FormatError(place + ": the operator " + op.name + " has no attribute " + in_quotes(key));
        }
    }
}

std::vector<ValueInfo> infer_shapes(const Graph& graph, std::int64_t batch, std::int64_t height, std::int64_t width,
                                    const std::string& place) {
    std::vector<ValueInfo> values(graph.value_names.size());
    const Shape pixels{batch, graph.input.channels, height, width};
    try {
        pixels.elements();
    } catch (const InvalidArgument& error) {
        throw InvalidArgument(place + ": " + error.what());
    }
    values[static_cast<std::size_t>(graph.input.value)] = {pixels, 0, 0};
    for (const Node& node : graph.nodes) find_operator(node.op())->infer(ShapeInference(node, values, place));
    return values;
}

}  // namespace vimrt
