#include "graph.h"

#include <algorithm>

#include "vimrt/error.h"

namespace vimrt {

namespace {

// The entry under `key`, or nullptr.
template <typename T>
const T* find(const std::vector<std::pair<std::string, T>>& entries, const char* key) {
    const auto found =
        std::find_if(entries.begin(), entries.end(), [&](const auto& entry) { return entry.first == key; });
    return found == entries.end() ? nullptr : &found->second;
}

}  // namespace

const std::string& Node::op() const {
    return op_;
}
const std::string& Node::name() const {
    return name_;
}

int Node::input_count() const {
    return static_cast<int>(inputs_.size());
}
int Node::output_count() const {
    return static_cast<int>(outputs_.size());
}
ValueId Node::input(int i) const {
    return inputs_.at(static_cast<std::size_t>(i));
}
ValueId Node::output(int i) const {
    return outputs_.at(static_cast<std::size_t>(i));
}

bool Node::has_weight(const char* role) const {
    return find(weights_, role) != nullptr;
}

const Weight& Node::weight(const char* role) const {
    const Weight* const* found = find(weights_, role);
    if (found == nullptr) throw FormatError("node \"" + name_ + "\" has no weight \"" + role + '"');
    return **found;
}

bool Node::has_attribute(const char* key) const {
    return find(attributes_, key) != nullptr;
}

namespace {

template <typename T>
const T& typed(const Node& node, const char* key, const char* type) {
    const Attribute* found = find(node.attributes_, key);
    if (found == nullptr) throw FormatError("node \"" + node.name_ + "\" has no attribute \"" + key + '"');
    const T* value = std::get_if<T>(found);
    if (value == nullptr) {
        throw FormatError("node \"" + node.name_ + "\": the attribute \"" + key + "\" must be " + type);
    }
    return *value;
}

}  // namespace

bool Node::flag(const char* key, bool otherwise) const {
    return has_attribute(key) ? typed<bool>(*this, key, "a boolean") : otherwise;
}

std::int64_t Node::integer(const char* key) const {
    return typed<std::int64_t>(*this, key, "an integer");
}

std::int64_t Node::integer(const char* key, std::int64_t otherwise) const {
    return has_attribute(key) ? integer(key) : otherwise;
}

double Node::number(const char* key) const {
    if (const Attribute* found = find(attributes_, key)) {
        if (const auto* integer = std::get_if<std::int64_t>(found)) return static_cast<double>(*integer);
    }
    return typed<double>(*this, key, "a number");
}

const std::string& Node::text(const char* key) const {
    return typed<std::string>(*this, key, "a string");
}

bool Node::is(const char* key, const char* expected) const {
    return text(key) == expected;
}

const std::vector<std::int64_t>& Node::integers(const char* key) const {
    return typed<std::vector<std::int64_t>>(*this, key, "an array of integers");
}

ValueId Graph::find_value(std::string_view name) const {
    for (std::size_t id = 0; id < value_names.size(); ++id) {
        if (value_names[id] == name) return static_cast<ValueId>(id);
    }
    return -1;
}

}  // namespace vimrt
