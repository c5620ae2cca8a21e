// Shapes, element types, devices, and the tensors that go into and come out of an engine.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "vimrt/export.h"

namespace vimrt {

enum class DType : std::uint8_t { F32, F16, BF16, U8 };

VIMRT_API std::size_t size_of(DType dtype);       // bytes per element
VIMRT_API std::string_view name_of(DType dtype);  // "float32", "float16", "bfloat16", "uint8"

// Up to 8 dimensions, row-major.
class VIMRT_API Shape {
public:
    static constexpr int max_rank = 8;

    Shape() = default;
    Shape(std::initializer_list<std::int64_t> dims);  // throws InvalidArgument on more than 8 or a negative one
    explicit Shape(std::span<const std::int64_t> dims);

    int rank() const { return rank_; }
    std::int64_t operator[](int axis) const { return dims_[static_cast<std::size_t>(axis < 0 ? axis + rank_ : axis)]; }
    const std::int64_t* begin() const { return dims_.data(); }
    const std::int64_t* end() const { return dims_.data() + rank_; }
    std::int64_t elements() const;  // throws InvalidArgument where it overflows 63 bits
    std::string to_string() const;  // "(1, 3, 224, 224)"
    friend VIMRT_API bool operator==(const Shape& a, const Shape& b);

private:
    std::array<std::int64_t, max_rank> dims_{};
    int rank_ = 0;
};

struct VIMRT_API Device {
    enum class Kind : std::uint8_t { CPU, CUDA };
    Kind kind = Kind::CPU;
    int index = 0;

    std::string to_string() const;  // "cpu", "cuda:0"
    friend bool operator==(const Device&, const Device&) = default;
};

// A dense row-major array on some device: either owned (shared between copies of the Tensor) or a view of the caller's.
class VIMRT_API Tensor {
public:
    Tensor() = default;

    // New, uninitialised host memory, aligned to 64 bytes. Throws OutOfMemory.
    static Tensor empty(const Shape& shape, DType dtype = DType::F32);

    // Host memory of the caller's, which must outlive every copy of the view.
    static Tensor view(const float* data, const Shape& shape);
    static Tensor view(float* data, const Shape& shape);
    static Tensor view(const std::uint8_t* data, const Shape& shape);
    // Any dtype and device. `owner`, where given, is kept alive by the tensor.
    static Tensor view(void* data, const Shape& shape, DType dtype, Device device = {},
                       std::shared_ptr<const void> owner = nullptr);

    const Shape& shape() const { return shape_; }
    DType dtype() const { return dtype_; }
    Device device() const { return device_; }
    std::size_t bytes() const { return static_cast<std::size_t>(shape_.elements()) * size_of(dtype_); }

    const void* raw() const { return data_; }
    void* raw() { return data_; }
    // Throws InvalidArgument where T is not the tensor's dtype. float and std::uint8_t are instantiated.
    template <typename T>
    const T* data() const;
    template <typename T>
    T* data();

private:
    void* data_ = nullptr;
    Shape shape_;
    DType dtype_ = DType::F32;
    Device device_;
    std::shared_ptr<const void> owner_;
};

}  // namespace vimrt
