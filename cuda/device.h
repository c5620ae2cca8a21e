// Errors, devices, streams and events of the CUDA runtime, as C++.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <shared_mutex>
#include <string>

namespace vimrt::cuda {

// Throws DeviceError where `status` is an error: "<what>: <CUDA's own words>", and whether the device can still be
// used.
void check(cudaError_t status, const std::string& what);
inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) check(status, std::string(what));
}

// Lets `kernel` be launched with `bytes` of dynamic shared memory. What was allowed before stays so: another thread may
// be about to launch it with more.
void allow_shared_memory(const void* kernel, std::size_t bytes, const char* name);

// What is said where the device failed and it is not known at which step.
inline constexpr const char* program_failed = "the program failed on the device; VIMRT_CUDA_SYNC=1 names the step";

// Waits for the current device and tells whether it, or the process's hold on it, is lost for good.
bool device_failed();

// Throws OutOfMemory: how much of `what` was asked for, and how much of the current device's memory is free.
[[noreturn]] void refuse_memory(std::size_t bytes, const std::string& what);

// Makes `device` the calling thread's current one and puts the former one back.
class DeviceGuard {
public:
    explicit DeviceGuard(int device);
    ~DeviceGuard();
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int former_ = 0;
    bool changed_ = false;
};

// While a graph is captured, on any stream and by any thread, CUDA refuses calls that might have been meant to be part
// of it. Within this object's life those of the calling thread are its own business and are let through.
class AllowWhileCapturing {
public:
    AllowWhileCapturing();
    ~AllowWhileCapturing();
    AllowWhileCapturing(const AllowWhileCapturing&) = delete;
    AllowWhileCapturing& operator=(const AllowWhileCapturing&) = delete;

private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Waiting for the whole device, as giving memory back does, breaks a capture under way in any thread. Captures hold
// this alone; what allocates or frees holds it shared.
std::shared_mutex& capture_mutex();

// What allocates or frees within this object's life neither breaks a capture nor is refused because of one.
class MemoryGuard {
private:
    std::shared_lock<std::shared_mutex> lock_{capture_mutex()};
    AllowWhileCapturing allowed_;
};

// A stream of the current device that does not wait for the default stream.
class Stream {
public:
    Stream();
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    cudaStream_t get() const { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

// An event without timing.
class Event {
public:
    Event();
    ~Event();
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    cudaEvent_t get() const { return event_; }

private:
    cudaEvent_t event_ = nullptr;
};

// What lowering needs to know of the device.
struct DeviceProperties {
    int index = 0;
    std::string name;
    int compute_capability = 0;  // 90 for 9.0
    int multiprocessors = 0;
    int l2_bytes = 0;
    int shared_bytes_per_block = 0;   // the most a block can opt in to
    bool clusters = false;            // runs_code_of_hopper(): blocks of a cluster see each other's shared memory
    bool warpgroup_products = false;  // runs code compiled for 9.0a, which has warpgroup.cuh's instructions
};

// Clusters of `blocks` blocks that have a multiprocessor each, which the device takes at once, at least one. Those of a
// cluster are neighbours, and of neighbours not all work: an H100 takes 15 clusters of eight, and of four 30, but not
// 32 (docs/performance.md).
int clusters_at_once(const DeviceProperties& device, int blocks);
// Blocks of so much shared memory each that a multiprocessor has room for.
int blocks_with_room(const DeviceProperties& device, int shared_bytes);

// Throws DeviceError unless there are a driver, new enough, and the device `index`, and this build has code for it.
DeviceProperties find_device(int index);

// True when the calling thread's current device is of compute capability 9.0 or newer and runs code compiled for that:
// kernels may wait for their predecessors themselves.
bool runs_code_of_hopper();

}  // namespace vimrt::cuda
