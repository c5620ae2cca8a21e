// The loader and shape inference against damaged and malicious graphs.
#include "graph.h"

#include <string>

#include "check.h"
#include "operators.h"
#include "refusal.h"

using tiny::check_refused;
using tiny::Json;
using tiny::Model;

namespace {

// The valid model with its graph changed.
template <typename Change>
Model with_graph(Change change) {
    Model model = tiny::vim();
    change(model.graph);
    return model;
}

// The valid model with one node changed.
template <typename Change>
Model with_node(const std::string& name, Change change) {
    Model model = tiny::vim();
    change(model.node(name));
    return model;
}

// The file loads, but shape inference at this size throws an InvalidArgument that names the file and holds `parts`.
void check_misfit(const Model& model, std::initializer_list<std::string_view> parts, std::int64_t batch = 1,
                  std::int64_t height = 32, std::int64_t width = 32) {
    const tiny::File file(model.bytes());
    const vimrt::ModelFile loaded(file.path());
    CHECK_THROWS(vimrt::infer_shapes(loaded.graph, batch, height, width, loaded.path), vimrt::InvalidArgument,
                 file.path());
    for (const std::string_view part : parts) {
        CHECK_THROWS(vimrt::infer_shapes(loaded.graph, batch, height, width, loaded.path), vimrt::InvalidArgument,
                     part);
    }
}

vimrt::Shape shape_of(const vimrt::ModelFile& file, std::string_view value, std::int64_t height, std::int64_t width) {
    const auto values = vimrt::infer_shapes(file.graph, 2, height, width, file.path);
    return values.at(static_cast<std::size_t>(file.graph.find_value(value))).shape;
}

}  // namespace

TEST(shapes_of_a_valid_graph_follow_from_the_image_size) {
    const tiny::File file(tiny::vim().bytes());
    const vimrt::ModelFile model(file.path());
    CHECK(shape_of(model, "patches", 32, 32) == vimrt::Shape{2, 16, 16});
    CHECK(shape_of(model, "tokens", 40, 64) == vimrt::Shape{2, 5 * 8 + 1, 16});
    CHECK(shape_of(model, "layers.1.y_backward", 8, 8) == vimrt::Shape{2, 2, 32});
    CHECK(shape_of(model, "logits", 39, 15) == vimrt::Shape{2, 5});
    CHECK_EQ(model.graph.find_value("no such value"), -1);
}

// Structure

TEST(a_graph_that_is_no_json_object_is_refused) {
    Model model = tiny::vim();
    model.graph = nullptr;
    for (const char* text : {"", "{", "{}}", "[1", "{} \n5"}) {
        model.metadata["graph"] = text;
        check_refused(model, {"graph", "no valid JSON"});
    }
    model.metadata["graph"] = "[]";
    check_refused(model, {"graph", "array", "an object was expected"});
    model.metadata["graph"] = "{}";
    check_refused(model, {"graph", "\"inputs\" is missing"});
    model.metadata["graph"] = R"({"inputs":[],"inputs":[]})";
    check_refused(model, {"graph", "\"inputs\" appears twice"});
    std::string nested;
    for (int i = 0; i < 100'000; ++i) nested += "[";
    model.metadata["graph"] = nested;
    check_refused(model, {"graph", "nested deeper than 8 levels"});
}

TEST(parts_of_the_wrong_type_are_refused) {
    for (const char* key : {"inputs", "nodes", "outputs"}) {
        check_refused(with_graph([&](Json& graph) { graph.erase(key); }), {"graph", key, "missing"});
        check_refused(with_graph([&](Json& graph) { graph[key] = "x"; }), {"graph", key, "string", "was expected"});
    }
    check_refused(with_graph([](Json& graph) { graph["nodes"] = Json::array(); }),
                  {"there are 0 nodes", "1 to 100000"});
    check_refused(with_graph([](Json& graph) { graph["outputs"] = Json::object(); }), {"graph, outputs", "none"});
    check_refused(with_graph([](Json& graph) { graph["nodes"][0] = 5; }),
                  {"node 0", "number", "an object was expected"});
    for (const char* key : {"op", "name", "inputs", "outputs"}) {
        const std::string quoted = std::string("\"") + key + '"';
        check_refused(with_node("select", [&](Json& node) { node.erase(key); }), {"graph, node", quoted, "missing"});
        check_refused(with_node("select", [&](Json& node) { node[key] = 5; }),
                      {"graph, node", quoted, "number", "expected"});
    }
    check_refused(with_node("select", [](Json& node) { node["inputs"] = {5}; }),
                  {"\"select\"", "\"inputs\"", "number", "a string"});
    for (const char* key : {"weights", "attributes"}) {
        check_refused(with_node("select", [&](Json& node) { node[key] = Json::array(); }),
                      {"\"select\"", key, "array", "an object was expected"});
    }
}

TEST(an_input_that_is_not_a_batch_of_images_is_refused) {
    const auto refused = [](auto change, std::initializer_list<std::string_view> parts) {
        check_refused(with_graph([&](Json& graph) { change(graph["inputs"]); }), parts);
    };
    refused([](Json& inputs) { inputs = Json::array(); }, {"graph, inputs", "there are 0", "1 was expected"});
    refused([](Json& inputs) { inputs.push_back(inputs[0]); }, {"graph, inputs", "there are 2", "1 was expected"});
    refused([](Json& inputs) { inputs[0]["dtype"] = "float64"; },
            {"inputs", "\"float64\"", "\"float32\" was expected"});
    refused(
        [](Json& inputs) {
            inputs[0]["shape"] = {"batch", 3, "width", "height"};
        },
        {"inputs", "width", "\"height\", \"width\""});
    refused(
        [](Json& inputs) {
            inputs[0]["shape"] = {"batch", 3, 224, 224};
        },
        {"inputs", "224", "\"height\", \"width\""});
    refused(
        [](Json& inputs) {
            inputs[0]["shape"] = {"batch", 1, "height", "width"};
        },
        {"inputs", "1 channels", "3 were expected"});
    refused([](Json& inputs) { inputs[0]["shape"] = {"batch", -3, "height", "width"}; }, {"inputs", "channels is -3"});
    refused([](Json& inputs) { inputs[0]["name"] = ""; }, {"inputs", "0 characters"});
}

TEST(names_are_checked) {
    check_refused(with_node("select", [](Json& node) { node["name"] = ""; }),
                  {"graph, node", "0 characters", "1 to 512"});
    check_refused(with_node("select", [](Json& node) { node["name"] = std::string(513, 'n'); }),
                  {"513 characters", "1 to 512"});
    check_refused(with_node("select", [](Json& node) { node["name"] = "two\nlines"; }),
                  {"two\\nlines", "control character"});
    check_refused(with_node("select", [](Json& node) { node["outputs"] = {std::string("features\0", 9)}; }),
                  {"control character"});
    check_refused(with_graph([](Json& graph) { graph["outputs"]["\x1B[2J"] = "logits"; }),
                  {"outputs", "u001b", "control character"});
    check_refused(with_node("select", [](Json& node) { node["name"] = "head"; }), {"\"head\"", "same name"});
}

// Values

TEST(values_that_nothing_computes_are_refused) {
    check_refused(with_node("head", [](Json& node) { node["inputs"] = {"nothing"}; }),
                  {"\"head\"", "reads \"nothing\"", "no node computes"});
    check_refused(with_graph([](Json& graph) { graph["outputs"]["logits"] = "nothing"; }),
                  {"outputs", "reads \"nothing\"", "no node computes"});
    check_refused(with_graph([](Json& graph) { graph["outputs"]["logits"] = 7; }),
                  {"outputs", "\"logits\"", "number", "a string"});
    check_refused(with_graph([](Json& graph) { graph["outputs"]["same"] = "pixels"; }),
                  {"outputs", "\"same\"", "input itself"});
}

TEST(values_defined_twice_are_refused) {
    check_refused(with_node("head", [](Json& node) { node["outputs"] = {"features"}; }),
                  {"\"head\"", "\"features\"", "defined twice"});
    check_refused(with_node("head", [](Json& node) { node["outputs"] = {"pixels"}; }),
                  {"\"head\"", "\"pixels\"", "defined twice"});
    check_refused(with_node("layers.0.split",
                            [](Json& node) {
                                node["outputs"] = {"layers.0.x", "layers.0.x"};
                            }),
                  {"\"layers.0.split\"", "\"layers.0.x\"", "defined twice"});
}

TEST(cycles_and_disorder_are_refused) {
    check_refused(with_node("layers.0.in_proj", [](Json& node) { node["inputs"] = {"layers.1.hidden"}; }),
                  {"\"layers.0.in_proj\"", "\"layers.1.hidden\"", "cycle or its nodes are out of order"});
    check_refused(with_node("select", [](Json& node) { node["inputs"] = {"features"}; }),
                  {"\"select\"", "\"features\"", "cycle"});
    check_refused(with_graph([](Json& graph) { std::swap(graph["nodes"][0], graph["nodes"][1]); }),
                  {"node 0", "\"patches\"", "out of order"});
}

// Operators

TEST(an_unknown_operator_is_refused_with_the_known_ones) {
    check_refused(
        with_node("select", [](Json& node) { node["op"] = "convolution"; }),
        {"\"select\"", "\"convolution\" is unknown", "bidirectional_scan, gated_merge", "install a newer vimrt"});
    check_refused(with_node("select", [](Json& node) { node["op"] = ""; }), {"\"select\"", "\"\" is unknown"});
    check_refused(with_node("select", [](Json& node) { node["op"] = std::string(100'000, 'x'); }),
                  {"\"select\"", "is unknown"});
}

TEST(a_wrong_number_of_inputs_or_outputs_is_refused) {
    check_refused(with_node("head", [](Json& node) { node["inputs"] = Json::array(); }),
                  {"\"head\"", "0 inputs", "1 were expected"});
    check_refused(with_node("head",
                            [](Json& node) {
                                node["inputs"] = {"features", "features"};
                            }),
                  {"\"head\"", "2 inputs", "1 were"});
    check_refused(with_node("layers.0.merge", [](Json& node) { node["inputs"] = {"layers.0.z"}; }),
                  {"1 inputs", "2 to 3 were expected"});
    check_refused(with_node("head",
                            [](Json& node) {
                                node["outputs"] = {"logits", "more"};
                            }),
                  {"\"head\"", "2 outputs", "1 were"});
    check_refused(with_node("norm_f", [](Json& node) { node["outputs"] = Json::array(); }),
                  {"\"norm_f\"", "0 outputs", "1 to 2"});
}

TEST(missing_extra_and_dangling_weights_are_refused) {
    check_refused(with_node("head", [](Json& node) { node["weights"].erase("weight"); }),
                  {"\"head\"", "\"weight\" is missing"});
    check_refused(with_node("head", [](Json& node) { node.erase("weights"); }), {"\"head\"", "\"weight\" is missing"});
    check_refused(with_node("head", [](Json& node) { node["weights"]["scale"] = "head.bias"; }),
                  {"\"head\"", "linear", "no weight \"scale\""});
    check_refused(with_node("head", [](Json& node) { node["weights"]["bias"] = "gone"; }),
                  {"\"head\"", "\"bias\"", "tensor \"gone\"", "does not hold"});
    check_refused(with_node("head", [](Json& node) { node["weights"]["bias"] = 5; }),
                  {"\"head\"", "\"bias\"", "number", "a string"});
    check_refused(with_node("head", [](Json& node) { node["weights"][std::string("bias\0", 5)] = "head.bias"; }),
                  {"\"head\"", "no weight"});
    check_refused(with_node("layers.0.scan", [](Json& node) { node["weights"].erase("A_log"); }),
                  {"\"layers.0.scan\"", "\"A_log\" is missing"});
}

TEST(missing_extra_and_mistyped_attributes_are_refused) {
    const auto refused = [](const char* name, const char* key, const Json& value,
                            std::initializer_list<std::string_view> parts) {
        check_refused(with_node(name, [&](Json& node) { node["attributes"][key] = value; }), parts);
    };
    check_refused(with_node("patch_embed", [](Json& node) { node.erase("attributes"); }),
                  {"\"patch_embed\"", "no attribute \"stride\""});
    refused("patch_embed", "stride", "8", {"\"patch_embed\"", "\"stride\" must be an integer"});
    refused("patch_embed", "stride", 8.5, {"\"patch_embed\"", "\"stride\" must be an integer"});
    refused("patch_embed", "stride", -8, {"\"patch_embed\"", "\"stride\" is -8", "integer from 0 to 2^63 - 1"});
    refused("patch_embed", "stride", UINT64_MAX, {"\"patch_embed\"", "\"stride\" is 18446744073709551615"});
    refused("patch_embed", "stride", nullptr, {"\"patch_embed\"", "\"stride\" is null"});
    refused("patch_embed", "stride", {{"x", 1}}, {"\"patch_embed\"", "\"stride\" is object"});
    refused("patch_embed", "dilation", 2, {"\"patch_embed\"", "no attribute \"dilation\""});
    refused("pos_embed", "grid", {4, 4.5}, {"\"pos_embed\"", "\"grid\" is 4.5"});
    refused("pos_embed", "grid", {4, "4"}, {"\"pos_embed\"", "\"grid\" is string"});
    refused("pos_embed", "first_entry", 1, {"\"pos_embed\"", "\"first_entry\" must be a boolean"});
    refused("norm_f", "eps", "small", {"\"norm_f\"", "\"eps\" must be a number"});
    refused("norm_f", "norm", 2, {"\"norm_f\"", "\"norm\" must be a string"});
}

// Shapes

TEST(weights_of_the_wrong_shape_do_not_infer) {
    const auto exchanged = [](const char* node, const char* role, const char* tensor) {
        return with_node(node, [&](Json& json) { json["weights"][role] = tensor; });
    };
    check_misfit(exchanged("head", "bias", "norm_f.weight"),
                 {"\"head\"", "\"bias\"", "\"norm_f.weight\"", "(16,)", "(5,) was expected"});
    check_misfit(exchanged("head", "weight", "head.bias"), {"\"head\"", "(5,)", "(any, 16) was expected"});
    check_misfit(exchanged("norm_f", "weight", "head.bias"), {"\"norm_f\"", "(5,)", "(16,) was expected"});
    check_misfit(exchanged("patch_embed", "weight", "head.weight"),
                 {"\"patch_embed\"", "(5, 16)", "(any, 3, any, any)"});
    check_misfit(exchanged("cls_token", "token", "pos_embed"), {"\"cls_token\"", "(1, 17, 16)", "(1, 1, 16)"});
    check_misfit(exchanged("pos_embed", "position", "cls_token"), {"\"pos_embed\"", "(1, 1, 16)", "(1, 17, 16)"});
    check_misfit(exchanged("layers.0.scan", "A_b_log", "layers.0.mixer.D"),
                 {"\"layers.0.scan\"", "A_b_log", "(32,)", "(32, 4)"});
    check_misfit(exchanged("layers.0.scan", "x_proj_b.weight", "layers.0.mixer.D"),
                 {"x_proj_b.weight", "(10, 32) was expected"});
}

TEST(inputs_of_the_wrong_shape_do_not_infer) {
    const auto reading = [](const char* node, const Json& inputs) {
        return with_node(node, [&](Json& json) { json["inputs"] = inputs; });
    };
    check_misfit(reading("cls_token", {"pixels"}),
                 {"\"cls_token\"", "(1, 3, 32, 32)", "4 dimensions where 3 were expected"});
    check_misfit(reading("layers.1.norm", {"layers.0.hidden", "layers.0.x"}),
                 {"\"layers.1.norm\"", "(1, 17, 16)", "(1, 17, 32)"});
    check_misfit(reading("layers.0.merge", {"layers.0.y_forward", "layers.0.normed"}),
                 {"\"layers.0.merge\"", "differ in shape"});
    check_misfit(reading("pos_embed", {"patches"}), {"\"pos_embed\"", "16 tokens", "4x4 patches and 1 class tokens"});
    check_misfit(reading("layers.0.scan", {"layers.0.xz"}), {"\"layers.0.scan\"", "(64, any)"});
}

TEST(attributes_out_of_range_do_not_infer) {
    const auto with = [](const char* node, const char* key, const Json& value) {
        return with_node(node, [&](Json& json) { json["attributes"][key] = value; });
    };
    check_misfit(with("patch_embed", "stride", 0), {"\"patch_embed\"", "stride is 0"});
    check_misfit(with("pos_embed", "grid", {0, 16}), {"\"pos_embed\"", "grid"});
    check_misfit(with("pos_embed", "grid", {16}), {"\"pos_embed\"", "grid"});
    check_misfit(with("pos_embed", "grid", {INT64_MAX, INT64_MAX}), {"\"pos_embed\"", "63 bits"});
    check_misfit(with("pos_embed", "grid", {INT64_MAX, 1}), {"\"pos_embed\"", "too large"});
    check_misfit(with("pos_embed", "class_token", "left"), {"\"pos_embed\"", "\"left\"", "middle, head, tail, ends"});
    check_misfit(with("cls_token", "position", "ends"), {"\"cls_token\"", "\"head\" is missing"});
    check_misfit(with("norm_f", "norm", "batch"), {"\"norm_f\"", "\"batch\"", "rms, layer"});
    check_misfit(with("norm_f", "eps", -1e-5), {"\"norm_f\"", "eps"});
    check_misfit(with("norm_f", "eps", 1), {"\"norm_f\"", "eps"});
    check_misfit(with("layers.0.split", "sizes", {32}), {"\"layers.0.split\"", "one entry for each output"});
    check_misfit(with("layers.0.split", "sizes", {64, 0}), {"\"layers.0.split\"", "positive and sum to 64"});
    check_misfit(with("layers.0.split", "sizes", {32, 31}), {"\"layers.0.split\"", "sum to 64"});
    check_misfit(with("layers.0.split", "sizes", {INT64_MAX, INT64_MAX}), {"\"layers.0.split\"", "sum to 64"});
    check_misfit(with("layers.0.scan", "backward", "none"), {"\"layers.0.scan\"", "2 outputs where 1 were expected"});
    check_misfit(with("layers.0.merge", "merge", "max"), {"\"layers.0.merge\"", "\"max\"", "mean, sum"});
    check_misfit(with("select", "position", "third"), {"\"select\"", "\"third\"", "middle, head, last, ends"});
}

TEST(image_sizes_that_do_not_fit_the_graph_are_named) {
    const Model model = tiny::vim();
    check_misfit(model, {"\"patch_embed\"", "image of 7x32", "patch of 8x8"}, 1, 7, 32);
    check_misfit(model, {"\"patch_embed\"", "image of 32x1", "patch of 8x8"}, 1, 32, 1);
    check_misfit(model, {"63 bits"}, 1, std::int64_t{1} << 31, std::int64_t{1} << 31);
    check_misfit(model, {"63 bits"}, INT64_MAX, 32, 32);
    // The image's own elements fit, the scan's do not.
    tiny::Sizes wide;
    wide.d_inner = 4096;
    wide.patch = 1;
    wide.grid = 2;
    wide.depth = 1;
    check_misfit(tiny::vim(wide), {"\"layers.0.in_proj\"", "63 bits"}, 1, std::int64_t{1} << 30, std::int64_t{1} << 28);
}

TEST(weights_without_elements_do_not_infer) {
    Model model = tiny::vim();
    model.tensors["none"] = {{"dtype", "F32"}, {"shape", {0, 16}}, {"data_offsets", {0, 0}}};
    model.node("head")["weights"] = {{"weight", "none"}};
    check_misfit(model, {"\"head\"", "(0, 16)", "(any, 16) was expected"});
}
