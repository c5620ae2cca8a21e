// The memory planner against an exhaustive search, against greedy-by-size, and on lifetimes like those of Vim programs.
#include "vimrt/planner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "vimrt/error.h"

using vimrt::BufferLifetime;
using vimrt::InvalidArgument;
using vimrt::MemoryPlan;
using vimrt::PlanOptions;

namespace {

using Buffers = std::vector<BufferLifetime>;
using Random = std::mt19937_64;

std::int64_t draw(Random& random, std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

bool meet(const BufferLifetime& a, const BufferLifetime& b) {
    return a.begin < b.end && b.begin < a.end;
}

std::int64_t round_up(std::int64_t size, std::int64_t alignment) {
    return (size + alignment - 1) / alignment * alignment;
}

// The smallest peak there is. Every placement can be settled downwards, and a settled one is rebuilt by stacking its
// buffers in order of offset, so trying all orders finds the minimum. For up to 8 buffers.
std::int64_t smallest_peak(const Buffers& buffers, std::int64_t alignment) {
    std::vector<std::size_t> order(buffers.size());
    std::iota(order.begin(), order.end(), 0U);
    std::int64_t smallest = std::numeric_limits<std::int64_t>::max();
    do {
        std::vector<std::int64_t> tops(buffers.size());
        std::int64_t peak = 0;
        for (std::size_t i = 0; i < order.size(); ++i) {
            std::int64_t offset = 0;
            for (std::size_t j = 0; j < i; ++j) {
                if (meet(buffers[order[i]], buffers[order[j]])) offset = std::max(offset, tops[j]);
            }
            tops[i] = offset + round_up(buffers[order[i]].size, alignment);
            peak = std::max(peak, tops[i]);
        }
        smallest = std::min(smallest, peak);
    } while (std::next_permutation(order.begin(), order.end()));
    return smallest;
}

// Whether the buffers beyond those with offsets fit below `capacity`: tries every offset for every buffer. For sizes of
// a few bytes.
bool fits(const Buffers& buffers, std::int64_t capacity, std::vector<std::int64_t>& offsets) {
    const std::size_t next = offsets.size();
    if (next == buffers.size()) return true;
    for (std::int64_t offset = 0; offset + buffers[next].size <= capacity; ++offset) {
        bool free = true;
        for (std::size_t i = 0; i < next && free; ++i) {
            free = !meet(buffers[i], buffers[next]) || offsets[i] + buffers[i].size <= offset ||
                   offset + buffers[next].size <= offsets[i];
        }
        if (!free) continue;
        offsets.push_back(offset);
        if (fits(buffers, capacity, offsets)) return true;
        offsets.pop_back();
    }
    return false;
}

bool fits(const Buffers& buffers, std::int64_t capacity) {
    std::vector<std::int64_t> offsets;
    return fits(buffers, capacity, offsets);
}

// Largest first, each at the lowest offset where it overlaps nothing placed before.
std::int64_t greedy_by_size_peak(const Buffers& buffers, std::int64_t alignment) {
    std::vector<std::size_t> order(buffers.size());
    std::iota(order.begin(), order.end(), 0U);
    const auto size = [&](std::size_t i) { return round_up(buffers[i].size, alignment); };
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return size(a) > size(b); });
    std::vector<std::int64_t> offsets(buffers.size());
    std::int64_t peak = 0;
    for (std::size_t k = 0; k < order.size(); ++k) {
        std::vector<std::pair<std::int64_t, std::int64_t>> taken;
        for (std::size_t j = 0; j < k; ++j) {
            if (!meet(buffers[order[k]], buffers[order[j]])) continue;
            taken.emplace_back(offsets[order[j]], offsets[order[j]] + size(order[j]));
        }
        std::sort(taken.begin(), taken.end());
        std::int64_t offset = 0;
        for (const auto& [begin, end] : taken) {
            if (begin - offset >= size(order[k])) break;
            offset = std::max(offset, end);
        }
        offsets[order[k]] = offset;
        if (size(order[k]) > 0) peak = std::max(peak, offset + size(order[k]));
    }
    return peak;
}

// The definition, step by step.
std::int64_t live_sum_by_steps(const Buffers& buffers, std::int64_t alignment) {
    std::int64_t largest = 0;
    for (const BufferLifetime& at : buffers) {
        std::int64_t live = 0;
        for (const BufferLifetime& buffer : buffers) {
            if (buffer.begin <= at.begin && at.begin < buffer.end) live += round_up(buffer.size, alignment);
        }
        largest = std::max(largest, live);
    }
    return largest;
}

Buffers random_buffers(Random& random, std::size_t count, std::int64_t steps, std::int64_t max_size) {
    Buffers buffers(count);
    for (BufferLifetime& buffer : buffers) {
        buffer.begin = draw(random, 0, steps - 1);
        buffer.end = draw(random, buffer.begin + 1, steps);
        buffer.size = draw(random, 0, max_size);
    }
    return buffers;
}

// Buffers of 1 to 3 bytes, `height` of which are alive at each step: whatever ends is replaced by others of the same
// sum. The holes it leaves often do not suit them, so that first fit fails and at times nothing fits in `height` bytes.
Buffers full_arena(Random& random, std::int64_t height, std::int64_t steps) {
    Buffers buffers;
    std::vector<std::size_t> live;
    std::int64_t room = height;
    for (std::int64_t step = 0; step < steps; ++step) {
        while (room > 0) {
            live.push_back(buffers.size());
            buffers.push_back({draw(random, 1, std::min<std::int64_t>(room, 3)), step, steps});
            room -= buffers.back().size;
        }
        std::erase_if(live, [&](std::size_t i) {
            if (step + 1 == steps || draw(random, 0, 2) > 0) return false;
            buffers[i].end = step + 1;
            room += buffers[i].size;
            return true;
        });
    }
    return buffers;
}

void check_valid(const Buffers& buffers, const MemoryPlan& plan, std::int64_t alignment) {
    CHECK_EQ(vimrt::validate_memory_plan(buffers, plan.offsets, alignment), plan.peak);
    CHECK_EQ(plan.lower_bound, live_sum_by_steps(buffers, alignment));
    CHECK(plan.peak >= plan.lower_bound);
    CHECK(plan.optimal || plan.peak > plan.lower_bound);
}

struct VimProgram {
    std::int64_t blocks, tokens, width, batch;
    bool fused_scan;  // convolution and projections inside the scan: fewer, larger steps
    std::int64_t outputs;
};

// The buffers of a Vim program: a residual from the first block to the last, in each block the normed input, x and z,
// the scan's results and some scratch, and values copied out at the end. With `random`, steps have scratch of odd
// sizes.
Buffers vim_buffers(const VimProgram& vim, Random* random) {
    Buffers buffers;
    const std::int64_t rows = vim.batch * vim.tokens;
    const auto add = [&](std::int64_t elements, std::int64_t begin, std::int64_t end) {
        buffers.push_back({elements * 4, begin, end});
    };
    const auto scratch = [&](std::int64_t step) {
        if (random == nullptr) return;
        for (std::int64_t i = draw(*random, 0, 2); i > 0; --i) add(draw(*random, 1, 4096), step, step + 1);
    };
    const std::int64_t steps_per_block = vim.fused_scan ? 4 : 8;
    const std::int64_t end = 2 + vim.blocks * steps_per_block;
    add(rows * vim.width, 0, 2);        // patches
    add(rows * vim.width, 1, end + 1);  // residual, updated in place
    std::int64_t hidden_begin = 1;
    for (std::int64_t block = 0; block < vim.blocks; ++block) {
        const std::int64_t t = 2 + block * steps_per_block;
        const std::int64_t inner = 2 * vim.width;
        const std::int64_t rank = (vim.width + 15) / 16;
        add(rows * vim.width, hidden_begin, t + 1);             // hidden, read by add_norm
        add(rows * vim.width, t, t + 2);                        // normed
        add(rows * 2 * inner, t + 1, t + steps_per_block - 1);  // x and z
        if (!vim.fused_scan) {
            for (std::int64_t direction = 0; direction < 2; ++direction) {
                add(rows * inner, t + 2, t + 5 + direction);        // c
                add(rows * (rank + 32), t + 3, t + 5 + direction);  // delta, B, C
            }
            add(rows * inner, t + 4, t + 7);  // y forward
            add(rows * inner, t + 5, t + 7);  // y backward
        }
        add(rows * inner, t + steps_per_block - 2, t + steps_per_block);  // merged
        hidden_begin = t + steps_per_block - 1;
        for (std::int64_t s = 0; s < steps_per_block; ++s) scratch(t + s);
    }
    add(rows * vim.width, hidden_begin, end + 1);
    for (std::int64_t i = 0; i < vim.outputs; ++i) add(vim.batch * (i == 0 ? 1000 : vim.width), end + i, end + 4);
    return buffers;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

TEST(no_buffers_need_no_memory) {
    const MemoryPlan plan = vimrt::plan_memory({});
    CHECK_EQ(plan.peak, 0);
    CHECK_EQ(plan.lower_bound, 0);
    CHECK(plan.offsets.empty());
    CHECK(plan.optimal);
    CHECK_EQ(vimrt::memory_lower_bound({}, 64), 0);
    CHECK_EQ(vimrt::validate_memory_plan({}, {}, 64), 0);
}

TEST(buffers_that_meet_are_stacked_and_others_share) {
    const Buffers buffers{{100, 0, 2}, {60, 1, 3}, {128, 2, 4}};
    const MemoryPlan plan = vimrt::plan_memory(buffers);
    CHECK_EQ(plan.peak, 192);  // 100 and 128 take 128 bytes in turn, 60 takes 64
    CHECK_EQ(plan.lower_bound, 192);
    CHECK_EQ(plan.offsets[0], plan.offsets[2]);
    check_valid(buffers, plan, 64);
}

TEST(buffers_that_touch_in_time_may_share) {
    const Buffers buffers{{64, 0, 5}, {64, 5, 6}, {64, -3, 0}};
    CHECK_EQ(vimrt::plan_memory(buffers).peak, 64);
}

TEST(buffers_without_bytes_take_no_room) {
    const Buffers buffers{{0, 0, 10}, {64, 0, 10}, {0, 5, 6}};
    const MemoryPlan plan = vimrt::plan_memory(buffers);
    CHECK_EQ(plan.peak, 64);
    CHECK_EQ(plan.offsets[0], 0);
    CHECK_EQ(plan.offsets[2], 0);
    check_valid(buffers, plan, 64);
    CHECK_EQ(vimrt::plan_memory(Buffers{{0, 0, 1}, {0, 0, 1}}).peak, 0);
}

TEST(plans_of_small_instances_are_optimal) {
    Random random(20240117);
    for (int trial = 0; trial < 1500; ++trial) {
        const auto count = static_cast<std::size_t>(draw(random, 1, trial % 100 == 0 ? 8 : 7));
        const std::int64_t max_size = trial % 3 == 0 ? 1'000'000'007 : trial % 3 == 1 ? 6 : 40;
        const Buffers buffers = random_buffers(random, count, draw(random, 1, 9), max_size);
        const std::int64_t alignment = std::int64_t{1} << draw(random, 0, 4);
        const MemoryPlan plan = vimrt::plan_memory(buffers, {alignment, 10.0});
        check_valid(buffers, plan, alignment);
        CHECK_EQ(plan.peak, smallest_peak(buffers, alignment));
        CHECK(plan.optimal);
    }
}

TEST(optima_of_full_arenas_are_found_and_proven) {
    Random random(7);
    std::size_t above_bound = 0;
    std::size_t first_fit_misses = 0;
    for (int trial = 0; trial < 6000; ++trial) {
        const std::int64_t height = draw(random, 6, 7);
        const Buffers buffers = full_arena(random, height, draw(random, 9, 11));
        const MemoryPlan plan = vimrt::plan_memory(buffers, {1, 10.0});
        check_valid(buffers, plan, 1);
        CHECK_EQ(plan.lower_bound, height);
        CHECK(plan.optimal);
        CHECK(fits(buffers, plan.peak));
        CHECK(!fits(buffers, plan.peak - 1));
        above_bound += plan.peak > height ? 1 : 0;
        first_fit_misses += vimrt::plan_memory(buffers, {1, 0.0}).peak > plan.peak ? 1 : 0;
    }
    CHECK(above_bound >= 10);         // otherwise no proof was put to the test
    CHECK(first_fit_misses >= 1000);  // nor the search
}

TEST(plans_are_never_worse_than_greedy_by_size) {
    Random random(3);
    for (int trial = 0; trial < 400; ++trial) {
        const Buffers buffers = random_buffers(random, static_cast<std::size_t>(draw(random, 1, 120)),
                                               draw(random, 1, 60), draw(random, 1, 100'000));
        const std::int64_t greedy = greedy_by_size_peak(buffers, 64);
        for (const double budget : {0.0, 0.002}) {
            const MemoryPlan plan = vimrt::plan_memory(buffers, {64, budget});
            check_valid(buffers, plan, 64);
            CHECK(plan.peak <= greedy);
        }
    }
}

// 200 steps of 4096 bytes, cut at random into 150 rectangles: a perfect packing exists, first fit misses it.
TEST(search_recovers_perfect_packings_that_first_fit_misses) {
    struct Piece {
        std::int64_t begin, end, bottom, top;
    };
    Random random(11);
    std::size_t greedy_misses = 0;
    for (int trial = 0; trial < 8; ++trial) {
        std::vector<Piece> pieces{{0, 200, 0, 4096}};
        while (pieces.size() < 150) {
            const std::size_t chosen =
                static_cast<std::size_t>(draw(random, 0, static_cast<std::int64_t>(pieces.size()) - 1));
            Piece& piece = pieces[chosen];
            Piece other = piece;
            if (draw(random, 0, 1) == 0) {
                if (piece.end - piece.begin < 8) continue;
                piece.end = other.begin = draw(random, piece.begin + 2, piece.end - 2);
            } else {
                if (piece.top - piece.bottom < 256) continue;
                piece.top = other.bottom = draw(random, piece.bottom + 64, piece.top - 64);
            }
            pieces.push_back(other);
        }
        Buffers buffers;
        for (const Piece& piece : pieces) buffers.push_back({piece.top - piece.bottom, piece.begin, piece.end});
        const MemoryPlan plan = vimrt::plan_memory(buffers, {1, 60.0});
        check_valid(buffers, plan, 1);
        CHECK_EQ(plan.lower_bound, 4096);
        CHECK_EQ(plan.peak, 4096);  // within a fifth of a second; the budget is for sanitizers and busy machines
        greedy_misses += greedy_by_size_peak(buffers, 1) > 4096 ? 1 : 0;
    }
    CHECK(greedy_misses >= 4);
}

TEST(vim_programs_meet_the_lower_bound_at_every_size) {
    for (const std::int64_t grid : {1, 2, 14, 27, 32, 78, 128, 256}) {
        for (const std::int64_t width : {192, 384, 768}) {
            for (const std::int64_t batch : {1, 8}) {
                for (const bool fused : {false, true}) {
                    const Buffers buffers = vim_buffers({24, grid * grid + 1, width, batch, fused, 3}, nullptr);
                    const MemoryPlan plan = vimrt::plan_memory(buffers);
                    check_valid(buffers, plan, 64);
                    CHECK_EQ(plan.peak, plan.lower_bound);
                }
            }
        }
    }
}

TEST(vim_programs_with_scratch_meet_the_lower_bound) {
    Random random(5);
    for (int trial = 0; trial < 100; ++trial) {
        const VimProgram vim{draw(random, 1, 32), draw(random, 1, 400),    16 * draw(random, 1, 48),
                             draw(random, 1, 4),  draw(random, 0, 1) == 1, draw(random, 1, 3)};
        const Buffers buffers = vim_buffers(vim, &random);
        const MemoryPlan plan = vimrt::plan_memory(buffers);
        check_valid(buffers, plan, 64);
        CHECK_EQ(plan.peak, plan.lower_bound);
    }
}

TEST(the_same_buffers_give_the_same_plan) {
    Random random(9);
    for (int trial = 0; trial < 20; ++trial) {
        const Buffers buffers = random_buffers(random, 12, 8, 50);
        CHECK(vimrt::plan_memory(buffers, {1, 10.0}).offsets == vimrt::plan_memory(buffers, {1, 10.0}).offsets);
    }
}

TEST(ten_thousand_buffers_take_well_under_a_second) {
    Random random(13);
    Buffers buffers(10'000);
    for (BufferLifetime& buffer : buffers) {
        buffer.begin = draw(random, 0, 10'000);
        buffer.end = buffer.begin + draw(random, 1, 3'000);
        buffer.size = draw(random, 1, 1 << 20);
    }
    const auto start = std::chrono::steady_clock::now();
    const MemoryPlan plan = vimrt::plan_memory(buffers, {64, 0.0});
    CHECK(seconds_since(start) < 5.0);  // measured: a tenth of a second; the margin is for sanitizers and busy machines
    CHECK_EQ(vimrt::validate_memory_plan(buffers, plan.offsets, 64), plan.peak);
}

TEST(the_search_ends_with_its_time_budget) {
    Random random(17);
    const Buffers buffers = random_buffers(random, 1'500, 700, 1'000'000);
    const auto start = std::chrono::steady_clock::now();
    const MemoryPlan plan = vimrt::plan_memory(buffers, {1, 0.2});
    CHECK(seconds_since(start) < 3.0);
    CHECK(plan.peak <= greedy_by_size_peak(buffers, 1));
}

TEST(sizes_near_the_limit_do_not_overflow) {
    const std::int64_t half = std::int64_t{1} << 61;
    const Buffers fits{{half - 64, 0, 2}, {half - 64, 1, 3}};
    const MemoryPlan plan = vimrt::plan_memory(fits);
    CHECK_EQ(plan.peak, 2 * (half - 64));
    check_valid(fits, plan, 64);
    CHECK_THROWS(vimrt::plan_memory(Buffers{{half, 0, 2}, {half, 1, 3}}), InvalidArgument, "2^62");
    const std::int64_t largest = std::numeric_limits<std::int64_t>::max();
    CHECK_THROWS(vimrt::plan_memory(Buffers{{largest, 0, 1}}), InvalidArgument, "2^62");
    CHECK_THROWS(vimrt::memory_lower_bound(Buffers{{1, 0, 1}, {largest, 0, 1}}, 64), InvalidArgument, "2^62");
    const std::int64_t least = std::numeric_limits<std::int64_t>::min();
    CHECK_EQ(vimrt::plan_memory(Buffers{{64, least, largest}, {64, largest - 1, largest}}).peak, 128);
}

TEST(wrong_arguments_are_named) {
    const Buffers one{{64, 0, 1}};
    CHECK_THROWS(vimrt::plan_memory(Buffers{{64, 0, 1}, {-1, 0, 1}}), InvalidArgument, "buffer 1 has the size -1");
    CHECK_THROWS(vimrt::plan_memory(Buffers{{64, 3, 3}}), InvalidArgument, "[3, 3)");
    for (const std::int64_t alignment : {-64, 0, 3, 48}) {
        CHECK_THROWS(vimrt::plan_memory(one, {alignment, 0.5}), InvalidArgument, "power of two");
        CHECK_THROWS(vimrt::memory_lower_bound(one, alignment), InvalidArgument, "power of two");
    }
    CHECK_THROWS(vimrt::plan_memory(one, {64, -1.0}), InvalidArgument, "budget");
    CHECK_THROWS(vimrt::plan_memory(one, {64, std::nan("")}), InvalidArgument, "budget");
}

TEST(an_unlimited_budget_is_allowed) {
    CHECK_EQ(vimrt::plan_memory(Buffers{{64, 0, 1}}, {64, std::numeric_limits<double>::infinity()}).peak, 64);
}

TEST(the_validator_finds_what_is_wrong) {
    const Buffers buffers{{100, 0, 4}, {100, 2, 6}, {100, 4, 8}};
    const auto validate = [&](std::vector<std::int64_t> offsets) {
        return vimrt::validate_memory_plan(buffers, offsets, 64);
    };
    CHECK_EQ(validate({0, 128, 0}), 256);
    CHECK_EQ(validate({1024, 0, 128}), 1152);
    CHECK_THROWS(validate({0, 0, 128}), InvalidArgument, "buffer 0 and buffer 1 live at the same time");
    CHECK_THROWS(validate({0, 128, 192}), InvalidArgument, "buffer 1 and buffer 2 live at the same time");
    CHECK_THROWS(validate({0, 100, 0}), InvalidArgument, "buffer 1 has the offset 100");
    CHECK_THROWS(validate({0, -64, 0}), InvalidArgument, "buffer 1 has the offset -64");
    CHECK_THROWS(validate({0, 128}), InvalidArgument, "2 offsets for 3 buffers");
    CHECK_THROWS(validate({0, std::numeric_limits<std::int64_t>::max() - 63, 0}), InvalidArgument, "2^62");
}

TEST(the_validator_agrees_with_a_look_at_every_pair) {
    Random random(23);
    std::size_t overlaps = 0;
    for (int trial = 0; trial < 2000; ++trial) {
        const Buffers buffers = random_buffers(random, static_cast<std::size_t>(draw(random, 1, 8)), 12, 10);
        std::vector<std::int64_t> offsets;
        for (std::size_t i = 0; i < buffers.size(); ++i) offsets.push_back(draw(random, 0, 40));
        bool overlap = false;
        for (std::size_t i = 0; i < buffers.size(); ++i) {
            for (std::size_t j = 0; j < i; ++j) {
                overlap |= buffers[i].size > 0 && buffers[j].size > 0 && meet(buffers[i], buffers[j]) &&
                           offsets[i] < offsets[j] + buffers[j].size && offsets[j] < offsets[i] + buffers[i].size;
            }
        }
        overlaps += overlap ? 1 : 0;
        if (overlap) {
            CHECK_THROWS(vimrt::validate_memory_plan(buffers, offsets, 1), InvalidArgument, "share bytes");
        } else {
            CHECK(vimrt::validate_memory_plan(buffers, offsets, 1) >= vimrt::memory_lower_bound(buffers, 1));
        }
    }
    CHECK(overlaps > 200 && overlaps < 1800);
}
