// The loader against damaged and malicious files: header, tensors and metadata. The graph is graph_test.cpp's.
#include "file.h"

#include <sys/stat.h>

#include <fstream>
#include <string>

#include "check.h"
#include "refusal.h"

using tiny::check_refused;
using tiny::Json;
using tiny::Model;
using tiny::safetensors;

namespace {

const Model& valid() {
    static const Model model = tiny::vim();
    return model;
}

// The valid model with one tensor's header entry changed.
template <typename Change>
Model with_tensor(const std::string& name, Change change) {
    Model model = valid();
    change(model.tensors.at(name));
    return model;
}

// The valid model with its preprocessing recipe changed.
template <typename Change>
Model with_recipe(Change change) {
    Model model = valid();
    change(model.preprocessing);
    return model;
}

std::string length_prefix(std::uint64_t length) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i) & 0xFF);
    return bytes;
}

// A file whose header is `text`, without padding and without data.
std::string header_alone(const std::string& text) {
    return length_prefix(text.size()) + text;
}

std::string repeated(const std::string& text, int count) {
    std::string all;
    for (int i = 0; i < count; ++i) all += text;
    return all;
}

vimrt::Weight weight_of(const vimrt::ModelFile& model, const std::string& name) {
    for (const vimrt::Weight& weight : model.weights) {
        if (weight.name == name) return weight;
    }
    throw std::logic_error("the file has no tensor " + name);
}

}  // namespace

TEST(a_valid_file_loads) {
    const tiny::File file(valid().bytes());
    const vimrt::ModelFile model(file.path());
    CHECK_EQ(model.format_version, 1);
    CHECK_EQ(model.weights.size(), valid().tensors.size());
    CHECK_EQ(model.graph.nodes.size(), valid().graph["nodes"].size());
    CHECK_EQ(model.graph.outputs.front().first, std::string("logits"));
    const auto& weight = weight_of(model, "head.weight");
    CHECK(weight.shape == vimrt::Shape{5, 16});
    const auto begin = valid().tensors["head.weight"]["data_offsets"][0].get<std::size_t>();
    CHECK(std::memcmp(weight.data, valid().data.data() + begin, 5 * 16 * 4) == 0);
}

TEST(metadata_of_unknown_keys_are_kept_and_ignored) {
    Model model = valid();
    model.metadata["written_by"] = "a later exporter";
    const tiny::File file(model.bytes());
    CHECK_EQ(vimrt::ModelFile(file.path()).metadata().at("written_by"), std::string("a later exporter"));
}

// The file itself

TEST(a_path_that_leads_to_no_file_is_refused) {
    CHECK_THROWS(vimrt::ModelFile("/nonexistent/model.vimrt"), vimrt::FormatError,
                 "/nonexistent/model.vimrt: cannot be opened: No such file or directory");
    CHECK_THROWS(vimrt::ModelFile("/tmp"), vimrt::FormatError, "/tmp: is no regular file");
    CHECK_THROWS(vimrt::ModelFile("/dev/zero"), vimrt::FormatError, "/dev/zero: is no regular file");
    CHECK_THROWS(vimrt::ModelFile(""), vimrt::FormatError, "cannot be opened");
    CHECK_THROWS(vimrt::ModelFile(std::string("/dev/null\0.vimrt", 16)), vimrt::FormatError, "NUL");
}

TEST(a_named_pipe_is_refused_without_waiting_for_a_writer) {
    const tiny::File place("");
    const std::string pipe = place.path() + ".pipe";
    REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
    CHECK_THROWS((vimrt::ModelFile(pipe)), vimrt::FormatError, ".pipe: is no regular file");
    ::unlink(pipe.c_str());
}

TEST(a_file_cut_short_is_refused_wherever_the_cut_is) {
    const std::string whole = valid().bytes();
    check_refused("", {"has 0 bytes", "cut short, copy it again"});
    check_refused(whole.substr(0, 7), {"has 7 bytes", "cut short, copy it again"});
    check_refused(whole.substr(0, 8), {"the header ends at byte", "but the file has 8"});
    check_refused(whole.substr(0, 100), {"the header ends at byte", "but the file has 100"});
    check_refused(whole.substr(0, whole.size() - 1), {"tensor \"", "ends at byte", "cut short, copy it again"});
    check_refused(whole.substr(0, whole.size() - valid().data.size()), {"tensor \"", "ends at byte", "cut short"});
}

TEST(bytes_behind_the_tensors_are_refused) {
    check_refused(valid().bytes() + "x", {"the tensors end at byte", "but the file has", "something else at its end"});
}

// The header

TEST(a_header_length_beyond_the_limit_or_the_file_is_refused) {
    check_refused(length_prefix(UINT64_MAX) + "{}", {"18,446,744,073,709,551,615", "at most 100,000,000"});
    check_refused(length_prefix(UINT64_MAX - 7) + "{}", {"header's length", "at most 100,000,000"});
    check_refused(length_prefix(100'000'001) + "{}", {"100,000,001", "at most 100,000,000"});
    check_refused(length_prefix(100'000'000) + "{}", {"ends at byte 100,000,008", "the file has 10"});
    check_refused(length_prefix(3) + "{}", {"ends at byte 11", "the file has 10"});
    check_refused(length_prefix(0), {"does not begin with '{'"});
}

TEST(a_header_that_is_no_json_object_is_refused) {
    check_refused(header_alone("[]"), {"does not begin with '{'"});
    check_refused(header_alone(" {}"), {"does not begin with '{'"});
    check_refused(header_alone("PK\x03\x04 a zip file"), {"does not begin with '{'"});
    check_refused(header_alone("{"), {"header", "no valid JSON"});
    check_refused(header_alone("{} {}"), {"header", "no valid JSON"});
    check_refused(header_alone("{\"a\":NaN}"), {"header", "no valid JSON"});
    check_refused(header_alone("{'a':1}"), {"header", "no valid JSON"});
    check_refused(header_alone("{\"a\":1,}"), {"header", "no valid JSON"});
    check_refused(header_alone("{\"a\":1e999}"), {"header", "no valid JSON"});
    check_refused(header_alone(std::string("{\"a\":1}\0\0", 9)), {"header", "no valid JSON"});
    check_refused(header_alone("{}"), {"the metadata has no \"format\"", "vimrt export"});
}

TEST(bad_utf8_is_refused_with_a_message_that_is_good_utf8) {
    for (const std::string bad : {"\xFF", "\xC0\xAF", "\xED\xA0\x80", "\xF5\x80\x80\x80", "\xE2\x82", "\x80"}) {
        check_refused(header_alone("{\"" + bad + "\":1}"), {"header", "no valid JSON"});
        const tiny::File file(header_alone("{\"" + bad + "\":1}"));
        try {
            const vimrt::ModelFile model(file.path());
        } catch (const vimrt::FormatError& error) {
            CHECK(std::string(error.what()).find(bad) == std::string::npos);
        }
    }
    check_refused(header_alone(R"({"\ud800":1})"), {"header", "no valid JSON"});
}

TEST(a_long_name_is_not_cut_within_a_character) {
    // 3 bytes each, so that some cut of a round number of bytes falls within one.
    const std::string name = repeated("\xE2\x82\xAC", 1000);
    const tiny::File file(header_alone("{\"" + name + "\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}}"));
    try {
        const vimrt::ModelFile model(file.path());
        CHECK(!"the file was accepted");
    } catch (const vimrt::FormatError& error) {
        const std::string message = error.what();
        const std::size_t end = message.rfind("\xAC");
        REQUIRE(end != std::string::npos);
        CHECK(end - message.find("\xE2\x82\xAC") < 600);
        CHECK(static_cast<unsigned char>(message[end + 1]) < 0x80);
    }
}

TEST(nesting_beyond_the_limit_is_refused) {
    const auto nested = [](int levels) {
        return "{\"a\":" + repeated("[", levels - 1) + repeated("]", levels - 1) + "}";
    };
    check_refused(header_alone(nested(8)), {"tensor \"a\"", "array"});  // deep enough to parse, and no tensor
    check_refused(header_alone(nested(9)), {"header", "nested deeper than 8 levels"});
    check_refused(header_alone(nested(100'000)), {"header", "nested deeper than 8 levels"});
    check_refused(header_alone("{\"a\":" + repeated("{\"a\":", 100'000)), {"header", "nested deeper than 8 levels"});
}

TEST(a_header_of_too_many_values_is_refused_before_it_fills_memory) {
    check_refused(header_alone("{\"a\":[0" + repeated(",0", 3'000'000) + "]}"),
                  {"header", "more than 2,000,000 values"});
}

TEST(duplicate_keys_are_refused) {
    check_refused(header_alone(R"({"a":1,"a":1})"), {"header", "\"a\" appears twice"});
    check_refused(header_alone(R"({"x":{"dtype":"F32","dtype":"F16"}})"), {"header", "\"dtype\" appears twice"});
    check_refused(header_alone(R"({"x":1,"\u0078":1})"), {"header", "\"x\" appears twice"});
    const std::string name = repeated("n", 100'000);
    check_refused(header_alone("{\"" + name + "\":1,\"" + name + "\":1}"), {"header", "appears twice"});
    Model model = valid();
    model.metadata["preprocessing"] = R"({"crop":1,"crop":1})";
    model.preprocessing = nullptr;
    check_refused(model, {"preprocessing", "\"crop\" appears twice"});
}

TEST(a_name_may_hold_a_nul_character_without_confusing_it_with_a_shorter_one) {
    Model model = valid();
    model.metadata[std::string("format\0x", 8)] = 5;
    check_refused(model, {"metadata", "number", "a string was expected"});
    model.metadata[std::string("format\0x", 8)] = "other";
    const tiny::File file(model.bytes());
    CHECK_EQ(vimrt::ModelFile(file.path()).metadata().at(std::string("format\0x", 8)), std::string("other"));
}

// Tensors

TEST(a_tensor_entry_of_the_wrong_type_is_refused) {
    for (const Json& bad : {Json(nullptr), Json(5), Json("F32"), Json::array(), Json(true)}) {
        check_refused(with_tensor("head.bias", [&](Json& entry) { entry = bad; }),
                      {"tensor \"head.bias\"", bad.type_name(), "an object was expected"});
    }
    for (const char* key : {"dtype", "shape", "data_offsets"}) {
        const std::string quoted = std::string("\"") + key + '"';
        check_refused(with_tensor("head.bias", [&](Json& entry) { entry.erase(key); }),
                      {"tensor \"head.bias\"", quoted, "missing"});
        check_refused(with_tensor("head.bias", [&](Json& entry) { entry[key] = 5; }),
                      {"tensor \"head.bias\"", quoted, "number", "was expected"});
    }
}

TEST(a_dtype_that_weights_do_not_have_is_refused) {
    for (const char* dtype : {"F64", "I32", "U8", "BOOL", "F8_E4M3", "f32", "F32 ", ""}) {
        check_refused(with_tensor("head.bias", [&](Json& entry) { entry["dtype"] = dtype; }),
                      {"tensor \"head.bias\"", std::string("dtype \"") + dtype, "F32, F16 or BF16 was expected"});
    }
    check_refused(with_tensor("head.bias", [](Json& entry) { entry["dtype"] = repeated("F", 100'000); }),
                  {"tensor \"head.bias\"", "F32, F16 or BF16 was expected"});
}

TEST(a_shape_that_is_no_list_of_sizes_is_refused) {
    const auto refused = [](const Json& shape, std::initializer_list<std::string_view> parts) {
        check_refused(with_tensor("head.bias", [&](Json& entry) { entry["shape"] = shape; }), parts);
    };
    refused({-5}, {"tensor \"head.bias\"", "a dimension is -5", "integer from 0 to 2^63 - 1 was expected"});
    refused({5.0}, {"tensor \"head.bias\"", "a dimension is 5.0", "integer"});
    refused({"5"}, {"tensor \"head.bias\"", "a dimension is string", "integer"});
    refused({nullptr}, {"tensor \"head.bias\"", "a dimension is null", "integer"});
    refused({true}, {"tensor \"head.bias\"", "a dimension is boolean", "integer"});
    refused({UINT64_MAX}, {"tensor \"head.bias\"", "18446744073709551615", "integer from 0 to 2^63 - 1"});
    refused({1, 1, 1, 1, 1, 1, 1, 1, 5}, {"tensor \"head.bias\"", "9 dimensions", "at most 8"});
    refused(std::vector<int>(100'000, 1), {"tensor \"head.bias\"", "100000 dimensions", "at most 8"});
}

TEST(a_shape_whose_size_overflows_is_refused) {
    const auto refused = [](const Json& shape) {
        check_refused(with_tensor("head.bias", [&](Json& entry) { entry["shape"] = shape; }),
                      {"tensor \"head.bias\"", "63 bits"});
    };
    refused({INT64_MAX});  // elements fit, bytes do not
    refused({INT64_MAX, 2});
    refused({std::int64_t{1} << 32, std::int64_t{1} << 32});  // wraps to 0
    refused({std::int64_t{1} << 62, 4, 5});                   // wraps to 0
    refused({(std::int64_t{1} << 62) + 5});                   // 4 times that wraps to 20, the tensor's own bytes
}

TEST(offsets_of_the_wrong_type_are_refused) {
    const auto refused = [](const Json& offsets, std::initializer_list<std::string_view> parts) {
        check_refused(with_tensor("head.bias", [&](Json& entry) { entry["data_offsets"] = offsets; }), parts);
    };
    refused({0}, {"tensor \"head.bias\"", "data_offsets", "begin and end"});
    refused({0, 20, 40}, {"tensor \"head.bias\"", "data_offsets", "begin and end"});
    refused({-20, 0}, {"tensor \"head.bias\"", "begin offset is -20", "integer from 0 to 2^63 - 1"});
    refused({0, 20.0}, {"tensor \"head.bias\"", "end offset is 20.0", "integer"});
    refused({0, "20"}, {"tensor \"head.bias\"", "end offset is string", "integer"});
    refused({UINT64_MAX - 19, UINT64_MAX}, {"tensor \"head.bias\"", "begin offset", "2^63 - 1"});
    refused({20, 0}, {"tensor \"head.bias\"", "needs 20 bytes", "[20, 0]"});
}

TEST(offsets_that_do_not_fit_the_shape_are_refused) {
    check_refused(with_tensor("head.bias", [](Json& entry) { entry["shape"] = {6}; }),
                  {"tensor \"head.bias\"", "shape (6,)", "F32", "needs 24 bytes", "data_offsets"});
    check_refused(with_tensor("head.bias", [](Json& entry) { entry["dtype"] = "F16"; }),
                  {"tensor \"head.bias\"", "F16", "needs 10 bytes", "data_offsets"});
}

TEST(tensors_that_overlap_or_leave_holes_are_refused) {
    const auto offset = [](const char* name, int axis) {
        return valid().tensors[name]["data_offsets"][axis].get<std::size_t>();
    };
    Model overlapping = valid();  // both norms on the same bytes
    overlapping.tensors["layers.1.norm.weight"]["data_offsets"] =
        overlapping.tensors["layers.0.norm.weight"]["data_offsets"];
    check_refused(overlapping,
                  {"tensor \"layers.", "begins at byte", "was expected", "neither overlap nor leave holes"});

    Model shifted = valid();  // by one element
    shifted.tensors["layers.0.norm.weight"]["data_offsets"] = {offset("layers.0.norm.weight", 0) + 4,
                                                               offset("layers.0.norm.weight", 1) + 4};
    check_refused(shifted, {"tensor \"layers.0.norm.weight\"", "begins at byte", "was expected"});

    Model gone = valid();
    gone.tensors.erase("layers.0.norm.weight");
    check_refused(gone, {"begins at byte", "was expected", "neither overlap nor leave holes"});

    Model late = valid();  // the whole data part starts too late
    for (auto& entry : late.tensors)
        entry["data_offsets"] = {entry["data_offsets"][0].get<int>() + 4, entry["data_offsets"][1].get<int>() + 4};
    check_refused(late, {"begins at byte", "was expected"});
}

TEST(tensors_beyond_the_end_of_the_file_are_refused) {
    Model model = valid();
    model.tensors["more"] = {
        {"dtype", "F32"}, {"shape", {10}}, {"data_offsets", {model.data.size(), model.data.size() + 40}}};
    check_refused(model, {"tensor \"more\" ends at byte", "but the file has", "cut short"});
    constexpr std::int64_t huge = std::int64_t{1} << 60;
    model.tensors["more"] = {
        {"dtype", "F32"}, {"shape", {huge}}, {"data_offsets", {model.data.size(), model.data.size() + 4 * huge}}};
    check_refused(model, {"tensor \"more\"", "the file has"});
}

TEST(misaligned_tensors_are_refused) {
    std::string header = valid().header();
    std::string file = safetensors(header, valid().data);
    const std::size_t padded = file.size() - valid().data.size() - 8;
    header.resize(padded + 2, ' ');  // two bytes more, so that fp32 data straddle words
    check_refused(length_prefix(header.size()) + header + valid().data,
                  {"tensor \"", "no multiple of its 4-byte elements"});
}

TEST(an_empty_tensor_is_allowed_where_no_node_reads_it) {
    Model model = valid();
    model.tensors["empty"] = {{"dtype", "F32"}, {"shape", {0, 5}}, {"data_offsets", {0, 0}}};
    const tiny::File file(model.bytes());
    CHECK_EQ(weight_of(vimrt::ModelFile(file.path()), "empty").shape.elements(), 0);
}

// Metadata

TEST(metadata_of_the_wrong_type_are_refused) {
    Model model = valid();
    for (const Json& bad : {Json(1), Json(nullptr), Json::object(), Json::array(), Json(true), Json(1.5)}) {
        model.metadata["note"] = bad;
        check_refused(model, {"metadata", "\"note\"", bad.type_name(), "a string was expected"});
    }
    check_refused(header_alone(R"({"__metadata__":[]})"), {"__metadata__", "array", "object"});
    check_refused(header_alone(R"({"__metadata__":"x"})"), {"__metadata__", "string", "object"});
}

TEST(a_file_of_another_format_or_version_is_refused) {
    Model model = valid();
    model.metadata["format"] = "pt";
    check_refused(model, {"\"format\" is \"pt\"", "\"vimrt\" was expected", "vimrt export"});
    model = valid();
    model.metadata.erase("format");
    check_refused(model, {"no \"format\"", "vimrt export"});
    model = valid();
    model.metadata.erase("format_version");
    check_refused(model, {"no \"format_version\""});
    for (const char* version : {"2", "999999"}) {
        model.metadata["format_version"] = version;
        check_refused(model,
                      {std::string("format version ") + version, "reads versions up to 1", "install a newer vimrt"});
    }
    for (const char* version : {"", "0", "-1", "1.0", " 1", "1 ", "one", "99999999999999999999", "0x1"}) {
        model.metadata["format_version"] = version;
        check_refused(model, {std::string("\"format_version\" is \"") + version, "positive integer was expected"});
    }
}

TEST(missing_descriptions_are_refused) {
    Model model = valid();
    model.graph = nullptr;
    check_refused(model, {"the metadata has no \"graph\""});
    model = valid();
    model.preprocessing = nullptr;
    check_refused(model, {"the metadata has no \"preprocessing\""});
}

TEST(preprocessing_is_checked) {
    for (const char* key : {"image_size", "crop", "interpolation", "mean", "std"}) {
        check_refused(with_recipe([&](Json& recipe) { recipe.erase(key); }), {"preprocessing", key, "missing"});
        check_refused(with_recipe([&](Json& recipe) { recipe[key] = nullptr; }),
                      {"preprocessing", key, "null", "expected"});
    }
    const auto refused = [](const char* key, const Json& value, std::initializer_list<std::string_view> parts) {
        check_refused(with_recipe([&](Json& recipe) { recipe[key] = value; }), parts);
    };
    refused("image_size", {32}, {"preprocessing", "image_size", "rows and columns"});
    refused("image_size", {0, 32}, {"preprocessing", "image_size", "[0,32]", "from 1 to 65536"});
    refused("image_size", {32, 65537}, {"preprocessing", "image_size", "65537", "from 1 to 65536"});
    refused("image_size", {32, -1}, {"preprocessing", "image_size", "-1"});
    refused("image_size", {32, 32.5}, {"preprocessing", "image_size", "32.5"});
    refused("crop", 0, {"preprocessing", "crop", "from 0.01 to 1"});
    refused("crop", 1.0001, {"preprocessing", "crop", "1.0001", "from 0.01 to 1"});
    refused("crop", -1, {"preprocessing", "crop", "-1", "from 0.01 to 1"});
    refused("crop", "1", {"preprocessing", "crop", "string", "a number was expected"});
    refused("interpolation", "lanczos", {"preprocessing", "interpolation", "lanczos", "bicubic"});
    refused("mean", {0.5, 0.5}, {"preprocessing", "mean", "3 numbers"});
    refused("mean", {0.5, 0.5, "0.5"}, {"preprocessing", "mean", "string", "a number was expected"});
    refused("mean", {0.5, 0.5, 1e300}, {"preprocessing", "mean", "1e+300"});
    refused("std", {0.5, 0, 0.5}, {"preprocessing", "std", "0", "positive number"});
    refused("std", {0.5, -0.5, 0.5}, {"preprocessing", "std", "-0.5", "positive number"});
    refused("std", {0.5, 1e300, 0.5}, {"preprocessing", "std", "1e+300"});
}

TEST(labels_are_checked) {
    Model model = valid();
    const auto refused = [&](const char* labels, std::initializer_list<std::string_view> parts) {
        model.metadata["labels"] = labels;
        check_refused(model, parts);
    };
    refused("{}", {"labels", "object", "array of strings was expected"});
    refused("5", {"labels", "number", "array of strings was expected"});
    refused("[1,2,3,4,5]", {"labels", "number", "a string was expected"});
    refused("[\"a\",", {"labels", "no valid JSON"});
    refused("[[[\"a\"]]]", {"labels", "nested deeper than 2 levels"});
    refused("", {"labels", "no valid JSON"});
    model.metadata["labels"] = R"(["a","b","c","d","e"])";
    const tiny::File file(model.bytes());
    CHECK_EQ(vimrt::ModelFile(file.path()).labels.size(), 5);
}
