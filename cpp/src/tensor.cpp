#include "vimrt/tensor.h"

#include <cstdlib>
#include <limits>
#include <new>

#include "vimrt/error.h"

namespace vimrt {

std::size_t size_of(DType dtype) {
    switch (dtype) {
        case DType::F32:
            return 4;
        case DType::F16:
        case DType::BF16:
            return 2;
        case DType::U8:
            return 1;
    }
    return 0;
}

std::string_view name_of(DType dtype) {
    switch (dtype) {
        case DType::F32:
            return "float32";
        case DType::F16:
            return "float16";
        case DType::BF16:
            return "bfloat16";
        case DType::U8:
            return "uint8";
    }
    return "unknown";
}

Shape::Shape(std::initializer_list<std::int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const std::int64_t> dims) {
    if (dims.size() > max_rank) {
        throw InvalidArgument("a shape of " + std::to_string(dims.size()) + " dimensions was given; at most " +
                              std::to_string(max_rank) + " are supported");
    }
    for (const std::int64_t dim : dims) {
        if (dim < 0) throw InvalidArgument("a shape has the negative dimension " + std::to_string(dim));
        dims_[static_cast<std::size_t>(rank_++)] = dim;
    }
}

std::int64_t Shape::elements() const {
    std::int64_t product = 1;
    for (const std::int64_t dim : *this) {
        if (__builtin_mul_overflow(product, dim, &product)) {
            throw InvalidArgument("the shape " + to_string() + " has more elements than fit in 63 bits");
        }
    }
    return product;
}

std::string Shape::to_string() const {
    std::string text = "(";
    for (int axis = 0; axis < rank_; ++axis) {
        if (axis > 0) text += ", ";
        text += std::to_string((*this)[axis]);
    }
    return text + (rank_ == 1 ? ",)" : ")");
}

bool operator==(const Shape& a, const Shape& b) {
    return a.rank_ == b.rank_ && a.dims_ == b.dims_;
}

std::string Device::to_string() const {
    return kind == Kind::CPU ? "cpu" : "cuda:" + std::to_string(index);
}

Tensor Tensor::empty(const Shape& shape, DType dtype) {
    constexpr std::size_t alignment = 64;
    const std::int64_t elements = shape.elements();
    std::size_t bytes = 0;
    if (__builtin_mul_overflow(static_cast<std::size_t>(elements), size_of(dtype), &bytes) ||
        bytes > std::numeric_limits<std::size_t>::max() - alignment) {
        throw OutOfMemory("a tensor of shape " + shape.to_string() + " is larger than any memory");
    }
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, rounded > 0 ? rounded : alignment);
    if (memory == nullptr) {
        throw OutOfMemory("could not allocate " + std::to_string(bytes) + " bytes for a tensor of shape " +
                          shape.to_string());
    }
    return view(memory, shape, dtype, Device{}, std::shared_ptr<const void>(memory, [](void* p) { std::free(p); }));
}

Tensor Tensor::view(const float* data, const Shape& shape) {
    // A view of constant data is only ever an input; the engine reads inputs through const accessors.
    return view(const_cast<float*>(data), shape, DType::F32);
}

Tensor Tensor::view(float* data, const Shape& shape) {
    return view(data, shape, DType::F32);
}

Tensor Tensor::view(const std::uint8_t* data, const Shape& shape) {
    return view(const_cast<std::uint8_t*>(data), shape, DType::U8);
}

Tensor Tensor::view(void* data, const Shape& shape, DType dtype, Device device, std::shared_ptr<const void> owner) {
    Tensor tensor;
    tensor.data_ = data;
    tensor.shape_ = shape;
    tensor.dtype_ = dtype;
    tensor.device_ = device;
    tensor.owner_ = std::move(owner);
    return tensor;
}

namespace {

void check_dtype(DType have, DType want) {
    if (have != want) {
        throw InvalidArgument("a tensor of " + std::string(name_of(have)) + " was read as " +
                              std::string(name_of(want)));
    }
}

}  // namespace

template <>
const float* Tensor::data<float>() const {
    check_dtype(dtype_, DType::F32);
    return static_cast<const float*>(data_);
}

template <>
float* Tensor::data<float>() {
    check_dtype(dtype_, DType::F32);
    return static_cast<float*>(data_);
}

template <>
const std::uint8_t* Tensor::data<std::uint8_t>() const {
    check_dtype(dtype_, DType::U8);
    return static_cast<const std::uint8_t*>(data_);
}

template <>
std::uint8_t* Tensor::data<std::uint8_t>() {
    check_dtype(dtype_, DType::U8);
    return static_cast<std::uint8_t*>(data_);
}

}  // namespace vimrt
