// resize_and_crop() and normalize() of the core, on NumPy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>

#include "vimrt/error.h"
#include "vimrt/preprocess.h"

namespace py = pybind11;

namespace {

std::string describe(const py::array& array) {
    return "a " + py::str(array.dtype()).cast<std::string>() + " array of shape " +
           py::str(array.attr("shape")).cast<std::string>();
}

// The caller's array where its rows are dense, however far apart; a dense copy otherwise. `holder` keeps either alive.
vimrt::ImageView view_of(const py::array& image, py::array& holder) {
    if (!py::isinstance<py::array_t<std::uint8_t>>(image) || image.ndim() != 3 || image.shape(2) != 3) {
        throw vimrt::InvalidArgument("image is " + describe(image) +
                                     "; expected uint8 of shape (rows, columns, 3), the channels red, green, blue");
    }
    const bool dense_rows = image.strides(2) == 1 && image.strides(1) == 3 && image.strides(0) >= image.shape(1) * 3;
    holder = dense_rows ? image : py::array_t<std::uint8_t, py::array::c_style | py::array::forcecast>(image);
    return {static_cast<const std::uint8_t*>(holder.data()), holder.shape(0), holder.shape(1), holder.strides(0)};
}

py::array_t<std::uint8_t> resize_and_crop(const py::array& image, const std::array<std::int64_t, 2>& image_size,
                                          double crop) {
    vimrt::Preprocessing recipe;
    recipe.image_size = image_size;
    recipe.crop = crop;
    py::array holder;
    const vimrt::ImageView view = view_of(image, holder);
    if (image_size[0] < 1 || image_size[1] < 1) {
        throw vimrt::InvalidArgument("image_size is (" + std::to_string(image_size[0]) + ", " +
                                     std::to_string(image_size[1]) + "); both sides must be at least 1");
    }
    py::array_t<std::uint8_t> out({image_size[0], image_size[1], std::int64_t{3}});
    std::uint8_t* pixels = out.mutable_data();
    {
        const py::gil_scoped_release release;
        vimrt::resize_and_crop(view, recipe, pixels);
    }
    return out;
}

py::array_t<float> normalize(const py::array& image, const std::array<float, 3>& mean,
                             const std::array<float, 3>& std) {
    vimrt::Preprocessing recipe;
    recipe.mean = mean;
    recipe.std = std;
    py::array holder;
    view_of(image, holder);
    // The core takes dense pixels only.
    const py::array_t<std::uint8_t, py::array::c_style | py::array::forcecast> dense(holder);
    const std::int64_t rows = dense.shape(0);
    const std::int64_t columns = dense.shape(1);
    py::array_t<float> out({std::int64_t{3}, rows, columns});
    const std::uint8_t* pixels = dense.data();
    float* values = out.mutable_data();
    {
        const py::gil_scoped_release release;
        vimrt::normalize(pixels, rows, columns, recipe, values);
    }
    return out;
}

}  // namespace

void bind_preprocess(py::module_& module) {
    const vimrt::Preprocessing defaults;
    module.def("resize_and_crop", &resize_and_crop, py::arg("image"), py::arg("image_size") = defaults.image_size,
               py::arg("crop") = defaults.crop,
               R"(Resize a photograph and crop its centre, as the network expects it.

image: uint8 (rows, columns, 3), red, green, blue. image_size: (rows, columns) of the result. crop: the share of the
resized image that the crop keeps, in (0, 1]. Resizing keeps proportions and just covers round(image_size / crop); it is
Pillow's antialiased bicubic, columns before rows, bit by bit.

Returns uint8 (rows, columns, 3). Raises ValueError for another dtype or shape, empty images and crops out of range.)");
    module.def("normalize", &normalize, py::arg("image"), py::arg("mean") = defaults.mean,
               py::arg("std") = defaults.std,
               R"((image / 255 - mean) / std, channels first.

image: uint8 (rows, columns, 3). mean, std: three numbers each, std above zero.

Returns float32 (3, rows, columns). Raises ValueError for another dtype or shape and a std that is not above zero.)");
}
