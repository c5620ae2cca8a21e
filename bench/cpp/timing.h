// Timing of a single thread's work on a machine that others use too.
#pragma once

#include <ctime>

#include <algorithm>
#include <vector>

namespace bench {

// Seconds of processor time that the calling thread has had: waiting for a processor does not count.
inline double thread_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The median over `repeats` of the seconds that one call of `work` takes; calls are bundled into at least 2 ms.
template <typename Work>
double seconds_of(const Work& work, int repeats = 9) {
    work();
    int calls = 1;
    for (double took = 0; took < 2e-3; calls *= 2) {
        const double begin = thread_seconds();
        for (int i = 0; i < calls; ++i) work();
        took = thread_seconds() - begin;
    }
    std::vector<double> times;
    for (int r = 0; r < repeats; ++r) {
        const double begin = thread_seconds();
        for (int i = 0; i < calls; ++i) work();
        times.push_back((thread_seconds() - begin) / calls);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

}  // namespace bench
