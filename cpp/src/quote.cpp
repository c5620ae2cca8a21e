#include "quote.h"

#include <algorithm>

#include "json.h"

namespace vimrt {

std::string in_quotes(std::string_view text) {
    constexpr std::size_t most = 200;
    std::size_t end = std::min(text.size(), most);
    if (end < text.size()) {
        while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // a character's later bytes
    }
    const std::string shown(text.substr(0, end));
    return Json(shown).dump(-1, ' ', false, Json::error_handler_t::replace) + (end < text.size() ? "..." : "");
}

}  // namespace vimrt
