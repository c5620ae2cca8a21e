// Reading a .vimrt file. The loader trusts nothing: every length, offset, type and name is checked before use.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "graph.h"
#include "vimrt/preprocess.h"

namespace vimrt {

// A file mapped read-only for as long as this lives.
class MappedFile {
public:
    explicit MappedFile(const std::string& path);  // throws FormatError: missing, no regular file, empty, unreadable
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const std::byte* data() const { return data_; }
    std::size_t size() const { return size_; }
    // Tells the system that these bytes are not needed for now; they are read from the file again if they are.
    void release_pages(const void* begin, std::size_t bytes) const;

private:
    const std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

// The parsed and checked content of a file.
struct ModelFile {
    explicit ModelFile(const std::string& path);  // throws FormatError

    std::string path;
    MappedFile mapping;
    int format_version = 0;
    std::vector<Weight> weights;  // ascending by name
    Graph graph;                  // its nodes' weights point into `weights`
    Preprocessing preprocessing;
    std::vector<std::string> labels;

    // The header's metadata, verbatim, read from the file again: its texts, the graph's above all, are not kept.
    std::map<std::string, std::string> metadata() const;

    ModelFile(const ModelFile&) = delete;
    ModelFile& operator=(const ModelFile&) = delete;
};

}  // namespace vimrt
