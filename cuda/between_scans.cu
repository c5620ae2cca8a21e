// The blocks of a cluster own a run of 16 tokens of an image, or of 24. With the three tokens before and behind it,
// which the convolution needs, these are 22 rows, or 30. Each block has an eighth of the columns of every product, or a
// quarter:
//
//   - of out_proj, whose sums with the residual it sends to all blocks, so that each has whole rows to normalise;
//   - of in_proj, the channels of x that it convolves, and the same channels of z;
//   - of x_proj, as that sums over channels, as much of the depth: what it has of a token goes to the block that sums
//     that token's.
//
// So blocks wait for one another twice, and all else lies in a block's own shared memory. What they send tells the
// barrier that it is waited for at; a barrier of the cluster would wait for all that blocks have written anywhere.
// Weights do not depend on the kernel before: those of out_proj are fetched while it still runs, the others with y.
#include "between_scans.h"

#include <algorithm>

#include "activations.h"
#include "launch.h"
#include "lowering_rules.h"
#include "one_of.h"
#include "out_proj.cuh"
#include "shared_rows.cuh"
#include "storage.h"

namespace vimrt::cuda {

namespace {

constexpr int taps = 4;
constexpr int halo = taps - 1;
constexpr int tile = 16;        // rows of a product by a warp
constexpr int depth_parts = 4;  // into which warps split the depth of out_proj

constexpr int greatest_divisor(int of, int limit) {
    while (of % limit != 0) --limit;
    return limit;
}

// Of a block, one of `Blocks` of a cluster: what it has of each matrix, and where that lies in its shared memory.
template <int Width, int Octets, int Blocks>
struct Sizes {
    static constexpr int octets = Octets;  // of a run
    static constexpr int own_tokens = octets * octet_tokens;
    static constexpr int rows = own_tokens + 2 * halo;
    static constexpr int row_tiles = (rows + tile - 1) / tile;
    static constexpr int warps = depth_parts * row_tiles;
    static constexpr int threads = warps * warp_size;
    static constexpr int blocks = Blocks;

    static constexpr int inner = 2 * Width;
    static constexpr int features = Width == 192 ? 48 : 64;
    static constexpr int own_channels = inner / blocks;  // of x and of z
    template <typename T>
    using Out = OutProjection<T, Width, rows, blocks, warps>;
    static constexpr int weight_bytes = Out<__half>::weight_bytes;  // of out_proj, and of x, and of z
    static_assert(weight_bytes == own_channels * Width * 2);
    static constexpr int channel_row = odd_row(own_channels * 2);
    static constexpr int sum_row = Out<__half>::sum_row;
    // Tokens that a thread convolves of two channels, such that as many threads as there are have some.
    static constexpr int conv_tokens = own_tokens / greatest_divisor(own_tokens, threads / own_channels);

    static constexpr int out_weight = 0;
    static constexpr int x_weight = out_weight + weight_bytes;
    // In the wider model, z's weights take the place of out_proj's when those have been used.
    static constexpr bool z_comes_later = Width > 192;
    static constexpr int z_weight = z_comes_later ? out_weight : x_weight + weight_bytes;
    static constexpr int x_proj = x_weight + (z_comes_later ? 1 : 2) * weight_bytes;  // [direction][feature]
    static constexpr int conv = x_proj + 2 * features * channel_row;                  // [direction][tap, or bias]
    static constexpr int sums = conv + 2 * (taps + 1) * own_channels * 4;             // [row]: then the norm of them
    static constexpr int work = sums + rows * sum_row;
    // In the place of the norm when that has been used, in fp32.
    static constexpr int x = sums;  // [row]
    static constexpr int x_row = row_of_pairs(own_channels * 4);
    static_assert(x_row <= sum_row);
    // First the parts of out_proj's sums. When blocks have met, c and x_proj's.
    static constexpr int c = work;                                  // [direction][token]
    static constexpr int inbox = c + 2 * own_tokens * channel_row;  // [block][feature][token]
    static constexpr int inbox_tokens = 2 * own_tokens / blocks;    // of both directions, one behind the other
    static_assert(inbox_tokens % 4 == 0);
    static constexpr int inbox_row = (inbox_tokens + 2) * 4;  // pairs of features lie in different banks
    static constexpr int inbox_bytes = features * inbox_row;
    static constexpr int barriers = std::max(work + Out<__half>::parts_bytes, inbox + blocks * inbox_bytes);
    static constexpr int bytes = barriers + 16;
};

template <typename T, int Width, int Octets, int Blocks>
class Run {
    using S = Sizes<Width, Octets, Blocks>;
    using Out = typename S::template Out<T>;

public:
    __device__ Run(const BetweenScans& a, int image, int first, int block, const char* shared)
        : a_(a),
          rows_{image, first - halo, a.behind.conv.tokens},
          first_(first),
          block_(block),
          thread_(static_cast<int>(threadIdx.x)),
          warp_(thread_ / warp_size),
          lane_(thread_ % warp_size),
          g_(lane_ / 4),
          q_(lane_ % 4),
          shared_(shared_address(shared)),
          out_(a.out, rows_, block, thread_,
               {shared_ + S::out_weight, shared_ + S::work, shared_ + S::sums, sums_barrier()}) {}

    __device__ void take() {
        begin_barriers();
        if (a_.out.y != nullptr) out_.template fetch_weight<fetchers>();
        commit_copies();
        load_norm_weight();
        wait_for_predecessor();
        if (a_.out.y != nullptr) {
            project_out();
            wait_for_bytes(sums_barrier(), 0);
        } else {
            fetch_weights();
            fetch_residual();
            wait_for_cluster();
        }
        wait_for_copies<0>();
        __syncthreads();
        normalise();
        __syncthreads();
        project_in();
        __syncthreads();
        convolve();
        __syncthreads();
        project_x();
        // What nobody in the cluster waits for.
        if (a_.out.y != nullptr) out_.store_sums(halo, halo + S::own_tokens);
        store_z();
        store_octets();
        wait_for_bytes(inbox_barrier(), 0);
        store_projected();
    }

private:
    __device__ unsigned sums_barrier() const { return shared_ + S::barriers; }
    __device__ unsigned inbox_barrier() const { return shared_ + S::barriers + 8; }
    __device__ void begin_barriers() const {
        if (thread_ == 0) {
            begin_barrier(sums_barrier(), 1);
            begin_barrier(inbox_barrier(), 1);
            announce_barriers();
            if (a_.out.y != nullptr) expect_bytes(sums_barrier(), Out::expected_bytes);
            expect_bytes(inbox_barrier(), S::blocks * S::inbox_tokens * S::features * 4);
        }
        arrive_empty_handed();
    }

    __device__ int tokens() const { return rows_.tokens; }
    __device__ bool is_own(int row) const { return static_cast<unsigned>(row - halo) < S::own_tokens; }

    static constexpr int fetchers = 192;
    __device__ void fetch_z_weight() const {
        fetch_rows<fetchers, S::own_channels, Width>(shared_ + S::z_weight, a_.in_weight,
                                                     S::inner + block_ * S::own_channels, thread_);
    }
    __device__ void fetch_weights() const {
        fetch_rows<fetchers, S::own_channels, Width>(shared_ + S::x_weight, a_.in_weight, block_ * S::own_channels,
                                                     thread_);
        if (!S::z_comes_later || a_.out.y == nullptr) fetch_z_weight();
        if (thread_ >= fetchers) fetch_x_proj(thread_ - fetchers);
        const CausalConv& conv = a_.behind.conv;
        constexpr int tap_pieces = S::own_channels / 4;
        static_assert(2 * (taps + 1) * tap_pieces <= S::threads);
        if (thread_ < 2 * (taps + 1) * tap_pieces) {
            const int row = thread_ / tap_pieces;
            const int tap = row % (taps + 1);
            const bool backward = row > taps;
            const float* from = tap == taps ? (backward ? conv.backward_bias : conv.forward_bias)
                                            : (backward ? conv.backward_taps : conv.forward_taps) + tap * S::inner;
            copy_async(shared_ + S::conv + thread_ * piece_bytes,
                       from + block_ * S::own_channels + thread_ % tap_pieces * 4);
        }
        commit_copies();
    }
    // By the other threads.
    __device__ void fetch_x_proj(int thread) const {
        constexpr int pieces = S::own_channels / 8;
        constexpr int step = (S::threads - fetchers) / pieces;  // rows
        const int row = thread / pieces, piece = thread % pieces;
        if (row >= step) return;
        const unsigned to = shared_ + S::x_proj + row * S::channel_row + piece * piece_bytes;
        const T* from = static_cast<const T*>(a_.behind.weight) + row * S::inner + block_ * S::own_channels + piece * 8;
#pragma unroll
        for (int k = 0; k < 2 * S::features; k += step) {
            if (k + step > 2 * S::features && k + row >= 2 * S::features) break;
            copy_async(to + k * S::channel_row, from + k * S::inner);
        }
    }

    // Where no y is added, the residual is what is normalised.
    __device__ void fetch_residual() const {
        constexpr int pieces = Width / 4;
        for (int i = thread_; i < S::rows * pieces; i += S::threads) {
            const int row = i / pieces, piece = i % pieces;
            copy_async(shared_ + S::sums + row * S::sum_row + piece * piece_bytes,
                       a_.out.residual + rows_.in_arrays(row) * Width + piece * 4);
        }
        commit_copies();
    }

    // out_proj, its sums sent. The other weights are fetched with y.
    __device__ void project_out() {
        typename Out::Left y;
        out_.load(y);
        out_.load_residual();
        fetch_weights();
        wait_for_copies<1>();
        __syncthreads();
        typename Out::Sums sum = {};
        out_.multiply(y, sum);
        out_.store_part(sum);
        __syncthreads();
        if constexpr (S::z_comes_later) fetch_z_weight();
        commit_copies();
        wait_for_cluster();  // all blocks have begun
        out_.send_sums();
    }

    // Of the lane's pairs of columns.
    static constexpr int pairs = Width / 2 / warp_size;
    __device__ void load_norm_weight() {
#pragma unroll
        for (int i = 0; i < pairs; ++i)
            norm_weight_[i] = reinterpret_cast<const float2*>(a_.norm_weight)[i * warp_size + lane_];
    }
    // A warp normalises a few rows, in their places.
    __device__ void normalise() const {
        constexpr int own_rows = (S::rows + S::warps - 1) / S::warps;
        const unsigned first = shared_ + S::sums + warp_ * S::sum_row;
        const auto has_row = [&](int k) { return (k + 1) * S::warps <= S::rows || warp_ + k * S::warps < S::rows; };
        float2 pair[own_rows][pairs] = {};
        float squares[own_rows] = {};
#pragma unroll
        for (int k = 0; k < own_rows; ++k) {
#pragma unroll
            for (int i = 0; i < pairs; ++i) {
                float2& two = pair[k][i];
                if (has_row(k))
                    two = load_shared<float2>(first + k * S::warps * S::sum_row + (i * warp_size + lane_) * 8);
                squares[k] = fmaf(two.x, two.x, fmaf(two.y, two.y, squares[k]));
            }
        }
#pragma unroll
        for (int offset = warp_size / 2; offset > 0; offset /= 2) {
#pragma unroll
            for (int k = 0; k < own_rows; ++k) squares[k] += __shfl_xor_sync(all_lanes, squares[k], offset);
        }
        __syncwarp();
#pragma unroll
        for (int k = 0; k < own_rows; ++k) {
            const float scale = rsqrtf(squares[k] * (1.0F / Width) + a_.eps);
#pragma unroll
            for (int i = 0; i < pairs; ++i) {
                const float2 two{pair[k][i].x * scale * norm_weight_[i].x, pair[k][i].y * scale * norm_weight_[i].y};
                if (has_row(k))
                    store_shared(first + k * S::warps * S::sum_row + (i * warp_size + lane_) * 4,
                                 pack_two<T>(two.x, two.y));
            }
        }
    }

    // Of the norm times in_weight^T the block's channels of x, to shared memory, and of z. Warps share out tiles of 16
    // rows and both halves of both.
    static constexpr int in_channels = S::own_channels / 2;  // of a warp
    static constexpr int in_tiles = in_channels / 8;
    __device__ bool has_z() const {
        return warp_ >= S::warps / 2;
    }
    // Of a warp's channels the lane's first two; they lie in every eighth from there.
    __device__ int in_channel() const {
        return warp_ / S::row_tiles % 2 * in_channels + 2 * q_;
    }
    __device__ int in_row(int i) const {
        return warp_ % S::row_tiles * tile + g_ + 8 * i;
    }
    __device__ void project_in() {
        const int tile_row = warp_ % S::row_tiles * tile;
        const unsigned left =
            shared_ + S::sums + min(tile_row + lane_ % 16, S::rows - 1) * S::sum_row + lane_ / 16 * piece_bytes;
        const int weight_row = warp_ / S::row_tiles % 2 * in_channels + lane_ % 8;
        const unsigned right = shared_ + (has_z() ? S::z_weight : S::x_weight) + weight_row * (Width / 8) * piece_bytes;
        float sum[in_tiles][4] = {};
#pragma unroll
        for (int chunk = 0; chunk < Width / 32; ++chunk) {
            unsigned normed[2][4];
            load_matrices(normed[0], left + chunk * 64);
            load_matrices(normed[1], left + chunk * 64 + 32);
#pragma unroll
            for (int tile = 0; tile < in_tiles; ++tile) {
                unsigned weight[4];
                load_matrices(weight, right + tile * 8 * (Width / 8) * piece_bytes +
                                          swizzled(weight_row, chunk * 4 + lane_ / 8) * piece_bytes);
                multiply_add<T>(sum[tile], normed[0], {weight[0], weight[1]});
                multiply_add<T>(sum[tile], normed[1], {weight[2], weight[3]});
            }
        }
        __syncthreads();  // the norm has been read
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = in_row(i);
            const bool there = rows_.exists(row);
#pragma unroll
            for (int tile = 0; tile < in_tiles; ++tile) {
                const float2 two{sum[tile][2 * i], sum[tile][2 * i + 1]};
                z_[i][tile] = pack_two<T>(two.x, two.y);
                // Beyond the image's ends, the convolution takes zeros.
                if (!has_z() && row < S::rows)
                    store_shared(shared_ + S::x + row * S::x_row + (in_channel() + tile * 8) * 4,
                                 there ? two : float2{});
            }
        }
    }
    __device__ void store_z() const {
        if (!has_z()) return;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = in_row(i);
            if (!is_own(row) || !rows_.exists(row)) continue;
            T* z = static_cast<T*>(a_.z) + rows_.in_arrays(row) * S::inner + block_ * S::own_channels + in_channel();
#pragma unroll
            for (int tile = 0; tile < in_tiles; ++tile) *reinterpret_cast<unsigned*>(z + tile * 8) = z_[i][tile];
        }
    }

    // c of both directions, in the order of conv_x_proj_channel(). A thread has a pair of channels and a few tokens.
    __device__ void convolve() const {
        constexpr int conv_tokens = S::conv_tokens;
        constexpr int pairs = S::own_channels / 2;
        constexpr int items = pairs * 2 * (S::own_tokens / conv_tokens);
        static_assert(items <= S::threads);
        if (thread_ < items) {
            const auto item = static_cast<unsigned>(thread_);
            const int pair = static_cast<int>(item % pairs);
            const int direction = static_cast<int>(item / pairs % 2);
            const int first = static_cast<int>(item / pairs / 2) * conv_tokens;
            const unsigned weights = shared_ + S::conv + (direction * (taps + 1) * S::own_channels + pair * 2) * 4;
            float2 tap[taps];
#pragma unroll
            for (int j = 0; j < taps; ++j) tap[j] = load_shared<float2>(weights + j * S::own_channels * 4);
            const auto bias = load_shared<float2>(weights + taps * S::own_channels * 4);
            // In the order in which taps meet them.
            float2 x[conv_tokens + halo];
#pragma unroll
            for (int i = 0; i < conv_tokens + halo; ++i) {
                const int row = direction == 0 ? first + i : first + conv_tokens - 1 + 2 * halo - i;
                x[i] = load_shared<float2>(shared_ + S::x + row * S::x_row + pair * 8);
            }
            const int place = conv_x_proj_place(pair);
#pragma unroll
            for (int t = 0; t < conv_tokens; ++t) {
                float2 sum = bias;
#pragma unroll
                for (int j = 0; j < taps; ++j)
                    sum.x = fmaf(tap[j].x, x[t + j].x, sum.x), sum.y = fmaf(tap[j].y, x[t + j].y, sum.y);
                const int token = direction == 0 ? first + t : first + conv_tokens - 1 - t;
                // An octet's rest is zeros (scan_elements()). Not a choice: the compiler would branch.
                const unsigned there = first_ + token < tokens() ? ~0U : 0U;
                store_shared(shared_ + S::c + (direction * S::own_tokens + token) * S::channel_row + place,
                             pack_two<T>(silu_for_16_bits(sum.x), silu_for_16_bits(sum.y)) & there);
            }
        }
    }

    // Of x_proj c^T what the block's channels add, to the blocks that sum it up. Warps share out directions, tiles of
    // features and octets.
    __device__ void project_x() const {
        constexpr int feature_tiles = S::features / tile;
        constexpr int parts = S::warps / 2 / feature_tiles, part_octets = (S::octets + parts - 1) / parts;
        const int direction = warp_ % 2, feature = warp_ / 2 % feature_tiles * tile;
        const int first = warp_ / 2 / feature_tiles * part_octets;
        if (first >= S::octets) return;
        const auto is_there = [&](int octet) { return first + octet < S::octets; };
        const unsigned left = shared_ + S::x_proj + (direction * S::features + feature + lane_ % 16) * S::channel_row +
                              lane_ / 16 * piece_bytes;
        const unsigned right = shared_ + S::c +
                               (direction * S::own_tokens + first * octet_tokens + lane_ % 8) * S::channel_row +
                               lane_ / 8 % 2 * piece_bytes;
        float sum[part_octets][4] = {};
#pragma unroll
        for (int k = 0; k < S::own_channels / 16; ++k) {
            unsigned weight[4];
            load_matrices(weight, left + k * 32);
#pragma unroll
            for (int n = 0; n < part_octets; n += 2) {
                unsigned c[4];  // of two octets, or one twice
                const int second = n + 1 < part_octets && is_there(n + 1) ? n + 1 : n;
                load_matrices(c, right + k * 32 + (lane_ < 16 ? n : second) * octet_tokens * S::channel_row);
                multiply_add<T>(sum[n], weight, {c[0], c[1]});
                if (n + 1 < part_octets) multiply_add<T>(sum[n + 1], weight, {c[2], c[3]});
            }
        }
#pragma unroll
        for (int n = 0; n < part_octets; ++n) {
            if (!is_there(n)) break;
            const int token = direction * S::own_tokens + (first + n) * octet_tokens + 2 * q_;
            const unsigned there = place_in_block(shared_, token / S::inbox_tokens);
            const unsigned to = there + S::inbox + block_ * S::inbox_bytes + (feature + g_) * S::inbox_row +
                                token % S::inbox_tokens * 4;
#pragma unroll
            for (int i = 0; i < 2; ++i)
                send(to + 8 * i * S::inbox_row, float2{sum[n][2 * i], sum[n][2 * i + 1]}, there + S::barriers + 8);
        }
    }

    // Stores c in octets' order, 16 channels of a direction at a time.
    __device__ void store_octets() const {
        const CausalConv& conv = a_.behind.conv;
        constexpr int columns = S::own_channels / column_channels;
        constexpr int octet_bytes = octet_tokens * column_channels * 2;
        const int octets = (tokens() + octet_tokens - 1) / octet_tokens;
        constexpr int pairs = (S::octets + 1) / 2;
#pragma unroll
        for (int i = warp_; i < 2 * columns * pairs; i += S::warps) {
            const int direction = i / columns % 2, column = i % columns, own = i / columns / 2 * 2;
            const int octet = first_ / octet_tokens + own;
            const int step = direction == 0 ? lane_ % 8 : octet_tokens - 1 - lane_ % 8;
            unsigned values[4];  // of two octets, or one twice, both halves of the column's channels
            const int token = min(own + lane_ / 16, S::octets - 1) * octet_tokens + step;
            load_transposed(values, shared_ + S::c + (direction * S::own_tokens + token) * S::channel_row +
                                        column * 32 + lane_ / 8 % 2 * piece_bytes);
            const std::int64_t to =
                static_cast<std::int64_t>(rows_.image) * (S::inner / column_channels) + block_ * columns + column;
            char* c = static_cast<char*>(direction == 0 ? conv.forward : conv.backward) +
                      (to * octets + octet) * octet_bytes + lane_ * 8;
            if (octet < octets) *reinterpret_cast<uint2*>(c) = uint2{values[0], values[1]};
            if (own + 1 < S::octets && octet + 1 < octets)
                *reinterpret_cast<uint2*>(c + octet_bytes) = uint2{values[2], values[3]};
        }
    }

    // Sums what all blocks have sent. A thread has two features of two tokens.
    __device__ void store_projected() const {
        constexpr int pairs = S::features / 2;
        static_assert(S::inbox_tokens / 2 * pairs <= S::threads);
        if (thread_ >= S::inbox_tokens / 2 * pairs) return;
        const int pair = thread_ % pairs, own = thread_ / pairs * 2;
        float2 sum[2]{};  // of a feature each
#pragma unroll
        for (int block = 0; block < S::blocks; ++block) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const auto of = load_shared<float2>(shared_ + S::inbox + block * S::inbox_bytes +
                                                    (2 * pair + i) * S::inbox_row + own * 4);
                sum[i].x += of.x, sum[i].y += of.y;
            }
        }
        const int row = block_ * S::inbox_tokens + own;
        const int token = first_ + row % S::own_tokens;
        const std::int64_t to = row / S::own_tokens * (static_cast<std::int64_t>(a_.behind.conv.batch) * tokens()) +
                                rows_.in_arrays(halo + row % S::own_tokens);
        unsigned* projected = static_cast<unsigned*>(a_.behind.projected) + to * pairs + pair;
        if (token < tokens()) projected[0] = pack_two<T>(sum[0].x, sum[1].x);
        if (token + 1 < tokens()) projected[pairs] = pack_two<T>(sum[0].y, sum[1].y);
    }

    const BetweenScans& a_;
    const TokenRows rows_;
    const int first_, block_;
    const int thread_, warp_, lane_, g_, q_;
    const unsigned shared_;
    Out out_;
    float2 norm_weight_[pairs];
    unsigned z_[2][in_tiles];
};

template <typename T, int Width, int Octets, int Blocks>
__global__ void __launch_bounds__(Sizes<Width, Octets, Blocks>::threads, 1)
    between_scans_of(const __grid_constant__ BetweenScans a) {
    extern __shared__ float4 shared[];
    let_successor_begin();
    constexpr int own_tokens = Sizes<Width, Octets, Blocks>::own_tokens;
    const int runs = (a.behind.conv.tokens + own_tokens - 1) / own_tokens;
    const int index = static_cast<int>(blockIdx.x) / Blocks;
    Run<T, Width, Octets, Blocks> run(a, index / runs, index % runs * own_tokens, static_cast<int>(blockIdx.x) % Blocks,
                                      reinterpret_cast<const char*>(shared));
    run.take();
}

// Which runs there are, fastest first.
constexpr TokenRun runs_of_192[] = {{2, 8}, {3, 4}}, runs_of_384[] = {{2, 8}};

// Calls function.operator()<T, Width, Octets, Blocks>() with the kernel's.
template <typename F>
void with_kernel(const BetweenScans& a, const TokenRun& run, const F& function) {
    const auto of_width = [&]<typename T, int Width, const auto & Runs>() {
        with_one_of<Runs>(run,
                          [&]<TokenRun Own>() { function.template operator()<T, Width, Own.octets, Own.blocks>(); });
    };
    const auto of_type = [&]<typename T>() {
        a.width == 192 ? of_width.template operator()<T, 192, runs_of_192>()
                       : of_width.template operator()<T, 384, runs_of_384>();
    };
    a.behind.conv.dtype == DType::F16 ? of_type.template operator()<__half>()
                                      : of_type.template operator()<__nv_bfloat16>();
}

}  // namespace

std::span<const TokenRun> between_scans_runs(int width) {
    if (width == 192) return runs_of_192;
    return runs_of_384;
}

bool between_scans_takes(const BetweenScans& a, const DeviceProperties& device) {
    if (!device.clusters || (a.width != 192 && a.width != 384) || !conv_x_proj_takes(a.behind) ||
        a.behind.conv.channels != 2 * a.width)
        return false;
    bool fits = true;
    for (const TokenRun& run : between_scans_runs(a.width)) {
        with_kernel(a, run, [&]<typename T, int Width, int Octets, int Blocks>() {
            using S = Sizes<Width, Octets, Blocks>;
            fits = fits && a.behind.features == S::features && S::bytes <= device.shared_bytes_per_block;
        });
    }
    return fits;
}

TokenRun between_scans_run(const BetweenScans& a, const DeviceProperties& device) {
    for (const TokenRun& run : between_scans_runs(a.width)) {
        if (runs_of(a.behind, run) <= clusters_at_once(device, run.blocks)) return run;
    }
    return {};
}

int between_scans_shared_bytes(const BetweenScans& a, const DeviceProperties& device) {
    int bytes = 0;
    with_kernel(a, a.run,
                [&]<typename T, int Width, int Octets, int Blocks>() { bytes = Sizes<Width, Octets, Blocks>::bytes; });
    while (blocks_with_room(device, bytes) > 1) bytes += 1024;
    return bytes;
}

void between_scans(const BetweenScans& a, cudaStream_t stream) {
    with_kernel(a, a.run, [&]<typename T, int Width, int Octets, int Blocks>() {
        launch("between_scans", between_scans_of<T, Width, Octets, Blocks>,
               {static_cast<unsigned>(runs_of(a.behind, a.run) * Blocks), Sizes<Width, Octets, Blocks>::threads,
                static_cast<std::size_t>(a.shared_bytes), Blocks},
               stream, a);
    });
}

}  // namespace vimrt::cuda
