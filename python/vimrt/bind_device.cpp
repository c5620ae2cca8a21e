// Tensors on any device, to and from DLPack, and runs that are not waited for. Python's side is in device_array.py.
#include <pybind11/stl.h>

#include <memory>
#include <utility>

#include "arrays.h"
#include "dlpack.h"

namespace {

using vimrt::Device;
using vimrt::DType;
using vimrt::InvalidArgument;
using vimrt::Shape;
using vimrt::Tensor;

Device device_of(const dlpack::Device& device) {
    switch (device.type) {
        case dlpack::cpu:
        case dlpack::cuda_host:
            return {};
        case dlpack::cuda:
        case dlpack::cuda_managed:
            return {Device::Kind::CUDA, device.index};
        default:
            throw InvalidArgument("the tensor is on another device (DLPack kind " + std::to_string(device.type) +
                                  "); give it in host memory or on a CUDA device");
    }
}

DType dtype_of(const dlpack::DataType& dtype) {
    if (dtype.lanes == 1 && dtype.code == dlpack::floating && dtype.bits == 32) return DType::F32;
    if (dtype.lanes == 1 && dtype.code == dlpack::unsigned_integer && dtype.bits == 8) return DType::U8;
    const char* const kind = dtype.code == dlpack::signed_integer     ? "int"
                             : dtype.code == dlpack::unsigned_integer ? "uint"
                             : dtype.code == dlpack::floating         ? "float"
                             : dtype.code == dlpack::bfloat           ? "bfloat"
                                                                      : "type with the DLPack code ";
    const int bits = dtype.code <= dlpack::bfloat && dtype.code != 3 ? dtype.bits : dtype.code;
    throw InvalidArgument(std::string("the tensor's dtype is ") + kind + std::to_string(bits) +
                          "; on a device give float32 (B, 3, H, W), already normalised, or uint8 (B, H, W, 3)");
}

bool is_dense(const dlpack::Array& array) {
    if (array.strides == nullptr) return true;
    std::int64_t expected = 1;
    for (int axis = array.rank - 1; axis >= 0; --axis) {
        if (array.shape[axis] == 0) return true;
        if (array.shape[axis] != 1 && array.strides[axis] != expected) return false;
        expected *= array.shape[axis];
    }
    return true;
}

// A tensor that takes over `managed`. Throws InvalidArgument, and leaves it alone, where vimrt cannot read it.
template <typename Managed>
Tensor take(Managed* managed) {
    const dlpack::Array& array = managed->array;
    const Device device = device_of(array.device);
    const DType dtype = dtype_of(array.dtype);
    if (array.rank < 0) throw InvalidArgument("the tensor's rank is negative");
    const Shape shape(std::span<const std::int64_t>(array.shape, static_cast<std::size_t>(array.rank)));
    if (!is_dense(array)) {
        throw InvalidArgument("the tensor of shape " + shape.to_string() +
                              " is not dense; on a device give a contiguous one, such as tensor.contiguous()");
    }
    const std::shared_ptr<const void> owner(managed, [](Managed* taken) {
        if (taken->deleter != nullptr) taken->deleter(taken);
    });
    return Tensor::view(static_cast<char*>(array.data) + array.byte_offset, shape, dtype, device, owner);
}

template <typename Managed>
Tensor take_from(const py::object& capsule) {
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), Managed::name));
    if (managed == nullptr) throw py::error_already_set();
    Tensor tensor = take(managed);
    if (PyCapsule_SetName(capsule.ptr(), Managed::used_name) != 0) throw py::error_already_set();
    return tensor;
}

Tensor from_dlpack(const py::object& capsule, bool writable) {
    if (PyCapsule_IsValid(capsule.ptr(), dlpack::VersionedTensor::name) != 0) {
        const auto* versioned = static_cast<const dlpack::VersionedTensor*>(
            PyCapsule_GetPointer(capsule.ptr(), dlpack::VersionedTensor::name));
        if (versioned->major != 1) {
            throw InvalidArgument("the tensor comes as DLPack " + std::to_string(versioned->major) + "." +
                                  std::to_string(versioned->minor) + "; vimrt reads version 1");
        }
        if (writable && (versioned->flags & dlpack::VersionedTensor::read_only) != 0) {
            throw InvalidArgument("out is read-only; give a writable, dense float32 tensor");
        }
        return take_from<dlpack::VersionedTensor>(capsule);
    }
    if (PyCapsule_IsValid(capsule.ptr(), dlpack::ManagedTensor::name) != 0) {
        return take_from<dlpack::ManagedTensor>(capsule);
    }
    throw InvalidArgument("__dlpack__ gave no DLPack tensor, or one that was taken before");
}

// What an exported tensor keeps: the memory, and the shape that the struct points to.
template <typename Managed>
struct Exported {
    Managed managed{};
    Tensor tensor;
    std::vector<std::int64_t> shape, strides;

    explicit Exported(const Tensor& exported)
        : tensor(exported), shape(exported.shape().begin(), exported.shape().end()) {
        strides.resize(shape.size());
        std::int64_t stride = 1;
        for (std::size_t axis = shape.size(); axis-- > 0; stride *= shape[axis]) strides[axis] = stride;
        const Device device = tensor.device();
        const bool on_host = device.kind == Device::Kind::CPU;
        const bool is_float = tensor.dtype() == DType::F32;
        managed.array = {
            tensor.raw(),
            {on_host ? dlpack::cpu : dlpack::cuda, device.index},
            static_cast<std::int32_t>(shape.size()),
            {is_float ? dlpack::floating : dlpack::unsigned_integer, static_cast<std::uint8_t>(is_float ? 32 : 8), 1},
            shape.data(),
            strides.data(),
            0};
        managed.context = this;
        managed.deleter = [](Managed* taken) { delete static_cast<Exported*>(taken->context); };
    }
};

template <typename Managed>
py::object export_as(std::unique_ptr<Exported<Managed>> exported) {
    const auto destroy = [](PyObject* capsule) {
        if (PyCapsule_IsValid(capsule, Managed::name) == 0) return;  // taken
        auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, Managed::name));
        managed->deleter(managed);
    };
    PyObject* const capsule = PyCapsule_New(&exported->managed, Managed::name, destroy);
    if (capsule == nullptr) throw py::error_already_set();
    static_cast<void>(exported.release());  // the capsule's now
    return py::reinterpret_steal<py::object>(capsule);
}

py::object to_dlpack(const Tensor& tensor, bool versioned) {
    if (!versioned) return export_as(std::make_unique<Exported<dlpack::ManagedTensor>>(tensor));
    auto exported = std::make_unique<Exported<dlpack::VersionedTensor>>(tensor);
    exported->managed.major = 1;
    exported->managed.minor = 0;
    return export_as(std::move(exported));
}

Tensor from_pointer(std::uintptr_t pointer, const std::vector<std::int64_t>& dims, const std::string& dtype,
                    int device) {
    return Tensor::view(reinterpret_cast<void*>(pointer), Shape(std::span<const std::int64_t>(dims)),
                        dtype == "uint8" ? DType::U8 : DType::F32, {Device::Kind::CUDA, device});
}

}  // namespace

void bind_device(py::module_& m) {
    py::class_<Tensor>(m, "Tensor")
        .def_static("from_dlpack", &from_dlpack, py::arg("capsule"), py::arg("writable") = false)
        .def_static("from_pointer", &from_pointer, py::arg("pointer"), py::arg("shape"), py::arg("dtype"),
                    py::arg("device"))
        .def_static(
            "from_floats", [](const FloatArray& array) { return Tensor::view(array.data(), shape_of(array)); },
            py::arg("array").noconvert(), py::keep_alive<0, 1>())
        .def("to_dlpack", &to_dlpack, py::arg("versioned"))
        .def("to_array", [](const Tensor& tensor) { return to_array(tensor); })
        .def_property_readonly(
            "shape",
            [](const Tensor& tensor) {
                return py::tuple(py::cast(std::vector<std::int64_t>(tensor.shape().begin(), tensor.shape().end())));
            })
        .def_property_readonly("dtype",
                               [](const Tensor& tensor) { return std::string(vimrt::name_of(tensor.dtype())); })
        .def_property_readonly("device", [](const Tensor& tensor) { return tensor.device().to_string(); })
        .def_property_readonly("device_index", [](const Tensor& tensor) { return tensor.device().index; })
        .def_property_readonly("pointer",
                               [](const Tensor& tensor) { return reinterpret_cast<std::uintptr_t>(tensor.raw()); });

    py::class_<vimrt::Pending>(m, "Pending")
        .def("done", &vimrt::Pending::done)
        .def("wait",
             [](const vimrt::Pending& pending) {
                 without_gil([&] {
                     pending.wait();
                     return true;
                 });
             })
        .def(
            "hold", [](const vimrt::Pending& pending, std::uintptr_t stream) { pending.hold(stream_of(stream)); },
            py::arg("stream"))
        .def_property_readonly(
            "stream", [](const vimrt::Pending& pending) { return reinterpret_cast<std::uintptr_t>(pending.stream()); })
        .def_property_readonly("tensors", [](const vimrt::Pending& pending) { return pending.unfinished(); })
        .def(
            "to_host",
            [](const vimrt::Pending& pending, const Tensor& result) {
                return to_array(without_gil([&] { return pending.to_host(result); }));
            },
            py::arg("result"));
}
