#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <optional>

#include "graph_json.h"
#include "json.h"
#include "quote.h"
#include "vimrt/error.h"

namespace vimrt {

namespace {

constexpr int newest_format_version = 1;
constexpr std::uint64_t max_header_bytes = 100'000'000;  // safetensors' own limit
constexpr int max_header_depth = 8;                      // a tensor's entry needs 3

std::string with_commas(std::uint64_t number) {
    std::string digits = std::to_string(number);
    for (std::ptrdiff_t at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > 0; at -= 3) {
        digits.insert(static_cast<std::size_t>(at), 1, ',');
    }
    return digits;
}

class FileDescriptor {
public:
    // Non-blocking, so that a named pipe is refused below instead of being waited for.
    explicit FileDescriptor(const std::string& path) {
        if (path.find('\0') != std::string::npos) {
            throw FormatError(in_quotes(path) + ": a path cannot hold a NUL character; give the path of a .vimrt file");
        }
        fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd_ < 0) {
            throw FormatError(path + ": cannot be opened: " + std::strerror(errno) +
                              "; check the path and its permissions");
        }
    }
    ~FileDescriptor() { ::close(fd_); }
    FileDescriptor(const FileDescriptor&) = delete;
    FileDescriptor& operator=(const FileDescriptor&) = delete;
    int get() const { return fd_; }

private:
    int fd_ = -1;
};

std::optional<DType> weight_dtype(const std::string& name) {
    if (name == "F32") return DType::F32;
    if (name == "F16") return DType::F16;
    if (name == "BF16") return DType::BF16;
    return std::nullopt;
}

// Where a weight's bytes lie among the tensor data.
struct Extent {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    const std::string* name = nullptr;
};

// Checks that the extents, taken together, cover the data from its start to its end without holes or overlaps.
void check_coverage(std::vector<Extent> extents, std::uint64_t header_end, std::uint64_t file_size,
                    const std::string& path) {
    std::sort(extents.begin(), extents.end(),
              [](const Extent& a, const Extent& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
    std::uint64_t covered = 0;
    for (const Extent& extent : extents) {
        if (extent.begin != covered) {
            throw FormatError(path + ": tensor " + in_quotes(*extent.name) + " begins at byte " +
                              with_commas(header_end + extent.begin) + " where byte " +
                              with_commas(header_end + covered) +
                              " was expected; tensors may neither overlap nor leave holes");
        }
        covered = extent.end;
    }
    const std::uint64_t data_bytes = file_size - header_end;
    if (covered > data_bytes) {
        const auto cut =
            std::find_if(extents.begin(), extents.end(), [&](const Extent& e) { return e.end > data_bytes; });
        throw FormatError(path + ": tensor " + in_quotes(*cut->name) + " ends at byte " +
                          with_commas(header_end + cut->end) + " but the file has " + with_commas(file_size) +
                          "; it was cut short, copy it again");
    }
    if (covered < data_bytes) {
        throw FormatError(path + ": the tensors end at byte " + with_commas(header_end + covered) +
                          " but the file has " + with_commas(file_size) + "; there is something else at its end");
    }
}

Preprocessing parse_preprocessing(const std::string& text, const std::string& path) {
    const JsonPlace place = path + ": preprocessing";
    const Json json = parse_json(text, 4, place);
    Preprocessing recipe;
    const Json& size = array_member(json, "image_size", place);
    if (size.size() != 2) throw FormatError(place + ": \"image_size\" must hold rows and columns");
    for (std::size_t axis = 0; axis < 2; ++axis) {
        recipe.image_size[axis] = to_integer(size[axis], "\"image_size\"", place);
        if (recipe.image_size[axis] < 1 || recipe.image_size[axis] > 65536) {
            throw FormatError(place + ": \"image_size\" is " + size.dump() + "; each side must be from 1 to 65536");
        }
    }
    recipe.crop = to_number(member(json, "crop", place), "\"crop\"", place);
    if (!(recipe.crop >= 0.01 && recipe.crop <= 1)) {
        throw FormatError(place + ": \"crop\" is " + std::to_string(recipe.crop) + "; it must be from 0.01 to 1");
    }
    if (const std::string method = string_member(json, "interpolation", place); method != "bicubic") {
        throw FormatError(place + ": \"interpolation\" is " + in_quotes(method) +
                          "; this version knows \"bicubic\" only");
    }
    for (const char* key : {"mean", "std"}) {
        const Json& values = array_member(json, key, place);
        if (values.size() != 3) throw FormatError(place + ": \"" + key + "\" must hold 3 numbers, one per channel");
        for (std::size_t channel = 0; channel < 3; ++channel) {
            const bool is_std = key == std::string_view("std");
            const double value = to_number(values[channel], std::string("\"") + key + '"', place);
            if (std::abs(value) > 1e12 || (is_std && value < 1e-12)) {
                throw FormatError(place + ": \"" + key + "\" holds " + values[channel].dump() + "; it must be a " +
                                  (is_std ? "positive number" : "number") + " of at most 1e12");
            }
            (is_std ? recipe.std : recipe.mean)[channel] = static_cast<float>(value);
        }
    }
    return recipe;
}

const std::string& metadata_entry(const std::map<std::string, std::string>& metadata, const char* key,
                                  const std::string& path) {
    const auto found = metadata.find(key);
    if (found == metadata.end()) {
        throw FormatError(path + ": the metadata has no \"" + key +
                          "\": a safetensors file, but no .vimrt model; make one with: vimrt export " + path);
    }
    return found->second;
}

std::map<std::string, std::string> read_metadata(const Json& header, const std::string& path) {
    std::map<std::string, std::string> metadata;
    if (!header.contains("__metadata__")) return metadata;
    for (const auto& [key, value] : object_member(header, "__metadata__", path + ": header").items())
        metadata[key] = to_text(value, in_quotes(key), path + ": metadata");
    return metadata;
}

int parse_format_version(const std::map<std::string, std::string>& metadata, const std::string& path) {
    if (const std::string& format = metadata_entry(metadata, "format", path); format != "vimrt") {
        throw FormatError(path + ": the metadata's \"format\" is " + in_quotes(format) +
                          " where \"vimrt\" was expected; make a .vimrt file with: vimrt export " + path);
    }
    const std::string& text = metadata_entry(metadata, "format_version", path);
    const bool digits = !text.empty() && text.size() <= 6 &&
                        std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits || std::stoi(text) < 1) {
        throw FormatError(path + ": \"format_version\" is " + in_quotes(text) +
                          " where a positive integer was expected");
    }
    const int version = std::stoi(text);
    if (version > newest_format_version) {
        throw FormatError(path + ": written in format version " + text + ", but this vimrt reads versions up to " +
                          std::to_string(newest_format_version) +
                          "; install a newer vimrt, or export again with this one");
    }
    return version;
}

// The JSON at the file's start, behind its length.
std::string_view header_of(const MappedFile& mapping, const std::string& path) {
    std::uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; --i) {
        header_bytes = header_bytes << 8 | std::to_integer<std::uint64_t>(mapping.data()[i]);
    }
    if (header_bytes > max_header_bytes) {
        throw FormatError(path + ": the header's length reads " + with_commas(header_bytes) + " bytes where at most " +
                          with_commas(max_header_bytes) +
                          " are allowed; this is no .vimrt file, or its start is damaged");
    }
    const std::uint64_t header_end = 8 + header_bytes;
    if (header_end > mapping.size()) {
        throw FormatError(path + ": the header ends at byte " + with_commas(header_end) + " but the file has " +
                          with_commas(mapping.size()) + "; it was cut short, copy it again");
    }
    const std::string_view text(reinterpret_cast<const char*>(mapping.data()) + 8, header_bytes);
    if (text.empty() || text.front() != '{') {
        throw FormatError(path +
                          ": the header does not begin with '{'; this is no .vimrt file, or its start is damaged");
    }
    return text;
}

// The tensors, ascending by name.
std::vector<Weight> read_weights(const Json& header, std::uint64_t header_end, const MappedFile& mapping,
                                 const std::string& path) {
    std::vector<Weight> weights;
    std::vector<Extent> extents;
    weights.reserve(header.size());
    for (const auto& [name, entry] : header.items()) {  // in the order of names
        if (name == "__metadata__") continue;
        const JsonPlace place = path + ": tensor " + in_quotes(name);
        const std::string dtype_name = string_member(entry, "dtype", place);
        const std::optional<DType> dtype = weight_dtype(dtype_name);
        if (!dtype) {
            throw FormatError(place + " has the dtype " + in_quotes(dtype_name) +
                              " where F32, F16 or BF16 was expected");
        }
        std::vector<std::int64_t> dims;
        for (const Json& dim : array_member(entry, "shape", place))
            dims.push_back(to_integer(dim, "a dimension", place));
        const Json& offsets = array_member(entry, "data_offsets", place);
        if (offsets.size() != 2) throw FormatError(place + ": \"data_offsets\" must hold begin and end");
        const auto begin = static_cast<std::uint64_t>(to_integer(offsets[0], "the begin offset", place));
        const auto end = static_cast<std::uint64_t>(to_integer(offsets[1], "the end offset", place));

        Weight weight;
        std::int64_t bytes = 0;
        try {
            weight.shape = Shape(std::span<const std::int64_t>(dims));
            if (__builtin_mul_overflow(weight.shape.elements(), static_cast<std::int64_t>(size_of(*dtype)), &bytes)) {
                throw InvalidArgument("the shape " + weight.shape.to_string() + " overflows 63 bits");
            }
        } catch (const InvalidArgument& error) {
            throw FormatError(place + ": " + error.what());
        }
        if (end < begin || end - begin != static_cast<std::uint64_t>(bytes)) {
            throw FormatError(place + " of shape " + weight.shape.to_string() + " and dtype " + dtype_name + " needs " +
                              with_commas(static_cast<std::uint64_t>(bytes)) + " bytes, but its data_offsets are [" +
                              std::to_string(begin) + ", " + std::to_string(end) + "]");
        }
        if ((header_end + begin) % size_of(*dtype) != 0) {
            throw FormatError(place + " begins at byte " + with_commas(header_end + begin) + ", no multiple of its " +
                              std::to_string(size_of(*dtype)) +
                              "-byte elements; write the file with vimrt or the safetensors package");
        }
        weight.name = name;
        weight.dtype = *dtype;
        weights.push_back(std::move(weight));
        extents.push_back({begin, end, &weights.back().name});
    }
    check_coverage(extents, header_end, mapping.size(), path);
    for (std::size_t i = 0; i < weights.size(); ++i) {
        weights[i].data = mapping.data() + header_end + extents[i].begin;
    }
    return weights;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
    const FileDescriptor file(path);
    struct stat status {};
    if (::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
        throw FormatError(path + ": is no regular file; give the path of a .vimrt file");
    }
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ < 8) {
        throw FormatError(path + ": has " + std::to_string(size_) +
                          " bytes, too few for a .vimrt file; it was cut short, copy it again");
    }
    void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (mapped == MAP_FAILED) throw FormatError(path + ": cannot be mapped into memory: " + std::strerror(errno));
    data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::~MappedFile() {
    ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release_pages(const void* begin, std::size_t bytes) const {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const auto offset = static_cast<std::size_t>(static_cast<const std::byte*>(begin) - data_);
    const std::size_t first = (offset + page - 1) / page * page;  // whole pages within
    const std::size_t last = (offset + bytes) / page * page;
    if (last > first) ::madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_DONTNEED);
}

ModelFile::ModelFile(const std::string& file_path) : path(file_path), mapping(file_path) {
    std::map<std::string, std::string> texts;
    {
        const std::string_view text = header_of(mapping, path);
        const Json header = parse_json(text, max_header_depth, path + ": header");
        texts = read_metadata(header, path);
        weights = read_weights(header, 8 + text.size(), mapping, path);
    }
    // What was made while the JSON was there lies between pieces of it. A copy closes the gaps: what the process came
    // to hold for reading a file can be used again, or goes back to the system, and does not stay as holes.
    weights = std::vector<Weight>(weights);
    format_version = parse_format_version(texts, path);
    graph = parse_graph(metadata_entry(texts, "graph", path), weights, path);
    graph = Graph(graph);
    preprocessing = parse_preprocessing(metadata_entry(texts, "preprocessing", path), path);
    if (const auto text = texts.find("labels"); text != texts.end()) {
        const JsonPlace place = path + ": labels";
        labels = to_strings(parse_json(text->second, 2, place), "the list", place);
    }
}

std::map<std::string, std::string> ModelFile::metadata() const {
    return read_metadata(parse_json(header_of(mapping, path), max_header_depth, path + ": header"), path);
}

}  // namespace vimrt
