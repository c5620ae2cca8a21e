// Photographs to network input: Pillow's antialiased bicubic resize, the centre crop, and normalisation.
//
// Resizing is separable: every output row or column is a weighted sum of the source's rows or columns around it.
// Shrinking widens the filter by the factor of reduction, which is what keeps it from aliasing. To equal Pillow bit by
// bit, the weights are computed in double precision in Pillow's order of operations and rounded to fixed point, columns
// are resampled before rows, and each pass rounds its result to 8 bits.
//
// Only what the crop keeps is computed: its columns of the source rows that its rows read.
#include "vimrt/preprocess.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "vimrt/error.h"

namespace vimrt {
namespace {

constexpr std::int64_t kMaxSide = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kChannels = 3;

// Weights have 22 fraction bits: 8 bits of pixel, 22 of fraction, one for the sign and one for overshoot fill an int32.
constexpr int kFractionBits = 22;
constexpr std::uint32_t kHalf = 1U << (kFractionBits - 1);

// The horizontal pass multiplies and adds runs of 8 pixels; 24 bytes fill whole vectors of every width.
constexpr std::int64_t kRunPixels = 8;
constexpr std::int64_t kRun = kRunPixels * kChannels;

// One axis of the resize and of the crop that follows it: the source has `source` pixels, the resized image `resized`,
// and the crop keeps `kept` of those from `first` on.
struct Axis {
    std::int64_t source = 0;
    std::int64_t resized = 0;
    std::int64_t first = 0;
    std::int64_t kept = 0;
};

// The source pixels [begin, begin + weights) that one resized pixel is made of, and where its weights start.
struct Window {
    std::int64_t begin = 0;
    std::int64_t weights = 0;
    std::size_t offset = 0;
};

struct Filter {
    std::vector<Window> windows;        // one for each kept pixel
    std::vector<std::int32_t> weights;  // fixed point, window after window
};

std::string size_text(std::int64_t rows, std::int64_t columns) {
    return std::to_string(rows) + "x" + std::to_string(columns);
}

void check_image(const ImageView& image) {
    if (image.rows < 1 || image.columns < 1 || image.rows > kMaxSide || image.columns > kMaxSide) {
        throw InvalidArgument("the image has " + size_text(image.rows, image.columns) +
                              " pixels (rows x columns); each side must be between 1 and " + std::to_string(kMaxSide));
    }
    if (image.data == nullptr) throw InvalidArgument("the image's data is a null pointer; it must point to its pixels");
    if (image.row_stride < image.columns * kChannels) {
        throw InvalidArgument("the image's row_stride is " + std::to_string(image.row_stride) + " bytes; a row of " +
                              std::to_string(image.columns) + " RGB pixels needs at least " +
                              std::to_string(image.columns * kChannels));
    }
}

void check_recipe(const Preprocessing& recipe) {
    const auto [rows, columns] = recipe.image_size;
    if (rows < 1 || columns < 1 || rows > kMaxSide || columns > kMaxSide) {
        throw InvalidArgument("the recipe's image_size is " + size_text(rows, columns) +
                              " (rows x columns); each side must be between 1 and " + std::to_string(kMaxSide));
    }
    if (!(recipe.crop > 0.0 && recipe.crop <= 1.0)) {
        throw InvalidArgument("the recipe's crop is " + std::to_string(recipe.crop) +
                              "; it is the share of the resized image that is kept and must be in (0, 1]");
    }
    if (static_cast<double>(std::max(rows, columns)) / recipe.crop > static_cast<double>(kMaxSide)) {
        throw InvalidArgument("the recipe's image_size " + size_text(rows, columns) + " divided by its crop " +
                              std::to_string(recipe.crop) + " is more than " + std::to_string(kMaxSide) +
                              " pixels on a side; use a larger crop");
    }
}

// Half of a non-negative `value`, halves to even.
std::int64_t half_to_even(std::int64_t value) {
    const std::int64_t half = value / 2;
    return value % 2 == 1 && half % 2 == 1 ? half + 1 : half;
}

// Plans both axes: the side that is short relative to `target` is resized to it exactly, the other in proportion,
// rounded down, as torchvision's Resize does; the crop's offset is torchvision's CenterCrop's.
std::array<Axis, 2> plan_axes(const ImageView& image, const Preprocessing& recipe) {
    std::array<std::int64_t, 2> resized{};
    for (std::size_t i = 0; i < 2; ++i) {
        resized[i] = static_cast<std::int64_t>(std::nearbyint(static_cast<double>(recipe.image_size[i]) / recipe.crop));
    }
    // Sides are below 2^31, so these products fit.
    if (image.columns * resized[0] >= image.rows * resized[1]) {
        resized[1] = resized[0] * image.columns / image.rows;
    } else {
        resized[0] = resized[1] * image.rows / image.columns;
    }
    const auto axis = [&](std::size_t i, std::int64_t source) {
        const std::int64_t kept = recipe.image_size[i];
        return Axis{source, resized[i], half_to_even(resized[i] - kept), kept};
    };
    return {axis(0, image.rows), axis(1, image.columns)};
}

// The cubic convolution kernel of Keys (1981) with a = -0.5.
[[gnu::optimize("fp-contract=off")]] double cubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

// The weights of every kept pixel. Fused multiply-adds would round differently from Pillow's build, hence the
// attribute.
[[gnu::optimize("fp-contract=off")]] Filter make_filter(const Axis& axis) {
    const double scale = static_cast<double>(axis.source) / static_cast<double>(axis.resized);
    const double stretch = std::max(scale, 1.0);
    const double support = 2.0 * stretch;
    const double step = 1.0 / stretch;

    Filter filter;
    filter.windows.reserve(static_cast<std::size_t>(axis.kept));
    std::vector<double> exact;
    for (std::int64_t i = axis.first; i < axis.first + axis.kept; ++i) {
        const double center = (static_cast<double>(i) + 0.5) * scale;
        // Rounded as Pillow does it. NOLINTNEXTLINE(bugprone-incorrect-roundings)
        const auto begin = std::max<std::int64_t>(static_cast<std::int64_t>(center - support + 0.5), 0);
        // NOLINTNEXTLINE(bugprone-incorrect-roundings)
        const auto end = std::min(static_cast<std::int64_t>(center + support + 0.5), axis.source);
        exact.clear();
        double sum = 0.0;
        for (std::int64_t j = begin; j < end; ++j) {
            const double weight = cubic((static_cast<double>(j) - center + 0.5) * step);
            exact.push_back(weight);
            sum += weight;
        }
        filter.windows.push_back({begin, end - begin, filter.weights.size()});
        for (const double weight : exact) {
            const double fixed = weight / sum * (1 << kFractionBits);
            filter.weights.push_back(static_cast<std::int32_t>(fixed < 0 ? fixed - 0.5 : fixed + 0.5));
        }
    }
    return filter;
}

// The same filter for rows of interleaved channels: each weight once per channel, each window filled up with zeros
// to whole runs.
Filter repeat_per_channel(const Filter& filter) {
    Filter repeated;
    for (const Window& window : filter.windows) {
        const std::int64_t padded = (window.weights + kRunPixels - 1) / kRunPixels * kRunPixels;
        repeated.windows.push_back({window.begin, padded, repeated.weights.size()});
        for (std::int64_t i = 0; i < padded; ++i) {
            const std::size_t source = window.offset + static_cast<std::size_t>(i);
            repeated.weights.insert(repeated.weights.end(), kChannels, i < window.weights ? filter.weights[source] : 0);
        }
    }
    return repeated;
}

// Unsigned sums wrap where Pillow's would overflow, which takes sides of hundreds of millions of pixels.
std::uint8_t to_byte(std::uint32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(static_cast<std::int32_t>(sum) >> kFractionBits, 0, 255));
}

// sums[i] += weights[i] * values[i] over one run.
void accumulate_run(const std::int32_t* weights, const std::uint8_t* values, std::uint32_t* sums) {
    for (std::int64_t i = 0; i < kRun; ++i) sums[i] += static_cast<std::uint32_t>(weights[i]) * values[i];
}

// `row` must be readable for a run past its end. `filter` comes from repeat_per_channel().
void resample_columns(const Filter& filter, const std::uint8_t* row, std::uint8_t* out) {
    for (const Window& window : filter.windows) {
        const std::int32_t* weights = filter.weights.data() + window.offset;
        const std::uint8_t* values = row + window.begin * kChannels;
        std::array<std::uint32_t, kRun> sums{};
        for (std::int64_t i = 0; i < window.weights * kChannels; i += kRun) {
            accumulate_run(weights + i, values + i, sums.data());
        }
        for (std::size_t channel = 0; channel < kChannels; ++channel) {
            std::uint32_t sum = kHalf;
            for (std::size_t i = channel; i < kRun; i += kChannels) sum += sums[i];
            *out++ = to_byte(sum);
        }
    }
}

// One output row of `bytes` bytes from the window's rows, which lie `stride` bytes apart. `sums` has room for `bytes`.
void resample_rows(std::span<const std::int32_t> weights, const std::uint8_t* rows, std::size_t stride,
                   std::size_t bytes, std::uint32_t* sums, std::uint8_t* out) {
    std::fill_n(sums, bytes, kHalf);
    for (const std::int32_t weight : weights) {
        for (std::size_t i = 0; i < bytes; ++i) sums[i] += static_cast<std::uint32_t>(weight) * rows[i];
        rows += stride;
    }
    for (std::size_t i = 0; i < bytes; ++i) out[i] = to_byte(sums[i]);
}

void resample(const ImageView& image, const Axis& row_axis, const Axis& column_axis, std::uint8_t* out) {
    const Filter columns = repeat_per_channel(make_filter(column_axis));
    const Filter rows = make_filter(row_axis);
    const std::int64_t first_row = rows.windows.front().begin;
    const std::int64_t end_row = rows.windows.back().begin + rows.windows.back().weights;
    const auto line = static_cast<std::size_t>(column_axis.kept * kChannels);

    // The source row is copied to where reading a run past its end is allowed.
    const auto source_line = static_cast<std::size_t>(image.columns * kChannels);
    std::vector<std::uint8_t> source(source_line + kRun);
    std::vector<std::uint8_t> narrowed(static_cast<std::size_t>(end_row - first_row) * line);
    for (std::int64_t row = first_row; row < end_row; ++row) {
        std::memcpy(source.data(), image.data + row * image.row_stride, source_line);
        resample_columns(columns, source.data(), narrowed.data() + static_cast<std::size_t>(row - first_row) * line);
    }

    std::vector<std::uint32_t> sums(line);
    for (const Window& window : rows.windows) {
        const std::span weights(rows.weights.data() + window.offset, static_cast<std::size_t>(window.weights));
        const std::uint8_t* above = narrowed.data() + static_cast<std::size_t>(window.begin - first_row) * line;
        resample_rows(weights, above, line, line, sums.data(), out);
        out += line;
    }
}

}  // namespace

void resize_and_crop(const ImageView& image, const Preprocessing& recipe, std::uint8_t* out) {
    check_image(image);
    check_recipe(recipe);
    if (out == nullptr) throw InvalidArgument("out is a null pointer; it must point to rows x columns x 3 bytes");
    const auto [row_axis, column_axis] = plan_axes(image, recipe);
    const auto out_of_memory = [&, rows = row_axis.resized, columns = column_axis.resized] {
        return OutOfMemory("resizing an image of " + size_text(image.rows, image.columns) + " pixels to " +
                           size_text(rows, columns) + " needs more memory than there is");
    };
    try {
        resample(image, row_axis, column_axis, out);
    } catch (const std::bad_alloc&) {
        throw out_of_memory();
    } catch (const std::length_error&) {
        throw out_of_memory();
    }
}

void normalize(const std::uint8_t* pixels, std::int64_t rows, std::int64_t columns, const Preprocessing& recipe,
               float* out) {
    if (rows < 1 || columns < 1 || rows > kMaxSide || columns > kMaxSide) {
        throw InvalidArgument("the pixels to normalise are " + size_text(rows, columns) +
                              " (rows x columns); each side must be between 1 and " + std::to_string(kMaxSide));
    }
    if (pixels == nullptr || out == nullptr)
        throw InvalidArgument("pixels or out is a null pointer; both must be given");
    const std::int64_t plane = rows * columns;
    for (std::size_t channel = 0; channel < kChannels; ++channel) {
        const float mean = recipe.mean[channel];
        const float std = recipe.std[channel];
        if (!std::isfinite(mean) || !std::isfinite(std) || std <= 0.0F) {
            throw InvalidArgument("channel " + std::to_string(channel) + " of the recipe has mean " +
                                  std::to_string(mean) + " and std " + std::to_string(std) +
                                  "; both must be finite and std above zero");
        }
        std::array<float, 256> table;
        for (std::size_t value = 0; value < table.size(); ++value) {
            table[value] = (static_cast<float>(value) / 255.0F - mean) / std;
        }
        const std::uint8_t* values = pixels + channel;
        float* values_out = out + static_cast<std::int64_t>(channel) * plane;
        for (std::int64_t i = 0; i < plane; ++i) values_out[i] = table[values[i * kChannels]];
    }
}

}  // namespace vimrt
