// What the loader says to a damaged file, for tests to check part by part.
#pragma once

#include <initializer_list>
#include <source_location>
#include <string>
#include <string_view>

#include "check.h"
#include "file.h"
#include "tiny_model.h"
#include "vimrt/error.h"

namespace tiny {

// Loading a file of these bytes must throw a FormatError that names the file and holds every one of `parts`: the item,
// what was found and what was expected.
inline void check_refused(std::string_view bytes, std::initializer_list<std::string_view> parts,
                          std::source_location where = std::source_location::current()) {
    const File file(bytes);
    std::string message;
    try {
        const vimrt::ModelFile loaded(file.path());
        check::record(false, where.file_name(), static_cast<int>(where.line()), "the file was accepted");
        return;
    } catch (const vimrt::FormatError& error) {
        message = error.what();
    }
    const auto expect = [&](std::string_view part) {
        check::record(message.find(part) != std::string::npos, where.file_name(), static_cast<int>(where.line()),
                      "\"" + message + "\" lacks \"" + std::string(part) + "\"");
    };
    expect(file.path());
    for (const std::string_view part : parts) expect(part);
    check::record(message.size() < 2000, where.file_name(), static_cast<int>(where.line()),
                  "the message has " + std::to_string(message.size()) + " characters");
}

inline void check_refused(const Model& model, std::initializer_list<std::string_view> parts,
                          std::source_location where = std::source_location::current()) {
    check_refused(model.bytes(), parts, where);
}

}  // namespace tiny
