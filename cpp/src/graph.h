// The graph of a .vimrt file, as docs/file-format.md describes it: operators, no devices, no fusion.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "vimrt/tensor.h"

namespace vimrt {

// A tensor of the file, mapped, not copied.
struct Weight {
    std::string name;
    DType dtype = DType::F32;
    Shape shape;
    const void* data = nullptr;
};

using Attribute = std::variant<bool, std::int64_t, double, std::string, std::vector<std::int64_t>>;

using ValueId = std::int32_t;

// Accessors are out of line on purpose: kernel files are compiled once per instruction set and may emit no
// code of the standard library that another instruction set's code would then be linked against.
class VIMRT_API Node {
public:
    const std::string& op() const;
    const std::string& name() const;

    int input_count() const;
    int output_count() const;
    ValueId input(int i) const;
    ValueId output(int i) const;

    bool has_weight(const char* role) const;
    const Weight& weight(const char* role) const;  // throws FormatError where the node has none

    bool has_attribute(const char* key) const;
    bool flag(const char* key, bool otherwise) const;
    std::int64_t integer(const char* key) const;
    std::int64_t integer(const char* key, std::int64_t otherwise) const;
    double number(const char* key) const;
    bool is(const char* key, const char* text) const;  // the text attribute `key` equals `text`
    const std::string& text(const char* key) const;
    const std::vector<std::int64_t>& integers(const char* key) const;

    std::string op_;
    std::string name_;
    std::vector<ValueId> inputs_;
    std::vector<ValueId> outputs_;
    std::vector<std::pair<std::string, const Weight*>> weights_;  // by role; a handful
    std::vector<std::pair<std::string, Attribute>> attributes_;
};

// What shape inference knows of a value at one (batch, height, width).
struct ValueInfo {
    Shape shape;
    std::int64_t grid_rows = 0;  // patches per column and row of the image, from patch_embed on
    std::int64_t grid_columns = 0;
};

struct GraphInput {
    std::string name;
    ValueId value = 0;
    std::int64_t channels = 3;
};

struct Graph {
    std::vector<std::string> value_names;  // by ValueId
    std::vector<Node> nodes;               // in execution order
    GraphInput input;
    std::vector<std::pair<std::string, ValueId>> outputs;

    ValueId find_value(std::string_view name) const;  // -1 where there is none
};

}  // namespace vimrt
