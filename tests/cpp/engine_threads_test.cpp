// One engine under many threads, with as little besides it as can be: what ThreadSanitizer is to look at
// (-DVIMRT_SANITIZE=thread).
#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "tiny_model.h"
#include "vimrt/vimrt.h"

namespace {

constexpr int sizes = 20;  // more than an engine keeps programs for

vimrt::Tensor input_of(int size) {
    vimrt::Tensor input = vimrt::Tensor::empty({1 + size % 3, 3, 8 + size, 40 - size});
    for (std::int64_t i = 0; i < input.shape().elements(); ++i) {
        input.data<float>()[i] = static_cast<float>((i + size) * 37 % 101) / 50 - 1;
    }
    return input;
}

bool same_bits(const vimrt::Tensor& a, const vimrt::Tensor& b) {
    return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

// Runs `work(thread)` on this many threads at once.
template <typename Work>
void together(int threads, Work work) {
    std::vector<std::thread> all;
    for (int thread = 0; thread < threads; ++thread) all.emplace_back([&work, thread] { work(thread); });
    for (std::thread& thread : all) thread.join();
}

// Every thread runs every size, each in another order; the answers must be those of one thread alone.
void check_engine(int threads, std::int64_t max_memory) {
    const tiny::File file(tiny::vim().bytes());
    const vimrt::EngineOptions options{"cpu", {}, threads, max_memory};
    std::vector<vimrt::Tensor> expected;
    {
        const vimrt::Engine alone(file.path(), options);
        for (int size = 0; size < sizes; ++size) expected.push_back(alone.run(input_of(size)));
    }
    const vimrt::Engine engine(file.path(), options);
    std::atomic<int> wrong{0};
    std::atomic<int> ran{0};
    together(6, [&](int thread) {
        for (int i = 0; i < 2 * sizes; ++i) {
            const int size = (i * 7 + thread * 3) % sizes;
            if (!same_bits(engine.run(input_of(size)), expected[static_cast<std::size_t>(size)])) ++wrong;
            ++ran;
        }
    });
    CHECK_EQ(ran.load(), 6 * 2 * sizes);
    CHECK_EQ(wrong.load(), 0);
    if (max_memory > 0) CHECK(engine.arena_bytes() <= max_memory);
}

}  // namespace

TEST(threads_share_an_engine_of_one_thread) {
    check_engine(1, 0);
}

TEST(threads_share_an_engine_of_two_threads) {
    check_engine(2, 0);
}

TEST(threads_share_an_engine_with_a_memory_limit) {
    const tiny::File file(tiny::vim().bytes());
    std::int64_t largest = 0;
    {
        const vimrt::Engine engine(file.path(), {"cpu", {}, 1, 0});
        for (int size = 0; size < sizes; ++size)
            largest = std::max(largest, engine.program(1, 8 + size, 40 - size).peak);
    }
    check_engine(1, largest + largest / 2);
}

TEST(failures_of_some_threads_leave_the_others_alone) {
    const tiny::File file(tiny::vim().bytes());
    const vimrt::Engine engine(file.path(), {"cpu", {}, 2, 0});
    const vimrt::Tensor expected = engine.run(input_of(0));
    const vimrt::Tensor small = vimrt::Tensor::empty({1, 3, 4, 4});
    std::atomic<int> wrong{0};
    std::atomic<int> refused{0};
    together(4, [&](int thread) {
        for (int i = 0; i < 50; ++i) {
            if (thread % 2 == 0) {
                if (!same_bits(engine.run(input_of(0)), expected)) ++wrong;
                continue;
            }
            try {
                static_cast<void>(engine.run(small));
            } catch (const vimrt::InvalidArgument&) {
                ++refused;
            }
        }
    });
    CHECK_EQ(wrong.load(), 0);
    CHECK_EQ(refused.load(), 100);
}

TEST(what_reads_an_engine_may_run_beside_its_runs) {
    const tiny::File file(tiny::vim().bytes());
    const vimrt::Engine engine(file.path(), {"cpu", {}, 2, 0});
    std::atomic<int> wrong{0};
    together(4, [&](int thread) {
        for (int size = 0; size < sizes; ++size) {
            if (thread % 2 == 0) {
                static_cast<void>(engine.run(input_of(size)));
                continue;
            }
            if (engine.program(1, 8 + size, 8 + size).peak <= 0) ++wrong;
            if (engine.arena_bytes() < 0 || engine.constant_bytes() < 0 || engine.info().nodes.empty()) ++wrong;
        }
    });
    CHECK_EQ(wrong.load(), 0);
}

TEST(engines_come_and_go_beside_each_other) {
    const tiny::File file(tiny::vim().bytes());
    const vimrt::Tensor expected = vimrt::Engine(file.path(), {"cpu", {}, 2, 0}).run(input_of(1));
    std::atomic<int> wrong{0};
    together(4, [&](int) {
        for (int i = 0; i < 10; ++i) {
            const vimrt::Engine engine(file.path(), {"cpu", {}, 2, 0});
            if (!same_bits(engine.run(input_of(1)), expected)) ++wrong;
        }
    });
    CHECK_EQ(wrong.load(), 0);
}
