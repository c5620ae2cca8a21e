// From a photograph to the network's input.
#pragma once

#include <array>
#include <cstdint>

#include "vimrt/export.h"

namespace vimrt {

// The recipe stored in the file (docs/file-format.md, "Preprocessing").
struct Preprocessing {
    std::array<std::int64_t, 2> image_size{224, 224};  // rows, columns of the network's input
    double crop = 0.875;                               // share of the resized image that the centre crop keeps, (0, 1]
    std::array<float, 3> mean{0.485F, 0.456F, 0.406F};
    std::array<float, 3> std{0.229F, 0.224F, 0.225F};
};

// An 8-bit RGB image in memory, not owned: rows x columns x 3, `row_stride` bytes from row to row.
struct ImageView {
    const std::uint8_t* data = nullptr;
    std::int64_t rows = 0;
    std::int64_t columns = 0;
    std::int64_t row_stride = 0;  // bytes; columns * 3 for a dense image
};

// Resizes and crops `image` to `recipe.image_size` by the recipe, without normalising: `out` receives
// rows x columns x 3 bytes. The resampling is Pillow's antialiased bicubic, equal to it bit by bit; columns
// come before rows always, as in Pillow before 13, which turns them round where only the height shrinks much.
//
// With (R, C) = round(image_size / crop), halves to even: an image of at least R:C's width is resized to R rows and
// floor(R * columns / rows) columns, a narrower one to C columns and floor(C * rows / columns) rows, so that it just
// covers R x C. The crop starts at round((resized - image_size) / 2), halves to even, on each axis. For square recipes
// these are torchvision's Resize(R) and CenterCrop.
//
// Throws InvalidArgument on empty or oversized (over 2^31 - 1 on a side) images and recipes, a row stride shorter than
// a row, a crop outside (0, 1] and null pointers; OutOfMemory where its working memory cannot be had.
VIMRT_API void resize_and_crop(const ImageView& image, const Preprocessing& recipe, std::uint8_t* out);

// (value / 255 - mean) / std, in float, for `rows` x `columns` x 3 bytes, written channel by channel: 3 x rows x
// columns floats. `recipe.image_size` and `recipe.crop` do not matter here. Throws InvalidArgument on empty or
// oversized pixels, a mean or std that is not finite, a std that is not above zero, and null pointers.
VIMRT_API void normalize(const std::uint8_t* pixels, std::int64_t rows, std::int64_t columns,
                         const Preprocessing& recipe, float* out);

}  // namespace vimrt
