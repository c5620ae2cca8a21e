// A run of a size seen before allocates nothing: not by new, not by malloc, not by any of their relatives, on any
// thread.
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "tiny_model.h"
#include "vimrt/vimrt.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#include <sanitizer/allocator_interface.h>
#endif

namespace {

std::atomic<bool> counting{false};
std::atomic<std::size_t> allocations{0};

void count() {
    if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

// The sanitizers bring an allocator of their own, with hooks.
static const int hooked = __sanitizer_install_malloc_and_free_hooks([](const volatile void*, std::size_t) { count(); },
                                                                    [](const volatile void*) {});

#else

// These take the place of glibc's, for the executable and every library it loads; operator new ends here too.
extern "C" {
void* __libc_malloc(std::size_t bytes);
void* __libc_calloc(std::size_t items, std::size_t bytes);
void* __libc_realloc(void* memory, std::size_t bytes);
void* __libc_memalign(std::size_t alignment, std::size_t bytes);

void* malloc(std::size_t bytes) {
    count();
    return __libc_malloc(bytes);
}

void* calloc(std::size_t items, std::size_t bytes) {
    count();
    return __libc_calloc(items, bytes);
}

void* realloc(void* memory, std::size_t bytes) {
    count();
    return __libc_realloc(memory, bytes);
}

void* memalign(std::size_t alignment, std::size_t bytes) {
    count();
    return __libc_memalign(alignment, bytes);
}

void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
    count();
    return __libc_memalign(alignment, bytes);
}

int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) {
    count();
    *memory = __libc_memalign(alignment, bytes);
    return *memory != nullptr ? 0 : ENOMEM;
}
}

#endif

namespace {

template <typename Work>
std::size_t allocations_of(Work work) {
    allocations = 0;
    counting = true;
    work();
    counting = false;
    return allocations;
}

// Inputs, names and results of repeated runs, made once.
struct Runs {
    Runs(const vimrt::Engine& engine, std::int64_t batch, std::int64_t height, std::int64_t width,
         std::vector<std::string> names)
        : input(vimrt::Tensor::empty({batch, 3, height, width})), outputs(std::move(names)) {
        std::memset(input.raw(), 0, input.bytes());
        for (const vimrt::Shape& shape : engine.output_shapes(input, outputs))
            results.push_back(vimrt::Tensor::empty(shape));
    }

    void run(const vimrt::Engine& engine, int times) {
        for (int i = 0; i < times; ++i) engine.run(input, outputs, results);
    }

    vimrt::Tensor input;
    std::vector<std::string> outputs;
    std::vector<vimrt::Tensor> results;
};

vimrt::Engine tiny_engine(int threads, std::int64_t max_memory = 0) {
    const tiny::File file(tiny::vim().bytes());
    return vimrt::Engine(file.path(), {"cpu", {}, threads, max_memory});
}

}  // namespace

TEST(the_counter_counts) {
    CHECK(allocations_of([] {
              std::vector<char> memory(100, 'x');
              CHECK_EQ(memory.back(), 'x');
          }) >= 1);
    CHECK(allocations_of([] { std::free(std::malloc(100)); }) >= 1);
    CHECK(allocations_of([] { std::free(std::aligned_alloc(64, 128)); }) >= 1);
    CHECK_EQ(allocations_of([] {}), 0);
}

TEST(a_first_run_allocates) {
    const vimrt::Engine engine = tiny_engine(1);
    Runs runs(engine, 1, 32, 32, {});
    CHECK(allocations_of([&] { runs.run(engine, 1); }) > 0);
}

TEST(a_thousand_runs_allocate_nothing) {
    for (const int threads : {1, 2}) {
        const vimrt::Engine engine = tiny_engine(threads);
        Runs runs(engine, 1, 32, 32, {});
        runs.run(engine, 1);
        CHECK_EQ(allocations_of([&] { runs.run(engine, 1000); }), 0);
    }
}

TEST(runs_of_several_sizes_and_outputs_in_turn_allocate_nothing) {
    const vimrt::Engine engine = tiny_engine(2);
    std::vector<Runs> all;
    all.emplace_back(engine, 1, 32, 32, std::vector<std::string>{});
    all.emplace_back(engine, 3, 32, 32, std::vector<std::string>{"features", "tokens", "logits"});
    all.emplace_back(engine, 2, 40, 64, std::vector<std::string>{"logits", "layers.0.hidden"});
    for (int round = 0; round < 2; ++round) {
        for (Runs& runs : all) runs.run(engine, 1);
    }
    CHECK_EQ(allocations_of([&] {
                 for (int round = 0; round < 300; ++round) {
                     for (Runs& runs : all) runs.run(engine, 1);
                 }
             }),
             0);
}

TEST(a_batch_in_slices_allocates_nothing) {
    const std::int64_t one = tiny_engine(1).program(1, 32, 32).peak;
    const vimrt::Engine engine = tiny_engine(1, 2 * one);
    Runs runs(engine, 7, 32, 32, {});
    runs.run(engine, 2);
    CHECK_EQ(allocations_of([&] { runs.run(engine, 150); }), 0);
}

TEST(threads_that_run_together_need_no_more_than_an_execution_each) {
    std::size_t for_a_first_run = 0;
    {
        const vimrt::Engine engine = tiny_engine(1);
        Runs runs(engine, 1, 32, 32, {});
        for_a_first_run = allocations_of([&] { runs.run(engine, 1); });
    }
    const vimrt::Engine engine = tiny_engine(1);
    Runs one(engine, 1, 32, 32, {});
    Runs two(engine, 1, 32, 32, {});
    one.run(engine, 1);
    // Threads start before the counting and wait, as starting one allocates.
    std::atomic<bool> go{false};
    std::atomic<int> done{0};
    const auto work = [&](Runs& runs) {
        while (!go) std::this_thread::yield();
        runs.run(engine, 1000);
        ++done;
    };
    std::thread first(work, std::ref(one));
    std::thread second(work, std::ref(two));
    const std::size_t counted = allocations_of([&] {
        go = true;
        while (done < 2) std::this_thread::yield();
    });
    first.join();
    second.join();
    // Whenever they meet for the first time, a second execution and arena are made; 2000 runs tell that from one each.
    CHECK(counted <= for_a_first_run);
    CHECK(for_a_first_run < 2000);
}
