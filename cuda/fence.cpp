#include "fence.h"

namespace vimrt::cuda {

CudaFence::CudaFence(int device) : device_(device) {
    const DeviceGuard guard(device_);
    event_ = std::make_unique<Event>();
}

CudaFence::~CudaFence() = default;

void CudaFence::record(void* stream) {
    const DeviceGuard guard(device_);
    check(cudaEventRecord(event_->get(), static_cast<cudaStream_t>(stream)), "a run cannot be marked");
}

void CudaFence::hold(void* stream) {
    const DeviceGuard guard(device_);
    check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), event_->get(), 0),
          "a stream cannot wait for a run before it");
}

bool CudaFence::done() {
    const DeviceGuard guard(device_);
    const AllowWhileCapturing allowed;
    const cudaError_t status = cudaEventQuery(event_->get());
    if (status == cudaErrorNotReady) {
        cudaGetLastError();
        return false;
    }
    check(status, program_failed);
    return true;
}

void CudaFence::wait() {
    const DeviceGuard guard(device_);
    const AllowWhileCapturing allowed;
    check(cudaEventSynchronize(event_->get()), program_failed);
}

}  // namespace vimrt::cuda
