// Arrays for kernel tests: random on the host, rounded as the device stores them, and poisoned where a kernel must
// write.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "require.h"
#include "storage.h"

namespace vimrt::cuda::test {

// Device memory that holds `values` stored as `dtype`, or NaN in every element where none are given.
class DeviceArray {
public:
    DeviceArray(std::size_t count, DType dtype) : count_(count), dtype_(dtype) {
        require(cudaMalloc(&memory_, bytes() + 1));
        require(cudaMemset(memory_, 0xFF, bytes()));
    }
    DeviceArray(const std::vector<double>& values, DType dtype) : DeviceArray(values.size(), dtype) {
        std::vector<unsigned char> stored(bytes());
        with_storage(dtype, [&](auto type) {
            using T = decltype(type);
            for (std::size_t i = 0; i < values.size(); ++i) {
                const T value = from_float<T>(static_cast<float>(values[i]));
                std::memcpy(stored.data() + i * sizeof(T), &value, sizeof(T));
            }
        });
        require(cudaMemcpy(memory_, stored.data(), bytes(), cudaMemcpyHostToDevice));
    }
    ~DeviceArray() { cudaFree(memory_); }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;

    std::size_t bytes() const { return count_ * size_of(dtype_); }
    void* data() const { return memory_; }
    float* floats() const { return static_cast<float*>(memory_); }
    void* at(std::size_t element) const { return static_cast<char*>(memory_) + element * size_of(dtype_); }

    // What the device holds now.
    std::vector<double> values() const {
        std::vector<unsigned char> stored(bytes());
        require(cudaDeviceSynchronize());
        require(cudaMemcpy(stored.data(), memory_, bytes(), cudaMemcpyDeviceToHost));
        std::vector<double> result(count_);
        with_storage(dtype_, [&](auto type) {
            using T = decltype(type);
            for (std::size_t i = 0; i < count_; ++i) {
                T value;
                std::memcpy(&value, stored.data() + i * sizeof(T), sizeof(T));
                result[i] = static_cast<double>(to_float(value));
            }
        });
        return result;
    }

private:
    void* memory_ = nullptr;
    std::size_t count_;
    DType dtype_;
};

inline std::mt19937& generator() {
    static std::mt19937 engine(std::random_device{}());
    return engine;
}

// Standard normal times `scale` plus `mean`.
inline std::vector<double> normal(std::size_t count, double scale = 1.0, double mean = 0.0) {
    std::normal_distribution<double> distribution(mean, scale);
    std::vector<double> values(count);
    for (double& value : values) value = distribution(generator());
    return values;
}

// The values as `dtype` stores them, so that a reference starts from what the kernel reads.
inline std::vector<double> rounded(std::vector<double> values, DType dtype) {
    with_storage(dtype, [&](auto type) {
        for (double& value : values)
            value = static_cast<double>(to_float(from_float<decltype(type)>(static_cast<float>(value))));
    });
    return values;
}

// ||found - expected|| / ||expected||; NaN, where a kernel left an element unwritten, compares as false with any limit.
inline double relative_error(const std::vector<double>& found, const std::vector<double>& expected) {
    double difference = 0;
    double norm = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        difference += (found[i] - expected[i]) * (found[i] - expected[i]);
        norm += expected[i] * expected[i];
    }
    return found.size() == expected.size() ? std::sqrt(difference / norm) : NAN;
}

// What rounding to `dtype` a few times may cost; fp32 results come from approximations good to 1e-7 and sums of many.
inline double tolerance(DType dtype) {
    return dtype == DType::F32 ? 3e-6 : dtype == DType::F16 ? 8e-4 : 6e-3;
}

inline double silu(double x) {
    return x / (1.0 + std::exp(-x));
}

constexpr DType storages[] = {DType::F32, DType::F16, DType::BF16};

}  // namespace vimrt::cuda::test
