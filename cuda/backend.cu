// The entry through which libvimrt reaches the CUDA backend.
//
// It finds the device and says what is missing. There are no kernels here yet: create() refuses every device.
#include <cuda_runtime.h>

#include <string>

#include "backend.h"
#include "vimrt/error.h"

namespace vimrt::cuda {

namespace {

// Throws DeviceError unless the driver is there and has device `index`.
cudaDeviceProp find_device(int index) {
    int count = 0;
    if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess || count == 0) {
        throw DeviceError(std::string("no CUDA device can be used: ") +
                          (status == cudaSuccess ? "there is none" : cudaGetErrorString(status)) +
                          "; install an NVIDIA driver, or use device=\"cpu\"");
    }
    if (index >= count) {
        throw DeviceError("there is no device cuda:" + std::to_string(index) + ": this machine has " +
                          std::to_string(count));
    }
    cudaDeviceProp properties{};
    if (const cudaError_t status = cudaGetDeviceProperties(&properties, index); status != cudaSuccess) {
        throw DeviceError("cuda:" + std::to_string(index) + " cannot be queried: " + cudaGetErrorString(status));
    }
    return properties;
}

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
    const cudaDeviceProp properties = find_device(options.device_index);
    throw DeviceError("cuda:" + std::to_string(options.device_index) + " (" + properties.name +
                      ") was found, but this version of vimrt has no CUDA kernels; use device=\"cpu\"");
}

}  // namespace

}  // namespace vimrt::cuda

extern "C" __attribute__((visibility("default")))
const vimrt::BackendEntry vimrt_backend_entry{vimrt::backend_abi_version, &vimrt::cuda::create_backend};
