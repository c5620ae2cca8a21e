// Which nodes a selection of one token is moved ahead of. That results stay the same is for the tests of operators and
// models.
#include "select_early.h"

#include <string>
#include <utility>
#include <vector>

#include "check.h"

namespace {

using Names = std::vector<std::string>;

// A graph of nodes one behind the other; values are named when they are first met, the first is the graph's input.
class Builder {
public:
    Builder& add(const char* op, const Names& inputs, const Names& outputs) {
        vimrt::Node node;
        node.op_ = op;
        node.name_ = outputs[0] + " node";
        for (const std::string& name : inputs) node.inputs_.push_back(value(name));
        for (const std::string& name : outputs) node.outputs_.push_back(value(name));
        graph_.nodes.push_back(std::move(node));
        return *this;
    }
    Builder& select(const char* position, const std::string& input, const std::string& output) {
        add("select_tokens", {input}, {output});
        graph_.nodes.back().attributes_.emplace_back("position", std::string(position));
        return *this;
    }

    // The nodes behind the move, each as "output = op(inputs)", where these values are asked for.
    Names moved(const Names& outputs) {
        std::vector<vimrt::ValueId> asked;
        for (const std::string& name : outputs) asked.push_back(value(name));
        const vimrt::Graph graph = vimrt::select_early(graph_, asked);
        const auto listed = [&](const std::vector<vimrt::ValueId>& values) {
            std::string list;
            for (const vimrt::ValueId id : values)
                list += (list.empty() ? "" : ", ") + graph.value_names[static_cast<std::size_t>(id)];
            return list;
        };
        Names nodes;
        for (const vimrt::Node& node : graph.nodes) {
            const std::string position = node.has_attribute("position") ? " " + node.text("position") : "";
            nodes.push_back(listed(node.outputs_) + " = " + node.op() + position + "(" + listed(node.inputs_) + ")");
        }
        return nodes;
    }

private:
    vimrt::ValueId value(const std::string& name) {
        vimrt::ValueId id = graph_.find_value(name);
        if (id >= 0) return id;
        graph_.value_names.push_back(name);
        return static_cast<vimrt::ValueId>(graph_.value_names.size() - 1);
    }

    vimrt::Graph graph_;
};

// The end of a model with layer scale.
Builder end_of_vim(const char* position = "middle") {
    Builder graph;
    graph.add("gated_merge", {"forward", "backward", "z"}, {"y"})
        .add("linear", {"y"}, {"unscaled"})
        .add("scale", {"unscaled"}, {"hidden"})
        .add("add_norm", {"hidden", "residual"}, {"tokens", "sum"})
        .select(position, "tokens", "features")
        .add("linear", {"features"}, {"logits"});
    return graph;
}

}  // namespace

TEST(what_takes_tokens_alone_comes_behind_the_selection) {
    const Names expected{"y = gated_merge(forward, backward, z)",
                         "selected y = select_tokens middle(y)",
                         "selected residual = select_tokens middle(residual)",
                         "unscaled = linear(selected y)",
                         "hidden = scale(unscaled)",
                         "features, sum = add_norm(hidden, selected residual)",
                         "logits = linear(features)"};
    CHECK(end_of_vim().moved({"logits"}) == expected);
    CHECK(end_of_vim().moved({"features", "residual", "y"}) == expected);
    CHECK_EQ(end_of_vim("head").moved({"logits"})[1], "selected y = select_tokens head(y)");
    CHECK_EQ(end_of_vim("last").moved({"logits"})[2], "selected residual = select_tokens last(residual)");
}

TEST(values_that_are_asked_for_stay_whole) {
    const Names as_they_are = end_of_vim().moved({"tokens"});
    CHECK_EQ(as_they_are[4], "features = select_tokens middle(tokens)");
    CHECK(end_of_vim().moved({"sum", "logits"}) == as_they_are);
    const Names behind_scale = end_of_vim().moved({"hidden", "logits"});
    CHECK_EQ(behind_scale[2], "hidden = scale(unscaled)");
    CHECK_EQ(behind_scale[3], "selected hidden = select_tokens middle(hidden)");
    CHECK_EQ(behind_scale[5], "features, sum = add_norm(selected hidden, selected residual)");
    CHECK_EQ(end_of_vim().moved({"unscaled"})[2], "selected unscaled = select_tokens middle(unscaled)");
}

TEST(values_that_others_read_stay_whole) {
    CHECK_EQ(end_of_vim().add("pool", {"sum"}, {"mean"}).moved({"logits"})[4],
             "features = select_tokens middle(tokens)");
    Builder twice;
    twice.add("linear", {"x"}, {"a"}).add("add_norm", {"a", "a"}, {"b"}).select("head", "b", "c");
    const Names expected{"selected x = select_tokens head(x)", "a = linear(selected x)", "c = add_norm(a, a)"};
    CHECK(twice.moved({"c"}) == expected);
}

TEST(other_selections_stay_where_they_are) {
    CHECK_EQ(end_of_vim("ends").moved({"logits"})[4], "features = select_tokens ends(tokens)");
    Builder behind_others;
    behind_others.add("rope", {"x"}, {"y"}).select("head", "y", "z").add("linear", {"z"}, {"logits"});
    CHECK_EQ(behind_others.moved({"logits"})[1], "z = select_tokens head(y)");
    Builder of_another;
    of_another.add("linear", {"x"}, {"y"}).select("head", "x", "z");
    CHECK_EQ(of_another.moved({"y", "z"})[1], "z = select_tokens head(x)");
    Builder two;
    two.add("linear", {"x"}, {"a"}).add("linear", {"x"}, {"b"}).select("head", "a", "c").select("last", "b", "d");
    CHECK_EQ(two.moved({"c", "d"})[2], "c = select_tokens head(a)");
}
