// Branch and bound over placements of increasing offset, after MiniMalloc (Moffitt, ASPLOS 2023), with restarts.
//
// Let every item of a placement drop until it rests on the ground or on another item. Of all placements under a given
// capacity, the one with the smallest sum of offsets is settled in this way, so it can be rebuilt by placing the items
// in order of (offset, index), each at its gravity: the highest top below it so far. The search enumerates such orders
// only: an item may follow another only at the same offset with a higher index, or at a higher offset. It prunes by
//   - capacity: in each section the items still open are jobs for one machine, released at the lowest offset
//     each can still get; the earliest time at which all are done must not exceed the capacity (Jackson's rule);
//   - dominance: nothing goes at or above the level at which an open item could have been completed;
//   - symmetry: of items equal in size and lifetime, the first goes first;
// and solves items that no longer meet in time apart from each other.
//
// Such a search is quick or very slow depending on the order of the items, so it is run again and again with a node
// limit that follows Luby's sequence, under four orders, two of which put first the items of sections at which earlier
// runs failed (the weighted-degree heuristic of constraint programming).
#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "interval_packing.h"

namespace vimrt::packing {

namespace {

constexpr std::int64_t unlimited = std::numeric_limits<std::int64_t>::max();

std::size_t at(std::int32_t index) {
    return static_cast<std::size_t>(index);
}

enum class Outcome : std::uint8_t { Solved, Exhausted, Interrupted };

struct Limits {
    std::int64_t capacity = 0;
    std::int64_t nodes = 0;
    Clock::time_point deadline;
};

// One run of the search for a placement with a peak of at most `limits.capacity`.
class CapacitySearch {
public:
    // `section_weights` is raised in the sections where a branch fails.
    CapacitySearch(const Instance& instance, const Limits& limits, std::vector<double>& section_weights)
        : items_(instance.items),
          limits_(limits),
          weights_(section_weights),
          gravity_(items_.size()),
          twin_(items_.size(), -1),
          placed_(items_.size()),
          crossing_(at(instance.sections)),
          done_(at(instance.sections)) {
        for (const Item& item : items_) {
            for (std::int32_t s = item.first; s + 1 < item.last; ++s) ++crossing_[at(s)];
        }
        link_twins();
    }

    Outcome run() {
        std::vector<std::int32_t> all(items_.size());
        std::iota(all.begin(), all.end(), 0);
        const auto sections = static_cast<std::int32_t>(done_.size());
        if (place_all(all, {0, -1}, {0, sections})) return Outcome::Solved;
        return interrupted_ ? Outcome::Interrupted : Outcome::Exhausted;
    }

    // After Solved: the offset of each item.
    const std::vector<std::int64_t>& offsets() const { return gravity_; }

    // After Exhausted: the lowest capacity at which this search would have met other branches.
    std::int64_t next_capacity() const { return next_capacity_; }

private:
    // The last placement; the next one must come later in the order of (offset, index).
    struct Level {
        std::int64_t offset;
        std::int32_t index;
    };

    struct Range {
        std::int32_t first, last;
        void cover(const Item& item) {
            first = std::min(first, item.first);
            last = std::max(last, item.last);
        }
    };

    // Where to return to when a branch fails.
    struct Mark {
        std::size_t raised, placed;
    };

    void link_twins() {
        std::vector<std::int32_t> order(items_.size());
        std::iota(order.begin(), order.end(), 0);
        const auto shape = [&](std::int32_t i) {
            const Item& item = items_[at(i)];
            return std::array<std::int64_t, 3>{item.first, item.last, item.size};
        };
        std::stable_sort(order.begin(), order.end(),
                         [&](std::int32_t a, std::int32_t b) { return shape(a) < shape(b); });
        for (std::size_t i = 1; i < order.size(); ++i) {
            if (shape(order[i - 1]) == shape(order[i])) twin_[at(order[i])] = order[i - 1];
        }
    }

    bool before(std::int32_t a, std::int32_t b) const {
        return gravity_[at(a)] != gravity_[at(b)] ? gravity_[at(a)] < gravity_[at(b)] : a < b;
    }

    // Whether an open item rests too low to come next: it waits for another to be placed beneath it.
    bool waits(std::int32_t i, Level level) const {
        return gravity_[at(i)] < level.offset || (gravity_[at(i)] == level.offset && i < level.index);
    }

    bool out_of_budget() {
        ++nodes_;
        if (nodes_ > limits_.nodes || (nodes_ % 16 == 0 && Clock::now() >= limits_.deadline)) interrupted_ = true;
        return interrupted_;
    }

    // Places the open items, which are ordered by (gravity, index) and linked in time, after `level`. `changed`
    // covers the sections in which an item's gravity rose since the capacity was last checked.
    bool place_all(const std::vector<std::int32_t>& open, Level level, Range changed) {
        if (open.empty()) return true;
        if (out_of_budget()) return false;
        std::int64_t smallest = unlimited;
        std::int64_t lowest_top = unlimited;
        for (const std::int32_t i : open) {
            smallest = std::min(smallest, items_[at(i)].size);
            lowest_top = std::min(lowest_top, gravity_[at(i)] + items_[at(i)].size);
            if (waits(i, level)) changed.cover(items_[at(i)]);
        }
        if (!capacity_suffices(open, level, level.offset + smallest, changed)) return false;
        for (const std::int32_t i : open) {
            if (gravity_[at(i)] >= lowest_top) break;
            if (waits(i, level) || (twin_[at(i)] >= 0 && !placed_[at(twin_[at(i)])])) continue;
            const Mark mark{raised_.size(), placements_.size()};
            if (place(i, open)) return true;
            undo(mark);
            if (interrupted_) return false;
        }
        return false;
    }

    // Jackson's rule in the sections of `range`. Items that wait will not come below `wait_end`.
    bool capacity_suffices(const std::vector<std::int32_t>& open, Level level, std::int64_t wait_end, Range range) {
        std::fill(done_.begin() + range.first, done_.begin() + range.last, 0);
        const auto stack = [&](std::int32_t i, std::int64_t release) {
            const Item& item = items_[at(i)];
            const std::int32_t last = std::min(item.last, range.last);
            for (std::int32_t s = std::max(item.first, range.first); s < last; ++s) {
                done_[at(s)] = std::max(done_[at(s)], release) + item.size;
            }
        };
        // By rising release: the items that wait come first in `open`, and are released together at `wait_end`.
        std::size_t waiting = 0;
        while (waiting < open.size() && waits(open[waiting], level)) ++waiting;
        std::size_t next = waiting;
        while (next < open.size() && gravity_[at(open[next])] <= wait_end) {
            stack(open[next], gravity_[at(open[next])]);
            ++next;
        }
        for (std::size_t k = 0; k < waiting; ++k) stack(open[k], wait_end);
        for (; next < open.size(); ++next) stack(open[next], gravity_[at(open[next])]);
        return record_excess(range);
    }

    bool record_excess(Range range) {
        std::int64_t highest = 0;
        for (std::int32_t s = range.first; s < range.last; ++s) {
            highest = std::max(highest, done_[at(s)]);
            if (done_[at(s)] > limits_.capacity) weights_[at(s)] += 1;
        }
        if (highest <= limits_.capacity) return true;
        next_capacity_ = std::min(next_capacity_, highest);
        return false;
    }

    // Puts item i at its gravity and goes on with the rest of `open`.
    bool place(std::int32_t i, const std::vector<std::int32_t>& open) {
        const Item& item = items_[at(i)];
        const std::int64_t top = gravity_[at(i)] + item.size;
        placed_[at(i)] = true;
        placements_.push_back(i);
        bool splits = false;
        for (std::int32_t s = item.first; s + 1 < item.last; ++s) splits |= --crossing_[at(s)] == 0;

        std::vector<std::int32_t> rest;
        std::vector<std::int32_t> lifted;
        rest.reserve(open.size());
        Range changed{item.first, item.last};
        for (const std::int32_t j : open) {
            if (j == i) continue;
            const Item& other = items_[at(j)];
            if (gravity_[at(j)] >= top || other.last <= item.first || item.last <= other.first) {
                rest.push_back(j);
                continue;
            }
            raised_.emplace_back(j, gravity_[at(j)]);
            gravity_[at(j)] = top;
            lifted.push_back(j);
            changed.cover(other);
        }
        // Those lifted stand at one height now, so sorting them by index keeps the order of (gravity, index).
        std::sort(lifted.begin(), lifted.end());
        const auto middle = static_cast<std::ptrdiff_t>(rest.size());
        rest.insert(rest.end(), lifted.begin(), lifted.end());
        std::inplace_merge(rest.begin(), rest.begin() + middle, rest.end(),
                           [&](std::int32_t a, std::int32_t b) { return before(a, b); });
        const Level level{top - item.size, i};
        return splits ? place_parts(rest, level, changed) : place_all(rest, level, changed);
    }

    // Items that meet no longer, part by part, the smallest first: where one cannot be placed, the others need not be.
    bool place_parts(const std::vector<std::int32_t>& open, Level level, Range changed) {
        std::vector<std::vector<std::int32_t>> parts = split(open);
        std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.size() < b.size(); });
        return std::all_of(parts.begin(), parts.end(), [&](const std::vector<std::int32_t>& part) {
            Range alive{items_[at(part[0])].first, items_[at(part[0])].last};
            for (const std::int32_t i : part) alive.cover(items_[at(i)]);
            const Range common{std::max(alive.first, changed.first), std::min(alive.last, changed.last)};
            return place_all(part, level, common.first < common.last ? common : Range{alive.first, alive.first});
        });
    }

    // The parts of `open` that are linked in time, each in the order of `open`.
    std::vector<std::vector<std::int32_t>> split(const std::vector<std::int32_t>& open) const {
        std::vector<std::int32_t> by_begin = open;
        std::sort(by_begin.begin(), by_begin.end(),
                  [&](std::int32_t a, std::int32_t b) { return items_[at(a)].first < items_[at(b)].first; });
        std::vector<std::int32_t> ends;  // the section where each part ends
        for (const std::int32_t i : by_begin) {
            if (ends.empty() || items_[at(i)].first >= ends.back()) ends.push_back(items_[at(i)].last);
            ends.back() = std::max(ends.back(), items_[at(i)].last);
        }
        std::vector<std::vector<std::int32_t>> parts(ends.size());
        for (const std::int32_t i : open) {
            const auto part = std::upper_bound(ends.begin(), ends.end(), items_[at(i)].first) - ends.begin();
            parts[static_cast<std::size_t>(part)].push_back(i);
        }
        return parts;
    }

    void undo(Mark mark) {
        while (placements_.size() > mark.placed) {
            const Item& item = items_[at(placements_.back())];
            for (std::int32_t s = item.first; s + 1 < item.last; ++s) ++crossing_[at(s)];
            placed_[at(placements_.back())] = false;
            placements_.pop_back();
        }
        while (raised_.size() > mark.raised) {
            gravity_[at(raised_.back().first)] = raised_.back().second;
            raised_.pop_back();
        }
    }

    const std::vector<Item>& items_;
    const Limits limits_;
    std::vector<double>& weights_;
    std::vector<std::int64_t> gravity_;  // of open items: where they would come to rest; of placed ones: their offset
    std::vector<std::int32_t> twin_;     // the equal item to be placed before this one, or -1
    std::vector<char> placed_;
    std::vector<std::int32_t> crossing_;    // open items alive both in this section and in the next
    std::vector<std::int64_t> done_;        // scratch of capacity_suffices
    std::vector<std::int32_t> placements_;  // trail of placed items
    std::vector<std::pair<std::int32_t, std::int64_t>> raised_;  // trail of items and their gravity before
    std::int64_t nodes_ = 0;
    std::int64_t next_capacity_ = unlimited;
    bool interrupted_ = false;
};

// 1, 1, 2, 1, 1, 2, 4, ... for index 1, 2, 3, ...: within a constant factor of the best restart schedule
// (Luby, Sinclair and Zuckerman, 1993).
std::int64_t luby(std::int64_t index) {
    std::int64_t power = 1;
    while (2 * power - 1 < index) power *= 2;
    return index == 2 * power - 1 ? power : luby(index - power + 1);
}

// The orders in which runs try the items, best first.
class Orders {
public:
    static constexpr std::int64_t count = 4;

    explicit Orders(const Instance& instance) : instance_(instance), heights_(section_heights(instance)) {}

    // `noise` >= 0 swaps items whose keys are within a factor of exp(2 noise) of each other.
    std::vector<std::int32_t> make(std::int64_t kind, const std::vector<double>& section_weights, double noise) {
        std::uniform_real_distribution<double> uniform(-noise, noise);
        std::vector<Key> keys;
        keys.reserve(instance_.items.size());
        for (const Item& item : instance_.items)
            keys.push_back(key(item, kind, section_weights, std::exp(uniform(random_))));
        std::vector<std::int32_t> order(keys.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](std::int32_t a, std::int32_t b) { return keys[at(a)] > keys[at(b)]; });
        return order;
    }

private:
    using Key = std::array<double, 2>;

    Key key(const Item& item, std::int64_t kind, const std::vector<double>& weights, double noise) const {
        const double area = static_cast<double>(item.size) * (item.last - item.first) * noise;
        const auto first = weights.begin() + item.first;
        const auto last = weights.begin() + item.last;
        switch (kind) {
            case 0:
                return {
                    static_cast<double>(*std::max_element(heights_.begin() + item.first, heights_.begin() + item.last)),
                    area};
            case 1:
                return {*std::max_element(first, last), area};
            case 2:
                return {std::accumulate(first, last, 0.0) * noise, area};
            default:
                return {*std::max_element(first, last), item.duration * noise};
        }
    }

    const Instance& instance_;
    std::vector<std::int64_t> heights_;
    std::mt19937_64 random_{1};  // a fixed seed: the same buffers give the same plan
};

// Chooses what to search for next: placements that reach the goal, and in between more modest ones, so that a goal that
// cannot be reached does not stand in the way of a better placement.
class RestartingSearch {
public:
    RestartingSearch(const Instance& instance, Placement start, std::int64_t goal, Clock::time_point deadline)
        : instance_(instance),
          orders_(instance),
          weights_(at(instance.sections)),
          best_(std::move(start)),
          goal_(goal),
          deadline_(deadline) {
        for (const Item& item : instance.items) unit_ = std::gcd(unit_, item.size);
        const std::vector<std::int64_t> heights = section_heights(instance);
        bound_ = *std::max_element(heights.begin(), heights.end());
    }

    SearchResult run() {
        for (std::int64_t round = 0; unfinished(); ++round) {
            const bool modest = round % 2 == 1;
            const std::int64_t before = best_.peak;
            for (std::int64_t kind = 0; kind < Orders::count && unfinished(); ++kind) {
                attempt(kind, modest ? modest_capacity() : target(), luby(round / 2 + 1),
                        round < 2 ? 0.0 : order_noise);
            }
            if (modest) reach_ = best_.peak < before ? std::min(0.5, reach_ * 2) : reach_ / 2;
        }
        return {std::move(best_), std::min(bound_, best_.peak)};
    }

private:
    static constexpr double order_noise = 0.1;
    static constexpr double weight_decay = 0.9;        // of section weights from run to run
    static constexpr std::int64_t nodes_per_item = 2;  // of the shortest run

    std::int64_t target() const { return std::max(goal_, bound_); }
    bool unfinished() const { return best_.peak > target() && Clock::now() < deadline_; }

    // Somewhere between the target and the best peak so far, exclusive. Every peak is a multiple of the unit.
    std::int64_t modest_capacity() const {
        const std::int64_t steps = (best_.peak - target()) / unit_;
        const auto reached = static_cast<std::int64_t>(static_cast<double>(steps) * reach_);
        return best_.peak - unit_ * std::max<std::int64_t>(1, reached);
    }

    void attempt(std::int64_t kind, std::int64_t capacity, std::int64_t length, double noise) {
        const std::vector<std::int32_t> order = orders_.make(kind, weights_, noise);
        Instance ordered{{}, instance_.sections};
        ordered.items.reserve(order.size());
        for (const std::int32_t i : order) ordered.items.push_back(instance_.items[at(i)]);
        const auto nodes = static_cast<std::int64_t>(order.size()) * nodes_per_item * length;
        CapacitySearch search(ordered, {capacity, nodes, deadline_}, weights_);
        switch (search.run()) {
            case Outcome::Solved:
                keep(order, search.offsets());
                break;
            case Outcome::Exhausted:
                bound_ = std::max(bound_, search.next_capacity());
                break;
            case Outcome::Interrupted:
                break;
        }
        for (double& weight : weights_) weight *= weight_decay;
    }

    void keep(const std::vector<std::int32_t>& order, const std::vector<std::int64_t>& offsets) {
        best_.peak = 0;
        for (std::size_t i = 0; i < order.size(); ++i) {
            best_.offsets[at(order[i])] = offsets[i];
            best_.peak = std::max(best_.peak, offsets[i] + instance_.items[at(order[i])].size);
        }
    }

    const Instance& instance_;
    Orders orders_;
    std::vector<double> weights_;  // of sections: how often runs failed there
    Placement best_;
    std::int64_t goal_;
    std::int64_t bound_ = 0;
    std::int64_t unit_ = 0;  // greatest common divisor of the sizes
    double reach_ = 0.5;     // how far modest attempts go from the best peak towards the target
    Clock::time_point deadline_;
};

}  // namespace

SearchResult search_placement(const Instance& instance, Placement start, std::int64_t goal,
                              Clock::time_point deadline) {
    return RestartingSearch(instance, std::move(start), goal, deadline).run();
}

}  // namespace vimrt::packing
