// The selective scan of both directions, with the time step's projection and softplus before it and the gated merge
// behind.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "device.h"
#include "vimrt/tensor.h"

namespace vimrt::cuda {

constexpr int octet_tokens = 8;
constexpr int column_channels = 16;

// How c and y of a direction lie in memory.
enum class ScanOrder {
    Rows,    // (batch, tokens, channels)
    Octets,  // by columns of 16 channels and octets of 8 tokens, as a warp takes them: octet_order_index()
};

// Where c of a token's channel lies in ScanOrder::Octets: column by column of an image, octet by octet, and by lane of
// a warp as scan_octet.cuh has them, four elements each. Octets are those of the tokens' order; within one, the
// backward direction's steps begin at its last token.
inline std::int64_t octet_order_index(int tokens, int channels, int image, int token, int channel, bool backward) {
    const std::int64_t octets = (tokens + octet_tokens - 1) / octet_tokens;
    const std::int64_t column =
        static_cast<std::int64_t>(image) * (channels / column_channels) + channel / column_channels;
    const int step = backward ? octet_tokens - 1 - token % octet_tokens : token % octet_tokens;
    const int in_column = channel % column_channels;
    const int g = in_column / 4 * 2 + in_column % 2;  // the lane's row, and whether it is the upper one
    const int upper = in_column % 4 / 2;
    const std::int64_t lane = (column * octets + token / octet_tokens) * 32 + g * 4 + step / 2;
    return lane * 4 + upper * 2 + step % 2;
}
// Elements of an image's c of a direction in an order: an octet that ends beyond the last token is whole, with zeros
// where there is no token.
inline std::int64_t scan_elements(int tokens, int channels, ScanOrder order) {
    const int rows = order == ScanOrder::Rows ? tokens : (tokens + octet_tokens - 1) / octet_tokens * octet_tokens;
    return static_cast<std::int64_t>(rows) * channels;
}

// h_t = exp(Delta_t A) h_{t-1} + (Delta_t c_t) B_t, y_t = C_t . h_t + D c_t, h = 0 before the first token, with
// Delta_t = softplus(dt_weight delta_t + dt_bias). The backward direction walks its tokens from the last to the first;
// its rows are in the order of the tokens all the same.
struct ScanDirection {
    const void* c = nullptr;          // batch times scan_elements()
    const void* projected = nullptr;  // (batch, tokens, rank + 2 states): delta, B and C of each token
    const void* dt_weight = nullptr;  // (channels, rank)
    const float* dt_bias = nullptr;   // (channels)
    const float* decay = nullptr;     // (channels, states): A log2(e), A = -exp(A_log)
    const float* skip = nullptr;      // (channels): D
    void* y = nullptr;                // like c; may be c
};

// With `merged`, the result is factor (y_forward + y_backward) SiLU(z) there, and the directions' y are room to work
// in. Without it the directions' y are the result.
struct Scan {
    ScanDirection forward, backward;
    int directions = 2;  // 1: forward alone
    ScanOrder order = ScanOrder::Rows;
    void* merged = nullptr;  // (batch, tokens, channels), rows merged_stride elements apart
    std::int64_t merged_stride = 0;
    const void* z = nullptr;  // (batch, tokens, channels), rows z_stride elements apart
    std::int64_t z_stride = 0;
    float factor = 1.0F;
    int wanted = -1;  // with `merged`, the only token whose result is wanted, and others' may be anything; -1: all are
    int batch = 0, tokens = 0, channels = 0;
    int states = 0;                // 16, 32 or 64: fewer are padded with states whose B is zero
    int rank = 0;                  // a multiple of 16, padded with zeros
    DType dtype = DType::F32;      // of c, projected, dt_weight, z, y and merged
    bool set_up_early = false;     // the kernel in front lets the scan be set up when scan_set_up_first() wants it
    void* chunk_states = nullptr;  // scan_room() bytes, whose first scan_zeros() are zeros before a run
};

// How a scan is spread over the chip.
struct ScanForm {
    enum Kind {
        Channels,  // a thread for each channel, token after token: any shape
        Columns,   // a warp for each column of 64 channels, where there are 16 states, token after token
        Octets,    // a warp for each column of 16 channels, eight tokens at a time
        Strips,    // the same for each half of a column
        Trios,     // the same, three of them taking turns at two quarters of a multiprocessor
        Relay,     // `warps` for each column of 16 channels, taking turns at eight tokens
        Halves,    // `warps` for each half of a column, taking turns at 16 tokens
    };
    Kind kind = Channels;
    int chunks = 0;  // of each half of a walk by octets, whose states are computed beforehand: more exponentials, but
                     // more to do at once; 0: whole
    int warps = 0;   // of a relay; of octets and strips, those of a block, where it is to have a multiprocessor for
                     // itself: they get on evenly, and are done at one time; 0: as few as may be
    bool helped = false;  // a relay, by blocks on multiprocessors that relays leave idle

    friend bool operator==(const ScanForm&, const ScanForm&) = default;
};

// scan_forms.cpp
const char* name_of(ScanForm::Kind kind);

// The form that serves the shape and order best on the device. All forms compute the same; which is faster was measured
// (docs/performance.md). `may_be_helped`: nothing else runs beside the scan, and whoever runs before it writes
// scan_zeros().
ScanForm choose_scan_form(const Scan& a, const DeviceProperties& device, bool may_be_helped = false);
// Whether a form can compute the shape and order on the device; and forms that can.
bool scan_takes(const Scan& a, const ScanForm& form, const DeviceProperties& device);
std::vector<ScanForm> scan_forms(const Scan& a, const DeviceProperties& device);

// Whether a form had better be set up once all blocks of the kernel in front have begun, or else when they end.
bool scan_set_up_first(const ScanForm& form);

// Whether a form is no slower for its results in the place of z.
bool scan_merges_over_z(const Scan& a, const ScanForm& form);

// Into what a batch in ScanOrder::Octets is best split, where that was measured (docs/performance.md): rounds of so
// many images, one after the other; and a round into so many branches, whose scans may run side by side.
std::vector<int> scan_rounds(const Scan& a, const DeviceProperties& device);
int scan_branches(const Scan& a, const DeviceProperties& device);

// Bytes of Scan::chunk_states that the form needs, and how many of them are to be zeros.
std::size_t scan_room(const Scan& a, const ScanForm& form);
std::size_t scan_zeros(const Scan& a, const ScanForm& form);

void bidirectional_scan(const Scan& a, const ScanForm& form, cudaStream_t stream);

// scan_over_channels.cu: ScanOrder::Rows.
void scan_over_channels(const Scan& a, cudaStream_t stream);

// scan_columns.cu: ScanOrder::Rows, channels in fours.
bool scan_columns_takes(const Scan& a);
void scan_columns(const Scan& a, cudaStream_t stream);
std::size_t scan_columns_shared_bytes(const Scan& a);

// scan_octets.cu: ScanOrder::Octets, 16-bit storage, 16 states, the published models' ranks, results merged.
bool scan_octets_takes(const Scan& a, int warps = 0);
void scan_octets(const Scan& a, const ScanForm& form, cudaStream_t stream);
std::size_t scan_octets_chunk_bytes(const Scan& a, int chunks);

// scan_strips.cu: the same.
bool scan_strips_takes(const Scan& a, int warps, const DeviceProperties& device);
void scan_strips(const Scan& a, const ScanForm& form, cudaStream_t stream);
// The same of both directions, compute capability 9.0 or newer.
bool scan_trios_takes(const Scan& a, const DeviceProperties& device);
void scan_trios(const Scan& a, cudaStream_t stream);

// scan_relay.cu: the same, on a device with clusters. Forms of the kinds Relay and Halves. Of so many tokens or fewer
// they are set up early, whatever runs before.
constexpr int early_relay_tokens = 1024;
bool scan_relay_takes(const Scan& a, const ScanForm& form, const DeviceProperties& device);
void scan_relay(const Scan& a, const ScanForm& form, cudaStream_t stream);
std::size_t scan_relay_room(const Scan& a, const ScanForm& form);
std::size_t scan_relay_zeros(const Scan& a, const ScanForm& form);

}  // namespace vimrt::cuda
