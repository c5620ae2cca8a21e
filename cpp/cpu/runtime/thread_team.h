// A fixed set of threads that run one function together, and barriers among them.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

namespace vimrt::cpu {

// The processors this process may use: its affinity mask, and its control group's CPU quota rounded up. At least 1.
int available_threads();

// The calling thread is thread 0 of every run; the others are made once and wait between runs, spinning for some
// microseconds and sleeping in the kernel after that, so that a team larger than the machine still gets on.
//
// After fork() the child has none of the other threads: run() there throws DeviceError instead of waiting for them.
class ThreadTeam {
public:
    // Throws DeviceError where the system refuses a thread.
    explicit ThreadTeam(int threads);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    int threads() const { return threads_; }

    // Calls `function(argument, thread)` on every thread of the team and returns when all have returned. One run at a
    // time: other callers wait their turn, except that a team of one thread has as many runs as there are callers.
    // `function` must not throw. Denormals count as zero during a run: a state that has decayed costs no more than
    // another.
    void run(void (*function)(void* argument, int thread), void* argument);

    // From within a run: waits until `count` threads have called wait() with this `barrier`, from 0 to
    // barriers() - 1. Everything a thread wrote before is visible to the others after.
    void wait(int barrier, int count);
    int barriers() const { return 2 * threads_ + 1; }

private:
    struct Impl;
    int threads_;
    std::unique_ptr<Impl> impl_;
};

}  // namespace vimrt::cpu
