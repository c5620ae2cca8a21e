#include "footprint.h"

#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace vimrt {

namespace {

// What glibc's malloc takes for a request: 8 bytes of its own, in units of 16, at least 32.
std::int64_t block(std::size_t bytes) {
    return bytes == 0 ? 0 : std::max<std::int64_t>(32, static_cast<std::int64_t>((bytes + 8 + 15) / 16 * 16));
}

// owned_by(x): the bytes of all blocks that x and its members own, without x itself.
std::int64_t owned_by(const std::string& text) {
    const bool inside = text.capacity() <= std::string().capacity();
    return inside ? 0 : block(text.capacity() + 1);
}

template <typename T>
std::int64_t owned_by(const std::vector<T>& items);

template <typename A, typename B>
std::int64_t owned_by(const std::pair<A, B>& pair);

std::int64_t owned_by(const Attribute& attribute) {
    if (const auto* text = std::get_if<std::string>(&attribute)) return owned_by(*text);
    if (const auto* integers = std::get_if<std::vector<std::int64_t>>(&attribute)) return owned_by(*integers);
    return 0;
}

std::int64_t owned_by(const Weight& weight) {
    return owned_by(weight.name);
}

std::int64_t owned_by(const Node& node) {
    return owned_by(node.op_) + owned_by(node.name_) + owned_by(node.inputs_) + owned_by(node.outputs_) +
           owned_by(node.weights_) + owned_by(node.attributes_);
}

std::int64_t owned_by(const Step& step) {
    return owned_by(step.name) + block(step.parameter_bytes) + owned_by(step.reads) + owned_by(step.writes);
}

std::int64_t owned_by(const ProgramBufferRecord& buffer) {
    return owned_by(buffer.name);
}

template <typename T>
std::int64_t owned_by(const std::vector<T>& items) {
    std::int64_t bytes = block(items.capacity() * sizeof(T));
    if constexpr (!std::is_trivially_copyable_v<T>) {
        for (const T& item : items) bytes += owned_by(item);
    }
    return bytes;
}

template <typename A, typename B>
std::int64_t owned_by(const std::pair<A, B>& pair) {
    std::int64_t bytes = 0;
    if constexpr (!std::is_trivially_copyable_v<A>) bytes += owned_by(pair.first);
    if constexpr (!std::is_trivially_copyable_v<B>) bytes += owned_by(pair.second);
    return bytes;
}

}  // namespace

std::int64_t heap_bytes(const ModelFile& file) {
    return owned_by(file.path) + owned_by(file.weights) + owned_by(file.labels) + owned_by(file.graph.value_names) +
           owned_by(file.graph.nodes) + owned_by(file.graph.outputs) + owned_by(file.graph.input.name);
}

std::int64_t heap_bytes(const Program& program) {
    return block(sizeof(Program)) + owned_by(program.key.outputs) + owned_by(program.steps) +
           owned_by(program.buffers) + owned_by(program.output_shapes) + heap_bytes(program.constants);
}

std::int64_t heap_bytes(const ConstantStore& store) {
    constexpr std::size_t links = 4 * sizeof(void*);  // of a std::map's node
    std::int64_t bytes = 0;
    for (const auto& entry : store.blocks_) bytes += block(links + sizeof(entry)) + owned_by(entry.first);
    return bytes;
}

}  // namespace vimrt
