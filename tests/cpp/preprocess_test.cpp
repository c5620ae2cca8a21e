// What resize_and_crop() and normalize() promise, as far as it can be said without Pillow; tests/test_preprocess.py
// compares with Pillow itself.
#include "vimrt/preprocess.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "vimrt/error.h"

namespace {

using Pixels = std::vector<std::uint8_t>;

vimrt::ImageView view(const Pixels& pixels, std::int64_t rows, std::int64_t columns) {
    return {pixels.data(), rows, columns, columns * 3};
}

vimrt::Preprocessing recipe(std::int64_t rows, std::int64_t columns, double crop) {
    vimrt::Preprocessing made;
    made.image_size = {rows, columns};
    made.crop = crop;
    return made;
}

// The output starts as 77 everywhere, a value that no test expects, and a guard of 77s behind it must survive.
Pixels resized(const vimrt::ImageView& image, const vimrt::Preprocessing& by) {
    const auto size = static_cast<std::size_t>(by.image_size[0] * by.image_size[1] * 3);
    Pixels out(size + 64, 77);
    vimrt::resize_and_crop(image, by, out.data());
    CHECK(
        std::all_of(out.begin() + static_cast<std::ptrdiff_t>(size), out.end(), [](auto byte) { return byte == 77; }));
    out.resize(size);
    return out;
}

Pixels ramp(std::size_t size) {
    Pixels pixels(size);
    for (std::size_t i = 0; i < size; ++i) pixels[i] = static_cast<std::uint8_t>(i * 37 % 251);
    return pixels;
}

// Columns of one colour each, grey value by column.
Pixels grey_columns(const Pixels& greys, std::int64_t rows) {
    Pixels pixels;
    for (std::int64_t row = 0; row < rows; ++row) {
        for (const std::uint8_t grey : greys) pixels.insert(pixels.end(), 3, grey);
    }
    return pixels;
}

}  // namespace

TEST(an_image_of_the_right_size_passes_unchanged) {
    const Pixels pixels = ramp(5 * 7 * 3);
    CHECK(resized(view(pixels, 5, 7), recipe(5, 7, 1.0)) == pixels);
}

TEST(a_single_colour_stays_itself_at_every_size) {
    const Pixels one{10, 128, 255};
    for (const std::int64_t side : {1, 2, 3, 31}) {
        for (const std::int64_t columns : {1, 5, 64}) {
            Pixels pixels;
            for (std::int64_t i = 0; i < side * columns; ++i) pixels.insert(pixels.end(), one.begin(), one.end());
            const Pixels out = resized(view(pixels, side, columns), recipe(6, 4, 0.875));
            for (std::size_t i = 0; i < out.size(); ++i) CHECK_EQ(out[i], one[i % 3]);
        }
    }
}

TEST(bytes_between_rows_are_skipped) {
    const Pixels dense = ramp(9 * 6 * 3);
    Pixels padded(9 * 25, 77);
    for (std::size_t row = 0; row < 9; ++row) {
        std::copy_n(dense.begin() + static_cast<std::ptrdiff_t>(row * 18), 18,
                    padded.begin() + static_cast<std::ptrdiff_t>(row * 25));
    }
    const auto by = recipe(4, 4, 0.8);
    CHECK(resized({padded.data(), 9, 6, 25}, by) == resized(view(dense, 9, 6), by));
}

// Doubling puts the new pixels a quarter of a pixel off the old ones, where the cubic kernel with a = -0.5 weighs four
// neighbours with (-9, 111, 29, -3) / 128 or the reverse. What overshoots 255 or undershoots 0 is clipped.
TEST(doubling_a_step_gives_the_cubic_kernels_values) {
    const Pixels low = resized(view(grey_columns({0, 0, 0, 100, 100, 100}, 6), 6, 6), recipe(12, 12, 1.0));
    CHECK(low == grey_columns({0, 0, 0, 0, 0, 20, 80, 107, 102, 100, 100, 100}, 12));
    const Pixels high = resized(view(grey_columns({0, 0, 0, 255, 255, 255}, 6), 6, 6), recipe(12, 12, 1.0));
    CHECK(high == grey_columns({0, 0, 0, 0, 0, 52, 203, 255, 255, 255, 255, 255}, 12));
}

// Halving stretches the kernel to eight neighbours with (-3, -9, 29, 111, 111, 29, -9, -3) / 256.
TEST(halving_a_step_gives_the_stretched_kernels_values) {
    Pixels step(8, 0);
    step.resize(16, 200);
    const Pixels out = resized(view(grey_columns(step, 16), 16, 16), recipe(8, 8, 1.0));
    CHECK(out == grey_columns({0, 0, 0, 13, 187, 202, 200, 200}, 8));
}

TEST(the_crop_keeps_the_centre_and_rounds_halves_to_even) {
    // 5 columns of which 2 are kept start at round(1.5) = 2, 3 of which 2 are kept at round(0.5) = 0.
    CHECK(resized(view(grey_columns({1, 2, 3, 4, 5}, 2), 2, 5), recipe(2, 2, 1.0)) == grey_columns({3, 4}, 2));
    CHECK(resized(view(grey_columns({1, 2, 3}, 2), 2, 3), recipe(2, 2, 1.0)) == grey_columns({1, 2}, 2));
}

TEST(rectangular_recipes_are_just_covered) {
    // 4x8 covers 2x4 exactly; from 4x12 the same recipe keeps the middle 4 of 6 resized columns, so a band of the
    // middle third's colour fills all but the blended edges; 8x4 is too narrow and gets its columns to size.
    const Pixels wide =
        resized(view(grey_columns({9, 9, 9, 9, 9, 9, 9, 9, 200, 200, 200, 200}, 4), 4, 12), recipe(2, 4, 1.0));
    CHECK_EQ(wide[0], 9);
    CHECK(wide[9] > 150);
    Pixels tall(8 * 4 * 3, 50);
    std::fill_n(tall.begin() + 48, 48, std::uint8_t{150});
    const Pixels middle = resized(view(tall, 8, 4), recipe(2, 4, 1.0));
    CHECK(std::all_of(middle.begin(), middle.begin() + 12, [](auto byte) { return byte < 60; }));
    CHECK(std::all_of(middle.begin() + 12, middle.end(), [](auto byte) { return byte > 140; }));
}

TEST(extreme_proportions_cost_only_what_the_crop_keeps) {
    // Resized in full, this image would have 256 rows of 512 million columns.
    Pixels line(2'000'000 * 3);
    for (std::size_t i = 0; i < line.size(); ++i) line[i] = i < line.size() / 2 ? 40 : 80;
    const Pixels out = resized(view(line, 1, 2'000'000), recipe(224, 224, 0.875));
    // The crop lies between the centres of the two source pixels at the step, 7/16 of a pixel to either side of it.
    for (std::size_t row = 0; row < 224; ++row) {
        CHECK_EQ(out[row * 224 * 3], 42);
        CHECK_EQ(out[(row * 224 + 223) * 3], 78);
    }
    CHECK(resized(view(line, 2'000'000, 1), recipe(1, 1, 1.0)).front() > 40);
}

TEST(bad_images_are_refused_by_what_is_wrong) {
    const Pixels pixels(12, 0);
    Pixels out(224 * 224 * 3);
    const auto resize = [&](const vimrt::ImageView& image) { vimrt::resize_and_crop(image, {}, out.data()); };
    CHECK_THROWS(resize({pixels.data(), 0, 2, 6}), vimrt::InvalidArgument, "0x2");
    CHECK_THROWS(resize({pixels.data(), 2, -1, 6}), vimrt::InvalidArgument, "2x-1");
    CHECK_THROWS(resize({pixels.data(), std::int64_t{1} << 31, 1, 3}), vimrt::InvalidArgument, "2147483647");
    CHECK_THROWS(resize({pixels.data(), 2, 2, 5}), vimrt::InvalidArgument, "row_stride is 5");
    CHECK_THROWS(resize({nullptr, 2, 2, 6}), vimrt::InvalidArgument, "null");
    CHECK_THROWS(vimrt::resize_and_crop(view(pixels, 2, 2), {}, nullptr), vimrt::InvalidArgument, "out is a null");
}

TEST(bad_recipes_are_refused_by_what_is_wrong) {
    const Pixels pixels(12, 0);
    Pixels out(12);
    const auto resize = [&](const vimrt::Preprocessing& by) {
        vimrt::resize_and_crop(view(pixels, 2, 2), by, out.data());
    };
    CHECK_THROWS(resize(recipe(0, 2, 1.0)), vimrt::InvalidArgument, "image_size is 0x2");
    CHECK_THROWS(resize(recipe(2, std::int64_t{1} << 31, 1.0)), vimrt::InvalidArgument, "image_size is 2x2147483648");
    for (const double crop : {0.0, -0.5, 1.5, std::numeric_limits<double>::quiet_NaN()}) {
        CHECK_THROWS(resize(recipe(2, 2, crop)), vimrt::InvalidArgument, "crop is");
    }
    CHECK_THROWS(resize(recipe(2, 2, 1e-10)), vimrt::InvalidArgument, "larger crop");
}

TEST(normalising_follows_the_formula_and_puts_channels_first) {
    vimrt::Preprocessing by;
    by.mean = {0.5F, 0.25F, 0.0F};
    by.std = {0.5F, 2.0F, 1.0F};
    const Pixels pixels = ramp(3 * 5 * 3);
    std::vector<float> out(pixels.size(), std::numeric_limits<float>::quiet_NaN());
    vimrt::normalize(pixels.data(), 3, 5, by, out.data());
    for (std::size_t i = 0; i < 15; ++i) {
        for (std::size_t channel = 0; channel < 3; ++channel) {
            const double exact = (pixels[i * 3 + channel] / 255.0 - by.mean[channel]) / by.std[channel];
            CHECK(std::abs(out[channel * 15 + i] - exact) <= 2e-7 * std::max(1.0, std::abs(exact)));
        }
    }
}

TEST(normalising_refuses_what_it_cannot_divide_by) {
    const Pixels pixels(3, 0);
    std::vector<float> out(3);
    vimrt::Preprocessing by;
    by.std[1] = 0.0F;
    CHECK_THROWS(vimrt::normalize(pixels.data(), 1, 1, by, out.data()), vimrt::InvalidArgument, "channel 1");
    by.std[1] = std::numeric_limits<float>::infinity();
    CHECK_THROWS(vimrt::normalize(pixels.data(), 1, 1, by, out.data()), vimrt::InvalidArgument, "finite");
    CHECK_THROWS(vimrt::normalize(pixels.data(), 0, 1, {}, out.data()), vimrt::InvalidArgument, "0x1");
    CHECK_THROWS(vimrt::normalize(nullptr, 1, 1, {}, out.data()), vimrt::InvalidArgument, "null");
}
