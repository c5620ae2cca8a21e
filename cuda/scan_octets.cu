// The scan by octets (scan_octet.cuh), in 16-bit storage and ScanOrder::Octets: a warp takes a column of 16 channels of
// one direction through octet after octet. What an octet needs besides its states is done between the tokens of the one
// before it. A column's two directions are neighbours in a block, whose warps meet once, half-way. Where the last octet
// has few tokens, steps that are none are left out: one direction's walk begins with them, the other's ends.
//
// Where columns do not fill the chip, each half of their walks is cut into chunks. A first kernel takes every chunk
// from states of zero; the chunks of the first half, then those of the second, begin with the states that follow from
// those of the chunks before.
#include <algorithm>

#include "launch.h"
#include "lowering_rules.h"
#include "scan_octet.cuh"

namespace vimrt::cuda {

namespace {

constexpr int warps_of_block = 2;            // at least
constexpr int most_warps_of_block = 16;      // of whole walks
constexpr int blocks_of_multiprocessor = 8;  // by the registers that leaves a thread, of chunks
constexpr int missing_steps = 3;             // of the last octet, left out where none of them is a token
// Of a lane's eight exponentials of a token, those that the multipliers compute, as was measured (docs/performance.md).
constexpr int polynomials(int rank) {
    return rank == 32 ? 0 : 1;
}

// How the compiler orders loops changes with what is around them, and so do their times, by a hundredth or two. Hence,
// as was measured (docs/performance.md): whether missing steps are left out,
constexpr bool leaves_out_missing(int rank) {
    return rank < 48;
}
// and whether the other direction's y is asked for at once behind the meeting, or where it is about to be merged.
constexpr bool asks_at_once(int rank) {
    return rank == 16;
}

// What a chunk does to states: what it adds to them, from zero, and for how long those before it decay, by channel.
struct ChunkChange {
    float4 added[2][warp_size];
    float time[column_channels];
};

template <typename T, int Rank>
class Walk {
    using Own = Column<T, Rank>;  // octets in turn

public:
    __device__ Walk(const Scan& a, int image, int column, int direction, const Lane& lane, unsigned memory)
        : lane_(lane), column_(a, image, column, direction, lane, memory) {
        column_.load_rates(rate_);
    }

    __device__ const Own& column() const { return column_; }
    __device__ States& states() { return state_; }

    // Makes ready the octet that comes `step`th, and begins to read the next one.
    template <Part part>
    __device__ void begin(int step) {
        at_ = column_.octet_at(step);
        behind_ = column_.octet_behind(at_);
        column_.fetch(at_);
        enter<part>();
    }

    // Begins to read z of the octet at hand, before others are merged: z does not depend on the other direction.
    __device__ void fetch_z() { column_.fetch_z(at_); }
    // And the other direction's y, behind the meeting.
    __device__ void fetch_other() {
        if constexpr (asks_at_once(Rank)) column_.fetch_other(at_);
    }
    // Takes so many octets; to merge them, behind fetch_z() and fetch_other().
    template <Part part>
    __device__ void take(int count) {
        if (count <= 0) return;
        if constexpr (part == Part::Merged && !asks_at_once(Rank)) column_.fetch_other(at_);
#pragma unroll 1
        for (; count > 0; --count) take_octet<part>();
    }

    // Takes the walk's first octet, none of whose first steps is a token.
    __device__ void take_first() {
        take_short<Part::Plain, missing_steps, octet_tokens>();
        turn_ = steps_bytes - turn_;
        at_ = behind_;
        behind_ = column_.octet_behind(behind_);
        enter<Part::Plain>();
    }
    // Takes the walk's last octet, none of whose last steps is a token. `only`: take() had none to merge.
    __device__ void take_last(bool only) {
        if (only && !asks_at_once(Rank)) column_.fetch_other(at_);
        take_short<Part::Merged, 0, octet_tokens - missing_steps>();
    }

    // Tells what the octets taken do to states, which began as zero.
    __device__ void tell(ChunkChange& change) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float(&s)[4] = state_[i];
            change.added[i][lane_.index] = float4{s[0], s[1], s[2], s[3]};
            const float time = sum_of_parts(time_[i]);
            if (lane_.q == 0) change.time[lane_.g + 8 * i] = time;
        }
    }
    __device__ void apply(const ChunkChange& change) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float time = change.time[lane_.g + 8 * i];
            apply_change({change.added[i][lane_.index], time}, rate_[i], state_[i]);
        }
    }

private:
    // Makes ready the octet that was fetched, and begins to read the next one.
    template <Part part>
    __device__ void enter() {
        const unsigned here = column_.buffer(0) + turn_;
        Octet octet;
#pragma unroll
        for (int t = 0; t < 4; ++t) prepare_part(t, here, octet);
        take_over<part>(octet);
        column_.fetch(behind_);
        __syncwarp();
        column_.take_steps(here, 0, delta_);
        find_decays(0, decay_);
    }
    // Takes of an octet the steps from First to Last alone: those before are the walk's first, and those behind its
    // last.
    template <Part part, int First, int Last>
    __device__ void take_short() {
        float gate[2][2], sum[2][2] = {};
        float added[2][2][4];
#pragma unroll
        for (int t = First; t < Last; ++t) {
            if (t == half_steps) column_.take_steps(column_.buffer(0) + turn_, 1, delta_);
            if (t > First) find_decays(t % half_steps, decay_);
            if (t % 2 == 0 || t == First) add_pair(t / 2, added);
            take_step<part>(t, decay_, added, sum);
        }
        if constexpr (part == Part::Merged) {
#pragma unroll
            for (int t = 0; t <= half_steps; ++t) gate_part(t, gate);
        }
        store<part>(sum, gate);
        __syncwarp();
    }
    template <Part part>
    __device__ void take_octet() {
        const unsigned here = column_.buffer(0) + turn_;
        turn_ = steps_bytes - turn_;
        const unsigned there = column_.buffer(0) + turn_;
        Octet next;
        float gate[2][2], sum[2][2] = {};
        States decay[2];
        float added[2][2][4];
        for_each_state([&](int i, int n) { decay[0][i][n] = decay_[i][n]; });
#pragma unroll
        for (int t = 0; t < octet_tokens; ++t) {
            // The next token's decays are on their way while this one's states are taken on.
            if (t % half_steps == half_steps - 1)
                column_.take_steps(t + 1 == octet_tokens ? there : here, (t + 1) / half_steps % 2, delta_);
            find_decays((t + 1) % half_steps, decay[(t + 1) % 2]);
            if (t % 2 == 0) add_pair(t / 2, added);
            take_step<part>(t, decay[t % 2], added, sum);
            prepare_part(t, there, next);
            if constexpr (part == Part::Merged) gate_part(t, gate);
            if (t == 4) {
                column_.fetch(column_.octet_behind(behind_));
                __syncwarp();  // the next octet is prepared
            }
        }
        for_each_state([&](int i, int n) { decay_[i][n] = decay[0][i][n]; });
        if constexpr (part == Part::States) {
            for_each_element([&](int i, int t) { time_[i] += start_[i][t]; });
        } else {
            store<part>(sum, gate);
        }
        __syncwarp();
        take_over<part>(next);
        at_ = behind_;
        behind_ = column_.octet_behind(behind_);
    }

    // What a pair of steps adds to states, by rows.
    __device__ void add_pair(int pair, float (&added)[2][2][4]) const {
        const bool own = lane_.q == pair;
        const unsigned in[2] = {own ? in_.word(0) : 0, own ? in_.word(1) : 0};
#pragma unroll
        for (int i = 0; i < 2; ++i) find_added<T>(added[i], drive_[i], in);
    }
    // States behind step t, with what its pair adds, and what C reads of them.
    template <Part part>
    __device__ void take_step(int t, const States& decay, const float (&added)[2][2][4], float (&sum)[2][2]) {
        for_each_state(
            [&](int i, int n) { state_[i][n] = fmaf(decay[i][n], state_[i][n], added[i][n / 2][t % 2 * 2 + n % 2]); });
        if constexpr (part != Part::States) column_.read(t, state_, out_, sum);
    }
    // exp2(Delta A log2(e)) of the `t`th token of half an octet.
    __device__ void find_decays(int t, States& decay) const {
        for_each_state([&](int i, int n) {
            const float x = delta_[i][t] * rate_[i][n];
            decay[i][n] = n == 0 && i < polynomials(Rank) ? exp2_by_polynomial(x) : exp2_fast(x);
        });
    }
    // Of making ready the octet that was fetched, what is done beside the `t`th token of the one before.
    __device__ void prepare_part(int t, unsigned buffer, Octet& octet) {
        switch (t) {
            case 0:
                column_.turn_and_project(octet, next_in_, next_out_);
                break;
            case 1:
            case 2:
                column_.activate(t - 1, 0, octet);
                column_.activate(t - 1, 1, octet);
                break;
            case 3:
                column_.give_steps(buffer, octet);
                break;
        }
    }
    // The octet that was prepared is the one at hand.
    template <Part part>
    __device__ void take_over(const Octet& octet) {
        in_ = next_in_, out_ = next_out_;
#pragma unroll
        for (int i = 0; i < 2; ++i) take_apart<T>(octet.drive[i], drive_[i]);
        for_each_element(
            [&](int i, int t) { start_[i][t] = part == Part::States ? octet.delta[i][t] : octet.y[i][t]; });
    }

    // What is done of the gates beside the `t`th token; then those of the next octet are fetched.
    __device__ void gate_part(int t, float (&gate)[2][2]) {
        if (t == 0) column_.turn_z();
        if (t >= 1 && t <= 4) {
            const int i = (t - 1) / 2, j = (t - 1) % 2;
            gate[i][j] = column_.gate(i, j);
            start_[i][j] += column_.other(i, j);
        }
        if (t == 5) column_.fetch_z(behind_), column_.fetch_other(behind_);
    }

    template <Part part>
    __device__ void store(const float (&sum)[2][2], const float (&gate)[2][2]) const {
        float y[2][2];
        for_each_element([&](int i, int t) { y[i][t] = sum[i][t] + start_[i][t]; });
        if constexpr (part == Part::Merged) {
            for_each_element([&](int i, int t) { y[i][t] *= gate[i][t]; });
            column_.store_merged(at_, y);
        } else {
            column_.store(at_, y);
        }
    }

    const Lane& lane_;
    Own column_;
    States rate_;
    States state_ = {};
    int at_ = 0, behind_ = 0;  // octets: at hand, and the one that is prepared meanwhile
    unsigned turn_ = 0;        // bytes from the first buffer to that of the octet at hand
    // Of the octet at hand: time steps of its first half and its first decays, what is added to its states and reads of
    // them, and what y begins with.
    float delta_[2][half_steps];
    States decay_;
    unsigned drive_[2][2];
    typename Own::Values in_, next_in_, out_, next_out_;
    float start_[2][2];   // or, where there is no y, the octet's time steps
    float time_[2] = {};  // sums of the time steps of octets taken
};

template <typename T, int Rank>
__global__ void __launch_bounds__(most_warps_of_block* warp_size, 1) scan_octets_of(const __grid_constant__ Scan a) {
    extern __shared__ float4 shared[];
    wait_for_predecessor();
    let_successor_begin();
    const Lane lane(static_cast<int>(threadIdx.x));
    // Blocks of the fewest warps are by images, so that they need not divide, which takes long.
    const int warp = static_cast<int>(threadIdx.x) / warp_size, warps = static_cast<int>(blockDim.x) / warp_size;
    const int columns = a.channels / column_channels, both = a.directions - 1;
    int image = static_cast<int>(blockIdx.y);
    int column = static_cast<int>(blockIdx.x) * (warps >> both) + (warp >> both);
    if (warps > warps_of_block) image = column / columns, column %= columns;
    const bool real = image < a.batch && column < columns;
    Walk<T, Rank> walk(a, real ? image : 0, real ? column : 0, same_for_all_lanes(warp & both), lane,
                       shared_address(shared) + warp * Column<T, Rank>::bytes);
    const bool backward = same_for_all_lanes(warp & both) != 0;
    const bool short_end = leaves_out_missing(Rank) && (a.tokens - 1) % octet_tokens + missing_steps < octet_tokens;
    int plain = real ? walk.column().plain_octets() : 0;
    // Who comes to the short end last has less to do behind the meeting, and merges the octet in the middle.
    if (real && both != 0 && short_end && a.wanted < 0) plain = (walk.column().octets() + backward) / 2;
    const int merged = real ? walk.column().walked_octets() - plain : 0;
    if (real) walk.template begin<Part::Plain>(0);
    int first = short_end && backward && plain > 0, last = short_end && !backward && merged > 0;
    if constexpr (leaves_out_missing(Rank) && !asks_at_once(Rank))
        first = static_cast<int>(kept(first)), last = static_cast<int>(kept(last));
    if (first) walk.take_first();
    walk.template take<Part::Plain>(plain - first);
    if (merged > 0) walk.fetch_z();
    __syncthreads();
    if (merged > 0) walk.fetch_other();
    walk.template take<Part::Merged>(merged - last);
    if (last) walk.take_last(merged == 1);
}

// A chunk of a column's direction: `chunks` of each half of the walk.
struct Chunk {
    int column, direction, index;

    // In the order in which warps take them, from chunk `first` on.
    __device__ Chunk(const Scan& a, int warp, int first) {
        const int units = count(a);
        column = warp % units / a.directions;
        direction = warp % units % a.directions;
        index = first + warp / units;
    }
    static __host__ __device__ int count(const Scan& a) {
        return a.batch * (a.channels / column_channels) * a.directions;
    }
    // The first chunk that there is: one direction alone leaves nothing to be merged later, and has no first half.
    static __host__ __device__ int first(const Scan& a, int chunks) { return a.directions == 1 ? chunks : 0; }
    // Its change, of an array of those of all chunks.
    __device__ ChunkChange& change(const Scan& a, int of) const {
        return static_cast<ChunkChange*>(a.chunk_states)[of * count(a) + column * a.directions + direction];
    }
    // The first step of a chunk.
    static __device__ int first_step(int index, int chunks, int plain, int octets) {
        return index < chunks ? plain * index / chunks : plain + (octets - plain) * (index - chunks) / chunks;
    }
};

// What every chunk but the last does to states; or the results of the first half's or the second half's.
template <typename T, int Rank, Part part>
__global__ void __launch_bounds__(warps_of_block* warp_size, blocks_of_multiprocessor)
    scan_chunks_of(const __grid_constant__ Scan a, int chunks, int first, int last) {
    extern __shared__ float4 shared[];
    wait_for_predecessor();
    let_successor_begin();
    const Lane lane(static_cast<int>(threadIdx.x));
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
    const Chunk chunk(a, static_cast<int>(blockIdx.x) * warps_of_block + warp, first);
    if (chunk.index >= last) return;
    const int columns = a.channels / column_channels;
    Walk<T, Rank> walk(a, chunk.column / columns, chunk.column % columns, chunk.direction, lane,
                       shared_address(shared) + warp * Column<T, Rank>::bytes);
    const int plain = walk.column().plain_octets(), octets = walk.column().walked_octets();
    const int begin = Chunk::first_step(chunk.index, chunks, plain, octets);
    const int end = Chunk::first_step(chunk.index + 1, chunks, plain, octets);
    if (part != Part::States) {
        for (int before = Chunk::first(a, chunks); before < chunk.index; ++before) walk.apply(chunk.change(a, before));
    }
    walk.template begin<part>(begin);
    if constexpr (part == Part::Merged) walk.fetch_z(), walk.fetch_other();
    walk.template take<part>(end - begin);
    if (part == Part::States) walk.tell(chunk.change(a, chunk.index));
}

template <int Rank, typename Kernel, typename... Arguments>
void start(Kernel kernel, dim3 blocks, int warps, bool early, const Scan& a, cudaStream_t stream,
           Arguments... arguments) {
    if (blocks.x == 0) return;
    const Grid grid{blocks, static_cast<unsigned>(warps * warp_size),
                    static_cast<std::size_t>(warps * Column<__half, Rank>::bytes), 1, early};
    launch("scan_octets", kernel, grid, stream, a, arguments...);
}

}  // namespace

bool scan_octets_takes(const Scan& a, int warps) {
    return takes_octets(a) && warps <= most_warps_of_block && warps % 2 == 0;
}

std::size_t scan_octets_chunk_bytes(const Scan& a, int chunks) {
    return chunks == 0 ? 0 : sizeof(ChunkChange) * static_cast<std::size_t>(2 * chunks - 1) * Chunk::count(a);
}

void scan_octets(const Scan& a, const ScanForm& form, cudaStream_t stream) {
    with_rank(a, [&]<typename T, int Rank>() {
        const int chunks = form.chunks;
        if (chunks == 0) {
            const int warps = std::max(warps_of_block, form.warps);
            const dim3 by_images(blocks_for(a.channels / column_channels, warps / a.directions),
                                 static_cast<unsigned>(a.batch));
            const dim3 blocks = warps > warps_of_block ? dim3(blocks_for(Chunk::count(a), warps)) : by_images;
            // Set up early, blocks crowd on the multiprocessors that come free first. Where they do not fill the chip
            // some whole times that costs up to a sixth of a run; otherwise it saves less than a hundredth.
            return start<Rank>(scan_octets_of<T, Rank>, blocks, warps, false, a, stream);
        }
        const int all = 2 * chunks, first = Chunk::first(a, chunks);
        const auto blocks = [&](int count) { return blocks_for(Chunk::count(a) * count, warps_of_block); };
        start<Rank>(scan_chunks_of<T, Rank, Part::States>, blocks(all - 1 - first), warps_of_block, true, a, stream,
                    chunks, first, all - 1);
        if (first == 0)
            start<Rank>(scan_chunks_of<T, Rank, Part::Plain>, blocks(chunks), warps_of_block, true, a, stream, chunks,
                        0, chunks);
        start<Rank>(scan_chunks_of<T, Rank, Part::Merged>, blocks(chunks), warps_of_block, true, a, stream, chunks,
                    chunks, all);
    });
}

}  // namespace vimrt::cuda
