#include "run_memory.h"

#include <algorithm>
#include <string>

#include "vimrt/error.h"

namespace vimrt::cuda {

namespace {

constexpr std::uint64_t kept_result_bytes = 256 << 20;  // that the pool keeps when nobody uses them
constexpr std::size_t kept_pinned_blocks = 16;
constexpr std::size_t page = 4096;

bool has_memory_pools(int device) {
    int supported = 0;
    const cudaError_t status = cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, device);
    return status == cudaSuccess && supported != 0;
}

}  // namespace

ResultMemory::ResultMemory(int device) : device_(device) {
    const DeviceGuard guard(device_);
    // Synchronises with the default stream, on which most callers use results.
    check(cudaStreamCreateWithFlags(&giving_back_, cudaStreamDefault), "a CUDA stream cannot be made");
    if (!has_memory_pools(device_)) return;
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device_;
    if (cudaMemPoolCreate(&pool_, &properties) != cudaSuccess) {
        cudaGetLastError();
        pool_ = nullptr;
        return;
    }
    std::uint64_t threshold = kept_result_bytes;
    check(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &threshold),
          "a memory pool cannot be set up");
}

// Nothing is checked here or in give_back(): at the end of the process CUDA may have gone before.
ResultMemory::~ResultMemory() {
    if (pool_ != nullptr) cudaMemPoolDestroy(pool_);
    cudaStreamDestroy(giving_back_);
}

std::shared_ptr<void> ResultMemory::allocate(std::size_t bytes, cudaStream_t stream, std::shared_ptr<Fence> last_use) {
    const DeviceGuard guard(device_);
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &capturing), "the stream cannot be used");
    // Captured, an allocation would become part of the graph, and its memory come and go with each launch.
    if (pool_ == nullptr || capturing != cudaStreamCaptureStatusNone) return allocate_plainly(bytes);
    void* memory = nullptr;
    const cudaError_t status = cudaMallocFromPoolAsync(&memory, std::max<std::size_t>(bytes, 1), pool_, stream);
    if (status == cudaErrorMemoryAllocation) refuse_memory(bytes, "memory for results");
    check(status, "memory for results cannot be allocated");
    return {memory, [self = shared_from_this(), last_use = std::move(last_use)](void* p) {
                self->give_back(p, last_use.get());
            }};
}

// cudaFree() waits for whatever may still use the memory.
std::shared_ptr<void> ResultMemory::allocate_plainly(std::size_t bytes) {
    const MemoryGuard memory_guard;
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, std::max<std::size_t>(bytes, 1));
    if (status == cudaErrorMemoryAllocation) refuse_memory(bytes, "memory for results");
    check(status, "memory for results cannot be allocated");
    return {memory, [](void* p) {
                const MemoryGuard freeing;
                cudaFree(p);
            }};
}

void ResultMemory::give_back(void* memory, Fence* last_use) noexcept {
    try {
        const DeviceGuard guard(device_);
        if (last_use != nullptr) last_use->hold(giving_back_);
        cudaFreeAsync(memory, giving_back_);
    } catch (...) {
        // A device that failed, or a process at its end, needs no memory back.
    }
}

PinnedMemory::~PinnedMemory() {
    for (const Block& block : idle_) cudaFreeHost(block.memory);
}

std::shared_ptr<void> PinnedMemory::allocate(std::size_t bytes) {
    const Block block = take((std::max<std::size_t>(bytes, 1) + page - 1) / page * page);
    return {block.memory, [self = shared_from_this(), block](void*) { self->give_back(block); }};
}

// The smallest idle block that is large enough and not wasteful, or a new one.
PinnedMemory::Block PinnedMemory::take(std::size_t bytes) {
    {
        const std::lock_guard lock(mutex_);
        auto best = idle_.end();
        for (auto it = idle_.begin(); it != idle_.end(); ++it) {
            const bool fits = it->bytes >= bytes && it->bytes / 2 <= bytes;
            if (fits && (best == idle_.end() || it->bytes < best->bytes)) best = it;
        }
        if (best != idle_.end()) {
            const Block block = *best;
            idle_.erase(best);
            return block;
        }
        idle_.reserve(kept_pinned_blocks);
    }
    const DeviceGuard guard(device_);
    const MemoryGuard memory_guard;
    Block block{nullptr, bytes};
    const cudaError_t status = cudaHostAlloc(&block.memory, bytes, cudaHostAllocPortable);
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        throw OutOfMemory("the system refused " + std::to_string(bytes) +
                          " bytes of pinned host memory; use a smaller batch");
    }
    check(status, "pinned host memory cannot be allocated");
    return block;
}

void PinnedMemory::give_back(Block block) noexcept {
    {
        const std::lock_guard lock(mutex_);
        if (idle_.size() < kept_pinned_blocks) {
            idle_.push_back(block);
            return;
        }
    }
    const MemoryGuard memory_guard;
    cudaFreeHost(block.memory);
}

}  // namespace vimrt::cuda
