// An event that streams and the host wait for.
#pragma once

#include <memory>

#include "backend.h"
#include "device.h"

namespace vimrt::cuda {

class CudaFence final : public Fence {
public:
    explicit CudaFence(int device);
    ~CudaFence() override;

    void record(void* stream) override;
    void hold(void* stream) override;
    bool done() override;
    void wait() override;

private:
    const int device_;
    std::unique_ptr<Event> event_;
};

}  // namespace vimrt::cuda
