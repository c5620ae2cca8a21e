// A tiny Vim model built in memory: a valid .vimrt file for tests to load, run, or damage on purpose.
//
//     tiny::Model model = tiny::vim();
//     model.graph["nodes"][0]["op"] = "convolution";
//     const tiny::File file(model.bytes());
//     CHECK_THROWS(vimrt::Engine(file.path()), vimrt::FormatError, "convolution");
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace tiny {

using Json = nlohmann::json;

// Everything a .vimrt file holds, each part open to changes; bytes() puts it together as docs/file-format.md says.
struct Model {
    Json tensors = Json::object();  // header entries by name
    std::string data;               // the tensors' bytes
    Json graph;
    Json preprocessing;
    Json metadata = {{"format", "vimrt"}, {"format_version", "1"}};  // besides graph and preprocessing

    // Appends a float32 tensor behind the others: deterministic values around `center`, at most `spread` away.
    void add(const std::string& name, const std::vector<std::int64_t>& shape, float center, float spread) {
        std::int64_t count = 1;
        for (const std::int64_t dim : shape) count *= dim;
        const std::size_t begin = data.size();
        for (std::int64_t i = 0; i < count; ++i) {
            state_ = state_ * 6364136223846793005U + 1442695040888963407U;
            const float unit = static_cast<float>(state_ >> 40) / static_cast<float>(1 << 23) - 1;  // [-1, 1)
            const float value = center + spread * unit;
            char bytes[sizeof(value)];
            std::memcpy(bytes, &value, sizeof(value));
            data.append(bytes, sizeof(value));
        }
        tensors[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
    }

    Json& node(std::string_view name) {
        for (Json& node : graph["nodes"]) {
            if (node["name"] == name) return node;
        }
        throw std::logic_error("the tiny model has no node " + std::string(name));
    }

    std::string header() const {
        Json all = tensors;
        Json text = metadata;
        if (!graph.is_null()) text["graph"] = graph.dump();
        if (!preprocessing.is_null()) text["preprocessing"] = preprocessing.dump();
        all["__metadata__"] = text;
        return all.dump();
    }

    std::string bytes() const;

private:
    std::uint64_t state_ = 1;
};

// A safetensors file of this header, padded so that the data start at a multiple of 64 bytes.
inline std::string safetensors(std::string header, std::string_view data) {
    while ((8 + header.size()) % 64 != 0) header += ' ';
    std::string file;
    for (int i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> (8 * i) & 0xFF);
    return file + header + std::string(data);
}

inline std::string Model::bytes() const {
    return safetensors(header(), data);
}

struct Sizes {
    int depth = 2;
    int d_model = 16;
    int d_inner = 32;
    int d_state = 4;
    int dt_rank = 2;
    int d_conv = 4;
    int patch = 8;  // pixels, and the stride
    int grid = 4;   // patches on a side
    int classes = 5;
};

namespace detail {

inline Json node(const char* op, const std::string& name, const Json& inputs, const Json& outputs,
                 const Json& weights = Json::object(), const Json& attributes = Json::object()) {
    return {{"op", op},           {"name", name},       {"inputs", inputs},
            {"outputs", outputs}, {"weights", weights}, {"attributes", attributes}};
}

inline void add_direction(Model& model, const Sizes& s, const std::string& mixer, const std::string& suffix,
                          const std::string& a_log, Json& weights) {
    const auto add = [&](const std::string& role, const std::vector<std::int64_t>& shape, float center, float spread) {
        model.add(mixer + role, shape, center, spread);
        weights[role] = mixer + role;
    };
    add("conv1d" + suffix + ".weight", {s.d_inner, 1, s.d_conv}, 0, 0.5F);
    add("conv1d" + suffix + ".bias", {s.d_inner}, 0, 0.1F);
    add("x_proj" + suffix + ".weight", {s.dt_rank + 2 * s.d_state, s.d_inner}, 0, 0.3F);
    add("dt_proj" + suffix + ".weight", {s.d_inner, s.dt_rank}, 0, 0.5F);
    add("dt_proj" + suffix + ".bias", {s.d_inner}, -4, 1);
    add(a_log, {s.d_inner, s.d_state}, 0.7F, 0.7F);
    add("D" + suffix, {s.d_inner}, 1, 0.2F);
}

inline void add_block(Model& model, const Sizes& s, int index, const std::string& hidden, const std::string& residual) {
    const std::string block = "layers." + std::to_string(index) + ".";
    const std::string mixer = block + "mixer.";
    Json& nodes = model.graph["nodes"];
    model.add(block + "norm.weight", {s.d_model}, 1, 0.2F);
    nodes.push_back(node("add_norm", block + "norm", residual.empty() ? Json{hidden} : Json{hidden, residual},
                         {block + "normed", block + "residual"}, {{"weight", block + "norm.weight"}},
                         {{"norm", "rms"}, {"eps", 1e-5}}));
    model.add(mixer + "in_proj.weight", {2 * s.d_inner, s.d_model}, 0, 0.4F);
    nodes.push_back(
        node("linear", block + "in_proj", {block + "normed"}, {block + "xz"}, {{"weight", mixer + "in_proj.weight"}}));
    nodes.push_back(node("split", block + "split", {block + "xz"}, {block + "x", block + "z"}, Json::object(),
                         {{"sizes", {s.d_inner, s.d_inner}}}));
    Json weights;
    add_direction(model, s, mixer, "", "A_log", weights);
    add_direction(model, s, mixer, "_b", "A_b_log", weights);
    nodes.push_back(node("bidirectional_scan", block + "scan", {block + "x"},
                         {block + "y_forward", block + "y_backward"}, weights, {{"backward", "own"}}));
    nodes.push_back(node("gated_merge", block + "merge", {block + "y_forward", block + "y_backward", block + "z"},
                         {block + "y"}, Json::object(), {{"merge", "mean"}}));
    model.add(mixer + "out_proj.weight", {s.d_model, s.d_inner}, 0, 0.3F);
    nodes.push_back(
        node("linear", block + "out_proj", {block + "y"}, {block + "hidden"}, {{"weight", mixer + "out_proj.weight"}}));
}

}  // namespace detail

// A whole Vim with the class token in the middle: outputs logits, features and tokens.
inline Model vim(const Sizes& s = {}) {
    using detail::node;
    Model model;
    const int patches = s.grid * s.grid;
    const int pixels = s.grid * s.patch;
    model.preprocessing = {{"image_size", {pixels, pixels}},
                           {"crop", 0.875},
                           {"interpolation", "bicubic"},
                           {"mean", {0.485, 0.456, 0.406}},
                           {"std", {0.229, 0.224, 0.225}}};
    model.graph = {{"inputs", {{{"name", "pixels"}, {"dtype", "float32"}, {"shape", {"batch", 3, "height", "width"}}}}},
                   {"nodes", Json::array()},
                   {"outputs", {{"logits", "logits"}, {"features", "features"}, {"tokens", "tokens"}}}};
    model.add("patch_embed.weight", {s.d_model, 3, s.patch, s.patch}, 0, 0.1F);
    model.add("patch_embed.bias", {s.d_model}, 0, 0.1F);
    model.add("cls_token", {1, 1, s.d_model}, 0, 0.3F);
    model.add("pos_embed", {1, patches + 1, s.d_model}, 0, 0.3F);
    Json& nodes = model.graph["nodes"];
    nodes.push_back(node("patch_embed", "patch_embed", {"pixels"}, {"patches"},
                         {{"weight", "patch_embed.weight"}, {"bias", "patch_embed.bias"}}, {{"stride", s.patch}}));
    nodes.push_back(node("insert_tokens", "cls_token", {"patches"}, {"tokens_with_class"}, {{"token", "cls_token"}},
                         {{"position", "middle"}}));
    nodes.push_back(node("add_position", "pos_embed", {"tokens_with_class"}, {"tokens_in"}, {{"position", "pos_embed"}},
                         {{"grid", {s.grid, s.grid}}, {"class_token", "middle"}}));
    std::string hidden = "tokens_in";
    std::string residual;
    for (int i = 0; i < s.depth; ++i) {
        detail::add_block(model, s, i, hidden, residual);
        hidden = "layers." + std::to_string(i) + ".hidden";
        residual = "layers." + std::to_string(i) + ".residual";
    }
    model.add("norm_f.weight", {s.d_model}, 1, 0.2F);
    model.add("head.weight", {s.classes, s.d_model}, 0, 0.4F);
    model.add("head.bias", {s.classes}, 0, 0.1F);
    nodes.push_back(node("add_norm", "norm_f", residual.empty() ? Json{hidden} : Json{hidden, residual}, {"tokens"},
                         {{"weight", "norm_f.weight"}}, {{"norm", "rms"}, {"eps", 1e-5}}));
    nodes.push_back(
        node("select_tokens", "select", {"tokens"}, {"features"}, Json::object(), {{"position", "middle"}}));
    nodes.push_back(
        node("linear", "head", {"features"}, {"logits"}, {{"weight", "head.weight"}, {"bias", "head.bias"}}));
    return model;
}

// A file of these bytes that lives as long as this object.
class File {
public:
    explicit File(std::string_view bytes) {
        const char* folder = std::getenv("TMPDIR");
        path_ = std::string(folder != nullptr ? folder : "/tmp") + "/vimrt-test-XXXXXX";
        const int fd = ::mkstemp(path_.data());
        if (fd < 0) throw std::runtime_error("cannot create " + path_);
        for (std::size_t done = 0; done < bytes.size();) {
            const ssize_t written = ::write(fd, bytes.data() + done, bytes.size() - done);
            if (written <= 0) throw std::runtime_error("cannot write " + path_);
            done += static_cast<std::size_t>(written);
        }
        ::close(fd);
    }
    ~File() { ::unlink(path_.c_str()); }
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    const std::string& path() const { return path_; }

private:
    std::string path_;
};

}  // namespace tiny
