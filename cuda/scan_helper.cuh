// Help for relays (scan_relay.cu) that leave multiprocessors idle: of each half of a walk, blocks on those take some
// legs in the middle, as strips (scan_strip.cuh), in pieces that several warps take at once.
//
// A unit's helpers first find what its legs do to states, from zero. With that its relay, when it has come to them,
// goes on behind them at once, and tells its helpers the states in front. They then take the legs once more, and store
// y or the merged result. So their exponentials are computed twice, on multiprocessors that would do nothing.
#pragma once

#include "scan_strip.cuh"

namespace vimrt::cuda {

constexpr int helped_parts = 2;  // of a walk: up to the meeting, and behind it

constexpr int helped_warps = 12;  // of a relay

// Legs of a part of a walk that helpers take.
struct HelpedLegs {
    int begin, end;
};
// Of the part's legs from `begin` on, before `end`: so many that both take as long, as was measured
// (docs/performance.md). The relay has those in front while the helpers find out what theirs do: one for each of its
// warps at least. Behind them, and between those of two parts, there are more than two for each, where a part has as
// many as least_helped_tokens make.
constexpr int least_helped_tokens = 2048;
constexpr float helped_share = 0.17F, share_before = 0.43F;
__host__ __device__ inline HelpedLegs helped_legs(int begin, int end) {
    const int count = static_cast<int>(static_cast<float>(end - begin) * helped_share);
    const int before = static_cast<int>(static_cast<float>(end - begin - count) * share_before);
    return {begin + before, begin + before + count};
}

constexpr int helping_warps = 4;  // of a unit
constexpr int helped_units = 3;   // of a block of helpers
static_assert(helping_warps * helped_units == helped_warps);
// Strips of a unit, by the octets of a leg: halves of a column take two octets at a time.
constexpr int most_strips = 2;
constexpr int strips_of_unit(int octets) {
    return most_strips / octets;
}

// How far a unit's relay and its helpers have come: zeros before the kernel begins.
struct alignas(16) Progress {
    unsigned begun[helped_parts];  // whether the states in front of the helpers' legs are there
    unsigned told[helped_parts];   // strips of which it is known what those legs do to them
    unsigned relay_done;           // warps that have stored all y of their own that are merged later
    unsigned helpers_done;
};
// What they tell each other, by lanes of strips: states, and what happens to them.
struct Mail {
    float4 before[helped_parts][most_strips][warp_size];
    StateChange change[helped_parts][most_strips][warp_size];
};

// Of Scan::chunk_states: the progress of all units, direction by direction of each, and then their mail.
struct HelperRoom {
    const Scan& a;
    int units;  // of all images

    // For so many units' directions.
    static constexpr std::size_t progress_bytes(int walks) {
        return static_cast<std::size_t>(walks) * sizeof(Progress);
    }
    static constexpr std::size_t bytes(int walks) {
        return progress_bytes(walks) + static_cast<std::size_t>(walks) * sizeof(Mail);
    }
    __device__ Progress& progress(int unit, int direction) const {
        return static_cast<Progress*>(a.chunk_states)[unit * a.directions + direction];
    }
    __device__ Mail& mail(int unit, int direction) const {
        Progress* const behind = static_cast<Progress*>(a.chunk_states) + units * a.directions;
        return reinterpret_cast<Mail*>(behind)[unit * a.directions + direction];
    }
};

// Blocks of helpers for so many units of each direction, which come before all others.
constexpr __host__ __device__ unsigned helper_blocks(int units, int directions) {
    return static_cast<unsigned>((units + helped_units - 1) / helped_units * directions);
}

// A warp adds one to a number: what its lanes wrote before can be read by whoever waits for it.
__device__ inline void count_up(const Lane& lane, unsigned* number) {
    __syncwarp();
    if (lane.index == 0) count_up(number);
}

// A warp waits until a number that others count up is `count` or more.
__device__ inline void wait_for_count(const Lane& lane, const unsigned* number, unsigned count) {
    if (lane.index == 0) wait_for_count(number, count);
    __syncwarp();
}

// A warp's part in helping a unit: of a strip, one of several pieces of the legs. `octets`: of a leg.
template <typename T, int Rank, int octets>
class Helper {
    static constexpr int strips = strips_of_unit(octets);
    static constexpr int pieces = helping_warps / strips;
    using Own = Strip<T, Rank, parts_of_strip>;

public:
    // Of a warp's shared memory: the strip's, and what it does to states.
    static constexpr int bytes = Own::bytes + warp_size * 20;

    // `unit`: of all images. `memory`: of the block's warp `warp`, those of others `room` bytes apart.
    __device__ Helper(const HelperRoom& mail, int unit, int direction, const Lane& lane, int warp, unsigned memory,
                      int room)
        : a_(mail.a),
          progress_(mail.progress(unit, direction)),
          other_(mail.progress(unit, 1 - direction)),
          mail_(mail.mail(unit, direction)),
          lane_(lane),
          direction_(direction),
          group_(warp / helping_warps),
          strip_(warp % helping_warps % strips),
          piece_(warp % helping_warps / strips),
          strip_of_all_(unit * strips + strip_),
          memory_(memory),
          room_(room) {}

    __device__ void run() const {
        const bool forward = direction_ == 0;
        const int last_octet = (a_.tokens - 1) / octet_tokens, legs = last_octet / octets + 1;
        const int plain = plain_parts<false>(a_, legs, octets * octet_tokens, forward);
        // Of the leg that the backward direction begins with an octet may be missing.
        const int missing = forward ? 0 : legs * octets - 1 - last_octet;
        help<Part::Plain>(helped_legs(0, plain), missing);
        help<Part::Merged>(helped_legs(plain, legs), missing);
    }

private:
    __device__ int image() const { return strip_of_all_ / (a_.channels / strip_channels); }
    __device__ int strip_of_image() const { return strip_of_all_ % (a_.channels / strip_channels); }
    __device__ Own strip_from(int octet) const {
        // What another one has fetched ahead lies, or will lie, in the same memory.
        wait_for_copies<0>();
        __syncwarp();
        return Own(a_, image(), strip_of_image(), direction_, lane_, memory_, octet);
    }

    template <Part part>
    __device__ void help(const HelpedLegs& legs, int missing) const {
        constexpr int p = part == Part::Merged ? 1 : 0;
        const int first = legs.begin * octets - missing, count = (legs.end - legs.begin) * octets;
        const int begin = first + count * piece_ / pieces, end = first + count * (piece_ + 1) / pieces;
        find_change(p, begin, end);
        Own strip = strip_from(begin);
        strip.template begin<Part::Plain>();
        wait_for_count(lane_, &progress_.begun[p], 1);
        strip.begin_with(mail_.before[p][strip_][lane_.index]);
        for (int before = 0; before < piece_; ++before) strip.apply(load_change(before));
        if constexpr (part == Part::Plain) {
            strip.template take<Part::Plain>(end - begin);
            count_up(lane_, &progress_.helpers_done);
        } else {
            wait_for_count(lane_, &other_.relay_done, helped_warps);
            wait_for_count(lane_, &other_.helpers_done, helping_warps);
            strip.begin_merging(image(), strip_of_image(), begin);
            strip.template take<Part::Merged>(end - begin);
        }
    }

    // What the legs do to states: that of each piece to the unit's warps, of all of them to the relay.
    __device__ void find_change(int p, int begin, int end) const {
        Own strip = strip_from(begin);
        strip.template begin<Part::States>();
        strip.template take<Part::States>(end - begin);
        const StateChange own = strip.change();
        if (p > 0) meet_unit();  // all have read those of the part before
        store_shared(added_at(piece_), own.added);
        store_shared(time_at(piece_), own.time);
        meet_unit();
        if (piece_ > 0) return;
        strip.begin_with({0, 0, 0, 0});
        float time = 0;
        for (int piece = 0; piece < pieces; ++piece) {
            const StateChange change = load_change(piece);
            strip.apply(change);
            time += change.time;
        }
        mail_.change[p][strip_][lane_.index] = {strip.states(), time};
        count_up(lane_, &progress_.told[p]);
    }
    __device__ void meet_unit() const { meet(1 + group_, helping_warps * warp_size); }

    // Where what a piece does to the strip's states lies in shared memory.
    __device__ unsigned added_at(int piece) const {
        return memory_ + (piece - piece_) * strips * room_ + Own::bytes + lane_.index * 16;
    }
    __device__ unsigned time_at(int piece) const {
        return memory_ + (piece - piece_) * strips * room_ + Own::bytes + warp_size * 16 + lane_.index * 4;
    }
    __device__ StateChange load_change(int piece) const {
        return {load_shared<float4>(added_at(piece)), load_shared<float>(time_at(piece))};
    }

    const Scan& a_;
    Progress& progress_;
    const Progress& other_;  // of the other direction
    Mail& mail_;
    const Lane& lane_;
    const int direction_, group_;
    const int strip_, piece_;  // of the unit, and of the strip
    const int strip_of_all_;   // images
    const unsigned memory_;
    const int room_;
};

}  // namespace vimrt::cuda
