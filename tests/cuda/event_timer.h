// Times work on the device by CUDA events.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "require.h"

namespace vimrt::cuda::test {

class EventTimer {
public:
    explicit EventTimer(cudaStream_t stream = nullptr) : stream_(stream) {
        require(cudaEventCreate(&begin_));
        require(cudaEventCreate(&end_));
    }
    ~EventTimer() { cudaEventDestroy(begin_), cudaEventDestroy(end_); }
    EventTimer(const EventTimer&) = delete;
    EventTimer& operator=(const EventTimer&) = delete;

    // Milliseconds that what work() enqueues takes.
    template <typename F>
    float ms(const F& work) const {
        require(cudaEventRecord(begin_, stream_));
        work();
        require(cudaEventRecord(end_, stream_));
        require(cudaEventSynchronize(end_));
        float ms = 0;
        require(cudaEventElapsedTime(&ms, begin_, end_));
        return ms;
    }
    // The median of so many runs, behind others that bring the clock up.
    template <typename F>
    float median_ms(int warm_up, int runs, const F& work) const {
        std::vector<float> times;
        for (int run = -warm_up; run < runs; ++run) {
            const float time = ms(work);
            if (run >= 0) times.push_back(time);
        }
        std::sort(times.begin(), times.end());
        return times[times.size() / 2];
    }

private:
    cudaStream_t stream_;
    cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace vimrt::cuda::test
