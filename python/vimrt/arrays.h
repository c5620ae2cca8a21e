// What the bindings share: NumPy arrays as tensors and back, and work without Python's lock.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "vimrt/vimrt.h"

namespace py = pybind11;

using FloatArray = py::array_t<float, py::array::c_style>;
using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;
using ImageSize = std::optional<std::array<std::int64_t, 2>>;

// Runs `work` while other Python threads go on. py::gil_scoped_release would take the lock again in its destructor,
// where the interpreter's way of ending a daemon thread at exit, an exception, would end the process instead.
template <typename Work>
auto without_gil(Work work) {
    PyThreadState* const state = PyEval_SaveThread();
    std::optional<decltype(work())> result;
    std::exception_ptr error;
    try {
        result.emplace(work());
    } catch (const std::exception&) {
        error = std::current_exception();
    }
    PyEval_RestoreThread(state);
    if (error) std::rethrow_exception(error);
    return std::move(*result);
}

inline vimrt::Shape shape_of(const py::array& array) {
    std::vector<std::int64_t> dims(array.shape(), array.shape() + array.ndim());
    return vimrt::Shape(std::span<const std::int64_t>(dims));
}

// The memory of a float32 tensor on the host as an array that keeps it alive.
inline py::array to_array(const vimrt::Tensor& tensor) {
    auto* owner = new vimrt::Tensor(tensor);
    const py::capsule keep_alive(owner, [](void* p) { delete static_cast<vimrt::Tensor*>(p); });
    const std::vector<py::ssize_t> dims(tensor.shape().begin(), tensor.shape().end());
    return py::array_t<float>(dims, owner->data<float>(), keep_alive);
}

inline py::list to_arrays(const std::vector<vimrt::Tensor>& tensors) {
    py::list list;
    for (const vimrt::Tensor& tensor : tensors) list.append(to_array(tensor));
    return list;
}

// A CUDA stream's handle, as an integer.
inline void* stream_of(std::uintptr_t handle) {
    return reinterpret_cast<void*>(handle);
}
