#include "pnm.h"

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string_view>

namespace {

// Walks over the text header of a PNM file that lies in memory.
class Reader {
public:
    Reader(const std::string& path, std::span<const std::uint8_t> bytes) : path_(path), bytes_(bytes) {}

    [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error(path_ + ": " + what); }

    // "P5" or "P6".
    char read_kind() {
        if (bytes_.size() < 2 || bytes_[0] != 'P' || (bytes_[1] != '5' && bytes_[1] != '6')) {
            fail("not a binary PPM or PGM file (P6 or P5); convert it, for example with `magick photo.jpg photo.ppm`");
        }
        at_ = 2;
        return static_cast<char>(bytes_[1]);
    }

    // A positive decimal number after white space and comments.
    std::int64_t read_number(std::string_view name, std::int64_t limit) {
        skip_space();
        std::int64_t value = 0;
        const std::size_t start = at_;
        for (; at_ < bytes_.size() && is_digit(bytes_[at_]) && value <= limit; ++at_)
            value = value * 10 + bytes_[at_] - '0';
        if (at_ == start || value < 1 || value > limit) {
            fail("its " + std::string(name) + " is not a number from 1 to " + std::to_string(limit));
        }
        return value;
    }

    // The `size` bytes after the single white space that ends the header.
    std::span<const std::uint8_t> read_pixels(std::size_t size) {
        if (at_ >= bytes_.size() || !is_space(bytes_[at_])) fail("its header does not end in white space");
        const auto rest = bytes_.subspan(at_ + 1);
        if (rest.size() < size) {
            fail("it has " + std::to_string(rest.size()) + " bytes of pixels where its header announces " +
                 std::to_string(size) + "; it was cut short");
        }
        return rest.first(size);
    }

private:
    static bool is_digit(std::uint8_t byte) { return byte >= '0' && byte <= '9'; }
    static bool is_space(std::uint8_t byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

    void skip_space() {
        while (at_ < bytes_.size() && (is_space(bytes_[at_]) || bytes_[at_] == '#')) {
            if (bytes_[at_] == '#') {
                while (at_ < bytes_.size() && bytes_[at_] != '\n') ++at_;
            } else {
                ++at_;
            }
        }
    }

    const std::string& path_;
    std::span<const std::uint8_t> bytes_;
    std::size_t at_ = 0;
};

std::vector<std::uint8_t> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file || std::filesystem::is_directory(path)) throw std::runtime_error(path + ": cannot be opened for reading");
    std::vector<std::uint8_t> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (file.bad()) throw std::runtime_error(path + ": reading failed");
    return bytes;
}

}  // namespace

Image read_pnm(const std::string& path) {
    // Two sides up to 2^16 and 3 channels keep every product far below 2^63.
    constexpr std::int64_t max_side = 1 << 16;
    const std::vector<std::uint8_t> bytes = read_file(path);
    Reader reader(path, bytes);
    const std::int64_t channels = reader.read_kind() == '6' ? 3 : 1;
    Image image;
    image.columns = reader.read_number("width", max_side);
    image.rows = reader.read_number("height", max_side);
    const std::int64_t levels = reader.read_number("maximum value (8-bit files only)", 255);
    const auto samples = reader.read_pixels(static_cast<std::size_t>(image.rows * image.columns * channels));

    image.pixels.reserve(static_cast<std::size_t>(image.rows * image.columns * 3));
    for (const std::uint8_t sample : samples) {
        if (sample > levels) reader.fail("it has a pixel above the maximum value of " + std::to_string(levels));
        const auto value = static_cast<std::uint8_t>((sample * 255 + levels / 2) / levels);
        image.pixels.insert(image.pixels.end(), static_cast<std::size_t>(3 / channels), value);
    }
    return image;
}
