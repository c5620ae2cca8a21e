// The public face of the planner: checks, the lower bound, the validator, and the assembly of a plan from the parts of
// the problem that are independent of each other. The search itself is in first_fit.cpp and placement_search.cpp.
#include "vimrt/planner.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <map>
#include <numeric>
#include <string>
#include <utility>

#include "interval_packing.h"
#include "vimrt/error.h"

namespace vimrt {

namespace {

using packing::Clock;

constexpr std::int64_t max_total = std::int64_t{1} << 62;  // offsets and their sums with sizes then fit 63 bits
constexpr std::size_t max_search_items =
    2000;  // beyond, a step of the search costs more than its time budget can repay

std::string name(std::size_t buffer) {
    return "buffer " + std::to_string(buffer);
}

void check_alignment(std::int64_t alignment) {
    if (alignment < 1 || !std::has_single_bit(static_cast<std::uint64_t>(alignment)) || alignment >= max_total) {
        throw InvalidArgument("the alignment is " + std::to_string(alignment) +
                              "; it must be a power of two from 1 to 2^61");
    }
}

// Each size rounded up to the alignment.
std::vector<std::int64_t> rounded_sizes(std::span<const BufferLifetime> buffers, std::int64_t alignment) {
    check_alignment(alignment);
    std::vector<std::int64_t> sizes;
    sizes.reserve(buffers.size());
    std::int64_t total = 0;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
        const BufferLifetime& buffer = buffers[i];
        if (buffer.size < 0) {
            throw InvalidArgument(name(i) + " has the size " + std::to_string(buffer.size) +
                                  "; sizes are in bytes and must not be negative");
        }
        if (buffer.end <= buffer.begin) {
            throw InvalidArgument(name(i) + " lives during the steps [" + std::to_string(buffer.begin) + ", " +
                                  std::to_string(buffer.end) + "), which is empty; its end must come after its begin");
        }
        const std::int64_t rounded =
            buffer.size >= max_total ? max_total : (buffer.size + alignment - 1) / alignment * alignment;
        if (rounded >= max_total - total) {
            throw InvalidArgument("the sizes up to " + name(i) + " sum to 2^62 bytes or more, rounded up to " +
                                  std::to_string(alignment) + "; the planner handles less than that");
        }
        total += rounded;
        sizes.push_back(rounded);
    }
    return sizes;
}

struct Event {
    std::int64_t step;
    bool begins;  // at one step, lifetimes end before others begin
    std::size_t buffer;

    friend auto operator<=>(const Event&, const Event&) = default;
};

// Beginnings and ends of the lifetimes in order of time.
std::vector<Event> events_of(std::span<const BufferLifetime> buffers) {
    std::vector<Event> events;
    events.reserve(2 * buffers.size());
    for (std::size_t i = 0; i < buffers.size(); ++i) {
        events.push_back({buffers[i].begin, true, i});
        events.push_back({buffers[i].end, false, i});
    }
    std::sort(events.begin(), events.end());
    return events;
}

std::int64_t largest_live_sum(std::span<const BufferLifetime> buffers, std::span<const std::int64_t> sizes) {
    std::int64_t live = 0;
    std::int64_t largest = 0;
    for (const Event& event : events_of(buffers)) {
        live += event.begins ? sizes[event.buffer] : -sizes[event.buffer];
        largest = std::max(largest, live);
    }
    return largest;
}

// A part of the problem that shares no step with the others.
struct Component {
    packing::Instance instance;
    std::vector<std::size_t> buffers;  // which one each item is
    packing::Placement placement;
};

// Leaves out buffers without bytes.
std::vector<Component> split_into_components(std::span<const BufferLifetime> buffers,
                                             std::span<const std::int64_t> sizes) {
    std::vector<Component> components;
    std::vector<std::size_t> item_of(buffers.size());
    std::size_t live = 0;
    bool last_began = false;
    for (const Event& event : events_of(buffers)) {
        const std::size_t i = event.buffer;
        if (sizes[i] == 0) continue;
        if (event.begins) {
            if (live++ == 0) components.emplace_back();
            Component& component = components.back();
            item_of[i] = component.buffers.size();
            component.buffers.push_back(i);
            const double duration = static_cast<double>(buffers[i].end) - static_cast<double>(buffers[i].begin);
            component.instance.items.push_back({sizes[i], component.instance.sections, 0, duration});
        } else {
            // A set of live buffers is maximal just before the first end after a beginning: a section.
            packing::Instance& instance = components.back().instance;
            if (last_began) ++instance.sections;
            instance.items[item_of[i]].last = instance.sections;
            --live;
        }
        last_began = event.begins;
    }
    return components;
}

// Largest first into the lowest gap; equal sizes in the caller's order.
packing::Placement greedy_by_size(const Component& component) {
    std::vector<std::int32_t> order(component.buffers.size());
    std::iota(order.begin(), order.end(), 0);
    const auto key = [&](std::int32_t item) {
        const auto i = static_cast<std::size_t>(item);
        return std::pair(-component.instance.items[i].size, component.buffers[i]);
    };
    std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return key(a) < key(b); });
    return first_fit(component.instance, order, packing::Gap::Lowest);
}

Clock::time_point deadline_after(double seconds) {
    constexpr double forever = 1e9;  // more does not fit the clock's nanoseconds
    return Clock::now() +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(std::min(seconds, forever)));
}

// Improves the components that stand above the lower bound, the highest first: another one needs to come no
// lower than the highest that could not be improved. Returns the largest peak that was proven minimal.
std::int64_t improve(std::vector<Component>& components, std::int64_t lower_bound, double seconds) {
    const Clock::time_point deadline = deadline_after(seconds);
    std::sort(components.begin(), components.end(),
              [](const Component& a, const Component& b) { return a.placement.peak > b.placement.peak; });
    std::int64_t goal = lower_bound;
    std::int64_t proven = lower_bound;
    for (Component& component : components) {
        packing::Placement& placement = component.placement;
        placement = best_first_fit(component.instance, std::move(placement), goal, deadline);
        if (placement.peak > goal && component.instance.items.size() <= max_search_items) {
            packing::SearchResult result = search_placement(component.instance, std::move(placement), goal, deadline);
            placement = std::move(result.placement);
            proven = std::max(proven, result.bound);
        }
        goal = std::max(goal, placement.peak);
    }
    return proven;
}

}  // namespace

MemoryPlan plan_memory(std::span<const BufferLifetime> buffers, const PlanOptions& options) {
    const std::vector<std::int64_t> sizes = rounded_sizes(buffers, options.alignment);
    if (!(options.time_budget_seconds >= 0)) {
        throw InvalidArgument("the planner's time budget is " + std::to_string(options.time_budget_seconds) +
                              " seconds; it must be 0 or more");
    }
    MemoryPlan plan;
    plan.offsets.resize(buffers.size());
    plan.lower_bound = largest_live_sum(buffers, sizes);

    std::vector<Component> components = split_into_components(buffers, sizes);
    for (Component& component : components) {
        component.placement = greedy_by_size(component);
        plan.peak = std::max(plan.peak, component.placement.peak);
    }
    std::int64_t proven = plan.lower_bound;
    if (plan.peak > plan.lower_bound) {
        proven = improve(components, plan.lower_bound, options.time_budget_seconds);
    }

    plan.peak = 0;
    for (const Component& component : components) {
        plan.peak = std::max(plan.peak, component.placement.peak);
        for (std::size_t i = 0; i < component.buffers.size(); ++i) {
            plan.offsets[component.buffers[i]] = component.placement.offsets[i];
        }
    }
    plan.optimal = plan.peak == proven;
    return plan;
}

std::int64_t memory_lower_bound(std::span<const BufferLifetime> buffers, std::int64_t alignment) {
    return largest_live_sum(buffers, rounded_sizes(buffers, alignment));
}

std::int64_t validate_memory_plan(std::span<const BufferLifetime> buffers, std::span<const std::int64_t> offsets,
                                  std::int64_t alignment) {
    const std::vector<std::int64_t> sizes = rounded_sizes(buffers, alignment);
    if (offsets.size() != buffers.size()) {
        throw InvalidArgument("the plan has " + std::to_string(offsets.size()) + " offsets for " +
                              std::to_string(buffers.size()) + " buffers; it must have one for each");
    }
    std::int64_t peak = 0;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
        if (offsets[i] < 0 || offsets[i] % alignment != 0 || offsets[i] >= max_total) {
            throw InvalidArgument(name(i) + " has the offset " + std::to_string(offsets[i]) +
                                  "; offsets must be multiples of " + std::to_string(alignment) +
                                  ", from 0 and below 2^62");
        }
        if (sizes[i] > 0) peak = std::max(peak, offsets[i] + sizes[i]);
    }
    // Sweeps over time with the live buffers ordered by offset. They are disjoint until a new one meets a neighbour.
    std::map<std::int64_t, std::size_t> live;
    const auto check_disjoint = [&](std::size_t lower, std::size_t upper) {
        if (offsets[lower] + sizes[lower] <= offsets[upper]) return;
        throw InvalidArgument(name(std::min(lower, upper)) + " and " + name(std::max(lower, upper)) +
                              " live at the same time and share bytes: " + name(lower) + " ends at " +
                              std::to_string(offsets[lower] + sizes[lower]) + ", " + name(upper) + " starts at " +
                              std::to_string(offsets[upper]));
    };
    for (const Event& event : events_of(buffers)) {
        const std::size_t i = event.buffer;
        if (sizes[i] == 0) continue;
        if (!event.begins) {
            live.erase(offsets[i]);
            continue;
        }
        const auto above = live.lower_bound(offsets[i]);
        if (above != live.end()) check_disjoint(i, above->second);
        if (above != live.begin()) check_disjoint(std::prev(above)->second, i);
        live.emplace(offsets[i], i);
    }
    return peak;
}

}  // namespace vimrt
