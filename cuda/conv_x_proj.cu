// Convolution and x_proj of both directions.
//
// A block owns a run of tokens of an image. It goes through the channels 64 at a time: fetches x, with the three tokens
// before and behind the run, and the projections' weights for these channels; makes c of both directions from x in
// shared memory; stores it as the scan takes it; and adds its product with the weights on tensor cores. So c is never
// read back. Of long runs a warpgroup has the products of a direction, which are computed while c is stored. Where
// there are few runs, the blocks of a cluster split the channels of one, and sum their products.
#include "conv_x_proj.h"

#include <algorithm>
#include <cmath>

#include "activations.h"
#include "launch.h"
#include "lowering_rules.h"
#include "storage.h"
#include "warpgroup.cuh"

namespace vimrt::cuda {

namespace {

constexpr int width = 4;  // taps
constexpr int halo = width - 1;
constexpr int warp_size = 32;
constexpr int warp_tokens = 16;   // of a direction
constexpr int lane_channels = 2;  // that a thread convolves

// Tokens of a block, two warps (one for each direction) for every 16.
template <int Tokens>
constexpr int threads_of = Tokens / warp_tokens * 2 * warp_size;

template <int Tokens>
constexpr int blocks_wanted = Tokens == 32 ? 4 : 2;

// In shared memory: weights of both directions and x, of two slabs each, and c of both directions.
template <int Features, int Tokens>
struct Layout {
    static constexpr int weight_bytes = Features * slab_row_bytes;  // of a direction
    static constexpr int c_bytes = Tokens * slab_row_bytes;         // likewise
    static constexpr int x_bytes = (Tokens + 2 * halo) * slab_row_bytes;
    static constexpr int c = 2 * 2 * weight_bytes;
    static constexpr int x = c + 2 * c_bytes;
    static constexpr int bytes = x + 2 * x_bytes;
};

template <typename T, int Features, int Tokens>
class Run {
    using Sizes = Layout<Features, Tokens>;
    static constexpr int threads = threads_of<Tokens>;
    static constexpr int blocks_of_8 = Features / 8;
    // Where a direction's warps are a warpgroup, as long runs' are.
    static constexpr bool by_warpgroups = has_warpgroup_products && Tokens == warpgroup_rows;
    static constexpr int group_warps = warpgroup_size / warp_size;

public:
    // `part`: which of a.run.blocks. `warp`: of the block.
    __device__ Run(const ConvXProj& a, int image, int first, int part, int warp, unsigned shared)
        : a_(a),
          image_(image),
          first_(first),
          part_(part),
          thread_(static_cast<int>(threadIdx.x)),
          lane_(thread_ % warp_size),
          direction_(by_warpgroups ? warp / group_warps : warp % 2),
          first_row_((by_warpgroups ? warp % group_warps : warp / 2) * warp_tokens),
          shared_(shared) {}

    __device__ void take() {
        const int slabs = a_.conv.channels / slab / a_.run.blocks;
        const int first_slab = part_ * slabs;
        const bool works = first_ + first_row_ < a_.conv.tokens;
        Fetch fetch(*this, first_slab);
        fetch.next(0);
        for (int s = 0; s < slabs; ++s) {
            const int stage = s % 2;
            Filter filter;
            load_filter(first_slab + s, filter);
            wait_for_copies<0>();
            if constexpr (by_warpgroups) {
                show_to_products();
                wait_for_products<0>();  // with the slab before
            }
            __syncthreads();
            if (s + 1 < slabs) fetch.next(stage ^ 1);
            if (works && direction_ == 0) convolve<0>(stage, filter);
            if (works && direction_ == 1) convolve<1>(stage, filter);
            if constexpr (by_warpgroups) {
                begin_multiplying(stage, s > 0);
                if (works) store_octets(first_slab + s);
            } else if (works) {
                __syncwarp();
                store_octets(first_slab + s);
                multiply_slab<T>(sum_, own_c(), weights(stage), lane_);
                __syncwarp();
            }
        }
        if constexpr (by_warpgroups) wait_for_sums(sum_);
        if (a_.run.blocks > 1) {
            sum_of_cluster();
        } else if (works) {
            store();
        }
    }

private:
    // Brings slab after slab of x and of the weights.
    class Fetch {
        static constexpr int rows = threads / slab_pieces;  // at a time
        static_assert(rows % 8 == 0, "a thread's rows lie at the same place of theirs");

    public:
        __device__ Fetch(const Run& run, int first_slab)
            : first_(run.thread_ / slab_pieces),
              tokens_(run.a_.conv.tokens),
              first_token_(run.first_ - halo + first_),
              x_row_bytes_(run.a_.conv.x_stride * 2),
              weight_row_bytes_(run.a_.conv.channels * 2),
              weight_to_(run.shared_ + place_in_slab(first_, run.thread_ % slab_pieces)),
              x_to_(weight_to_ + Sizes::x) {
            const int piece = first_slab * slab_row_bytes + run.thread_ % slab_pieces * 16;
            const std::int64_t token = static_cast<std::int64_t>(run.image_) * tokens_ + first_token_;
            x_ = static_cast<const char*>(run.a_.conv.x) + token * x_row_bytes_ + piece;
            weight_ =
                static_cast<const char*>(run.a_.weight) + static_cast<std::int64_t>(first_) * weight_row_bytes_ + piece;
        }

        // To the `stage`th of two.
        __device__ void next(int stage) {
            const unsigned x = x_to_ + stage * Sizes::x_bytes, weight = weight_to_ + stage * 2 * Sizes::weight_bytes;
#pragma unroll
            for (int row = 0; row < Tokens + 2 * halo; row += rows) {
                if (row + rows > Tokens + 2 * halo && row + first_ >= Tokens + 2 * halo) break;
                const bool there = static_cast<unsigned>(first_token_ + row) < static_cast<unsigned>(tokens_);
                copy_async_or_clear(x + row * slab_row_bytes, x_ + row * x_row_bytes_, there);
            }
#pragma unroll
            for (int row = 0; row < 2 * Features; row += rows) {
                if (row + rows > 2 * Features && row + first_ >= 2 * Features) break;
                copy_async(weight + row * slab_row_bytes, weight_ + row * weight_row_bytes_);
            }
            commit_copies();
            x_ += slab_row_bytes;
            weight_ += slab_row_bytes;
        }

    private:
        const int first_;
        const int tokens_, first_token_;
        const int x_row_bytes_, weight_row_bytes_;
        const unsigned weight_to_, x_to_;
        const char* x_;
        const char* weight_;
    };

    // Of the warp's direction and a lane's channels. Asked for in front of a slab's meeting, as it takes as long.
    struct Filter {
        float tap[width][lane_channels], bias[lane_channels];
    };
    __device__ void load_filter(int s, Filter& filter) const {
        const CausalConv& conv = a_.conv;
        const int channel = s * slab + lane_ * lane_channels;
        const float* taps = direction_ == 0 ? conv.forward_taps : conv.backward_taps;
        load_floats((direction_ == 0 ? conv.forward_bias : conv.backward_bias) + channel, filter.bias);
#pragma unroll
        for (int j = 0; j < width; ++j) load_floats(taps + j * conv.channels + channel, filter.tap[j]);
    }

    // The warp's 16 tokens, of all the slab's channels.
    template <int Direction>
    __device__ void convolve(int stage, Filter& filter) const {
        // Halved, as silu_of_half() wants it.
#pragma unroll
        for (int k = 0; k < lane_channels; ++k) {
            filter.bias[k] *= 0.5F;
#pragma unroll
            for (int j = 0; j < width; ++j) filter.tap[j][k] *= 0.5F;
        }
        const unsigned from = shared_ + Sizes::x + stage * Sizes::x_bytes + first_row_ * slab_row_bytes;
        float x[warp_tokens + halo][lane_channels];
#pragma unroll
        for (int i = 0; i < warp_tokens + halo; ++i) {
            const int row = i + Direction * halo;
            const float2 two =
                unpack_two<T>(load_shared<unsigned>(from + row * slab_row_bytes + (lane_ * 4 ^ row % 8 * 16)));
            x[i][0] = two.x, x[i][1] = two.y;
            const int t = i - halo;
            if (t < 0) continue;
            float c[lane_channels];
#pragma unroll
            for (int k = 0; k < lane_channels; ++k) {
                float sum = filter.bias[k];
#pragma unroll
                for (int j = 0; j < width; ++j) sum = fmaf(filter.tap[j][k], x[Direction == 0 ? t + j : i - j][k], sum);
                c[k] = silu_of_half(sum);
            }
            store_pair(t, pack_two<T>(c[0], c[1]));
        }
        // An octet's rest is zeros (scan_elements()).
#pragma unroll 1
        for (int t = a_.conv.tokens - first_ - first_row_; t < warp_tokens; ++t) store_pair(t, 0);
    }
    // To the warp's row t of c.
    __device__ void store_pair(int t, unsigned pair) const {
        store_shared(own_c() + t * slab_row_bytes + (conv_x_proj_place(lane_) ^ t % 8 * 16), pair);
    }
    __device__ unsigned c() const {
        return shared_ + Sizes::c + direction_ * Sizes::c_bytes;
    }
    __device__ unsigned own_c() const {
        return c() + first_row_ * slab_row_bytes;
    }
    __device__ unsigned weights(int stage) const {
        return shared_ + (2 * stage + direction_) * Sizes::weight_bytes;
    }

    // Stores the warp's 16 tokens of the slab in octets' order.
    __device__ void store_octets(int s) const {
        const CausalConv& conv = a_.conv;
        constexpr int octet_bytes = octet_tokens * column_channels * 2;
        const int octets = (conv.tokens + octet_tokens - 1) / octet_tokens;
        const int first = (first_ + first_row_) / octet_tokens;
        const int step = direction_ == 0 ? lane_ % 8 : octet_tokens - 1 - lane_ % 8;
        const unsigned from = own_c() + (lane_ / 16 * 8 + step) * slab_row_bytes;
        const int at = (lane_ / 8 % 2 ^ step) * 16;
        const std::int64_t column =
            static_cast<std::int64_t>(image_) * (conv.channels / column_channels) + s * (slab / column_channels);
        char* to = static_cast<char*>(direction_ == 0 ? conv.forward : conv.backward) +
                   (column * octets + first) * octet_bytes + lane_ * 8;
        const bool both = first + 1 < octets;
#pragma unroll
        for (int i = 0; i < slab / column_channels; ++i) {
            unsigned values[4];  // of two octets, both halves of the column's channels
            load_transposed(values, from + (at ^ i * 32));
            *reinterpret_cast<uint2*>(to) = uint2{values[0], values[1]};
            if (both) *reinterpret_cast<uint2*>(to + octet_bytes) = uint2{values[2], values[3]};
            to += octets * octet_bytes;
        }
    }

    // Begins the products of the direction's c with the slab's weights, once all its warps have theirs in shared
    // memory.
    __device__ void begin_multiplying(int stage, bool add) {
        show_to_products();
        meet(1 + direction_, warpgroup_size);
        ready_for_products(sum_);
        const auto left = panel_at<panel_depth>(c()), right = panel_at<panel_depth>(weights(stage));
        begin_products<T, slab>(sum_, left, right, add);
        commit_products();
    }

    // Sums what the cluster's blocks have, each an equal part of it, by way of their shared memory.
    __device__ void sum_of_cluster() const {
        const CausalConv& conv = a_.conv;
        __syncthreads();  // the slabs have been read
        const int row = direction_ * Tokens + first_row_ + lane_ / 4;
#pragma unroll
        for (int block = 0; block < blocks_of_8; ++block) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                store_shared(shared_ + ((row + 8 * half) * Features + block * 8 + lane_ % 4 * 2) * 4,
                             float2{sum_[block][2 * half], sum_[block][2 * half + 1]});
            }
        }
        meet_cluster();
        const std::int64_t rows = static_cast<std::int64_t>(conv.batch) * conv.tokens;
        for (int at = (part_ * threads + thread_) * 4; at < 2 * Tokens * Features; at += a_.run.blocks * threads * 4) {
            const int direction = at / Features / Tokens;
            const int token = first_ + at / Features % Tokens;
            if (token >= conv.tokens) continue;
            float sum[4] = {};
            for (int part = 0; part < a_.run.blocks; ++part) {
                const float4 four = load_from_block(shared_ + at * 4, part);
                sum[0] += four.x, sum[1] += four.y, sum[2] += four.z, sum[3] += four.w;
            }
            store_floats(static_cast<T*>(a_.projected) +
                             (direction * rows + static_cast<std::int64_t>(image_) * conv.tokens + token) * Features +
                             at % Features,
                         sum);
        }
        meet_cluster();  // nobody reads a block that has ended
    }

    __device__ void store() const {
        const CausalConv& conv = a_.conv;
        const std::int64_t rows = static_cast<std::int64_t>(conv.batch) * conv.tokens;
        T* to = static_cast<T*>(a_.projected) + (direction_ * rows + image_ * conv.tokens) * Features;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int token = first_ + first_row_ + lane_ / 4 + 8 * half;
            if (token >= conv.tokens) continue;
#pragma unroll
            for (int block = 0; block < blocks_of_8; ++block) {
                const float two[2] = {sum_[block][2 * half], sum_[block][2 * half + 1]};
                store_floats(to + static_cast<std::int64_t>(token) * Features + block * 8 + lane_ % 4 * 2, two);
            }
        }
    }

    const ConvXProj& a_;
    const int image_, first_, part_;
    const int thread_, lane_;
    const int direction_, first_row_;  // of the warp's products
    const unsigned shared_;
    float sum_[blocks_of_8][4] = {};
};

template <typename T, int Features, int Tokens>
__global__ void __launch_bounds__(threads_of<Tokens>, blocks_wanted<Tokens>)
    convolve_and_project(const __grid_constant__ ConvXProj a) {
    extern __shared__ float4 shared[];
    const int runs = (a.conv.tokens + Tokens - 1) / Tokens;
    const int index = static_cast<int>(blockIdx.x) / a.run.blocks;
    wait_for_predecessor();
    let_successor_begin();
    Run<T, Features, Tokens> run(a, index / runs, index % runs * Tokens, static_cast<int>(blockIdx.x) % a.run.blocks,
                                 same_for_all_lanes(static_cast<int>(threadIdx.x) / warp_size), shared_address(shared));
    run.take();
}

// Octets of a run. Each block reads all weights of its channels. Where they are much, long runs read them less often,
// and of many tokens there are enough of them without sharing out channels.
constexpr int short_run = 4, long_run = 8;
constexpr int much_to_read = 80;  // features
constexpr std::int64_t many_tokens = 16384;
// Blocks of a cluster at most; and blocks on a multiprocessor, where other steps take their part of the device.
constexpr int max_blocks(int octets, bool alone) {
    if (octets == short_run) return 8;
    return alone ? 4 : 2;
}
constexpr int max_beside_others = 2;

// Calls function.operator()<T, Features, Tokens>() with those of the kernel for runs of so many octets.
template <typename F>
void with_kernel(const ConvXProj& a, int octets, const F& function) {
    constexpr int short_tokens = short_run * octet_tokens, long_tokens = long_run * octet_tokens;
    const auto of_type = [&]<typename T>() {
        if (octets == long_run && a.features == much_to_read)
            return function.template operator()<T, much_to_read, long_tokens>();
        if (octets != short_run) throw std::logic_error("no kernel takes such runs");
        switch (a.features) {
            case 48:
                return function.template operator()<T, 48, short_tokens>();
            case 64:
                return function.template operator()<T, 64, short_tokens>();
            case much_to_read:
                return function.template operator()<T, much_to_read, short_tokens>();
        }
        throw std::logic_error("the fused projection has no such width");
    };
    a.conv.dtype == DType::F16 ? of_type.template operator()<__half>() : of_type.template operator()<__nv_bfloat16>();
}

// Microseconds that a block takes for the channels of a slab, where as many as `beside` share a multiprocessor, and for
// all else, as measured with 80 features (docs/performance.md).
constexpr double time_besides = 4;
constexpr double time_of_slab(int octets, int beside) {
    return octets == short_run ? 1.0 + 0.2 * beside : 1.2 + 0.3 * beside;
}
// As many clusters as there is room for take as long as one.
double time_of_runs(const ConvXProj& a, const TokenRun& run, const DeviceProperties& device, bool alone) {
    int room = 0;  // on a multiprocessor
    with_kernel(a, run.octets, [&]<typename T, int Features, int Tokens>() {
        room = std::clamp(blocks_with_room(device, Layout<Features, Tokens>::bytes), 1, blocks_wanted<Tokens>);
    });
    if (!alone) room = std::min(room, max_beside_others);
    const std::int64_t runs = runs_of(a, run);
    const int beside = std::min(room, static_cast<int>(blocks_for(runs * run.blocks, device.multiprocessors)));
    return blocks_for(runs, room * clusters_at_once(device, run.blocks)) *
           (time_besides + a.conv.channels / slab / run.blocks * time_of_slab(run.octets, beside));
}

}  // namespace

bool conv_x_proj_takes(const ConvXProj& a) {
    const CausalConv& conv = a.conv;
    return conv.dtype != DType::F32 && conv.width == width && conv.channels % slab == 0 && conv.x_stride % 8 == 0 &&
           (a.features == 48 || a.features == 64 || a.features == 80);
}

TokenRun conv_x_proj_run(const ConvXProj& a, const DeviceProperties& device, bool alone) {
    const bool reads_much = a.features == much_to_read;
    if (reads_much && std::int64_t{a.conv.tokens} * a.conv.batch >= many_tokens) return {long_run, 1};
    TimedRun best{{}, HUGE_VAL};
    for (const int octets : {short_run, long_run}) {
        if (octets == long_run && !reads_much) break;
        for (int blocks = 1; blocks <= (device.clusters ? max_blocks(octets, alone) : 1); ++blocks) {
            if (a.conv.channels / slab % blocks != 0) continue;
            const TokenRun run{octets, blocks};
            if (const double time = time_of_runs(a, run, device, alone); time < best.time) best = {run, time};
        }
    }
    return best;
}

void conv_x_proj(const ConvXProj& a, cudaStream_t stream) {
    with_kernel(a, a.run.octets, [&]<typename T, int Features, int Tokens>() {
        const auto split = static_cast<unsigned>(a.run.blocks);
        launch("conv_x_proj", convolve_and_project<T, Features, Tokens>,
               {static_cast<unsigned>(runs_of(a, a.run)) * split, threads_of<Tokens>, Layout<Features, Tokens>::bytes,
                split},
               stream, a);
    });
}

}  // namespace vimrt::cuda
