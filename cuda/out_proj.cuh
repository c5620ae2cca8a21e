// out_proj and the residual's addition of neighbouring tokens by the blocks of a cluster: each computes an equal part
// of the columns and sends its sums to all, so that each has whole rows to normalise.
#pragma once

#include "out_proj.h"
#include "shared_rows.cuh"

namespace vimrt::cuda {

// Neighbouring tokens of an image, some of which may lie beyond its ends.
struct TokenRows {
    int image, first, tokens;

    __device__ bool exists(int row) const { return static_cast<unsigned>(first + row) < static_cast<unsigned>(tokens); }
    // The row's in arrays of all images; beyond the image's ends that of the token nearest.
    __device__ std::int64_t in_arrays(int row) const {
        return static_cast<std::int64_t>(image) * tokens + min(max(first + row, 0), tokens - 1);
    }
};

// `Rows`: tokens. `Blocks`: of a cluster, of `Warps` each.
template <typename T, int Width, int Rows, int Blocks, int Warps>
class OutProjection {
    static constexpr int tile = 16;  // rows of a product by a warp
    static constexpr int threads = Warps * warp_size;
    static constexpr int inner = 2 * Width;
    static constexpr int own_columns = Width / Blocks;
    static constexpr int row_tiles = (Rows + tile - 1) / tile;
    static constexpr int depth_parts = Warps / row_tiles;
    static constexpr int part_row = row_of_pairs(own_columns * 4);
    static constexpr int part_bytes = Rows * part_row;

public:
    static constexpr int weight_bytes = own_columns * inner * 2;
    static constexpr int parts_bytes = depth_parts * part_bytes;
    static constexpr int sum_row = odd_row(Width * 4);
    static constexpr int sums_bytes = Rows * sum_row;                        // in rows of sum_row
    static constexpr int expected_bytes = Rows * (Width - own_columns) * 4;  // of other blocks, at the barrier

    // Of the block's shared memory: the weight; parts of the sums, in that place or another, until they are sent;
    // the sums of all columns, and the barrier at which they arrive.
    struct Places {
        unsigned weight, parts, sums, barrier;
    };
    __device__ OutProjection(const OutProj& a, const TokenRows& rows, int block, int thread, const Places& at)
        : a_(a),
          rows_(rows),
          block_(block),
          thread_(thread),
          warp_(thread / warp_size),
          g_(thread % warp_size / 4),
          q_(thread % 4),
          at_(at) {}

    // Before the kernel in front is done.
    template <int Fetchers>
    __device__ void fetch_weight() const {
        fetch_rows<Fetchers, own_columns, inner>(at_.weight, a_.weight, block_ * own_columns, thread_);
    }

    // Warps share out tiles of 16 rows and parts of the depth. What a warp takes of y nobody else does, so that it
    // comes without a detour; and that a lane has eight neighbouring columns at once, the order of columns in products
    // is theirs.
    static constexpr int chunks = inner / depth_parts / 32;
    static_assert(inner % (depth_parts * 32) == 0);
    using Left = uint4[chunks][2];
    __device__ void load(Left& y) {
        if (!has_part()) return;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const T* from = static_cast<const T*>(a_.y) + rows_.in_arrays(first_row() + g_ + 8 * i) * a_.y_stride +
                            part() * (inner / depth_parts) + q_ * 8;
#pragma unroll
            for (int chunk = 0; chunk < chunks; ++chunk)
                y[chunk][i] = *reinterpret_cast<const uint4*>(from + chunk * 32);
        }
    }
    __device__ void load_residual() {
#pragma unroll
        for (int i = 0; i < own_fours; ++i)
            if (has(i)) sum_[i] = *reinterpret_cast<const float4*>(a_.residual + element_at(place_of(i)));
    }

    // Of all columns of the block. Behind the weight and a barrier.
    using Sums = float[own_columns / 8][4];
    __device__ void multiply(const Left& y, Sums& sum) const {
        if (!has_part()) return;
#pragma unroll
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const uint4(&of)[2] = y[chunk];
#pragma unroll
            for (int block = 0; block < own_columns / 8; ++block) {
                const int row = block * 8 + g_, piece = (part() * chunks + chunk) * 4 + q_;
                const auto weight =
                    load_shared<uint4>(at_.weight + (row * (inner / 8) + swizzled(row, piece)) * piece_bytes);
                multiply_add<T>(sum[block], {of[0].x, of[1].x, of[0].y, of[1].y}, {weight.x, weight.y});
                multiply_add<T>(sum[block], {of[0].z, of[1].z, of[0].w, of[1].w}, {weight.z, weight.w});
            }
        }
    }
    __device__ void store_part(const Sums& sum) const {
        if (!has_part()) return;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = first_row() + g_ + 8 * i;
            if (row >= Rows) continue;
#pragma unroll
            for (int block = 0; block < own_columns / 8; ++block)
                store_shared(at_.parts + part() * part_bytes + row * part_row + (block * 8 + 2 * q_) * 4,
                             float2{sum[block][2 * i], sum[block][2 * i + 1]});
        }
    }

    // From y to the parts of the sums, which then lie in the weight's place: fetch_weight() is the last that was
    // committed.
    __device__ void multiply_in_place() {
        Left y;
        load(y);
        load_residual();
        wait_for_copies<0>();
        __syncthreads();
        Sums sum = {};
        multiply(y, sum);
        __syncthreads();  // the weight has been read
        store_part(sum);
        __syncthreads();
    }

    // Sums the parts and the residual, behind them and a barrier.
    __device__ void add_parts() {
#pragma unroll
        for (int i = 0; i < own_fours; ++i) {
            if (has(i)) add_parts(i);
        }
    }
    // The same, and sends the sums to all blocks, which have begun.
    __device__ void send_sums() {
#pragma unroll
        for (int i = 0; i < own_fours; ++i) {
            if (!has(i)) break;
            const Place place = place_of(i);
            float4& sum = sum_[i];
            add_parts(i);
            const unsigned to = at_.sums + place.row * sum_row + (block_ * own_columns + place.column) * 4;
            store_shared(to, sum);
#pragma unroll
            for (int on = 1; on < Blocks; ++on) {
                const int other = (block_ + on) % Blocks;
                send(place_in_block(to, other), sum, place_in_block(at_.barrier, other));
            }
        }
    }
    // Of rows `begin` to `end`.
    __device__ void store_sums(int begin, int end) const {
#pragma unroll
        for (int i = 0; i < own_fours; ++i) {
            if (!has(i)) break;
            const Place place = place_of(i);
            if (place.row >= begin && place.row < end && rows_.exists(place.row))
                *reinterpret_cast<float4*>(a_.sum + element_at(place)) = sum_[i];
        }
    }

private:
    __device__ int first_row() const {
        return warp_ % row_tiles * tile;
    }
    __device__ int part() const {
        return warp_ / row_tiles;
    }
    __device__ bool has_part() const {
        return depth_parts * row_tiles == Warps || part() < depth_parts;
    }

    // Four columns of the sums, as a thread computes them, the `i`th of those it has.
    static constexpr int fours = Rows * own_columns / 4;
    static constexpr int own_fours = (fours + threads - 1) / threads;
    struct Place {
        int row, column;
    };
    __device__ Place place_of(int i) const {
        const int four = i * threads + thread_;
        return {four / (own_columns / 4), four % (own_columns / 4) * 4};
    }
    __device__ bool has(int i) const {
        return i * threads + thread_ < fours;
    }
    __device__ void add_parts(int i) {
        const Place place = place_of(i);
        float4& sum = sum_[i];
#pragma unroll
        for (int part = 0; part < depth_parts; ++part) {
            const auto of =
                load_shared<float4>(at_.parts + part * part_bytes + place.row * part_row + place.column * 4);
            sum.x += of.x, sum.y += of.y, sum.z += of.z, sum.w += of.w;
        }
    }
    __device__ std::int64_t element_at(const Place& place) const {
        return rows_.in_arrays(place.row) * Width + block_ * own_columns + place.column;
    }

    const OutProj& a_;
    const TokenRows rows_;
    const int block_, thread_, warp_, g_, q_;
    const Places at_;
    float4 sum_[own_fours];  // the residual, then the sums
};

}  // namespace vimrt::cuda
