#include "json.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "quote.h"
#include "vimrt/error.h"

namespace vimrt {

namespace {

constexpr std::size_t max_values = 2'000'000;  // some hundred bytes each; a model has thousands

[[noreturn]] void wrong_type(const Json& value, const std::string& what, const char* expected, const JsonPlace& place) {
    throw FormatError(place + ": " + what + " is " + value.type_name() + " where " + expected +
                      " was expected; the file is damaged or was not written by vimrt");
}

// The text around byte `at`.
std::string_view around(std::string_view text, std::size_t at) {
    constexpr std::size_t before = 20;
    return text.substr(at > before ? std::min(at - before, text.size()) : 0, 2 * before);
}

}  // namespace

Json parse_json(std::string_view text, int max_depth, const JsonPlace& place) {
    // The parser would take a NUL for the end and ignore what follows.
    if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
        throw FormatError(place + ": no valid JSON: byte " + std::to_string(nul) +
                          " is NUL; the file is damaged, export or copy it again");
    }
    std::vector<std::set<std::string>> keys;  // of the objects that are open now
    std::size_t values = 0;
    const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
        const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
        if (opens && depth >= max_depth) {  // the outermost opens at depth 0
            throw FormatError(place + ": the JSON is nested deeper than " + std::to_string(max_depth) + " levels");
        }
        if ((opens || event == Json::parse_event_t::value) && ++values > max_values) {
            throw FormatError(place + ": the JSON holds more than 2,000,000 values");
        }
        if (event == Json::parse_event_t::object_start) {
            keys.emplace_back();
        } else if (event == Json::parse_event_t::object_end) {
            keys.pop_back();
        } else if (event == Json::parse_event_t::key) {
            const std::string& key = parsed.get_ref<const std::string&>();
            if (!keys.back().insert(key).second) {
                throw FormatError(place + ": the key " + in_quotes(key) + " appears twice in one object");
            }
        }
        return true;
    };
    try {
        return Json::parse(text.begin(), text.end(), check);
    } catch (const Json::parse_error& error) {
        throw FormatError(place + ": no valid JSON at byte " + std::to_string(error.byte) + ", near " +
                          in_quotes(around(text, error.byte)) + "; the file is damaged, export or copy it again");
    } catch (const Json::out_of_range&) {
        throw FormatError(
            place + ": no valid JSON: a number is too large to be read; the file is damaged, export or copy it again");
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
    return to_text(member(object, key, place), std::string("\"") + key + '"', place);
}

std::string to_text(const Json& value, const std::string& what, const JsonPlace& place) {
    if (!value.is_string()) wrong_type(value, what, "a string", place);
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
        strings.push_back(to_text(item, "an item of " + what, place));
    }
    return strings;
}

}  // namespace vimrt
