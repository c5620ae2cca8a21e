// Our matrix product with packed weights against OpenBLAS, on the shapes of Vim, one core.
//
//     cmake -B build -DVIMRT_BENCH=ON && cmake --build build
//     build/bench/gemm_bench_avx512 $(python -c "import scipy_openblas32 as o;
//     print(o.get_lib_dir())")/libscipy_openblas.so
//
// OpenBLAS is opened at run time from the path given; without one, only our own rates are printed. It multiplies by the
// weight as the file has it (F, K), and by its transpose, whichever is faster.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <random>

#include "kernels/gemm.h"
#include "timing.h"

namespace vimrt::cpu::VIMRT_ISA {

namespace {

using Sgemm = void (*)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda,
                       const float* b, int ldb, float beta, float* c, int ldc);

struct Shape {
    const char* name;
    int rows, depth, columns;
};
constexpr Shape kShapes[] = {
    {"Ti in_proj, 224", 197, 192, 768},    {"Ti out_proj, 224", 197, 384, 192}, {"Ti x_proj, a chunk", 32, 384, 44},
    {"Ti dt_proj, a chunk", 32, 12, 384},  {"Ti patches, 224", 196, 768, 192},  {"Ti in_proj, 1248", 6085, 192, 768},
    {"Ti out_proj, 1248", 6085, 384, 192}, {"S in_proj, 224", 197, 384, 1536},  {"S out_proj, 224", 197, 768, 384},
    {"B in_proj, 224", 197, 768, 3072},    {"B out_proj, 224", 197, 1536, 768}, {"Ti head", 1, 192, 1000},
};

float* random_floats(std::int64_t count) {
    static std::mt19937 generator(1);
    std::uniform_real_distribution<float> values(-1, 1);
    auto* data =
        static_cast<float*>(std::aligned_alloc(64, (static_cast<std::size_t>(count) * sizeof(float) + 63) / 64 * 64));
    for (std::int64_t i = 0; i < count; ++i) data[i] = values(generator);
    return data;
}

void compare(const Shape& s, Sgemm sgemm) {
    float* a = random_floats(std::int64_t{s.rows} * s.depth);
    float* b = random_floats(s.depth * round_up(s.columns, kLanes));
    float* out = random_floats(std::int64_t{s.rows} * s.columns);
    const PackedMatrix packed{b, s.depth, s.columns};
    const double flop = 2.0 * s.rows * s.depth * s.columns;
    const double own = bench::seconds_of([&] {
        gemm(s.rows, a, s.depth, packed, {0, panel_count(packed)}, {}, out, s.columns);
    });
    std::printf("%-22s %5d x %4d x %4d  own %6.1f GFLOP/s", s.name, s.rows, s.depth, s.columns, 1e-9 * flop / own);
    if (sgemm != nullptr) {
        constexpr int row_major = 101, plain = 111, transposed = 112;
        const double as_stored = bench::seconds_of([&] {
            sgemm(row_major, plain, transposed, s.rows, s.columns, s.depth, 1, a, s.depth, b, s.depth, 0, out,
                  s.columns);
        });
        const double turned = bench::seconds_of([&] {
            sgemm(row_major, plain, plain, s.rows, s.columns, s.depth, 1, a, s.depth, b, s.columns, 0, out, s.columns);
        });
        const double best = as_stored < turned ? as_stored : turned;
        std::printf("  OpenBLAS %6.1f GFLOP/s  ratio %.2f", 1e-9 * flop / best, best / own);
    }
    std::printf("\n");
    std::free(a);
    std::free(b);
    std::free(out);
}

}  // namespace

int run_bench(const char* openblas) {
    Sgemm sgemm = nullptr;
    if (openblas != nullptr) {
        void* library = dlopen(openblas, RTLD_NOW);
        if (library == nullptr) {
            std::fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        sgemm = reinterpret_cast<Sgemm>(dlsym(library, "scipy_cblas_sgemm"));
        const auto set_threads = reinterpret_cast<void (*)(int)>(dlsym(library, "scipy_openblas_set_num_threads"));
        if (sgemm == nullptr || set_threads == nullptr) {
            std::fprintf(stderr, "%s is not the library of the scipy-openblas32 package\n", openblas);
            return 1;
        }
        set_threads(1);
    }
    for (const Shape& shape : kShapes) compare(shape, sgemm);
    return 0;
}

}  // namespace vimrt::cpu::VIMRT_ISA

int main(int argc, char** argv) {
    return vimrt::cpu::VIMRT_ISA::run_bench(argc > 1 ? argv[1] : nullptr);
}
