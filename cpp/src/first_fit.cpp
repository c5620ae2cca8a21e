// Constructive placement: items in some order, each into the first or the tightest gap below what is there.
#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <utility>

#include "interval_packing.h"

namespace vimrt::packing {

namespace {

using Keys = std::vector<std::array<double, 2>>;

// Indices by falling key.
std::vector<std::int32_t> order_by(const Keys& keys) {
    std::vector<std::int32_t> order(keys.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
        return keys[static_cast<std::size_t>(a)] > keys[static_cast<std::size_t>(b)];
    });
    return order;
}

// What first_fit needs of an item already placed, dense in memory: the scan over these is where its time goes.
struct Placed {
    std::int32_t first, last;
    std::int64_t offset, top;
};

// The offset for an item of `size` alive in [first, last), given what is placed in order of rising offset.
std::int64_t find_gap(std::span<const Placed> placed, const Item& item, Gap gap) {
    std::int64_t floor = 0;
    std::int64_t best = -1;
    std::int64_t best_room = std::numeric_limits<std::int64_t>::max();
    for (const Placed& other : placed) {
        if (other.last <= item.first || item.last <= other.first) continue;
        const std::int64_t room = other.offset - floor;
        if (room >= item.size && room < best_room) {
            best = floor;
            best_room = room;
            if (gap == Gap::Lowest) return best;
        }
        floor = std::max(floor, other.top);
    }
    return best >= 0 ? best : floor;
}

std::array<Keys, 5> ordering_keys(const Instance& instance) {
    const std::vector<std::int64_t> heights = section_heights(instance);
    std::array<Keys, 5> keys;
    for (const Item& item : instance.items) {
        const auto size = static_cast<double>(item.size);
        const double contention =
            static_cast<double>(*std::max_element(heights.begin() + item.first, heights.begin() + item.last));
        const auto begin = static_cast<double>(item.first);
        keys[0].push_back({size, item.duration});
        keys[1].push_back({size * item.duration, size});
        keys[2].push_back({item.duration, size});
        keys[3].push_back({contention, size});
        keys[4].push_back({-begin, item.duration});
    }
    return keys;
}

}  // namespace

std::vector<std::int64_t> section_heights(const Instance& instance) {
    std::vector<std::int64_t> heights(static_cast<std::size_t>(instance.sections) + 1);
    for (const Item& item : instance.items) {
        heights[static_cast<std::size_t>(item.first)] += item.size;
        heights[static_cast<std::size_t>(item.last)] -= item.size;
    }
    heights.pop_back();
    std::partial_sum(heights.begin(), heights.end(), heights.begin());
    return heights;
}

Placement first_fit(const Instance& instance, std::span<const std::int32_t> order, Gap gap) {
    Placement result{std::vector<std::int64_t>(instance.items.size()), 0};
    std::vector<Placed> placed;
    placed.reserve(order.size());
    for (const std::int32_t index : order) {
        const Item& item = instance.items[static_cast<std::size_t>(index)];
        const std::int64_t offset = find_gap(placed, item, gap);
        const auto at = std::upper_bound(placed.begin(), placed.end(), offset,
                                         [](std::int64_t value, const Placed& other) { return value < other.offset; });
        placed.insert(at, {item.first, item.last, offset, offset + item.size});
        result.offsets[static_cast<std::size_t>(index)] = offset;
        result.peak = std::max(result.peak, offset + item.size);
    }
    return result;
}

Placement best_first_fit(const Instance& instance, Placement start, std::int64_t goal, Clock::time_point deadline) {
    Placement best = std::move(start);
    for (const Keys& keys : ordering_keys(instance)) {
        const std::vector<std::int32_t> order = order_by(keys);
        for (const Gap gap : {Gap::Lowest, Gap::Tightest}) {
            if (best.peak <= goal || Clock::now() >= deadline) return best;
            Placement tried = first_fit(instance, order, gap);
            if (tried.peak < best.peak) best = std::move(tried);
        }
    }
    return best;
}

}  // namespace vimrt::packing
