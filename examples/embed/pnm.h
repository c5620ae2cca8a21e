// Binary PPM and PGM files: the simplest image formats there are, enough for an example.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

// 8-bit RGB, rows x columns x 3, dense.
struct Image {
    std::int64_t rows = 0;
    std::int64_t columns = 0;
    std::vector<std::uint8_t> pixels;
};

// Reads a P6 (colour) or P5 (grey, repeated in all three channels) file with up to 255 levels, scaled to 0..255.
// Throws std::runtime_error naming the file and what is wrong with it.
Image read_pnm(const std::string& path);
