// JSON from files nobody vouches for: bounded depth, no duplicate keys, typed access that names what is wrong.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace vimrt {

using Json = nlohmann::json;

// Where a piece of JSON stands, for messages: "vim_s.vimrt: graph, node 12 (\"layers.3.in_proj\")".
using JsonPlace = std::string;

// Throws FormatError "<place>: ..." on bad UTF-8, bad syntax, nesting deeper than `max_depth`, over 2,000,000 values,
// duplicate keys.
Json parse_json(std::string_view text, int max_depth, const JsonPlace& place);

// Each throws FormatError naming the place, the key, what was found and what was expected.
const Json& member(const Json& object, const char* key, const JsonPlace& place);
const Json& array_member(const Json& object, const char* key, const JsonPlace& place);
const Json& object_member(const Json& object, const char* key, const JsonPlace& place);
std::string string_member(const Json& object, const char* key, const JsonPlace& place);
std::string to_text(const Json& value, const std::string& what, const JsonPlace& place);
std::int64_t to_integer(const Json& value, const std::string& what, const JsonPlace& place);  // >= 0
double to_number(const Json& value, const std::string& what, const JsonPlace& place);         // finite
std::vector<std::string> to_strings(const Json& value, const std::string& what, const JsonPlace& place);

}  // namespace vimrt
