// Memory planning: from buffer lifetimes to offsets in one arena.
//
// Pure functions that know nothing of tensors or devices. A buffer lives during the half-open interval of
// steps [begin, end); two buffers whose intervals intersect may not share a byte. How the search works is in
// docs/memory-planner.md.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vimrt/export.h"

namespace vimrt {

struct BufferLifetime {
    std::int64_t size = 0;   // bytes, >= 0
    std::int64_t begin = 0;  // first step during which the buffer holds data
    std::int64_t end = 0;    // one past the last such step; end > begin
};

struct MemoryPlan {
    std::vector<std::int64_t> offsets;  // bytes from the arena's start, one per buffer, in the given order
    std::int64_t peak = 0;              // bytes the arena must have: max of offset + size rounded up to the alignment
    std::int64_t lower_bound = 0;       // no plan can have a smaller peak; not every set of buffers can meet it
    bool optimal = false;               // peak is proven minimal: it meets the bound, or the search was exhausted
};

struct PlanOptions {
    std::int64_t alignment = 64;       // every offset is a multiple of this; a power of two
    double time_budget_seconds = 0.5;  // how long to go on searching once first fit misses the lower bound; >= 0
};

// Places the buffers so that the arena is as small as the search finds, never larger than greedy-by-size (largest
// first, each at the lowest offset that fits) makes it. Deterministic unless the time budget ends the search. A buffer
// of size 0 gets offset 0 and takes no room. Throws InvalidArgument on a negative size, an empty interval, an
// alignment that is no power of two, a negative or NaN budget, and rounded sizes that sum to 2^62 bytes or more.
VIMRT_API MemoryPlan plan_memory(std::span<const BufferLifetime> buffers, const PlanOptions& options = {});

// The largest sum over steps of the bytes alive at that step, each size rounded up to the alignment. Throws
// InvalidArgument like plan_memory().
VIMRT_API std::int64_t memory_lower_bound(std::span<const BufferLifetime> buffers, std::int64_t alignment = 64);

// Throws InvalidArgument naming a pair of buffers that overlap in both time and space, or a misaligned, negative
// or missing offset. Returns the plan's peak, in bytes. Shares no code with the search. O(n log n).
VIMRT_API std::int64_t validate_memory_plan(std::span<const BufferLifetime> buffers,
                                            std::span<const std::int64_t> offsets, std::int64_t alignment = 64);

}  // namespace vimrt
