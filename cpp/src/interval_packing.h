// Interval packing: the combinatorial problem beneath the memory planner, known as dynamic storage allocation.
//
// Items occupy an interval of time and some height; items alive at the same time are stacked without overlap, and the
// highest top is to be as low as possible. Time is measured in sections: the moments at which a maximal set of
// items is alive. Two items meet in time exactly when they share a section, and there are never more sections than
// items.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

namespace vimrt::packing {

struct Item {
    std::int64_t size = 0;   // > 0
    std::int32_t first = 0;  // alive in the sections [first, last)
    std::int32_t last = 0;
    double duration = 0;  // end - begin before sections replaced steps; for ordering heuristics only
};

// Items that belong together: any two of them are linked by a chain of items that meet in time.
struct Instance {
    std::vector<Item> items;
    std::int32_t sections = 0;
};

struct Placement {
    std::vector<std::int64_t> offsets;  // one per item
    std::int64_t peak = 0;              // highest offset + size
};

using Clock = std::chrono::steady_clock;

// Height of the items alive in each section; the largest entry bounds every peak from below.
std::vector<std::int64_t> section_heights(const Instance& instance);

// Where an item goes when several gaps can hold it.
enum class Gap : std::uint8_t { Lowest, Tightest };

// Places the items one by one in the given order (a permutation of their indices).
Placement first_fit(const Instance& instance, std::span<const std::int32_t> order, Gap gap);

// The best of several constructive orders; `start` where none is better. Stops early at `goal` or at the deadline.
Placement best_first_fit(const Instance& instance, Placement start, std::int64_t goal, Clock::time_point deadline);

struct SearchResult {
    Placement placement;
    std::int64_t bound = 0;  // proven: no placement has a lower peak
};

// Improves on `start` by branch and bound until its peak is at most `goal`, is proven minimal, or the deadline passes.
SearchResult search_placement(const Instance& instance, Placement start, std::int64_t goal, Clock::time_point deadline);

}  // namespace vimrt::packing
