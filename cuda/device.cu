#include "device.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

#include "vimrt/error.h"

namespace vimrt::cuda {

void check(cudaError_t status, const std::string& what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // an error that does not stick is forgotten here, so that the next call starts clean
    std::string message = what + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")";
    if (device_failed()) message += "; the device can no longer be used by this process, start it again";
    throw DeviceError(message);
}

bool device_failed() {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    const cudaError_t status = cudaDeviceSynchronize();
    cudaThreadExchangeStreamCaptureMode(&mode);
    // While a graph is captured it cannot be asked.
    return status != cudaSuccess && status != cudaErrorStreamCaptureUnsupported;
}

void refuse_memory(std::size_t bytes, const std::string& what) {
    cudaGetLastError();
    int device = 0;
    std::size_t free = 0;
    std::size_t total = 0;
    cudaGetDevice(&device);
    cudaMemGetInfo(&free, &total);
    throw OutOfMemory("cuda:" + std::to_string(device) + " refused " + std::to_string(bytes) + " bytes of " + what +
                      ": " + std::to_string(free) + " of " + std::to_string(total) +
                      " are free; use a smaller batch or image, or give max_memory so that batches run in slices");
}

void allow_shared_memory(const void* kernel, std::size_t bytes, const char* name) {
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), name);
    if (bytes <= static_cast<std::size_t>(attributes.maxDynamicSharedSizeBytes)) return;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), name);
}

DeviceGuard::DeviceGuard(int device) {
    check(cudaGetDevice(&former_), "the current CUDA device cannot be read");
    if (former_ == device) return;
    check(cudaSetDevice(device), "cuda:" + std::to_string(device) + " cannot be made the current device");
    changed_ = true;
}

DeviceGuard::~DeviceGuard() {
    if (changed_) cudaSetDevice(former_);
}

AllowWhileCapturing::AllowWhileCapturing() {
    check(cudaThreadExchangeStreamCaptureMode(&mode_), "the capture mode cannot be changed");
}
AllowWhileCapturing::~AllowWhileCapturing() {
    cudaThreadExchangeStreamCaptureMode(&mode_);
}

std::shared_mutex& capture_mutex() {
    static std::shared_mutex mutex;
    return mutex;
}

Stream::Stream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a CUDA stream cannot be made");
}
Stream::~Stream() {
    cudaStreamDestroy(stream_);
}

Event::Event() {
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "a CUDA event cannot be made");
}
Event::~Event() {
    cudaEventDestroy(event_);
}

namespace {

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

int count_devices() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorInsufficientDriver) {
        int driver = 0;
        int runtime = 0;
        cudaDriverGetVersion(&driver);
        cudaRuntimeGetVersion(&runtime);
        throw DeviceError((driver == 0 ? "no NVIDIA driver was found"
                                       : "the NVIDIA driver supports CUDA " + version_text(driver) + " at most") +
                          ", and this vimrt needs one for CUDA " + version_text(runtime) +
                          "; install a newer driver from nvidia.com/drivers, or use device=\"cpu\"");
    }
    if (status != cudaSuccess || count == 0) {
        throw DeviceError(std::string("no CUDA device can be used: ") +
                          (status == cudaSuccess ? "there is none" : cudaGetErrorString(status)) +
                          "; install an NVIDIA GPU and its driver, or use device=\"cpu\"");
    }
    return count;
}

__global__ void probe() {}

// Which code the device runs is told by how many threads it allows.
constexpr int threads_with_products = 128;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__global__ void __launch_bounds__(threads_with_products) probe_products() {}
#else
__global__ void __launch_bounds__(2 * threads_with_products) probe_products() {}
#endif

bool runs_warpgroup_products() {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, probe_products), "the device's code cannot be queried");
    return attributes.maxThreadsPerBlock == threads_with_products;
}

}  // namespace

int clusters_at_once(const DeviceProperties& device, int blocks) {
    const int missed = blocks > 2 ? device.multiprocessors / 16 : 0;
    return std::max(1, (device.multiprocessors - missed) / blocks);
}

int blocks_with_room(const DeviceProperties& device, int shared_bytes) {
    constexpr int reserved = 1024;  // of each block
    return (device.shared_bytes_per_block + reserved) / (shared_bytes + reserved);
}

bool runs_code_of_hopper() {
    // By device: 0 unknown, 1 no, 2 yes.
    static std::array<std::atomic<char>, 64> known{};
    int device = 0;
    check(cudaGetDevice(&device), "the current device is unknown");
    std::atomic<char>& answer = known[static_cast<std::size_t>(device) % known.size()];
    if (answer == 0) {
        cudaFuncAttributes attributes{};
        check(cudaFuncGetAttributes(&attributes, probe), "the device's code cannot be queried");
        answer = attributes.ptxVersion >= 90 ? 2 : 1;
    }
    return answer == 2;
}

DeviceProperties find_device(int index) {
    const int count = count_devices();
    if (index >= count) {
        throw DeviceError(
            "there is no device cuda:" + std::to_string(index) + ": this machine has " + std::to_string(count) +
            (count == 1 ? " CUDA device, cuda:0" : " CUDA devices, cuda:0 to cuda:" + std::to_string(count - 1)));
    }
    const std::string name = "cuda:" + std::to_string(index);
    cudaDeviceProp found{};
    check(cudaGetDeviceProperties(&found, index), name + " cannot be queried");
    const DeviceGuard guard(index);
    cudaFuncAttributes attributes{};
    const cudaError_t status = cudaFuncGetAttributes(&attributes, probe);
    if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
        cudaGetLastError();
        throw DeviceError(name + " (" + found.name + ", compute capability " + std::to_string(found.major) + "." +
                          std::to_string(found.minor) +
                          ") is not among the architectures that this vimrt was built for; " +
                          "build it with -DVIMRT_CUDA_ARCHITECTURES=" + std::to_string(10 * found.major + found.minor) +
                          ", or use device=\"cpu\"");
    }
    check(status, name + " cannot be used");
    return {index,
            found.name,
            10 * found.major + found.minor,
            found.multiProcessorCount,
            found.l2CacheSize,
            static_cast<int>(found.sharedMemPerBlockOptin),
            runs_code_of_hopper(),
            runs_warpgroup_products()};
}

}  // namespace vimrt::cuda
