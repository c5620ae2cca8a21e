// The scan by strips: as by octets (scan_octets.cu), but a warp takes half a column, eight channels. Where columns are
// too few to fill the chip there are twice as many strips, and nothing is handed on among warps; what an octet needs
// besides its states is prepared for each strip, so an update takes somewhat more instructions.
//
// A warp stays on one quarter of a multiprocessor, and a strip that has it for itself is 1.6 times as fast as one of
// two. Where there are one and a half for each, the quarters that have one would be idle until those with two are done.
// So three strips of a direction share two quarters, as a trio: they move from warp to warp, such that each has a
// quarter for itself for as long as the others.
#include <algorithm>

#include "launch.h"
#include "lowering_rules.h"
#include "scan_strip.cuh"

namespace vimrt::cuda {

namespace {

constexpr int warps_of_block = 4;  // at least
constexpr int most_warps_of_block = 16;

template <typename T, int Rank>
__global__ void __launch_bounds__(most_warps_of_block* warp_size, 1) scan_strips_of(const __grid_constant__ Scan a) {
    extern __shared__ float4 shared[];
    wait_for_predecessor();
    let_successor_begin();
    const Lane lane(static_cast<int>(threadIdx.x));
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
    const int strips = a.channels / strip_channels, warps = static_cast<int>(blockDim.x) / warp_size;
    const int index = static_cast<int>(blockIdx.x) * (warps / a.directions) + warp / a.directions;
    const bool real = index < a.batch * strips;
    const int own = real ? index : 0;
    using Own = Strip<T, Rank, parts_of_strip>;
    Own strip(a, own / strips, own % strips, warp % a.directions, lane, shared_address(shared) + warp * Own::bytes);
    const int plain = real ? strip.plain_octets() : 0;
    if (real) strip.template begin<Part::Plain>();
    strip.template take<Part::Plain>(plain);
    __syncthreads();
    if (real) strip.begin_merging(own / strips, own % strips, plain);
    strip.template take<Part::Merged>(real ? strip.walked_octets() - plain : 0);
}

constexpr int trio = 3;           // strips
constexpr int quarters = 4;       // of a multiprocessor: a warp is on that of its number's remainder
constexpr int quarter_warps = 4;  // of a trio
constexpr int trio_warps = quarters * quarter_warps;
constexpr int parts_of_trio = 6;  // with one strip on a quarter, others do not make up for what one waits for memory

// A part of a strip's walk, its `number`th: octets from `begin` on, before `end`, in shares of all.
struct Stretch {
    int strip, number, begin, end;
};
// The stretch of the `i`th warp of a direction on one of its two quarters. Strips are by themselves in the order 2, 0,
// 1, for a sixth of the time each, in which they take three shares of their octets, the others two; and once more.
constexpr int shares = 14;
__device__ inline Stretch stretch_of(int quarter, int i) {
    switch (quarter * quarter_warps + i) {
        case 0:
            return {0, 0, 0, 7};
        case 1:
            return {1, 0, 0, 2};
        case 2:
            return {2, 1, 5, 12};
        case 3:
            return {1, 2, 9, 14};
        case 4:
            return {2, 0, 0, 5};
        case 5:
            return {1, 1, 2, 9};
        case 6:
            return {0, 1, 7, 14};
        default:
            return {2, 2, 12, 14};
    }
}

// In shared memory behind the warps': barriers for the meeting of each strip's directions, and for the moves of each
// direction, from stretch to stretch, one with the states.
constexpr int meetings_bytes = 16 * trio;
constexpr int move_bytes = 16 + warp_size * 16;
constexpr int moves = 5;  // of strip 0 one, of the others two

template <typename T, int Rank>
constexpr int trios_bytes() {
    return trio_warps * Strip<T, Rank, parts_of_trio>::bytes + meetings_bytes + 2 * moves * move_bytes;
}

// `One`: one token alone is wanted. A kernel of its own, as the compiler orders one for both such that it is a fortieth
// slower.
template <typename T, int Rank, bool One>
__global__ void __launch_bounds__(trio_warps* warp_size, 1) scan_trios_of(const __grid_constant__ Scan a) {
    using Own = Strip<T, Rank, parts_of_trio>;
    extern __shared__ float4 shared[];
    const unsigned memory = shared_address(shared), meetings = memory + trio_warps * Own::bytes;
    wait_for_predecessor();
    let_successor_begin();
    const Lane lane(static_cast<int>(threadIdx.x));
    const int warp = same_for_all_lanes(static_cast<int>(threadIdx.x) / warp_size);
    const auto move_at = [&](int direction, int move) {
        return meetings + meetings_bytes + (direction * moves + move) * move_bytes;
    };
    // One by each warp: racecheck does not follow a warp that begins several.
    const bool begins = lane.index == 0 && warp < trio + 2 * moves;
    const unsigned own_barrier = warp < trio ? meetings + 16 * warp : move_at(0, warp - trio);
    if (begins) begin_barrier(own_barrier, warp < trio ? 2 * warp_size : warp_size);
    __syncthreads();
    const int direction = warp % quarters / 2;
    const Stretch stretch = stretch_of(warp % 2, warp / quarters);
    // Halves of a column go to neighbouring blocks, where they are always at the same tokens: of their rows of z and of
    // the result each has half of what memory reads and writes at a time.
    const int columns = a.channels / column_channels, half = static_cast<int>(blockIdx.x) % 2;
    const int column = static_cast<int>(blockIdx.x) / 2 * trio + stretch.strip;
    const bool real = column < a.batch * columns;
    const int image = real ? column / columns : 0, strip_of_image = (real ? column % columns : 0) * 2 + half;
    const int octets = walked_parts<One>(a, (a.tokens + octet_tokens - 1) / octet_tokens, octet_tokens, direction == 0);
    const int begin = real ? octets * stretch.begin / shares : 0, end = real ? octets * stretch.end / shares : 0;
    Own strip(a, image, strip_of_image, direction, lane, memory + warp * Own::bytes, begin);
    const unsigned move = move_at(direction, max(2 * stretch.strip - 1, 0) + stretch.number);  // behind the stretch
    if (begin < end) strip.template begin<Part::Plain>();
    if (begin > 0) {
        wait_at(move - move_bytes, 0);
        strip.begin_with(load_shared<float4>(move - move_bytes + 16 + lane.index * 16));
    }
    const int plain = strip.template plain_octets<One>();
    strip.template take<Part::Plain>(min(end, plain) - begin);
    if (real && begin <= plain && (plain < end || end == octets)) {
        arrive_at(meetings + 16 * stretch.strip);
        wait_at(meetings + 16 * stretch.strip, 0);
    }
    const int first = max(begin, plain);
    if (first < end) strip.begin_merging(image, strip_of_image, first);
    strip.template take<Part::Merged>(end - first);
    if (real && end < octets) {
        store_shared(move + 16 + lane.index * 16, strip.states());
        arrive_at(move);
    }
    __syncthreads();
    if (begins) end_barrier(own_barrier);
}

}  // namespace

bool scan_strips_takes(const Scan& a, int warps, const DeviceProperties& device) {
    if (!takes_octets(a) || a.z_stride % 8 != 0 || warps > most_warps_of_block || warps % 4 != 0) return false;
    bool fits = false;
    with_rank(a, [&]<typename T, int Rank>() {
        fits = std::max(warps_of_block, warps) * Strip<T, Rank, parts_of_strip>::bytes <= device.shared_bytes_per_block;
    });
    return fits;
}

bool scan_trios_takes(const Scan& a, const DeviceProperties& device) {
    if (!device.clusters || !scan_strips_takes(a, 0, device) || a.directions != 2) return false;
    bool fits = false;
    with_rank(a, [&]<typename T, int Rank>() { fits = trios_bytes<T, Rank>() <= device.shared_bytes_per_block; });
    return fits;
}

void scan_trios(const Scan& a, cudaStream_t stream) {
    with_rank(a, [&]<typename T, int Rank>() {
        constexpr int bytes = trios_bytes<T, Rank>();
        const unsigned pairs = blocks_for(std::int64_t{a.batch} * (a.channels / column_channels), trio);
        launch("scan_trios", a.wanted < 0 ? scan_trios_of<T, Rank, false> : scan_trios_of<T, Rank, true>,
               {2 * pairs, trio_warps * warp_size, static_cast<std::size_t>(bytes), 1, false}, stream, a);
    });
}

// Set up early behind other kernels, they would crowd on the multiprocessors that come free first.
void scan_strips(const Scan& a, const ScanForm& form, cudaStream_t stream) {
    with_rank(a, [&]<typename T, int Rank>() {
        const int warps = std::max(warps_of_block, form.warps);
        const int strips = a.batch * (a.channels / strip_channels);
        launch("scan_strips", scan_strips_of<T, Rank>,
               {blocks_for(strips, warps / a.directions), static_cast<unsigned>(warps * warp_size),
                static_cast<std::size_t>(warps * Strip<T, Rank, parts_of_strip>::bytes), 1, a.set_up_early},
               stream, a);
    });
}

}  // namespace vimrt::cuda
