// Names that come from files and callers, fit for a message.
#pragma once

#include <string>
#include <string_view>

namespace vimrt {

// `text` in quotes, on one line of valid UTF-8 whatever it holds: control characters are escaped, bad UTF-8 is
// replaced, and what is longer than 200 bytes is cut between characters and ends in "...".
std::string in_quotes(std::string_view text);

}  // namespace vimrt
