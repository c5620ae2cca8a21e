// The memory that runs work in: one arena per run under way, kept for the next one.
//
// A run that is only enqueued gives its arena back before its work is done. The arena carries a fence from then on:
// work on the same stream may use it at once, work on another stream waits for the fence, on the device.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "backend.h"

namespace vimrt {

class ArenaPool {
    struct Arena {
        void* memory = nullptr;
        std::int64_t bytes = 0;
        std::unique_ptr<Fence> fence;
        bool pending = false;    // work up to the fence may be under way
        void* stream = nullptr;  // of that work; null where the handle alone does not tell streams apart
    };

public:
    // `limit` bytes at most at any time, in use and idle together; 0 for no limit.
    ArenaPool(Backend& backend, std::int64_t limit) : backend_(backend), limit_(limit) {}
    // Waits for the work that is under way.
    ~ArenaPool();
    ArenaPool(const ArenaPool&) = delete;
    ArenaPool& operator=(const ArenaPool&) = delete;

    // An arena on loan for work on `stream`; goes back when this is destroyed.
    class Lease {
    public:
        // With `for_good` nobody else ever gets the arena: the work is being captured and may be repeated at any time.
        Lease(ArenaPool& pool, std::int64_t bytes, void* stream, bool for_good = false);
        ~Lease();
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;

        std::byte* data() const { return static_cast<std::byte*>(arena_.memory); }
        // All work on the arena has been waited for.
        void finished() { finished_ = true; }

    private:
        ArenaPool& pool_;
        Arena arena_;
        void* const stream_;
        const bool for_good_;
        bool finished_ = false;
    };

    std::int64_t bytes() const;

private:
    using Arenas = std::vector<Arena>;

    Arena acquire(std::int64_t bytes, void* stream, bool for_good);
    void release(Arena arena, bool for_good) noexcept;
    bool is_ready(Arena& arena, void* stream, bool for_good) const;
    Arenas::iterator smallest_idle(std::int64_t bytes);
    Arena take(Arenas::iterator idle);
    void make_room(std::int64_t bytes);
    void free_arena(Arena& arena) noexcept;

    Backend& backend_;
    const std::int64_t limit_;
    mutable std::mutex mutex_;
    std::condition_variable released_;
    Arenas idle_;
    Arenas kept_;  // for good
    std::int64_t total_ = 0;
    std::size_t leased_ = 0;
};

}  // namespace vimrt
