#include "runtime/thread_team.h"

#include <immintrin.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "vimrt/error.h"

namespace vimrt::cpu {

namespace {

// Pauses of some tens of nanoseconds each: together some 20 microseconds or more, which is what threads that share a
// step differ by, and less than going to sleep and being woken costs. Where threads outnumber processors, the one
// waited for needs the processor that spinning would hold.
constexpr int patient_spins = 2000;
constexpr int hasty_spins = 10;

int affinity_count() {
    // Larger masks than cpu_set_t's 1024 processors are asked for until the kernel is content.
    for (int size = 1024; size <= 1 << 20; size *= 2) {
        cpu_set_t* set = CPU_ALLOC(static_cast<std::size_t>(size));
        if (set == nullptr) return 0;
        const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(size));
        const bool known = sched_getaffinity(0, bytes, set) == 0;
        const int count = known ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (known) return count;
    }
    return 0;
}

// Processors' worth of time that the control group in `folder` and those above it leave, or 0 for no limit.
double quota_of(std::string folder) {
    double least = 0;
    const auto limit = [&](double quota, double period) {
        if (quota > 0 && period > 0 && (least == 0 || quota / period < least)) least = quota / period;
    };
    for (;;) {
        std::string quota;
        double period = 0;
        if (std::ifstream file("/sys/fs/cgroup" + folder + "/cpu.max"); file >> quota >> period && quota != "max") {
            limit(std::atof(quota.c_str()), period);
        }
        double quota_v1 = 0;
        std::ifstream quota_file("/sys/fs/cgroup/cpu" + folder + "/cpu.cfs_quota_us");
        std::ifstream period_file("/sys/fs/cgroup/cpu" + folder + "/cpu.cfs_period_us");
        if (quota_file >> quota_v1 && period_file >> period) limit(quota_v1, period);
        if (folder.empty()) return least;
        folder.resize(folder.find_last_of('/') == std::string::npos ? 0 : folder.find_last_of('/'));
    }
}

// Lines are "0::/path" (version 2) or "4:cpu,cpuacct:/path" (version 1).
double cgroup_quota() {
    double least = 0;
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        const auto first = line.find(':');
        const auto second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first, second - first + 1);  // ":cpu,cpuacct:"
        if (controllers != "::" && controllers.find("cpu:") == std::string::npos &&
            controllers.find("cpu,") == std::string::npos) {
            continue;
        }
        std::string folder = line.substr(second + 1);
        if (folder == "/") folder.clear();
        const double quota = quota_of(folder);
        if (quota > 0 && (least == 0 || quota < least)) least = quota;
    }
    return least;
}

struct alignas(64) Barrier {
    std::atomic<std::uint32_t> arrived{0};
    std::atomic<std::uint32_t> generation{0};

    void wait(std::uint32_t count, int spins) {
        if (count <= 1) return;
        const std::uint32_t before = generation.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            arrived.store(0, std::memory_order_relaxed);
            generation.store(before + 1, std::memory_order_release);
            generation.notify_all();
            return;
        }
        for (int i = 0; i < spins; ++i) {
            if (generation.load(std::memory_order_acquire) != before) return;
            _mm_pause();
        }
        while (generation.load(std::memory_order_acquire) == before) generation.wait(before, std::memory_order_acquire);
    }
};

// Denormals are zero while it lives.
class FlushDenormals {
public:
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040U); }  // FTZ and DAZ
    ~FlushDenormals() { _mm_setcsr(before_); }
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

private:
    unsigned before_;
};

}  // namespace

int available_threads() {
    int count = affinity_count();
    if (count < 1) count = static_cast<int>(std::thread::hardware_concurrency());
    const double quota = cgroup_quota();
    if (quota > 0 && quota < count) count = static_cast<int>(std::ceil(quota));
    return count < 1 ? 1 : count;
}

struct ThreadTeam::Impl {
    explicit Impl(int threads)
        : spins(threads <= available_threads() ? patient_spins : hasty_spins),
          barriers(static_cast<std::size_t>(2 * threads + 1)),
          owner(getpid()) {}

    void work(int thread, std::uint32_t threads) {
        for (std::uint32_t seen = 0;;) {
            for (int i = 0; i < spins && turn.load(std::memory_order_acquire) == seen; ++i) _mm_pause();
            while (turn.load(std::memory_order_acquire) == seen) turn.wait(seen, std::memory_order_acquire);
            seen = turn.load(std::memory_order_acquire);
            if (stopping) return;
            {
                const FlushDenormals flush;
                function(argument, thread);
            }
            finish.wait(threads, spins);
        }
    }

    void stop() {
        stopping = true;
        turn.fetch_add(1, std::memory_order_release);
        turn.notify_all();
        for (std::thread& worker : workers) worker.join();
    }

    const int spins;  // before a wait goes to sleep
    std::mutex one_run;
    std::vector<Barrier> barriers;
    Barrier finish;
    alignas(64) std::atomic<std::uint32_t> turn{0};  // counts runs; a new value wakes the workers
    void (*function)(void*, int) = nullptr;          // written before `turn`, read after it
    void* argument = nullptr;
    bool stopping = false;
    pid_t owner;
    std::vector<std::thread> workers;
};

ThreadTeam::ThreadTeam(int threads) : threads_(threads), impl_(std::make_unique<Impl>(threads)) {
    try {
        for (int i = 1; i < threads; ++i) {
            impl_->workers.emplace_back(
                [impl = impl_.get(), i, threads] { impl->work(i, static_cast<std::uint32_t>(threads)); });
        }
    } catch (const std::system_error& error) {
        impl_->stop();
        throw DeviceError("the system refused thread " + std::to_string(impl_->workers.size() + 2) + " of " +
                          std::to_string(threads) + " (" + error.what() + "); give a smaller number of threads");
    }
}

ThreadTeam::~ThreadTeam() {
    if (impl_->owner == getpid()) {
        impl_->stop();
        return;
    }
    // A forked child: the threads are not here to be joined.
    for (std::thread& worker : impl_->workers) worker.detach();
}

void ThreadTeam::run(void (*function)(void*, int), void* argument) {
    const FlushDenormals flush;
    if (threads_ == 1) {  // nothing is shared: any number of callers at once
        function(argument, 0);
        return;
    }
    if (impl_->owner != getpid()) {
        throw DeviceError(
            "this engine was made before fork(), and its threads stayed in the parent process; make a new "
            "Engine in the child, or use threads=1");
    }
    const std::lock_guard lock(impl_->one_run);
    impl_->function = function;
    impl_->argument = argument;
    impl_->turn.fetch_add(1, std::memory_order_release);
    impl_->turn.notify_all();
    function(argument, 0);
    impl_->finish.wait(static_cast<std::uint32_t>(threads_), impl_->spins);
}

void ThreadTeam::wait(int barrier, int count) {
    impl_->barriers[static_cast<std::size_t>(barrier)].wait(static_cast<std::uint32_t>(count), impl_->spins);
}

}  // namespace vimrt::cpu
