// out_proj and the residual's addition of few rows. A block has 48 columns, whose weights are in its shared memory
// before there is any y, and some of the rows; its warps share out the depth (out_proj.cuh).
#include "out_proj.h"

#include <algorithm>

#include "launch.h"
#include "lowering_rules.h"
#include "one_of.h"
#include "out_proj.cuh"

namespace vimrt::cuda {

namespace {

constexpr int block_columns = 48;
constexpr int warps = 12;
constexpr int threads = warps * warp_size;

template <int Width>
constexpr int column_parts = Width / block_columns;

template <typename T, int Width, int Rows>
using Out = OutProjection<T, Width, Rows, column_parts<Width>, warps>;

// The weights, then in their place the parts of the sums.
template <int Width, int Rows>
constexpr int shared_bytes = std::max(Out<__half, Width, Rows>::weight_bytes, Out<__half, Width, Rows>::parts_bytes);

template <typename T, int Width, int Rows>
__global__ void __launch_bounds__(threads, 1) add_out_proj_of(const __grid_constant__ AddOutProj a) {
    extern __shared__ float4 shared[];
    let_successor_begin();
    using Own = Out<T, Width, Rows>;
    const unsigned memory = shared_address(shared);
    const TokenRows rows{0, static_cast<int>(blockIdx.y) * Rows, static_cast<int>(a.rows)};  // as if of one image
    Own out(a.out, rows, static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x), {memory, memory, 0, 0});
    out.template fetch_weight<threads>();
    commit_copies();
    wait_for_predecessor();
    out.multiply_in_place();
    out.add_parts();
    out.store_sums(0, Rows);
}

// Rows of a block: with more, and for more columns in all, a library's product is as fast.
constexpr int rows_of_384[] = {32, 48, 64}, rows_of_768[] = {32};

// Calls function.operator()<T, Width, Rows>() with the kernel's.
template <typename F>
void with_kernel(const AddOutProj& a, int block_rows, const F& function) {
    const auto of_width = [&]<typename T, int Width, const auto & AllRows>() {
        with_one_of<AllRows>(block_rows, [&]<int Rows>() { function.template operator()<T, Width, Rows>(); });
    };
    const auto of_type = [&]<typename T>() {
        a.width == 384 ? of_width.template operator()<T, 384, rows_of_384>()
                       : of_width.template operator()<T, 768, rows_of_768>();
    };
    a.dtype == DType::F16 ? of_type.template operator()<__half>() : of_type.template operator()<__nv_bfloat16>();
}

}  // namespace

std::span<const int> add_out_proj_block_rows(int width) {
    if (width == 384) return rows_of_384;
    return width == 768 ? rows_of_768 : std::span<const int>();
}

int add_out_proj_rows(const AddOutProj& a, const DeviceProperties& device) {
    if (!device.clusters) return 0;  // nor are kernels set up ahead
    for (const int rows : add_out_proj_block_rows(a.width)) {
        bool at_once = false;
        with_kernel(a, rows, [&]<typename T, int Width, int Rows>() {
            at_once = (a.rows + Rows - 1) / Rows * column_parts<Width> <= device.multiprocessors &&
                      shared_bytes<Width, Rows> <= device.shared_bytes_per_block;
        });
        if (at_once) return rows;
    }
    return 0;
}

void add_out_proj(const AddOutProj& a, cudaStream_t stream) {
    with_kernel(a, a.block_rows, [&]<typename T, int Width, int Rows>() {
        launch("add_out_proj", add_out_proj_of<T, Width, Rows>,
               {dim3(column_parts<Width>, blocks_for(a.rows, Rows)), threads, shared_bytes<Width, Rows>}, stream, a);
    });
}

}  // namespace vimrt::cuda
