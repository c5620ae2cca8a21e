// Deterministic damage to .vimrt files: to their bytes, to the text of their header, and to what the header's JSON
// says.
//
// Random bytes rarely get past the first check, so most mutations keep the file well-formed up to one layer and damage
// that layer: the header's length, its syntax, a tensor's entry, or one value of the graph, with everything before it
// intact.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tiny_model.h"

namespace fuzz {

using Json = nlohmann::json;

// splitmix64 (Steele, Lea and Flood, 2014): the same numbers everywhere.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t bits() {
        std::uint64_t z = state_ += 0x9E3779B97F4A7C15U;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
        z = (z ^ z >> 27) * 0x94D049BB133111EBU;
        return z ^ z >> 31;
    }
    std::size_t below(std::size_t count) { return count == 0 ? 0 : static_cast<std::size_t>(bits() % count); }
    bool one_in(std::size_t count) { return below(count) == 0; }
    template <typename Container>
    auto& pick(Container& from) {
        return from[below(from.size())];
    }

private:
    std::uint64_t state_;
};

// A file taken apart. Where its header cannot be read, `header` is discarded JSON and only its bytes are mutated.
struct Seed {
    std::string bytes;
    Json header;
    std::string data;
};

inline Seed take_apart(std::string bytes) {
    Seed seed{std::move(bytes), Json(Json::value_t::discarded), {}};
    if (seed.bytes.size() < 8) return seed;
    std::uint64_t length = 0;
    for (int i = 7; i >= 0; --i)
        length = length << 8 | static_cast<unsigned char>(seed.bytes[static_cast<std::size_t>(i)]);
    if (length > seed.bytes.size() - 8) return seed;
    seed.header = Json::parse(seed.bytes.substr(8, length), nullptr, false);
    seed.data = seed.bytes.substr(8 + length);
    return seed;
}

inline std::string text_of(const Json& json) {
    return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

inline std::string put_together(const Json& header, const std::string& data) {
    return tiny::safetensors(text_of(header), data);
}

// Values

inline Json interesting_number(Random& random) {
    static const std::vector<Json> numbers = {0,
                                              1,
                                              2,
                                              3,
                                              4,
                                              7,
                                              8,
                                              15,
                                              16,
                                              17,
                                              64,
                                              255,
                                              256,
                                              4096,
                                              65535,
                                              65536,
                                              1 << 20,
                                              INT32_MAX,
                                              std::int64_t{1} << 31,
                                              UINT32_MAX,
                                              std::int64_t{1} << 32,
                                              std::int64_t{1} << 53,
                                              std::int64_t{1} << 61,
                                              std::int64_t{1} << 62,
                                              INT64_MAX,
                                              std::uint64_t{1} << 63,
                                              UINT64_MAX,
                                              -1,
                                              -2,
                                              INT32_MIN,
                                              INT64_MIN,
                                              0.0,
                                              -0.0,
                                              0.5,
                                              1.5,
                                              -1.5,
                                              1e-310,
                                              1e-45,
                                              1e-12,
                                              1e12,
                                              1e30,
                                              1e300,
                                              3.0};
    return random.pick(numbers);
}

inline Json interesting_value(Random& random) {
    static const std::vector<Json> values = {nullptr,
                                             true,
                                             false,
                                             "",
                                             "x",
                                             "logits",
                                             "pixels",
                                             "F32",
                                             "F16",
                                             "BF16",
                                             "F64",
                                             "batch",
                                             "middle",
                                             "ends",
                                             "none",
                                             "own",
                                             "shared",
                                             "mean",
                                             "max",
                                             "sum",
                                             "rms",
                                             "layer",
                                             "linear",
                                             "split",
                                             "rope",
                                             "scale",
                                             "pool",
                                             "1",
                                             "-1",
                                             std::string("a\0b", 3),
                                             "\n",
                                             "\x1B[31m",
                                             "\xE2\x82\xAC",
                                             std::string(1000, 'n'),
                                             Json::array(),
                                             Json::object(),
                                             Json::array({1}),
                                             Json::array({1, 2}),
                                             Json::array({0, 0}),
                                             Json::array({""}),
                                             Json::array({nullptr}),
                                             Json::object({{"x", 1}}),
                                             Json::array({Json::array({Json::array()})})};
    return random.one_in(2) ? interesting_number(random) : Json(random.pick(values));
}

// JSON

inline void collect(Json& json, std::vector<Json*>& all) {
    all.push_back(&json);
    if (json.is_structured()) {
        for (Json& child : json) collect(child, all);
    }
}

inline std::vector<Json*> all_of(Json& json, bool (*wanted)(const Json&)) {
    std::vector<Json*> all;
    collect(json, all);
    std::erase_if(all, [&](const Json* item) { return !wanted(*item); });
    return all;
}

inline bool is_any(const Json&) {
    return true;
}
inline bool is_number(const Json& json) {
    return json.is_number();
}
inline bool is_string(const Json& json) {
    return json.is_string();
}
inline bool has_children(const Json& json) {
    return json.is_structured() && !json.empty();
}

inline void replace_value(Json& json, Random& random) {
    auto all = all_of(json, is_any);
    *random.pick(all) = interesting_value(random);
}

inline void change_number(Json& json, Random& random) {
    auto all = all_of(json, is_number);
    if (all.empty()) return;
    Json& number = *random.pick(all);
    const std::size_t how = random.below(4);
    if (how < 2 && number.is_number_unsigned()) {
        const auto value = number.get<std::uint64_t>();
        const std::uint64_t amount = std::uint64_t{1} << random.below(how == 0 ? 4 : 64);
        number = random.one_in(2) ? value + amount : value - std::min(value, amount);
    } else {
        number = interesting_number(random);
    }
}

// A name that stands elsewhere in the text: dangling, duplicate and cyclic references, wrong weights, wrong attributes.
inline void exchange_string(Json& json, Random& random) {
    auto all = all_of(json, is_string);
    if (!all.empty()) *random.pick(all) = Json(*random.pick(all));
}

inline void copy_subtree(Json& json, Random& random) {
    auto all = all_of(json, is_any);
    const Json copy = *random.pick(all);
    if (text_of(copy).size() < 4096) *random.pick(all) = copy;
}

inline void erase_child(Json& json, Random& random) {
    auto all = all_of(json, has_children);
    if (all.empty()) return;
    Json& parent = *random.pick(all);
    auto child = parent.begin();
    std::advance(child, static_cast<std::ptrdiff_t>(random.below(parent.size())));
    parent.erase(child);
}

inline void repeat_child(Json& json, Random& random) {
    auto all = all_of(json, has_children);
    if (all.empty()) return;
    Json& parent = *random.pick(all);
    if (parent.is_array()) {
        const Json copy = random.pick(parent);
        parent.insert(parent.begin() + static_cast<std::ptrdiff_t>(random.below(parent.size() + 1)), copy);
    } else {
        auto child = parent.begin();
        std::advance(child, static_cast<std::ptrdiff_t>(random.below(parent.size())));
        const Json copy = child.value();
        parent[child.key() + (random.one_in(2) ? "_b" : std::string("\0", 1))] = copy;
    }
}

inline void exchange_children(Json& json, Random& random) {
    auto all = all_of(json, has_children);
    if (all.empty()) return;
    Json& parent = *random.pick(all);
    std::vector<Json*> children;
    for (Json& child : parent) children.push_back(&child);
    std::swap(*random.pick(children), *random.pick(children));
}

inline void mutate_json(Json& json, Random& random) {
    using Mutation = void (*)(Json&, Random&);
    static const std::vector<Mutation> mutations = {replace_value,   change_number,   change_number,
                                                    exchange_string, exchange_string, copy_subtree,
                                                    erase_child,     repeat_child,    exchange_children};
    for (std::size_t times = 1 + random.below(3); times > 0; --times) random.pick(mutations)(json, random);
}

// Text

// A key said twice, an object opened a thousand times: what no JSON value can express.
inline std::string damage_text(std::string text, Random& random) {
    if (text.empty()) return text;
    const std::size_t at = random.below(text.size());
    switch (random.below(6)) {
        case 0: {  // "key": -> "key":0,"key":
            const std::size_t end = text.find("\":", at);
            const std::size_t begin = end == std::string::npos ? end : text.rfind('"', end - 1);
            if (begin != std::string::npos) text.insert(begin, text.substr(begin, end + 2 - begin) + "0,");
            return text;
        }
        case 1:
            return text.insert(at, std::string(1 + random.below(5000), random.one_in(2) ? '[' : '{'));
        case 2:
            return text.substr(0, at);
        case 3:
            return text.erase(at, 1 + random.below(8));
        case 4: {
            static const std::vector<std::string> scraps = {"\"",
                                                            "\\",
                                                            "\\u",
                                                            "\\ud800",
                                                            "{",
                                                            "}",
                                                            "[",
                                                            "]",
                                                            ",",
                                                            ":",
                                                            "-",
                                                            "e999",
                                                            ".",
                                                            "\xFF",
                                                            "\xC0\x80",
                                                            "\xED\xA0\x80",
                                                            "NaN",
                                                            "0x1",
                                                            std::string(1, '\0'),
                                                            "\n",
                                                            "/*",
                                                            "//",
                                                            "+1",
                                                            "01"};
            return text.insert(at, random.pick(scraps));
        }
        default:
            text[at] = static_cast<char>(random.bits());
            return text;
    }
}

// Files

inline std::string mutate_bytes(std::string bytes, const Seed& other, Random& random) {
    for (std::size_t times = 1 + random.below(4); times > 0 && !bytes.empty(); --times) {
        // Half of the damage goes to the header, which is a small part of the file.
        const std::size_t reach = random.one_in(2) ? bytes.size() : std::min<std::size_t>(bytes.size(), 4096);
        const std::size_t at = random.below(reach);
        switch (random.below(6)) {
            case 0:
                bytes[at] = static_cast<char>(bytes[at] ^ 1 << random.below(8));
                break;
            case 1:
                bytes[at] = static_cast<char>(random.bits());
                break;
            case 2:
                bytes.resize(at);
                break;
            case 3:
                bytes.erase(at, 1 + random.below(64));
                break;
            case 4:
                bytes.insert(at, bytes.substr(random.below(bytes.size()), 1 + random.below(64)));
                break;
            default:
                bytes.replace(at, std::string::npos, other.bytes, std::min(at, other.bytes.size()));
                break;
        }
    }
    return bytes;
}

inline std::string mutate_length(std::string bytes, Random& random) {
    static const std::vector<std::uint64_t> lengths = {
        0, 1, 2, 7, 8, 100'000'000, 100'000'001, UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_MAX - 7, UINT64_MAX - 8};
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), std::min(bytes.size(), sizeof(length)));
    length = random.one_in(2) ? random.pick(lengths) : length + random.below(33) - 16;
    std::memcpy(bytes.data(), &length, std::min(bytes.size(), sizeof(length)));
    return bytes;
}

// Numbers of the tensors' entries, so changed that the file often stays consistent: shapes of equal size, other dtypes.
inline std::string mutate_tensors(const Seed& seed, Random& random) {
    Json header = seed.header;
    std::string data = seed.data;
    std::vector<Json*> tensors;
    for (auto& [name, entry] : header.items()) {
        if (name != "__metadata__") tensors.push_back(&entry);
    }
    if (tensors.empty()) return put_together(header, data);
    Json& one = *random.pick(tensors);
    Json& two = *random.pick(tensors);
    switch (random.below(9)) {
        case 0:
            std::swap(one["data_offsets"], two["data_offsets"]);
            break;
        case 1:
            std::swap(one, two);
            break;
        case 2:
            std::swap(one["shape"], two["shape"]);
            break;
        case 3:
            std::reverse(one["shape"].begin(), one["shape"].end());
            break;
        case 4:
            one["shape"].insert(one["shape"].begin(), 1);
            break;
        case 5:
            one["shape"] = {1, one["shape"].empty() ? Json(1) : one["shape"].back()};
            break;
        case 6: {  // as many bytes in half as many bits
            Json& last = one["shape"].back();
            if (last.is_number_unsigned()) last = last.get<std::uint64_t>() * 2;
            one["dtype"] = random.one_in(2) ? "F16" : "BF16";
            break;
        }
        case 7:
            change_number(one, random);
            break;
        default:
            one["dtype"] = interesting_value(random);
            break;
    }
    return put_together(header, data);
}

// Weights of any value whatever: NaN, infinities, denormals.
inline std::string mutate_data(const Seed& seed, Random& random) {
    static const std::vector<std::uint32_t> patterns = {0x7FC00000, 0x7F800000, 0xFF800000, 0x00000001, 0x7F7FFFFF,
                                                        0xFF7FFFFF, 0x80000000, 0xFFFFFFFF, 0x7C007C00, 0xFE00FE00};
    std::string data = seed.data;
    for (std::size_t times = 1 + random.below(16); times > 0 && data.size() >= 4; --times) {
        std::memcpy(data.data() + random.below(data.size() / 4) * 4, &random.pick(patterns), 4);
    }
    return put_together(seed.header, data);
}

// One of the texts in the metadata, parsed, mutated and written back.
inline std::string mutate_metadata(const Seed& seed, const char* key, Random& random) {
    Json header = seed.header;
    Json& metadata = header["__metadata__"];
    if (!metadata.is_object() || !metadata.contains(key) || !metadata[key].is_string())
        return put_together(header, seed.data);
    std::string text = metadata[key].get<std::string>();
    if (Json inner = Json::parse(text, nullptr, false); !inner.is_discarded() && !random.one_in(5)) {
        mutate_json(inner, random);
        text = text_of(inner);
    } else {
        text = damage_text(text, random);
    }
    metadata[key] = text;
    return put_together(header, seed.data);
}

// A damaged copy of `seed`; `other` lends bytes.
inline std::string mutate(const Seed& seed, const Seed& other, Random& random) {
    const std::size_t how = random.below(20);
    if (!seed.header.is_object() || how < 2) return mutate_bytes(seed.bytes, other, random);
    if (how == 2) return mutate_length(seed.bytes, random);
    if (how < 5) return tiny::safetensors(damage_text(text_of(seed.header), random), seed.data);
    if (how < 8) return mutate_tensors(seed, random);
    if (how == 8) return mutate_data(seed, random);
    if (how == 9) {
        Json header = seed.header;
        mutate_json(header, random);
        return put_together(header, seed.data);
    }
    if (how == 10) return mutate_metadata(seed, "preprocessing", random);
    if (how == 11) return mutate_metadata(seed, random.one_in(2) ? "labels" : "format_version", random);
    return mutate_metadata(seed, "graph", random);
}

}  // namespace fuzz
