// Norm, in_proj, convolution and x_proj in one kernel.
//
// A block owns a run of octets of an image. It normalises the run's tokens, with three before and behind them, and
// keeps them in shared memory. Three warpgroups then take the channels in turn, 64 at a time: a product has channels as
// rows and tokens as columns, in an order such that a lane has of two channels a quarter of the run's tokens, one
// behind the other; the three before and behind them come from the lanes beside it. So it has in registers whatever it
// convolves. c of both directions goes to shared memory, and from there to memory as the scan takes it. z's products
// are computed while the other groups come to an end with theirs; then all warps add up x_proj's products with the
// channels of all groups, each some features of some octets. Weights come by bulk copies, some slots ahead.
//
// Where runs are few, the blocks of a cluster share out a run's channels. Each normalises the run's tokens; what x_proj
// adds up of an octet goes to the block that stores it. With as few as that, they may also compute the residual's sums
// with out_proj's results, which are normalised (out_proj.cuh). Where there is room for half as many blocks again,
// these compute z, in twice as many rounds as the others x: a third of a cluster's blocks; or, where clusters would
// become too large, clusters that take two runs' each.
#include "before_scan.h"

#include <algorithm>

#include "activations.h"
#include "launch.h"
#include "lowering_rules.h"
#include "one_of.h"
#include "out_proj.cuh"
#include "warpgroup.cuh"

namespace vimrt::cuda {

namespace {

constexpr int groups = 3;
constexpr int group_warps = warpgroup_size / warp_size;
constexpr int threads = groups * warpgroup_size;
constexpr int warps = threads / warp_size;
constexpr int slab_channels = warpgroup_rows;
constexpr int taps = 4;
constexpr int halo = taps - 1;
constexpr int quarters = 4;       // of a run, for a lane each
constexpr int tile = 16;          // rows and depth of a product by a warp
constexpr int block_bytes = 128;  // of eight rows of 16 bytes, 8 channels by 8 steps

// Depth of a panel of in_proj's weights.
constexpr int weight_depth(int width) {
    return width == 192 ? panel_depth : panel_depth / 2;
}

// `Octets`: of a run. `Cluster`: blocks that share one. `Z`: who computes z. `Adds`: out_proj's results first.
template <int Width, int Octets, int Cluster, ZBy Z, bool Adds>
struct Sizes {
    static constexpr int features = Width == 192 ? 48 : Width == 384 ? 64 : 80;
    static constexpr int octets = Octets;
    static constexpr int cluster = Cluster;
    // Of a run, blocks that compute x; unless they compute z too, it has half as many for that.
    static constexpr int x_blocks = Z == ZBy::Third ? Cluster / 3 * 2 : Cluster;
    static_assert(Z == ZBy::All || (Z == ZBy::Third ? Cluster % 3 == 0 : Cluster % 2 == 0 && !Adds));
    // Of a group, for weights, and the panels of each. Smaller ones keep copies under way where there is little room,
    // and cost more meetings of a group where there is enough.
    static constexpr int slots = Width == 192 ? 3 : Width == 768 || octets == 12 ? 5 : 4;
    static constexpr int slot_panels = Width == 192 || octets > 9 ? 1 : 2;

    static constexpr int channels = 2 * Width;
    static constexpr int slabs = channels / slab_channels;
    static constexpr int rounds = slabs / groups / x_blocks;  // of a block, and of one of z alone
    static constexpr int z_rounds = 2 * rounds;
    // A quarter's pairs of tokens are as many as octets of all quarters: each is a lane's part of a block of eight
    // columns. The last block is the run's halo, which x alone needs.
    static constexpr int pairs = octets;
    static constexpr int blocks = pairs + 1;
    static constexpr int tokens = quarters * 2 * pairs, rows = quarters * 2 * blocks;
    static constexpr int depth = weight_depth(Width), weight_bytes = warpgroup_rows * depth * 2;  // of a panel
    static constexpr int slot_bytes = slot_panels * weight_bytes;
    static constexpr int copies = Width / depth / slot_panels;  // of weights for a slab's x, or z
    static constexpr int slab_copies = (Z == ZBy::All ? 2 : 1) * copies;

    // In x_proj a direction's warps share out features, in tiles, and octets.
    static constexpr int feature_tiles = features / tile;
    static constexpr int octet_parts = Width == 384 ? 3 : 2;
    static constexpr int feature_parts = warps / 2 / octet_parts;
    static constexpr int warp_tiles = (feature_tiles + feature_parts - 1) / feature_parts;
    static constexpr int warp_octets = (octets + octet_parts - 1) / octet_parts;
    static constexpr int missing_octets = octet_parts * warp_octets - octets;          // of the last part
    static constexpr bool missing_tiles = warp_tiles * feature_parts > feature_tiles;  // of the last part
    static_assert(octet_parts * feature_parts * 2 == warps);

    static constexpr int panel_bytes = rows * slab_row_bytes;  // of the normalised rows
    // Where all quarters begin with the same pair of an octet, their lanes would meet in banks where they store c. So
    // pairs lie in exchanged places of their octets there: the `i`th in that of i ^ exchanged(octet), the quarter.
    static constexpr __device__ int exchanged(int octet) {
        return octets % quarters == 0 ? octet / (octets / quarters) : 0;
    }
    static constexpr int c_direction_bytes = slab_channels / 8 * octets * block_bytes;
    static constexpr int c_bytes = 2 * c_direction_bytes;

    static constexpr bool adds = Adds;
    static constexpr int summed_rows = tokens + 2 * halo;
    template <typename T>
    using Out = OutProjection<T, Width, summed_rows, cluster, warps>;
    static constexpr int out_bytes = std::max(Out<__half>::weight_bytes, Out<__half>::parts_bytes);

    // In shared memory: the normalised rows; of each group its slots and c of a slab; barriers of each group's slots,
    // and of all. Out_proj's sums lie where the normalised rows then do, its weight in the place of c.
    static constexpr int panels_bytes = Width / panel_depth * panel_bytes;
    static constexpr int eight_rows = 8 * slab_row_bytes;  // where panels begin
    static constexpr int weights =
        adds ? (std::max(panels_bytes, Out<__half>::sums_bytes) + eight_rows - 1) / eight_rows * eight_rows
             : panels_bytes;
    static constexpr int c = weights + groups * slots * slot_bytes;
    static constexpr int barriers = c + std::max(groups * c_bytes, adds ? out_bytes : 0);
    static constexpr int common_barriers = barriers + groups * slots * 8;
    static constexpr int inbox_barrier = common_barriers + 2 * 8;
    static constexpr int sums_barrier = inbox_barrier + 8;
    static constexpr int bytes = sums_barrier + (adds ? 8 : 0);
    static_assert(slots <= rounds * slab_copies);
    // In the place of the weights when all blocks of the cluster have used theirs, x_proj's sums, which each block
    // sends to all: [block][octet][direction][tile of features][lane].
    static constexpr int sum_bytes = warp_size * 16;  // of a product's
    static constexpr int octet_bytes = 2 * feature_tiles * sum_bytes;
    static constexpr int inbox_octets = (octets + x_blocks - 1) / x_blocks;
    static constexpr int inbox_bytes = inbox_octets * octet_bytes;
    static_assert(x_blocks == 1 || x_blocks * inbox_bytes <= c - weights);
};

template <typename T, int Width, int Octets, int Cluster, ZBy Z, bool Adds>
class Run {
    using S = Sizes<Width, Octets, Cluster, Z, Adds>;
    using Sums = float[S::blocks][4];
    using SumsOfZ = float[S::pairs][4];

public:
    // `first`: octet. `part`: of the run's channels, by the blocks that compute x, or with `of_z` z alone.
    __device__ Run(const BeforeScan& a, int image, int first, int part, bool of_z, unsigned shared)
        : a_(a),
          image_(image),
          first_(first),
          part_(part),
          of_z_(of_z),
          group_(same_for_all_lanes(static_cast<int>(threadIdx.x) / warpgroup_size)),
          warp_(same_for_all_lanes(static_cast<int>(threadIdx.x) / warp_size % group_warps)),
          lane_(static_cast<int>(threadIdx.x)),
          leads_(threadIdx.x % warpgroup_size == 0),
          shared_(shared),
          slots_(shared + S::weights + group_ * S::slots * S::slot_bytes),
          c_(shared + S::c + group_ * S::c_bytes + warp_ * 2 * S::octets * block_bytes),
          barriers_(shared + S::barriers + group_ * S::slots * 8) {}

    // What is in front of the products of x and of z. With a copy of it in each of the two functions behind it, the
    // code of a kernel for few tokens would not stay in the instruction cache (docs/performance.md).
    __device__ void prepare() {
        if constexpr (S::adds) {
            add_out_proj();
        } else {
            begin_copies();
            wait_for_predecessor();
        }
        if (blockIdx.x == 0) {
            for (int i = static_cast<int>(threadIdx.x); i < a_.zeros_count; i += threads) a_.zeros[i] = 0;
        }
        normalise();
        show_to_products();
        __syncthreads();
    }
    __device__ void take() {
        for (int round = 0; round < S::rounds; ++round) {
            Sums x;
            multiply(x);
            if (round > 0) wait_at(c_is_read(), round % 2 ^ 1);
            convolve(round, x);
            arrive_at(c_is_there());
            __syncwarp();
            store_octets<0>(round);
            store_octets<1>(round);
            if constexpr (Z != ZBy::All) {
                if (round + 1 == S::rounds) arrive_empty_handed();
            } else {
                SumsOfZ z;
                multiply(z);
                if (S::x_blocks > 1 && round + 1 == S::rounds) arrive_empty_handed();
                store_z(round, z);
            }
            project(round);
        }
        if constexpr (S::x_blocks > 1) {
            wait_for_cluster();  // all blocks have used their weights
            send_projected();
            wait_for_bytes(inbox_barrier(), 0);
            collect_projected();
        }
        store_projected();
        __syncthreads();
        end_barriers();
    }
    // z alone.
    __device__ void take_z() {
        if constexpr (Z == ZBy::Third) arrive_empty_handed();
        for (int round = 0; round < S::z_rounds; ++round) {
            SumsOfZ z;
            multiply(z);
            store_z(round, z);
        }
        if constexpr (Z == ZBy::Third) wait_for_cluster();
        __syncthreads();
        end_barriers();
    }

private:
    __device__ int own_rounds() const { return of_z_ ? S::z_rounds : S::rounds; }
    __device__ int tokens() const { return a_.behind.conv.tokens; }
    __device__ int last_octet() const { return (tokens() - 1) / octet_tokens; }
    __device__ int octets() const { return min(S::octets, last_octet() + 1 - first_); }
    __device__ void meet_group() const { meet(1 + group_, warpgroup_size); }

    __device__ unsigned slot_barrier(int slot) const { return barriers_ + slot * 8; }
    // At which all threads arrive: with c of a round, and behind x_proj's products with it.
    __device__ unsigned c_is_there() const { return shared_ + S::common_barriers; }
    __device__ unsigned c_is_read() const { return shared_ + S::common_barriers + 8; }
    // At which x_proj's sums arrive.
    __device__ unsigned inbox_barrier() const { return shared_ + S::inbox_barrier; }
    // At which out_proj's do.
    __device__ unsigned sums_barrier() const { return shared_ + S::sums_barrier; }

    // Weights do not depend on the kernels before. Blocks of x and of z have code of their own for it, or racecheck
    // takes a barrier's beginning and what is then expected there for a race.
    __device__ void begin_copies() { of_z_ ? begin_copies<true>() : begin_copies<false>(); }
    template <bool OfZ>
    __device__ void begin_copies() {
        if (threadIdx.x == 0) begin_barrier(c_is_there(), threads), begin_barrier(c_is_read(), threads);
        if (S::x_blocks > 1 && threadIdx.x == 0 && !OfZ) {
            begin_barrier(inbox_barrier(), 1);
            expect_bytes(inbox_barrier(), S::x_blocks * own_octets() * S::octet_bytes);
        }
        if (S::adds && threadIdx.x == 0) {
            begin_barrier(sums_barrier(), 1);
            expect_bytes(sums_barrier(), S::template Out<T>::expected_bytes);
        }
        if (leads_) {
            for (int i = 0; i < S::slots; ++i) begin_barrier(slot_barrier(i), 1);
            announce_barriers();
            for (int i = 0; i < S::slots; ++i) fetch_weights();
        }
    }
    __device__ void end_barriers() const {
        if (threadIdx.x == 0) end_barrier(c_is_there()), end_barrier(c_is_read());
        if (S::x_blocks > 1 && threadIdx.x == 0 && !of_z_) end_barrier(inbox_barrier());
        if (S::adds && threadIdx.x == 0) end_barrier(sums_barrier());
        if (leads_) {
            for (int i = 0; i < S::slots; ++i) end_barrier(slot_barrier(i));
        }
    }
    // The next slot's weights, of those of the group's slabs in the order in which it takes them. In memory a slab's
    // for x come first.
    __device__ void fetch_weights() {
        if (fetched_ >= own_rounds() * S::slab_copies) return;
        const int copy =
            slab(fetched_ / S::slab_copies) * (2 * S::copies) + fetched_ % S::slab_copies + (of_z_ ? S::copies : 0);
        const int slot = fetched_++ % S::slots;
        expect_bytes(slot_barrier(slot), S::slot_bytes);
        copy_bulk(slots_ + slot * S::slot_bytes, static_cast<const char*>(a_.in_weight) + copy * S::slot_bytes,
                  S::slot_bytes, slot_barrier(slot));
    }

    // Begins the copies, and sends the block's sums of out_proj's results and the residual to all blocks.
    __device__ void add_out_proj() {
        using Out = typename S::template Out<T>;
        const TokenRows rows{image_, first_ * octet_tokens - halo, tokens()};
        Out out(a_.out, rows, of_z_ ? S::x_blocks + part_ : part_, static_cast<int>(threadIdx.x),
                {shared_ + S::c, shared_ + S::c, shared_, sums_barrier()});
        out.template fetch_weight<threads>();
        commit_copies();
        begin_copies();
        arrive_empty_handed();
        wait_for_predecessor();
        out.multiply_in_place();
        wait_for_cluster();  // all blocks have begun
        out.send_sums();
        out.store_sums(halo, S::summed_rows - halo);
    }

    // The run's rows to shared memory; zeros where there is no token. A warp takes two tokens, which are neighbours in
    // memory and in rows 2 pair and one on: of the sums' columns 8 j + 2 q and one on, which lane q has, tokens 2 j and
    // one on of quarter q; of the last block, of the run's halo (edge_row()). All are fetched at once, for what a warp
    // waits for most is memory.
    static constexpr int fours = Width / 4, packs = 2 * fours / warp_size;  // of a pair
    static constexpr int period = std::max(3, fours / warp_size);           // packs that many on have the same columns
    static_assert(packs % period == 0);
    __device__ void normalise() const {
        constexpr int pairs = S::rows / 2, warp_pairs = (pairs + warps - 1) / warps;
        constexpr int at_once = Width > 384 ? 2 : warp_pairs;  // for which there are registers
        static_assert(warps % quarters == 0);
        const int warp = group_ * group_warps + warp_;
        const int quarter = warp % quarters;
        constexpr int warp_blocks = warps / quarters;  // from a warp's pair to its next
        // The first of a warp's `pair`th two, of the rows with the run's halo.
        const auto row_of = [&](int pair) {
            const int block = warp / quarters + pair * warp_blocks;
            const bool may_be_last = pair == S::pairs / warp_blocks;
            return may_be_last && block == S::pairs ? edge_row(quarter) : halo + (quarter * S::pairs + block) * 2;
        };
        const int first = first_ * octet_tokens - halo;
        const float* from = a_.out.residual + (static_cast<std::int64_t>(image_) * tokens() + first) * Width;
        const auto load = [&](int row, int four, float(&to)[4]) {
            if constexpr (S::adds) {
                load_four(shared_ + (row + four / fours) * S::template Out<T>::sum_row + four % fours * 16, to);
            } else {
                load_floats(from + row * Width + four * 4, to);
            }
        };
        float weight[period][4];
        unsigned place[packs];
        if constexpr (S::adds) {
            prepare_rows(2 * warp, weight, place);
            wait_for_bytes(sums_barrier(), 0);
            __syncthreads();
        }
#pragma unroll
        for (int begin = 0; begin < warp_pairs; begin += at_once) {
            float values[at_once][packs][4] = {};
#pragma unroll
            for (int i = 0; i < at_once; ++i) {
                const int row = row_of(begin + i);
#pragma unroll
                for (int p = 0; p < packs; ++p) {
                    const int four = p * warp_size + lane_.index;
                    const int token = first + row + four / fours;
                    if (warp + (begin + i) * warps < pairs &&
                        static_cast<unsigned>(token) < static_cast<unsigned>(tokens()))
                        load(row, four, values[i][p]);
                }
            }
            if constexpr (S::adds) {
                static_assert(at_once == warp_pairs);
                __syncthreads();  // the sums have been read
            } else if (begin == 0) {
                prepare_rows(2 * warp, weight, place);
            }
#pragma unroll
            for (int i = 0; i < at_once; ++i) {
                if (warp + (begin + i) * warps >= pairs) break;
                normalise_pair(values[i], weight, place, (begin + i) * 2 * warps * slab_row_bytes);
            }
        }
    }
    // Of the run's halo, the first of two rows for lane q: the first and the second behind the run, the second and the
    // third, the third and the second in front of it, the second and the first.
    __device__ static int edge_row(int q) {
        return q < 2 ? halo + S::tokens + q : q - 2;
    }
    // What all pairs have in common: the norm's weights, and where the packs of a warp's first pair belong, whose rows
    // are `first_row` and the next.
    __device__ void prepare_rows(int first_row, float (&weight)[period][4], unsigned (&place)[packs]) const {
#pragma unroll
        for (int p = 0; p < packs; ++p) {
            const int four = p * warp_size + lane_.index, column = four % fours * 4, row = first_row + four / fours;
            if (p < period) load_floats(a_.norm_weight + column, weight[p]);
            place[p] = shared_ + column / panel_depth * S::panel_bytes + place_in_slab(row, column % panel_depth / 8) +
                       column % 8 * 2;
        }
    }
    __device__ void normalise_pair(const float (&values)[packs][4], const float (&weight)[period][4],
                                   const unsigned (&place)[packs], int to) const {
        float squares[2] = {};  // of both rows
#pragma unroll
        for (int p = 0; p < packs; ++p) {
            float sum = 0;
#pragma unroll
            for (int k = 0; k < 4; ++k) sum = fmaf(values[p][k], values[p][k], sum);
            const bool second = p * warp_size + lane_.index >= fours;
            squares[0] += second ? 0.0F : sum;
            squares[1] += second ? sum : 0.0F;
        }
#pragma unroll
        for (int offset = warp_size / 2; offset > 0; offset /= 2) {
            squares[0] += __shfl_xor_sync(all_lanes, squares[0], offset);
            squares[1] += __shfl_xor_sync(all_lanes, squares[1], offset);
        }
        const float scale[2] = {rsqrtf(squares[0] * (1.0F / Width) + a_.eps),
                                rsqrtf(squares[1] * (1.0F / Width) + a_.eps)};
#pragma unroll
        for (int p = 0; p < packs; ++p) {
            const float own = p * warp_size + lane_.index >= fours ? scale[1] : scale[0];
            float normed[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) normed[k] = values[p][k] * own * weight[p % period][k];
            store_shared(place[p] + to, uint2{pack_two<T>(normed[0], normed[1]), pack_two<T>(normed[2], normed[3])});
        }
    }

    // The next 64 channels of the first rows. Slots are filled again as soon as they may be, or where they are enough
    // for all weights of a slab, at once.
    template <int Blocks>
    __device__ void multiply(float (&sum)[Blocks][4]) {
        constexpr bool at_once = S::slots == S::copies;
        if (at_once) {
            for (int slot = 0; slot < S::slots; ++slot) wait_at(slot_barrier(slot), parity_);
        }
#pragma unroll
        for (int copy = 0; copy < S::copies; ++copy) {
            const int slot = at_once ? copy : slot_;
            if (!at_once) wait_at(slot_barrier(slot), parity_);
            if (!at_once || copy == 0) {
                __syncwarp();
                ready_for_products(sum);
            }
#pragma unroll
            for (int panel = 0; panel < S::slot_panels; ++panel) {
                const int column = (copy * S::slot_panels + panel) * S::depth;
                const auto left = panel_at<S::depth>(slots_ + slot * S::slot_bytes + panel * S::weight_bytes);
                const auto right = panel_at<panel_depth>(shared_ + column / panel_depth * S::panel_bytes) +
                                   column % panel_depth / tile * panel_step;
                begin_products<T, S::depth>(sum, left, right, column > 0);
            }
            commit_products();
            if (at_once) continue;
            if (copy > 0) {
                wait_for_products<1>();
                refill(1);
            }
            slot_ = slot_ + 1 == S::slots ? 0 : slot_ + 1;
            if (slot_ == 0) parity_ ^= 1;
        }
        if (at_once) parity_ ^= 1;
        wait_for_sums(sum);
        refill(at_once ? S::copies : 1);
    }
    // Slots that all have read.
    __device__ void refill(int count) {
        meet_group();
        if (leads_) {
            for (int i = 0; i < count; ++i) fetch_weights();
        }
        __syncwarp();
    }

    // Of all slabs, and of the image's columns, the group's and the warp's in a round.
    __device__ int slab(int round) const {
        return (part_ * own_rounds() + round) * groups + group_;
    }
    __device__ int column(int round) const {
        return slab(round) * (slab_channels / column_channels) + warp_;
    }

    // Token t of the lane's quarter, of row i.
    template <int Blocks>
    __device__ static float token(const float (&sum)[Blocks][4], int i, int t) {
        return sum[t / 2][2 * i + t % 2];
    }

    __device__ void store_z(int round, const SumsOfZ& z) const {
        constexpr int row_bytes = S::channels * 2;
        // Where lanes have tokens: quarter g / 2.
        const int first = first_ * octet_tokens + lane_.g / 2 * 2 * S::pairs + lane_.g % 2;
        char* to = static_cast<char*>(a_.z) + (static_cast<std::int64_t>(image_) * tokens() + first) * row_bytes +
                   column(round) * column_channels * 2 + lane_.q * 8;
#pragma unroll
        for (int p = 0; p < S::pairs; ++p) {
            const uint2 values{transpose(pack_two<T>(token(z, 0, 2 * p), token(z, 0, 2 * p + 1))),
                               transpose(pack_two<T>(token(z, 1, 2 * p), token(z, 1, 2 * p + 1)))};
            store_if(first + 2 * p < tokens(), to + 2 * p * row_bytes, values);
        }
    }

    // Of a direction and one of the lane's channels; halved, as silu_of_half() wants it.
    struct Filter {
        float tap[taps], bias;
    };
    __device__ void load_filters(int channel, Filter& forward, Filter& backward) const {
        const float* from = a_.filters + channel * before_scan_filter_floats;
        load_floats(from + before_scan_filter_place(0, 0), forward.tap);
        load_floats(from + before_scan_filter_place(1, 0), backward.tap);
        const float2 biases = *reinterpret_cast<const float2*>(from + before_scan_filter_place(0, taps));
        forward.bias = biases.x, backward.bias = biases.y;
    }

    // In shared memory c of 8 channels by 8 steps is a block, of an octet a direction's steps; by channels of a warp,
    // its rows g and then those g + 8, and octets. Where in the first octet's a lane's pair of tokens lies, of the
    // forward direction: pairs of all quarters are counted on.
    __device__ unsigned place_of_pair(int p) const {
        const int pair = S::pairs * lane_.q + p;
        return static_cast<unsigned>(pair / 4 * block_bytes + lane_.g * 16 + (pair % 4 ^ S::exchanged(pair / 4)) * 4);
    }
    __device__ unsigned own_c(int direction) const {
        return c_ + direction * S::c_direction_bytes;
    }

    // The lane's tokens of a row, with those on either side of its quarter.
    struct Row {
        const Sums& x;
        int i;
        float before[halo], behind[halo];  // the nearest token first
        __device__ float operator[](int t) const {
            if (t < 0) return before[-1 - t];
            return t < 2 * S::pairs ? token(x, i, t) : behind[t - 2 * S::pairs];
        }
    };
    // What lies on either side comes from the lanes that have the quarters there; of the first quarter what is before,
    // from the last lane, and of the last one what is behind, from the first. These have two tokens of the run's halo
    // each, and get the third from the lane beside (edge_row()).
    __device__ Row row_with_halo(const Sums& x, int i) const {
        const int q = lane_.q;
        const auto from = [](float value, int lane) { return __shfl_sync(all_lanes, value, lane, quarters); };
        const float first = x[S::pairs][2 * i], second = x[S::pairs][2 * i + 1];
        const float third = from(q == 1 ? second : first, q ^ 1);
        const float outer_before[halo] = {second, first, third}, outer_behind[halo] = {first, second, third};
        Row row{x, i};
#pragma unroll
        for (int k = 0; k < halo; ++k) {
            const float last = token(x, i, 2 * S::pairs - 1 - k);
            row.before[k] = from(q == quarters - 1 ? outer_before[k] : last, (q + quarters - 1) % quarters);
            row.behind[k] = from(q == 0 ? outer_behind[k] : token(x, i, k), (q + 1) % quarters);
        }
        return row;
    }

    // c of both directions, to shared memory. A tap is taken to two pairs of tokens in turn.
    static constexpr int pairs_at_once = 2;
    __device__ void convolve(int round, const Sums& x) const {
        Filter forward[2], backward[2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
            load_filters(column(round) * column_channels + channel_of_row(lane_.g, i), forward[i], backward[i]);
        unsigned place[4];
#pragma unroll
        for (int p = 0; p < 4; ++p) place[p] = place_of_pair(p);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const Row row = row_with_halo(x, i);
#pragma unroll
            for (int first = 0; first < S::pairs; first += pairs_at_once) {
                float c[pairs_at_once][4];
                const int count = min(pairs_at_once, S::pairs - first);
#pragma unroll
                for (int direction = 0; direction < 2; ++direction) {
                    const Filter& filter = direction == 0 ? forward[i] : backward[i];
#pragma unroll
                    for (int n = 0; n < count; ++n) c[n][2 * direction] = c[n][2 * direction + 1] = filter.bias;
#pragma unroll
                    for (int j = 0; j < taps; ++j) {
                        const int from = 2 * first + (direction == 0 ? j - halo : halo - j);
#pragma unroll
                        for (int k = 0; k < 2 * count; ++k) {
                            float& sum = c[k / 2][2 * direction + k % 2];
                            sum = fmaf(filter.tap[j], row[from + k], sum);
                        }
                    }
                }
#pragma unroll
                for (int n = 0; n < count; ++n) {
                    const int p = first + n;
                    for (float& value : c[n]) value = silu_of_half(value);
                    const int at = (i * S::octets + p / 4) * block_bytes;
                    store_shared(own_c(0) + place[p % 4] + at, pack_two<T>(c[n][0], c[n][1]));
                    // Its steps begin with the last token.
                    store_shared(own_c(1) + (place[p % 4] ^ 12) + at, pack_two<T>(c[n][3], c[n][2]));
                }
            }
        }
    }

    // Stores the warp's c of a direction in octets' order.
    template <int Direction>
    __device__ void store_octets(int round) const {
        const CausalConv& conv = a_.behind.conv;
        constexpr int octet_bytes = octet_elements * 2, columns = S::channels / column_channels;
        char* to = static_cast<char*>(Direction == 0 ? conv.forward : conv.backward) +
                   ((static_cast<std::int64_t>(image_) * columns + column(round)) * (last_octet() + 1) + first_) *
                       octet_bytes +
                   lane_.index * 8;
        const int count = octets();
        const int left = tokens() - (first_ + count - 1) * octet_tokens;  // in the last octet
        // Of its steps, those with tokens; the rest is zeros (scan_elements()).
        const int pair = lane_.q ^ S::exchanged(count - 1);
        const int first_step = Direction == 0 ? 2 * pair : octet_tokens - 1 - 2 * pair;
        const int second_step = Direction == 0 ? first_step + 1 : first_step - 1;
        const unsigned there = (first_step < left ? 0xFFFFU : 0U) | (second_step < left ? 0xFFFF0000U : 0U);
#pragma unroll
        for (int o = 0; o < S::octets; o += 2) {
            unsigned c[4];
            load_matrices(c, own_c(Direction) + row_of_lane(o + 1 < S::octets) + o * block_bytes);
#pragma unroll
            for (int k = 0; k < 2 && o + k < S::octets; ++k) {
                const unsigned mask = o + k + 1 < count ? ~0U : there;
                const int exchange = ((lane_.index ^ S::exchanged(o + k)) - lane_.index) * 8;
                store_if(o + k < count, to + (o + k) * octet_bytes + exchange, {c[2 * k] & mask, c[2 * k + 1] & mask});
            }
        }
    }
    // The row that a lane points to of both blocks of an octet and of both of another, `step` octets on, or with step 0
    // of the same once more.
    __device__ unsigned row_of_lane(int step) const {
        return (lane_.index / 8 % 2 * S::octets + lane_.index / 16 * step) * block_bytes + lane_.index % 8 * 16;
    }

    // The warp's share of x_proj.
    struct Share {
        int direction, tile, first;  // the first of its feature tiles, and of its octets
    };
    __device__ Share share() const {
        const int warp = group_ * group_warps + warp_, part = warp / 2;
        return {warp % 2, part / S::octet_parts * S::warp_tiles, part % S::octet_parts * S::warp_octets};
    }
    __device__ static bool has_tile(const Share& own, int m) {
        return !S::missing_tiles || own.tile + m < S::feature_tiles;
    }

    // Adds the products of a round's c, a tile of 16 channels at a time; their weights are fetched beforehand.
    __device__ void project(int round) {
        constexpr int depths = groups * group_warps;
        const Share own = share();
        const unsigned c = shared_ + S::c + own.direction * S::c_direction_bytes + own.first * block_bytes;
        const uint4* weights =
            reinterpret_cast<const uint4*>(a_.behind.weight) +
            (((part_ * S::rounds + round) * 2 + own.direction) * depths * S::feature_tiles + own.tile) * warp_size +
            lane_.index;
        uint4 weight[depths][S::warp_tiles];
#pragma unroll
        for (int depth = 0; depth < depths; ++depth) {
#pragma unroll
            for (int m = 0; m < S::warp_tiles; ++m)
                weight[depth][m] = has_tile(own, m) ? weights[(depth * S::feature_tiles + m) * warp_size] : uint4{};
        }
        wait_at(c_is_there(), round % 2);
        __syncwarp();
#pragma unroll
        for (int depth = 0; depth < depths; ++depth) {
            const unsigned from =
                c + depth / group_warps * S::c_bytes + depth % group_warps * 2 * S::octets * block_bytes;
#pragma unroll
            for (int n = 0; n < S::warp_octets; n += 2) {
                const bool pair = n + 1 < S::warp_octets;
                const auto is_there = [&](int octet) {
                    return octet < S::warp_octets - S::missing_octets || own.first + octet < S::octets;
                };
                if (!is_there(n)) break;
                unsigned of[4];
                load_transposed(of, from + row_of_lane(pair && is_there(n + 1)) + n * block_bytes);
#pragma unroll
                for (int m = 0; m < S::warp_tiles; ++m) {
                    const uint4& w = weight[depth][m];
                    multiply_add<T>(projected_[n][m], {w.x, w.y, w.z, w.w}, {of[0], of[1]});
                    if (pair) multiply_add<T>(projected_[n + 1][m], {w.x, w.y, w.z, w.w}, {of[2], of[3]});
                }
            }
        }
        arrive_at(c_is_read());
    }

    // The block of the cluster that stores an octet, which of its octets that is, and how many it has.
    __device__ static int keeper(int octet) {
        return octet % S::x_blocks;
    }
    __device__ static int kept_as(int octet) {
        return octet / S::x_blocks;
    }
    __device__ int own_octets() const {
        return (S::octets - part_ + S::x_blocks - 1) / S::x_blocks;
    }
    // Where in an inbox a lane's sums of one of its octets lie, of the warp's first tile of features.
    __device__ int sums_at(const Share& own, int octet) const {
        return S::weights + kept_as(octet) * S::octet_bytes +
               (own.direction * S::feature_tiles + own.tile) * S::sum_bytes + lane_.index * 16;
    }
    __device__ void send_projected() const {
        const Share own = share();
#pragma unroll
        for (int n = 0; n < S::warp_octets; ++n) {
            const int octet = own.first + n;
            if (octet >= S::octets) break;
            const unsigned there = place_in_block(shared_, keeper(octet));
#pragma unroll
            for (int m = 0; m < S::warp_tiles; ++m) {
                const float(&p)[4] = projected_[n][m];
                if (!has_tile(own, m)) break;
                send(there + part_ * S::inbox_bytes + sums_at(own, octet) + m * S::sum_bytes,
                     float4{p[0], p[1], p[2], p[3]}, there + S::inbox_barrier);
            }
        }
    }
    __device__ void collect_projected() {
        const Share own = share();
#pragma unroll
        for (int n = 0; n < S::warp_octets; ++n) {
            const int octet = own.first + n;
            if (octet >= S::octets || keeper(octet) != part_) continue;
#pragma unroll
            for (int m = 0; m < S::warp_tiles; ++m) {
                float(&p)[4] = projected_[n][m];
                if (!has_tile(own, m)) break;
                p[0] = p[1] = p[2] = p[3] = 0;
#pragma unroll
                for (int block = 0; block < S::x_blocks; ++block) {
                    const auto of =
                        load_shared<float4>(shared_ + block * S::inbox_bytes + sums_at(own, octet) + m * S::sum_bytes);
                    p[0] += of.x, p[1] += of.y, p[2] += of.z, p[3] += of.w;
                }
            }
        }
    }

    __device__ void store_projected() const {
        constexpr int row_bytes = S::features * 2;
        const Share own = share();
        const std::int64_t first_row =
            (static_cast<std::int64_t>(own.direction) * a_.behind.conv.batch + image_) * tokens();
        char* to = static_cast<char*>(a_.behind.projected) + first_row * row_bytes + own.tile * tile * 2 + lane_.q * 8;
        // Where lanes have steps, but for exchanges.
        const int own_step = own.direction == 0 ? lane_.g : octet_tokens - 1 - lane_.g;
#pragma unroll
        for (int n = 0; n < S::warp_octets; ++n) {
            const int octet = own.first + n;
            const int token = (first_ + octet) * octet_tokens + (own_step ^ 2 * S::exchanged(octet));
            const bool there = octet < S::octets && keeper(octet) == part_ && token < tokens();
#pragma unroll
            for (int m = 0; m < S::warp_tiles; ++m) {
                const float(&p)[4] = projected_[n][m];
                const uint2 values{transpose(pack_two<T>(p[0], p[1])), transpose(pack_two<T>(p[2], p[3]))};
                store_if(there && has_tile(own, m), to + static_cast<std::int64_t>(token) * row_bytes + m * tile * 2,
                         values);
            }
        }
    }

    const BeforeScan& a_;
    const int image_, first_, part_;
    const bool of_z_;
    const int group_, warp_;
    const Lane lane_;
    const bool leads_;
    const unsigned shared_, slots_, c_, barriers_;
    int fetched_ = 0;  // slots' weights, by the thread that leads
    int slot_ = 0;     // to multiply with next
    unsigned parity_ = 0;
    float projected_[S::warp_octets][S::warp_tiles][4] = {};
};

template <typename T, int Width, int Octets, int Cluster, ZBy Z, bool Adds>
__global__ void __launch_bounds__(threads, 1) before_scan_of(const __grid_constant__ BeforeScan a) {
    extern __shared__ float4 shared[];
    using S = Sizes<Width, Octets, Cluster, Z, Adds>;
    if (a.lets_begin_first) let_successor_begin();
    const int runs = ((a.behind.conv.tokens + octet_tokens - 1) / octet_tokens + Octets - 1) / Octets;
    int index = static_cast<int>(blockIdx.x) / Cluster, part = static_cast<int>(blockIdx.x) % Cluster;
    bool of_z = false;
    if constexpr (Z == ZBy::Third) {
        if (part >= S::x_blocks) part -= S::x_blocks, of_z = true;
    } else if constexpr (Z == ZBy::Others) {
        constexpr int z_blocks = S::x_blocks / 2;
        const int x_clusters = a.behind.conv.batch * runs;
        if (index >= x_clusters) {
            index = (index - x_clusters) * 2 + part / z_blocks, part %= z_blocks, of_z = true;
            if (index >= x_clusters) return;  // runs are odd
        }
    }
    Run<T, Width, Octets, Cluster, Z, Adds> run(a, index / runs, index % runs * Octets, part, of_z,
                                                shared_address(shared));
    run.prepare();
    if (of_z) {
        run.take_z();
    } else {
        run.take();
    }
    // Not before, unless asked for: the scan's blocks would crowd on the multiprocessors that come free first.
    let_successor_begin();
}

// Which runs there are, as measured on an H100 and an H200 (docs/performance.md): as many at once as the device has
// room for take as long as one.
constexpr TimedRun runs_of_192[] = {{{3, 1}, 11.3}, {{4, 1}, 11.7},  {{5, 1}, 12.5},  {{6, 1}, 13.7},
                                    {{9, 1}, 17.5}, {{12, 1}, 23.3}, {{13, 1}, 24.5}, {{3, 2}, 8.3},
                                    {{4, 2}, 9.0},  {{5, 2}, 9.7},   {{6, 2}, 10.5},  {{9, 2}, 11.9}};
constexpr TimedRun runs_of_384[] = {{{5, 1}, 28},
                                    {{6, 1}, 34},
                                    {{9, 1}, 45},
                                    {{12, 1}, 62.5},
                                    {{13, 1}, 65},
                                    {{5, 2}, 17.5},
                                    {{6, 2}, 19},
                                    {{9, 2}, 23.5},
                                    {{3, 4}, 8.9},
                                    {{4, 4}, 9.9},
                                    {{5, 4}, 10.3},
                                    {{6, 4}, 10.7},
                                    {{9, 4}, 14},
                                    {{3, 4, ZBy::Others}, 7.2},
                                    {{4, 4, ZBy::Others}, 8.3},
                                    {{5, 4, ZBy::Others}, 8.9}};
constexpr TimedRun runs_of_768[] = {{{4, 8}, 14.1},
                                    {{5, 8}, 15.2},
                                    {{3, 8, ZBy::Others}, 10.9},
                                    {{4, 8, ZBy::Others}, 12.3},
                                    {{5, 8, ZBy::Others}, 12.7}};
// Those that add out_proj's results.
constexpr TimedRun adding_runs_of_192[] = {{{3, 2}, 11.6}, {{4, 2}, 14}, {{5, 2}, 14.3}, {{3, 3, ZBy::Third}, 10.4}};

// Calls function.operator()<T, Width, Octets, Cluster, Z, Adds>() with the kernel's.
template <typename F>
void with_kernel(const BeforeScan& a, const TokenRun& run, const F& function) {
    const auto of_width = [&]<typename T, int Width, const auto & Runs, bool Adds = false>() {
        with_one_of<Runs>(run, [&]<TokenRun Own>() {
            function.template operator()<T, Width, Own.octets, Own.blocks, Own.z, Adds>();
        });
    };
    const auto of_type = [&]<typename T>() {
        if (a.adds) return of_width.template operator()<T, 192, adding_runs_of_192, true>();
        if (a.width == 192) return of_width.template operator()<T, 192, runs_of_192>();
        if (a.width == 384) return of_width.template operator()<T, 384, runs_of_384>();
        return of_width.template operator()<T, 768, runs_of_768>();
    };
    a.behind.conv.dtype == DType::F16 ? of_type.template operator()<__half>()
                                      : of_type.template operator()<__nv_bfloat16>();
}

// Of blocks that share a run, and for z of as many that share two.
std::int64_t clusters_for(const BeforeScan& a, const TokenRun& run) {
    const std::int64_t runs = runs_of(a.behind, run);
    return runs + (run.z == ZBy::Others ? (runs + 1) / 2 : 0);
}
// What the kernel takes, what the steps by themselves do, and out_proj, in microseconds, measured likewise.
double time_of_run(const BeforeScan& a, const TimedRun& run, const DeviceProperties& device) {
    return blocks_for(clusters_for(a, run), clusters_at_once(device, run.blocks)) * run.time;
}
double time_of_steps(const BeforeScan& a) {
    const double rows = static_cast<double>(a.behind.conv.batch) * a.behind.conv.tokens;
    if (a.width == 192) return 10 + 0.0021 * rows;
    return a.width == 384 ? 11 + 0.0053 * rows : 16 + 0.004 * rows;
}
constexpr double time_of_out_proj = 5.5;

// Short runs, and those shared out, fill the chip where it would be empty otherwise, which it is not where other steps
// run beside.
constexpr bool fills_the_chip(const TokenRun& run) {
    return run.octets < 6 || run.blocks > 1;
}

}  // namespace

MatrixElement before_scan_in_element(int width, std::int64_t i) {
    const std::int64_t depth = weight_depth(width), panels = width / depth;
    const std::int64_t panel = i / (warpgroup_rows * depth);
    const std::int64_t row = i / depth % warpgroup_rows;
    const std::int64_t piece = piece_in_panel(row, i % depth / 8, depth);
    const std::int64_t channel = panel / (2 * panels) * slab_channels + conv_x_proj_channel(row);
    const bool of_z = panel / panels % 2 == 1;
    return {channel + (of_z ? 2 * width : 0), panel % panels * depth + piece * 8 + i % 8};
}

DirectedElement before_scan_x_proj_element(int features, std::int64_t i) {
    const std::int64_t lane = i / 8 % warp_size, word = i / 2 % 4;
    const std::int64_t tiles = features / tile, depths = groups * group_warps;
    const std::int64_t m = i / 256 % tiles, k = i / 256 / tiles % depths;
    const std::int64_t direction = i / 256 / tiles / depths % 2, round = i / 256 / tiles / depths / 2;
    const std::int64_t row = lane / 4 + word % 2 * 8, depth = lane % 4 * 2 + i % 2 + word / 2 * 8;
    return {static_cast<int>(direction),
            {m * tile + conv_x_proj_channel(row), (round * depths + k) * tile + conv_x_proj_channel(depth)}};
}

std::span<const TimedRun> before_scan_runs(int width, bool adds) {
    if (adds) return width == 192 ? adding_runs_of_192 : std::span<const TimedRun>();
    if (width == 192) return runs_of_192;
    if (width == 384) return runs_of_384;
    return runs_of_768;
}

bool before_scan_takes(const BeforeScan& a, const DeviceProperties& device) {
    if (!device.warpgroup_products || (a.width != 192 && a.width != 384 && a.width != 768) ||
        !conv_x_proj_takes(a.behind) || a.behind.conv.channels != 2 * a.width)
        return false;
    bool fits = true;
    for (const TokenRun& run : before_scan_runs(a.width, a.adds)) {
        with_kernel(a, run, [&]<typename T, int Width, int Octets, int Cluster, ZBy Z, bool Adds>() {
            using S = Sizes<Width, Octets, Cluster, Z, Adds>;
            fits = fits && a.behind.features == S::features && S::bytes <= device.shared_bytes_per_block;
        });
    }
    return fits;
}

TokenRun before_scan_run(const BeforeScan& a, const DeviceProperties& device, bool alone) {
    TimedRun best{{}, time_of_steps(a)};
    const auto choose_among = [&](std::span<const TimedRun> runs) {
        for (const TimedRun& run : runs) {
            if (!alone && fills_the_chip(run)) continue;
            if (const double time = time_of_run(a, run, device); time < best.time) best = {run, time};
        }
    };
    choose_among(before_scan_runs(a.width, false));
    if (!a.adds) return best;
    best = {{}, best.time + time_of_out_proj};
    choose_among(before_scan_runs(a.width, true));
    return best;
}

void before_scan(const BeforeScan& a, cudaStream_t stream) {
    with_kernel(a, a.run, [&]<typename T, int Width, int Octets, int Cluster, ZBy Z, bool Adds>() {
        constexpr int bytes = Sizes<Width, Octets, Cluster, Z, Adds>::bytes;
        launch("before_scan", before_scan_of<T, Width, Octets, Cluster, Z, Adds>,
               {static_cast<unsigned>(clusters_for(a, a.run) * Cluster), threads, bytes, Cluster}, stream, a);
    });
}

}  // namespace vimrt::cuda
