#include "select_early.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>

#include "operators.h"

namespace vimrt {

namespace {

bool selects_early(const Node& node) {
    const Operator* op = find_operator(node.op());
    return op != nullptr && op->selects_early;
}

bool reads(const Node& node, ValueId value) {
    return std::count(node.inputs_.begin(), node.inputs_.end(), value) > 0;
}

// True when nodes from `begin` to before `end` are all that reads `value`, and it is no output.
bool is_between(const Graph& graph, ValueId value, std::size_t begin, std::size_t end,
                const std::vector<ValueId>& outputs) {
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
        if ((i < begin || i >= end) && reads(graph.nodes[i], value)) return false;
    }
    return std::count(outputs.begin(), outputs.end(), value) == 0;
}

// The first of the nodes in front of the select_tokens `select` that it can be moved ahead of.
std::size_t first_behind(const Graph& graph, std::size_t select, const std::vector<ValueId>& outputs) {
    std::size_t first = select;
    for (; first > 0 && selects_early(graph.nodes[first - 1]); --first) {
        const auto& results = graph.nodes[first - 1].outputs_;
        const bool used = std::any_of(results.begin(), results.end(),
                                      [&](ValueId value) { return reads(graph.nodes[first], value); });
        const bool own = std::all_of(results.begin(), results.end(), [&](ValueId value) {
            return is_between(graph, value, first, select + 1, outputs);
        });
        if (!used || !own) break;
    }
    return first;
}

}  // namespace

Graph select_early(Graph graph, const std::vector<ValueId>& outputs) {
    for (std::size_t at = 0; at < graph.nodes.size(); ++at) {
        if (graph.nodes[at].op() != "select_tokens" || graph.nodes[at].is("position", "ends")) continue;
        const std::size_t first = first_behind(graph, at, outputs);
        if (first == at) continue;
        const auto begin = std::next(graph.nodes.begin(), static_cast<std::ptrdiff_t>(first));
        const auto end = std::next(graph.nodes.begin(), static_cast<std::ptrdiff_t>(at));
        const Node& select = *end;
        std::vector<Node> moved(begin, end);
        std::vector<Node> selects;    // of what the moved nodes read of others
        std::vector<ValueId> of_own;  // what they compute
        for (Node& node : moved) {
            for (ValueId& value : node.inputs_) {
                if (std::count(of_own.begin(), of_own.end(), value) > 0) continue;
                const std::string& name = graph.value_names[static_cast<std::size_t>(value)];
                Node own = select;
                own.name_ = select.name() + " of " + name;
                own.inputs_ = {value};
                value = static_cast<ValueId>(graph.value_names.size());
                own.outputs_ = {value};
                graph.value_names.push_back("selected " + name);
                selects.push_back(std::move(own));
            }
            of_own.insert(of_own.end(), node.outputs_.begin(), node.outputs_.end());
        }
        std::replace(moved.back().outputs_.begin(), moved.back().outputs_.end(), select.input(0), select.output(0));
        selects.insert(selects.end(), std::make_move_iterator(moved.begin()), std::make_move_iterator(moved.end()));
        graph.nodes.insert(graph.nodes.erase(begin, std::next(end)), std::make_move_iterator(selects.begin()),
                           std::make_move_iterator(selects.end()));
        at = first + selects.size() - 1;
    }
    return graph;
}

}  // namespace vimrt
