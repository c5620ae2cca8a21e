// Times an engine on the GPU with its input and output there: engine_bench MODEL DTYPE BATCH ROWS COLUMNS [RUNS
// [MAX_MEMORY]]
//
// Prints one line: the median milliseconds of a run by CUDA events, after warm-up, images/s, and bytes of activations.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "event_timer.h"
#include "require.h"
#include "vimrt/vimrt.h"

using vimrt::cuda::test::EventTimer;
using vimrt::cuda::test::require;

namespace {

int bench(int argc, char** argv) {
    const std::string dtype = argv[2];
    const std::int64_t batch = std::atoll(argv[3]), rows = std::atoll(argv[4]), columns = std::atoll(argv[5]);
    const int runs = argc > 6 ? std::atoi(argv[6]) : 50;
    vimrt::EngineOptions options;
    options.device = "cuda";
    options.dtype = dtype == "fp32" ? vimrt::DType::F32 : dtype == "fp16" ? vimrt::DType::F16 : vimrt::DType::BF16;
    options.max_memory = argc > 7 ? std::atoll(argv[7]) : 0;
    const vimrt::Engine engine(argv[1], options);

    const vimrt::Shape shape{batch, 3, rows, columns};
    std::vector<float> pixels(static_cast<std::size_t>(shape.elements()));
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (float& pixel : pixels) pixel = normal(generator);
    void* input = nullptr;
    require(cudaMalloc(&input, pixels.size() * sizeof(float)));
    require(cudaMemcpy(input, pixels.data(), pixels.size() * sizeof(float), cudaMemcpyHostToDevice));
    const vimrt::Tensor in = vimrt::Tensor::view(input, shape, vimrt::DType::F32, engine.device());
    const vimrt::Shape logits = engine.output_shapes(in, {}).front();
    void* output = nullptr;
    require(cudaMalloc(&output, static_cast<std::size_t>(logits.elements()) * sizeof(float)));
    vimrt::Tensor out = vimrt::Tensor::view(output, logits, vimrt::DType::F32, engine.device());

    cudaStream_t stream = nullptr;
    require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const double median = static_cast<double>(
        EventTimer(stream).median_ms(5, runs, [&] { engine.run(in, {}, std::span(&out, 1), {stream}); }));
    std::printf("%-24s %s B%-4lld %lldx%-5lld %9.3f ms  %10.1f images/s  %8.2f MiB\n",
                argv[1] + std::max<long>(0, static_cast<long>(std::string(argv[1]).rfind('/')) + 1), dtype.c_str(),
                static_cast<long long>(batch), static_cast<long long>(rows), static_cast<long long>(columns), median,
                1e3 * static_cast<double>(batch) / median, static_cast<double>(engine.arena_bytes()) / (1 << 20));
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 6) {
        std::fprintf(stderr, "usage: engine_bench MODEL DTYPE BATCH ROWS COLUMNS [RUNS [MAX_MEMORY]]\n");
        return 2;
    }
    try {
        return bench(argc, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "engine_bench: %s\n", error.what());
        return 1;
    }
}
