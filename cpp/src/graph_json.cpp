#include "graph_json.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "json.h"
#include "operators.h"
#include "quote.h"
#include "vimrt/error.h"

namespace vimrt {

namespace {

constexpr int max_depth = 8;
constexpr std::size_t max_nodes = 100'000;
constexpr std::size_t max_name_length = 512;

class GraphParser {
public:
    GraphParser(const std::vector<Weight>& weights, JsonPlace place) : weights_(weights), place_(std::move(place)) {}

    Graph parse(const Json& json) {
        parse_input(array_member(json, "inputs", place_));
        const Json& nodes = array_member(json, "nodes", place_);
        if (nodes.empty() || nodes.size() > max_nodes) {
            throw FormatError(place_ + ": there are " + std::to_string(nodes.size()) + " nodes where 1 to " +
                              std::to_string(max_nodes) + " were expected");
        }
        collect_later_names(nodes);
        graph_.nodes.reserve(nodes.size());
        for (const Json& node : nodes) parse_node(node);
        parse_outputs(object_member(json, "outputs", place_));
        graph_.value_names.shrink_to_fit();
        return std::move(graph_);
    }

private:
    void check_name(const std::string& name, const JsonPlace& place) const {
        if (name.empty() || name.size() > max_name_length) {
            throw FormatError(place + ": a name has " + std::to_string(name.size()) + " characters where 1 to " +
                              std::to_string(max_name_length) + " were expected");
        }
        // Names are printed, and looked up as C strings.
        if (std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; })) {
            throw FormatError(place + ": the name " + in_quotes(name) + " holds a control character");
        }
    }

    ValueId define(const std::string& name, const JsonPlace& place) {
        check_name(name, place);
        const auto id = static_cast<ValueId>(graph_.value_names.size());
        if (!values_.emplace(name, id).second) {
            throw FormatError(place + ": the value " + in_quotes(name) + " is defined twice");
        }
        graph_.value_names.push_back(name);
        return id;
    }

    // Names of all values, so that a use before the definition is told apart from a name that does not exist.
    void collect_later_names(const Json& nodes) {
        for (const Json& node : nodes) {
            if (!node.is_object() || !node.contains("outputs") || !node["outputs"].is_array()) continue;
            for (const Json& name : node["outputs"]) {
                if (name.is_string()) defined_anywhere_.insert(name.get<std::string>());
            }
        }
    }

    ValueId use(const std::string& name, const JsonPlace& place) const {
        if (const auto found = values_.find(name); found != values_.end()) return found->second;
        if (defined_anywhere_.contains(name)) {
            throw FormatError(place + ": reads " + in_quotes(name) +
                              " before a node has computed it; the graph has a cycle or its nodes are out of order");
        }
        throw FormatError(place + ": reads " + in_quotes(name) + ", which no node computes");
    }

    void parse_input(const Json& inputs) {
        const JsonPlace place = place_ + ", inputs";
        if (inputs.size() != 1)
            throw FormatError(place + ": there are " + std::to_string(inputs.size()) + " where 1 was expected");
        const Json& input = inputs[0];
        graph_.input.name = string_member(input, "name", place);
        graph_.input.value = define(graph_.input.name, place);
        if (const std::string dtype = string_member(input, "dtype", place); dtype != "float32") {
            throw FormatError(place + ": the dtype is " + in_quotes(dtype) + " where \"float32\" was expected");
        }
        const Json& shape = array_member(input, "shape", place);
        if (shape.size() != 4 || shape[0] != "batch" || shape[2] != "height" || shape[3] != "width") {
            throw FormatError(place + ": the shape is " + in_quotes(shape.dump()) +
                              R"( where ["batch", channels, "height", "width"] was expected)");
        }
        graph_.input.channels = to_integer(shape[1], "the number of channels", place);
        if (graph_.input.channels != 3) {
            throw FormatError(place + ": " + std::to_string(graph_.input.channels) + " channels where 3 were expected");
        }
    }

    void parse_node(const Json& json) {
        const std::string where = place_ + ", node " + std::to_string(graph_.nodes.size());
        Node node;
        node.op_ = string_member(json, "op", where);
        node.name_ = string_member(json, "name", where);
        check_name(node.name_, where);
        const JsonPlace place = where + " (" + in_quotes(node.name_) + ")";
        if (!node_names_.insert(node.name_).second) throw FormatError(place + ": another node has the same name");

        const Operator* op = find_operator(node.op_);
        if (op == nullptr) {
            throw FormatError(place + ": the operator " + in_quotes(node.op_) +
                              " is unknown to this vimrt; known are " + operator_names() + "; install a newer vimrt");
        }
        for (const std::string& name : to_strings(member(json, "inputs", place), "\"inputs\"", place)) {
            node.inputs_.push_back(use(name, place));
        }
        for (const std::string& name : to_strings(member(json, "outputs", place), "\"outputs\"", place)) {
            node.outputs_.push_back(define(name, place));
        }
        if (json.contains("weights")) parse_weights(object_member(json, "weights", place), node, place);
        if (json.contains("attributes")) parse_attributes(object_member(json, "attributes", place), node, place);
        check_signature(*op, node, place);
        graph_.nodes.push_back(std::move(node));
    }

    void parse_weights(const Json& json, Node& node, const JsonPlace& place) const {
        node.weights_.reserve(json.size());
        for (const auto& [role, value] : json.items()) {
            const std::string name = to_text(value, "the weight " + in_quotes(role), place);
            const auto weight = std::lower_bound(weights_.begin(), weights_.end(), name,
                                                 [](const Weight& w, const std::string& n) { return w.name < n; });
            if (weight == weights_.end() || weight->name != name) {
                throw FormatError(place + ": the weight " + in_quotes(role) + " names the tensor " + in_quotes(name) +
                                  ", which the file does not hold");
            }
            node.weights_.emplace_back(role, &*weight);
        }
    }

    static void parse_attributes(const Json& json, Node& node, const JsonPlace& place) {
        node.attributes_.reserve(json.size());
        for (const auto& [key, value] : json.items()) {
            const std::string what = "the attribute " + in_quotes(key);
            if (value.is_boolean()) {
                node.attributes_.emplace_back(key, value.get<bool>());
            } else if (value.is_number_integer()) {
                node.attributes_.emplace_back(key, to_integer(value, what, place));
            } else if (value.is_number_float()) {
                node.attributes_.emplace_back(key, to_number(value, what, place));
            } else if (value.is_string()) {
                node.attributes_.emplace_back(key, value.get<std::string>());
            } else if (value.is_array()) {
                std::vector<std::int64_t> integers;
                for (const Json& item : value) integers.push_back(to_integer(item, what, place));
                node.attributes_.emplace_back(key, std::move(integers));
            } else {
                throw FormatError(place + ": " + what + " is " + value.type_name() +
                                  " where a boolean, number, string or array of integers was expected");
            }
        }
    }

    void parse_outputs(const Json& json) {
        const JsonPlace place = place_ + ", outputs";
        if (json.empty()) throw FormatError(place + ": there are none");
        for (const auto& [name, value] : json.items()) {
            check_name(name, place);
            const ValueId id = use(to_text(value, "the output " + in_quotes(name), place), place);
            if (id == graph_.input.value) throw FormatError(place + ": " + in_quotes(name) + " is the input itself");
            graph_.outputs.emplace_back(name, id);
        }
        // JSON objects have no order; "logits" is what run() returns by default.
        std::stable_partition(graph_.outputs.begin(), graph_.outputs.end(),
                              [](const auto& output) { return output.first == "logits"; });
    }

    const std::vector<Weight>& weights_;
    JsonPlace place_;
    Graph graph_;
    std::unordered_map<std::string, ValueId> values_;
    std::unordered_set<std::string> defined_anywhere_;
    std::unordered_set<std::string> node_names_;
};

}  // namespace

Graph parse_graph(const std::string& text, const std::vector<Weight>& weights, const std::string& path) {
    const JsonPlace place = path + ": graph";
    return GraphParser(weights, place).parse(parse_json(text, max_depth, place));
}

}  // namespace vimrt
