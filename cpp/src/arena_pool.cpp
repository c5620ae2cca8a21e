#include "arena_pool.h"

#include <algorithm>

#include "vimrt/error.h"

namespace vimrt {

ArenaPool::~ArenaPool() {
    for (Arenas* arenas : {&idle_, &kept_}) {
        for (Arena& arena : *arenas) free_arena(arena);
    }
}

ArenaPool::Lease::Lease(ArenaPool& pool, std::int64_t bytes, void* stream, bool for_good)
    : pool_(pool),
      arena_(pool.acquire(std::max<std::int64_t>(bytes, 1), stream, for_good)),
      stream_(stream),
      for_good_(for_good) {
    try {
        if (arena_.pending && arena_.stream != stream) arena_.fence->hold(stream);
    } catch (...) {
        pool_.release(std::move(arena_), false);
        throw;
    }
}

// Work may have been enqueued even where the run failed half-way, so the fence is recorded in any case.
ArenaPool::Lease::~Lease() {
    arena_.pending = !finished_ && !for_good_;
    arena_.stream = stream_ == pool_.backend_.own_stream() ? nullptr : stream_;
    try {
        if (arena_.pending) arena_.fence->record(stream_);
    } catch (...) {
        // The device failed, and says so at its next use.
        arena_.pending = false;
    }
    pool_.release(std::move(arena_), for_good_);
}

std::int64_t ArenaPool::bytes() const {
    const std::lock_guard lock(mutex_);
    return total_;
}

void ArenaPool::free_arena(Arena& arena) noexcept {
    try {
        if (arena.pending) arena.fence->wait();
    } catch (...) {
        // Work that failed is over as well.
    }
    backend_.deallocate(arena.memory, static_cast<std::size_t>(arena.bytes));
    total_ -= arena.bytes;
}

// True when work on `stream` may use the arena without waiting for other work.
bool ArenaPool::is_ready(Arena& arena, void* stream, bool for_good) const {
    if (!arena.pending) return true;
    if (arena.stream != nullptr && arena.stream == stream && !for_good) return true;
    arena.pending = !arena.fence->done();
    return !arena.pending;
}

ArenaPool::Arenas::iterator ArenaPool::smallest_idle(std::int64_t bytes) {
    auto best = idle_.end();
    for (auto it = idle_.begin(); it != idle_.end(); ++it) {
        if (it->bytes >= bytes && (best == idle_.end() || it->bytes < best->bytes)) best = it;
    }
    return best;
}

ArenaPool::Arena ArenaPool::take(Arenas::iterator idle) {
    Arena arena = std::move(*idle);
    idle_.erase(idle);
    ++leased_;
    return arena;
}

// A new arena takes the place of an idle one that is too small, so that growing sizes do not pile up.
void ArenaPool::make_room(std::int64_t bytes) {
    const auto too_small = [&](const Arena& arena) { return arena.bytes < bytes; };
    bool freed = false;
    for (;;) {
        const bool enough = limit_ == 0 || total_ + bytes <= limit_;
        auto it = smallest_idle(0);
        if (it == idle_.end() || (enough && (freed || !too_small(*it)))) return;
        free_arena(*it);
        idle_.erase(it);
        freed = true;
    }
}

ArenaPool::Arena ArenaPool::acquire(std::int64_t bytes, void* stream, bool for_good) {
    std::unique_lock lock(mutex_);
    if (limit_ > 0 && bytes > limit_) {
        throw OutOfMemory("this run needs " + std::to_string(bytes) +
                          " bytes of activations, over max_memory = " + std::to_string(limit_));
    }
    for (;;) {
        auto ready = idle_.end();
        for (auto it = idle_.begin(); it != idle_.end(); ++it) {
            const bool better = it->bytes >= bytes && (ready == idle_.end() || it->bytes < ready->bytes);
            if (better && is_ready(*it, stream, for_good)) ready = it;
        }
        if (ready != idle_.end()) return take(ready);

        // Streams run beside each other in arenas of their own, or, where there is no room, one after the other in one.
        const auto busy = smallest_idle(bytes);
        const bool has_busy = busy != idle_.end();
        const bool has_room = limit_ == 0 || total_ + bytes <= limit_;
        if (has_busy && !has_room) {
            if (for_good) busy->fence->wait();
            busy->pending = busy->pending && !for_good;
            return take(busy);
        }
        if (!has_busy) make_room(bytes);
        if (limit_ == 0 || total_ + bytes <= limit_) {
            idle_.reserve(leased_ + 1 + idle_.size());  // release() must not allocate
            kept_.reserve(leased_ + 1 + kept_.size());
            Arena arena;
            arena.bytes = bytes;
            arena.fence = backend_.make_fence();
            try {
                arena.memory = backend_.allocate(static_cast<std::size_t>(bytes));
            } catch (const OutOfMemory&) {
                if (!has_busy || for_good) throw;
                return take(smallest_idle(bytes));
            }
            total_ += bytes;
            ++leased_;
            return arena;
        }
        if (leased_ == 0) {
            throw OutOfMemory("this run needs " + std::to_string(bytes) + " bytes of activations, and " +
                              std::to_string(total_) + " of max_memory = " + std::to_string(limit_) +
                              " belong to captured graphs for good");
        }
        released_.wait(lock);
    }
}

void ArenaPool::release(Arena arena, bool for_good) noexcept {
    {
        const std::lock_guard lock(mutex_);
        --leased_;
        (for_good ? kept_ : idle_).push_back(std::move(arena));
    }
    released_.notify_all();
}

}  // namespace vimrt
