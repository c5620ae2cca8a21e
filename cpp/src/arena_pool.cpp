#include "arena_pool.h"

#include <algorithm>

#include "vimrt/error.h"

namespace vimrt {

ArenaPool::~ArenaPool() {
    for (const Arena& arena : idle_) backend_.deallocate(arena.memory, static_cast<std::size_t>(arena.bytes));
}

ArenaPool::Lease::Lease(ArenaPool& pool, std::int64_t bytes) : pool_(pool) {
    const Arena arena = pool.acquire(std::max<std::int64_t>(bytes, 1));
    memory_ = arena.memory;
    bytes_ = arena.bytes;
}

ArenaPool::Lease::~Lease() {
    pool_.release({memory_, bytes_});
}

std::int64_t ArenaPool::bytes() const {
    const std::lock_guard lock(mutex_);
    return total_;
}

void ArenaPool::free_smallest_idle() {
    const auto smallest =
        std::min_element(idle_.begin(), idle_.end(), [](const Arena& a, const Arena& b) { return a.bytes < b.bytes; });
    backend_.deallocate(smallest->memory, static_cast<std::size_t>(smallest->bytes));
    total_ -= smallest->bytes;
    idle_.erase(smallest);
}

ArenaPool::Arena ArenaPool::acquire(std::int64_t bytes) {
    std::unique_lock lock(mutex_);
    if (limit_ > 0 && bytes > limit_) {
        throw OutOfMemory("this run needs " + std::to_string(bytes) +
                          " bytes of activations, over max_memory = " + std::to_string(limit_));
    }
    for (;;) {
        auto best = idle_.end();
        for (auto it = idle_.begin(); it != idle_.end(); ++it) {
            if (it->bytes >= bytes && (best == idle_.end() || it->bytes < best->bytes)) best = it;
        }
        if (best != idle_.end()) {
            const Arena arena = *best;
            idle_.erase(best);
            ++leased_;
            return arena;
        }
        // A new arena takes the place of an idle one that is too small, so that growing sizes do not pile up.
        if (!idle_.empty()) free_smallest_idle();
        while (limit_ > 0 && total_ + bytes > limit_ && !idle_.empty()) free_smallest_idle();
        if (limit_ == 0 || total_ + bytes <= limit_) {
            idle_.reserve(static_cast<std::size_t>(leased_) + 1 + idle_.size());  // release() must not allocate
            const Arena arena{backend_.allocate(static_cast<std::size_t>(bytes)), bytes};
            total_ += bytes;
            ++leased_;
            return arena;
        }
        released_.wait(lock);
    }
}

void ArenaPool::release(Arena arena) noexcept {
    {
        const std::lock_guard lock(mutex_);
        --leased_;
        idle_.push_back(arena);
    }
    released_.notify_all();
}

}  // namespace vimrt
