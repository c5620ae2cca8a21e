// A run of a size seen before allocates nothing, on the host (operator new) or on the device (what the driver has
// left), and threads with streams of their own get what they get alone: device_allocation_test MODEL
#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "require.h"
#include "vimrt/vimrt.h"

using vimrt::cuda::test::require;

namespace {

std::atomic<bool> counting{false};
std::atomic<long> allocations{0};

void* counted(std::size_t bytes, std::size_t alignment) {
    if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
    const std::size_t padded = (bytes + alignment - 1) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, padded > 0 ? padded : alignment);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

}  // namespace

// These take the place of the standard library's for the executable and what it loads.
void* operator new(std::size_t bytes) {
    return counted(bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
    return counted(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
    std::free(memory);
}

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
    std::printf("%s %s\n", holds ? "ok    " : "FAILED", what);
    if (!holds) ++failures;
}

std::size_t free_bytes() {
    std::size_t free = 0, total = 0;
    require(cudaDeviceSynchronize());
    require(cudaMemGetInfo(&free, &total));
    return free;
}

// An input, its results and a stream.
struct Caller {
    Caller(const vimrt::Engine& engine, std::int64_t batch, bool on_device, float value) {
        const vimrt::Shape shape{batch, 3, 224, 224};
        vimrt::Tensor host = vimrt::Tensor::empty(shape);
        float* const pixels = host.data<float>();
        for (std::int64_t i = 0; i < shape.elements(); ++i) pixels[i] = value * static_cast<float>(i % 17 - 8) / 8.0F;
        input = on_device ? engine.empty(shape) : host;
        if (on_device) require(cudaMemcpy(input.raw(), host.raw(), host.bytes(), cudaMemcpyDefault));
        const vimrt::Shape logits = engine.output_shapes(input, {}).front();
        results.push_back(on_device ? engine.empty(logits) : vimrt::Tensor::empty(logits));
        if (on_device) require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    }
    Caller(const Caller&) = delete;
    Caller& operator=(const Caller&) = delete;
    ~Caller() {
        if (stream != nullptr) cudaStreamDestroy(stream);
    }

    void run(const vimrt::Engine& engine, int times) {
        for (int i = 0; i < times; ++i) engine.run(input, {}, results, {stream});
    }
    std::vector<float> logits() const {
        require(cudaStreamSynchronize(stream));
        std::vector<float> values(static_cast<std::size_t>(results.front().shape().elements()));
        require(cudaMemcpy(values.data(), results.front().raw(), results.front().bytes(), cudaMemcpyDefault));
        return values;
    }

    vimrt::Tensor input;
    std::vector<vimrt::Tensor> results;
    cudaStream_t stream = nullptr;
};

vimrt::EngineOptions on_gpu(std::int64_t max_memory = 0) {
    vimrt::EngineOptions options;
    options.device = "cuda";
    options.max_memory = max_memory;
    return options;
}

void test_a_thousand_runs_allocate_nothing(const char* model, bool on_device) {
    const vimrt::Engine engine(model, on_gpu());
    Caller caller(engine, 2, on_device, 1.0F);
    caller.run(engine, 3);
    const std::size_t before = free_bytes();
    allocations = 0;
    counting = true;
    caller.run(engine, 1000);
    counting = false;
    const std::size_t after = free_bytes();
    std::printf("       %ld host allocations, %lld bytes of the device\n", allocations.load(),
                static_cast<long long>(before) - static_cast<long long>(after));
    expect(allocations == 0, on_device ? "1000 runs on a stream allocate nothing on the host"
                                       : "1000 runs from the host allocate nothing on the host");
    expect(before == after, on_device ? "1000 runs on a stream allocate nothing on the device"
                                      : "1000 runs from the host allocate nothing on the device");
}

void test_threads_and_engines_keep_out_of_each_others_way(const char* model, std::int64_t max_memory) {
    const vimrt::Engine engines[2]{vimrt::Engine(model, on_gpu(max_memory)), vimrt::Engine(model, on_gpu(max_memory))};
    constexpr int threads = 6;
    std::vector<std::unique_ptr<Caller>> callers;
    std::vector<std::vector<float>> expected;
    for (int i = 0; i < threads; ++i) {
        const vimrt::Engine& engine = engines[i % 2];
        callers.push_back(std::make_unique<Caller>(engine, 1 + i % 3, i != 5, 0.1F * static_cast<float>(i + 1)));
        callers.back()->run(engine, 1);
        expected.push_back(callers.back()->logits());
    }
    std::vector<std::thread> running;
    for (int i = 0; i < threads; ++i) {
        running.emplace_back([&, i] { callers[static_cast<std::size_t>(i)]->run(engines[i % 2], 200); });
    }
    for (std::thread& thread : running) thread.join();
    bool same = true;
    for (std::size_t i = 0; i < threads; ++i) {
        const std::vector<float> found = callers[i]->logits();
        same = same && std::memcmp(found.data(), expected[i].data(), found.size() * sizeof(float)) == 0;
    }
    expect(same, max_memory > 0 ? "six threads with streams and a memory limit get the bits that they get alone"
                                : "six threads with streams get the bits that they get alone");
    if (max_memory > 0) {
        expect(engines[0].arena_bytes() <= max_memory && engines[1].arena_bytes() <= max_memory, "the limit holds");
    }
}

int run(const char* model) {
    test_a_thousand_runs_allocate_nothing(model, true);
    test_a_thousand_runs_allocate_nothing(model, false);
    test_threads_and_engines_keep_out_of_each_others_way(model, 0);
    const std::int64_t peak = vimrt::Engine(model, on_gpu()).program(3, 224, 224).peak;
    test_threads_and_engines_keep_out_of_each_others_way(model, peak + (4 << 20));
    return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: device_allocation_test MODEL\n");
        return 2;
    }
    try {
        return run(argv[1]);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "device_allocation_test: %s\n", error.what());
        return 1;
    }
}
