// The C structs of DLPack 1.x (https://dmlc.github.io/dlpack/latest/c_api.html), which array libraries hand each other
// in capsules: "dltensor" with a ManagedTensor, or "dltensor_versioned" with a VersionedTensor. Who takes the tensor
// renames the capsule to "used_..." and calls the deleter when the memory is no longer needed.
#pragma once

#include <cstdint>

namespace dlpack {

enum DeviceType : std::int32_t { cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13 };

struct Device {
    std::int32_t type;
    std::int32_t index;
};

enum TypeCode : std::uint8_t { signed_integer = 0, unsigned_integer = 1, floating = 2, bfloat = 4 };

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct Array {
    void* data;
    Device device;
    std::int32_t rank;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // elements; null for dense row-major
    std::uint64_t byte_offset;
};

struct ManagedTensor {
    static constexpr const char* name = "dltensor";
    static constexpr const char* used_name = "used_dltensor";

    Array array;
    void* context;
    void (*deleter)(ManagedTensor*);
};

struct VersionedTensor {
    static constexpr const char* name = "dltensor_versioned";
    static constexpr const char* used_name = "used_dltensor_versioned";
    static constexpr std::uint64_t read_only = 1;

    std::uint32_t major;
    std::uint32_t minor;
    void* context;
    void (*deleter)(VersionedTensor*);
    std::uint64_t flags;
    Array array;
};

static_assert(sizeof(Array) == 48 && sizeof(ManagedTensor) == 64 && sizeof(VersionedTensor) == 80);

}  // namespace dlpack
