#include "json.h"

#include <cmath>
#include <set>

#include "vimrt/error.h"

namespace vimrt {

namespace {

[[noreturn]] void wrong_type(const Json& value, const std::string& what, const char* expected, const JsonPlace& place) {
    throw FormatError(place + ": " + what + " is " + value.type_name() + " where " + expected +
                      " was expected; the file is damaged or was not written by vimrt");
}

}  // namespace

Json parse_json(std::string_view text, int max_depth, const JsonPlace& place) {
    std::vector<std::set<std::string>> keys;  // of the objects that are open now
    const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
        if (depth > max_depth) {
            throw FormatError(place + ": the JSON is nested deeper than " + std::to_string(max_depth) + " levels");
        }
        if (event == Json::parse_event_t::object_start) {
            keys.emplace_back();
        } else if (event == Json::parse_event_t::object_end) {
            keys.pop_back();
        } else if (event == Json::parse_event_t::key) {
            if (!keys.back().insert(parsed.get<std::string>()).second) {
                throw FormatError(place + ": the key " + parsed.dump() + " appears twice in one object");
            }
        }
        return true;
    };
    try {
        return Json::parse(text.begin(), text.end(), check);
    } catch (const Json::exception& error) {
        throw FormatError(place + ": no valid JSON (" + error.what() + "); the file is damaged, export or copy it again");
    }
}

const Json& member(const Json& object, const char* key, const JsonPlace& place) {
    if (!object.is_object()) wrong_type(object, "the item", "an object", place);
    const auto found = object.find(key);
    if (found == object.end()) {
        throw FormatError(place + ": the key \"" + key + "\" is missing");
    }
    return *found;
}

const Json& array_member(const Json& object, const char* key, const JsonPlace& place) {
    const Json& value = member(object, key, place);
    if (!value.is_array()) wrong_type(value, std::string("\"") + key + '"', "an array", place);
    return value;
}

const Json& object_member(const Json& object, const char* key, const JsonPlace& place) {
    const Json& value = member(object, key, place);
    if (!value.is_object()) wrong_type(value, std::string("\"") + key + '"', "an object", place);
    return value;
}

std::string string_member(const Json& object, const char* key, const JsonPlace& place) {
    const Json& value = member(object, key, place);
    if (!value.is_string()) wrong_type(value, std::string("\"") + key + '"', "a string", place);
    return value.get<std::string>();
}

std::int64_t to_integer(const Json& value, const std::string& what, const JsonPlace& place) {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > std::uint64_t{INT64_MAX}) {
        if (value.is_number()) {
            throw FormatError(place + ": " + what + " is " + value.dump() +
                              " where an integer from 0 to 2^63 - 1 was expected");
        }
        wrong_type(value, what, "an integer", place);
    }
    return value.get<std::int64_t>();
}

double to_number(const Json& value, const std::string& what, const JsonPlace& place) {
    if (!value.is_number()) wrong_type(value, what, "a number", place);
    const double number = value.get<double>();
    if (!std::isfinite(number)) throw FormatError(place + ": " + what + " is not finite");
    return number;
}

std::vector<std::string> to_strings(const Json& value, const std::string& what, const JsonPlace& place) {
    if (!value.is_array()) wrong_type(value, what, "an array of strings", place);
    std::vector<std::string> strings;
    strings.reserve(value.size());
    for (const Json& item : value) {
        if (!item.is_string()) wrong_type(item, "an item of " + what, "a string", place);
        strings.push_back(item.get<std::string>());
    }
    return strings;
}

}  // namespace vimrt
