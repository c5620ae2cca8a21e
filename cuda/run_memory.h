// Memory that runs hand out: results on the device, and pinned memory of the host. Both outlive the backend.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "backend.h"
#include "device.h"

namespace vimrt::cuda {

// Device memory from a pool that is ordered by streams, so that taking and giving back waits for nothing.
class ResultMemory : public std::enable_shared_from_this<ResultMemory> {
public:
    explicit ResultMemory(int device);
    ~ResultMemory();
    ResultMemory(const ResultMemory&) = delete;
    ResultMemory& operator=(const ResultMemory&) = delete;

    // For work on `stream` and after it. What is given back serves other work once `last_use`, where there is one, and
    // all that was enqueued on the default stream and the streams that synchronise with it are past. Throws
    // OutOfMemory.
    std::shared_ptr<void> allocate(std::size_t bytes, cudaStream_t stream, std::shared_ptr<Fence> last_use);

private:
    std::shared_ptr<void> allocate_plainly(std::size_t bytes);
    void give_back(void* memory, Fence* last_use) noexcept;

    const int device_;
    cudaMemPool_t pool_ = nullptr;  // null where the device has none
    cudaStream_t giving_back_ = nullptr;
};

// Page-locked memory of the host, kept for the next copy.
class PinnedMemory : public std::enable_shared_from_this<PinnedMemory> {
public:
    explicit PinnedMemory(int device) : device_(device) {}
    ~PinnedMemory();
    PinnedMemory(const PinnedMemory&) = delete;
    PinnedMemory& operator=(const PinnedMemory&) = delete;

    std::shared_ptr<void> allocate(std::size_t bytes);  // throws OutOfMemory

private:
    struct Block {
        void* memory = nullptr;
        std::size_t bytes = 0;
    };

    Block take(std::size_t bytes);
    void give_back(Block block) noexcept;

    const int device_;
    std::mutex mutex_;
    std::vector<Block> idle_;
};

}  // namespace vimrt::cuda
