// The memory that runs work in: one arena per run under way, kept for the next one.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "backend.h"

namespace vimrt {

class ArenaPool {
public:
    // `limit` bytes at most at any time, in use and idle together; 0 for no limit.
    ArenaPool(Backend& backend, std::int64_t limit) : backend_(backend), limit_(limit) {}
    ~ArenaPool();
    ArenaPool(const ArenaPool&) = delete;
    ArenaPool& operator=(const ArenaPool&) = delete;

    // An arena on loan; goes back when this is destroyed.
    class Lease {
    public:
        Lease(ArenaPool& pool, std::int64_t bytes);
        ~Lease();
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;
        std::byte* data() const { return static_cast<std::byte*>(memory_); }

    private:
        ArenaPool& pool_;
        void* memory_ = nullptr;
        std::int64_t bytes_ = 0;
        friend class ArenaPool;
    };

    std::int64_t bytes() const;

private:
    struct Arena {
        void* memory = nullptr;
        std::int64_t bytes = 0;
    };

    Arena acquire(std::int64_t bytes);
    void release(Arena arena) noexcept;
    void free_smallest_idle();

    Backend& backend_;
    const std::int64_t limit_;
    mutable std::mutex mutex_;
    std::condition_variable released_;
    std::vector<Arena> idle_;
    std::int64_t total_ = 0;
    int leased_ = 0;
};

}  // namespace vimrt
