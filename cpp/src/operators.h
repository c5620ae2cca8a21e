// The operator table: what each operator takes, gives and requires, and how shapes follow.
//
// Adding an operator to the graph is one row in operators.cpp (docs/adding-an-operator.md).
#pragma once

#include <string>
#include <vector>

#include "graph.h"

namespace vimrt {

// Shape inference for one node at concrete sizes: reads the inputs' infos, checks weights and attributes against
// them, writes the outputs'.
class ShapeInference {
public:
    ShapeInference(const Node& node, std::vector<ValueInfo>& values, const std::string& place)
        : node_(node), values_(values), place_(place) {}

    const Node& node() const { return node_; }
    const ValueInfo& input(int i) const { return values_[static_cast<std::size_t>(node_.input(i))]; }
    void output(int i, const Shape& shape, const ValueInfo& grid_of) const;
    void output(int i, const Shape& shape, std::int64_t grid_rows = 0, std::int64_t grid_columns = 0) const;

    // The number of elements of a shape; fails where it does not fit in 63 bits.
    std::int64_t elements(const Shape& shape) const;
    // Throws InvalidArgument "<place>, node "<name>": <what>".
    [[noreturn]] void fail(const std::string& what) const;
    void expect(bool holds, const std::string& otherwise) const {
        if (!holds) fail(otherwise);
    }
    void expect_rank(int input, int rank) const;
    // The weight `role`, where the node has it, must have this shape; -1 stands for any positive size.
    void expect_weight(const char* role, const Shape& shape) const;
    void expect_weight_if_any(const char* role, const Shape& shape) const;
    // The text attribute must be one of these.
    void expect_text(const char* key, std::initializer_list<const char*> choices) const;

private:
    const Node& node_;
    std::vector<ValueInfo>& values_;
    const std::string& place_;
};

struct Operator {
    const char* name;
    int min_inputs, max_inputs;
    int min_outputs, max_outputs;
    const char* weights;     // roles by blanks; optional ones end in '?'
    const char* attributes;  // "key:type" by blanks, types int, number, text, bool, ints; optional ones end in '?'
    void (*infer)(const ShapeInference&);
    // Each token of the outputs is made of the same token of the inputs, and a selection of tokens may come first
    // (select_early.h). Not of what backends compute together with a scan in front of it.
    bool selects_early = false;
};

const Operator* find_operator(const std::string& name);  // nullptr where there is none
std::string operator_names();                            // "add_norm, add_position, ..."

// Throws FormatError where the node's inputs, outputs, weights or attributes are not the operator's.
void check_signature(const Operator& op, const Node& node, const std::string& place);

// Infos of all values for an input of (batch, channels, height, width). Throws InvalidArgument "<place>, node ...".
std::vector<ValueInfo> infer_shapes(const Graph& graph, std::int64_t batch, std::int64_t height, std::int64_t width,
                                    const std::string& place);

}  // namespace vimrt
