// Copies between pageable host memory and the device, through pinned memory that is kept.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <mutex>
#include <vector>

#include "device.h"

namespace vimrt::cuda {

class PinnedStaging {
public:
    PinnedStaging() = default;
    ~PinnedStaging();
    PinnedStaging(const PinnedStaging&) = delete;
    PinnedStaging& operator=(const PinnedStaging&) = delete;

    // Both return when the copy is done. Two chunks take turns: one is filled on the host while the other is on its
    // way.
    void upload(void* to, const void* from, std::size_t bytes, cudaStream_t stream);
    void download(void* to, const void* from, std::size_t bytes, cudaStream_t stream);

private:
    // A pair of chunks, lent to one copy at a time.
    struct Pair;
    class Loan;

    std::mutex mutex_;
    std::vector<Pair*> idle_;
    std::size_t pairs_ = 0;
};

}  // namespace vimrt::cuda
