// The scan in every form against the recurrence in fp64: states, ranks, odd sizes, one direction and two, merged or
// not. VIMRT_SCAN_FORM, where it is set, names the only form to be tested.
#include "bidirectional_scan.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "check.h"
#include "device_array.h"

using namespace vimrt;
using namespace vimrt::cuda;
using namespace vimrt::cuda::test;

namespace {

struct Case {
    int batch, tokens, channels, states, rank;
    DType dtype = DType::F32;
    int directions = 2;
    bool merged = true;
    bool in_place = true;  // y in the place of c, merged results in that of z
    ScanOrder order = ScanOrder::Rows;
    int wanted = -1;  // token; -1: all
};

// Of rows of tokens, those that the case wants.
std::vector<double> wanted_of(const Case& s, const std::vector<double>& rows) {
    if (s.wanted < 0) return rows;
    std::vector<double> values;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto row = static_cast<int>(i / static_cast<std::size_t>(s.channels));
        if (row % s.tokens == s.wanted) values.push_back(rows[i]);
    }
    return values;
}

// The case's channels of rows `stride` elements apart.
std::vector<double> channels_of(const Case& s, const std::vector<double>& rows, std::int64_t stride) {
    std::vector<double> values;
    for (auto row = rows.begin(); row != rows.end(); row += stride) values.insert(values.end(), row, row + s.channels);
    return values;
}

// c of a direction, given by rows, as it lies in the case's order; zeros stand for no token.
std::vector<double> in_order(const Case& s, const std::vector<double>& rows, bool backward) {
    if (s.order == ScanOrder::Rows) return rows;
    std::vector<double> values(static_cast<std::size_t>(s.batch * scan_elements(s.tokens, s.channels, s.order)), 0.0);
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto channel = static_cast<int>(i % static_cast<std::size_t>(s.channels));
        const auto row = static_cast<int>(i / static_cast<std::size_t>(s.channels));
        values[static_cast<std::size_t>(
            octet_order_index(s.tokens, s.channels, row / s.tokens, row % s.tokens, channel, backward))] = rows[i];
    }
    return values;
}

// One direction's inputs, on the host as the device sees them, and on the device.
struct Inputs {
    Inputs(const Case& s, bool backward)
        : c(rounded(normal(elements(s)), s.dtype)),
          projected(
              rounded(normal(static_cast<std::size_t>(s.batch) * s.tokens * (s.rank + 2 * s.states), 0.7), s.dtype)),
          dt_weight(rounded(normal(static_cast<std::size_t>(s.rank) * s.channels, 1.0 / std::sqrt(s.rank)), s.dtype)),
          dt_bias(rounded(normal(static_cast<std::size_t>(s.channels), 1.5, -4.0), DType::F32)),
          decay(static_cast<std::size_t>(s.channels) * s.states),
          skip(rounded(normal(static_cast<std::size_t>(s.channels), 0.2, 1.0), DType::F32)),
          device_c(in_order(s, c, backward), s.dtype),
          device_projected(projected, s.dtype),
          device_dt_weight(dt_weight, s.dtype),
          device_dt_bias(dt_bias, DType::F32),
          device_skip(skip, DType::F32),
          device_y(in_order(s, c, backward).size(), s.dtype) {
        for (std::size_t i = 0; i < decay.size(); ++i) {
            const double rate =
                static_cast<double>(i % static_cast<std::size_t>(s.states) + 1) * std::exp(0.15 * normal(1)[0]);
            decay[i] = static_cast<double>(static_cast<float>(-rate * 1.4426950408889634));
        }
        device_decay = std::make_unique<DeviceArray>(decay, DType::F32);
    }

    static std::size_t elements(const Case& s) { return static_cast<std::size_t>(s.batch) * s.tokens * s.channels; }

    ScanDirection direction(bool in_place) const {
        return {device_c.data(),
                device_projected.data(),
                device_dt_weight.data(),
                device_dt_bias.floats(),
                device_decay->floats(),
                device_skip.floats(),
                in_place ? device_c.data() : device_y.data()};
    }

    std::vector<double> c, projected, dt_weight, dt_bias, decay, skip;
    DeviceArray device_c, device_projected, device_dt_weight, device_dt_bias, device_skip, device_y;
    std::unique_ptr<DeviceArray> device_decay;
};

double time_step(const Inputs& in, const Case& s, const double* row, int e) {
    double x = in.dt_bias[static_cast<std::size_t>(e)];
    for (int r = 0; r < s.rank; ++r) x += in.dt_weight[static_cast<std::size_t>(e * s.rank + r)] * row[r];
    return std::log1p(std::exp(x));
}

std::vector<double> reference(const Inputs& in, const Case& s, bool backward) {
    std::vector<double> y(in.c.size());
    for (int b = 0; b < s.batch; ++b) {
        for (int e = 0; e < s.channels; ++e) {
            std::vector<double> h(static_cast<std::size_t>(s.states), 0.0);
            for (int step = 0; step < s.tokens; ++step) {
                const int t = backward ? s.tokens - 1 - step : step;
                const auto token = static_cast<std::size_t>(b) * s.tokens + t;
                const double* row = in.projected.data() + token * (s.rank + 2 * s.states);
                const double c = in.c[token * s.channels + e];
                const double delta = time_step(in, s, row, e);
                double sum = in.skip[static_cast<std::size_t>(e)] * c;
                for (int n = 0; n < s.states; ++n) {
                    auto& state = h[static_cast<std::size_t>(n)];
                    state = std::exp2(delta * in.decay[static_cast<std::size_t>(e * s.states + n)]) * state +
                            delta * c * row[s.rank + n];
                    sum += row[s.rank + s.states + n] * state;
                }
                y[token * s.channels + e] = sum;
            }
        }
    }
    return y;
}

// The scan of a case, without its memory. Rows of z are twice as long as they need be, as those of x and z together
// are.
Scan scan_of(const Case& s) {
    Scan a;
    a.directions = s.directions;
    a.z_stride = 2 * s.channels;
    a.factor = s.directions == 2 ? 0.5F : 1.0F;
    a.batch = s.batch;
    a.tokens = s.tokens;
    a.channels = s.channels;
    a.states = s.states;
    a.rank = s.rank;
    a.dtype = s.dtype;
    a.order = s.order;
    a.merged_stride = s.channels;
    a.wanted = s.wanted;
    return a;
}

void run(Scan a, const ScanForm& form) {
    const DeviceArray room(scan_room(a, form) / sizeof(float) + 1, DType::F32);
    a.chunk_states = room.data();
    require(cudaMemset(a.chunk_states, 0, scan_zeros(a, form)));
    bidirectional_scan(a, form, nullptr);
    require(cudaGetLastError());
}

void check_form(const Case& s, const ScanForm& form) {
    const Inputs forward(s, false);
    const Inputs backward(s, true);
    Scan a = scan_of(s);
    const std::int64_t z_stride = a.z_stride;
    const std::vector<double> z = rounded(normal(static_cast<std::size_t>(s.batch * s.tokens * z_stride)), s.dtype);
    const DeviceArray device_z(z, s.dtype);
    const DeviceArray merged(forward.c.size(), s.dtype);
    a.forward = forward.direction(s.in_place);
    if (s.directions == 2) a.backward = backward.direction(s.in_place);
    a.z = device_z.data();
    const DeviceArray& result = s.in_place ? device_z : merged;
    if (s.merged) a.merged = result.data();
    if (s.in_place) a.merged_stride = z_stride;
    run(a, form);

    std::vector<double> expected = reference(forward, s, false);
    const std::vector<double> other =
        s.directions == 2 ? reference(backward, s, true) : std::vector<double>(expected.size(), 0.0);
    // A few values alone may be rounded to the same side.
    const double limit = (s.dtype == DType::F32 ? 1.0 : 1.5) * tolerance(s.dtype);
    if (!s.merged) {
        CHECK(relative_error((s.in_place ? forward.device_c : forward.device_y).values(), expected) <= limit);
        if (s.directions == 2)
            CHECK(relative_error((s.in_place ? backward.device_c : backward.device_y).values(), other) <= limit);
        return;
    }
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const std::size_t row = i / static_cast<std::size_t>(s.channels);
        expected[i] = static_cast<double>(a.factor) * (expected[i] + other[i]) *
                      silu(z[row * static_cast<std::size_t>(z_stride) + i % static_cast<std::size_t>(s.channels)]);
    }
    const std::vector<double> found = channels_of(s, result.values(), a.merged_stride);
    const double error = relative_error(wanted_of(s, found), wanted_of(s, expected));
    if (!CHECK(error <= limit)) {
        std::cerr << "  " << error << " for batch " << s.batch << ", tokens " << s.tokens << ", channels " << s.channels
                  << ", states " << s.states << ", rank " << s.rank << ", " << name_of(s.dtype) << ", wanted "
                  << s.wanted << ", form " << name_of(form.kind) << ", chunks " << form.chunks << ", warps "
                  << form.warps << (form.helped ? ", helped" : "") << '\n';
    }
}

const DeviceProperties& device() {
    static const DeviceProperties properties = find_device(0);
    return properties;
}

std::vector<ScanForm> forms_of(const Case& s) {
    Scan a = scan_of(s);
    if (s.merged) a.merged = &a;  // whether, not where
    std::vector<ScanForm> forms = scan_forms(a, device());
    const char* only = std::getenv("VIMRT_SCAN_FORM");
    if (only != nullptr)
        std::erase_if(forms, [&](const ScanForm& form) { return name_of(form.kind) != std::string(only); });
    return forms;
}

// In every form that takes the shape.
void check_scan(const Case& s) {
    for (const ScanForm& form : forms_of(s)) check_form(s, form);
}

}  // namespace

TEST(every_storage_and_state_size) {
    for (const DType dtype : storages) {
        for (const int states : {16, 32, 64}) check_scan({2, 150, 80, states, 16, dtype});
    }
}

constexpr int token_counts[] = {1, 2, 3, 7, 8, 9, 16, 31, 33, 63, 64, 65, 127, 128, 129, 257, 509, 730};

TEST(any_number_of_tokens) {
    for (const DType dtype : {DType::F32, DType::F16}) {
        for (const int tokens : token_counts) check_scan({1, tokens, 48, 16, 16, dtype});
    }
}

TEST(octets_order) {
    for (const DType dtype : {DType::F16, DType::BF16}) {
        for (const int rank : {16, 32, 48}) check_scan({2, 150, 80, 16, rank, dtype, 2, true, true, ScanOrder::Octets});
        check_scan({2, 150, 80, 16, 16, dtype, 1, true, true, ScanOrder::Octets});
    }
    for (const int tokens : token_counts) {
        check_scan({2, tokens, 48, 16, 16, DType::F16, 2, true, true, ScanOrder::Octets});
        check_scan({2, tokens, 16, 16, 16, DType::F16, 2, true, false, ScanOrder::Octets});
    }
}

TEST(any_number_of_channels) {
    for (const int channels : {1, 8, 16, 77, 192, 208, 384}) check_scan({3, 45, channels, 16, 16, DType::F16});
}

TEST(ranks_from_narrow_to_wide) {
    for (const DType dtype : storages) {
        for (const int rank : {16, 32, 48, 128}) check_scan({1, 50, 64, 16, rank, dtype});
    }
}

TEST(one_direction_and_unmerged_directions) {
    for (const int directions : {1, 2}) {
        for (const bool merged : {true, false}) {
            for (const bool in_place : {true, false})
                check_scan({2, 199, 48, 16, 16, DType::F32, directions, merged, in_place});
        }
    }
}

TEST(octets_order_where_one_token_is_wanted) {
    const auto check_all = [](Case s) {
        s.order = ScanOrder::Octets;
        for (const int token : {0, (s.tokens - 1) / 2, s.tokens / 3, s.tokens - 1}) {
            s.wanted = token;
            check_scan(s);
        }
    };
    // Of many channels, as a few values of one token may be rounded badly by chance.
    for (const int tokens : {1, 7, 8, 9, 31, 64, 129, 509}) check_all({1, tokens, 144, 16, 16, DType::F16});
    for (const int rank : {32, 48}) check_all({2, 197, 48, 16, rank, DType::BF16});
    check_all({2, 130, 48, 16, 16, DType::F16, 1});
    check_scan({2, 150, 80, 16, 16, DType::F16, 2, true, true, ScanOrder::Rows, 74});
}

TEST(octets_order_with_helpers) {
    const auto check_helped = [](const Case& s) {
        for (const ScanForm& form : forms_of(s)) {
            if (form.helped) check_form(s, form);
        }
    };
    for (const int tokens : {2048, 2049, 2055, 2063, 2177})
        check_helped({1, tokens, 32, 16, 16, DType::F16, 2, true, true, ScanOrder::Octets});
    check_helped({2, 2205, 48, 16, 32, DType::F16, 2, true, true, ScanOrder::Octets});
    check_helped({1, 3001, 80, 16, 48, DType::BF16, 2, true, false, ScanOrder::Octets});
}

TEST(many_blocks_meet) {
    check_scan({9, 700, 384, 16, 16, DType::F16});
    check_scan({3, 2100, 192, 16, 16, DType::F16, 2, true, true, ScanOrder::Octets});
    check_scan({150, 50, 384, 16, 16, DType::F16});
}

// Whose blocks wait for one another, and do not all fit on the device at once.
TEST(scans_with_helpers_on_many_streams) {
    const Case s{1, 2100, 96, 16, 16, DType::F16, 2, true, false, ScanOrder::Octets};
    const Inputs forward(s, false), backward(s, true);
    Scan a = scan_of(s);
    const DeviceArray z(normal(static_cast<std::size_t>(s.tokens) * static_cast<std::size_t>(a.z_stride)), s.dtype);
    a.backward = backward.direction(s.in_place);
    a.z = z.data();
    struct Stream {
        Stream(std::size_t stored, std::size_t elements, DType dtype, std::size_t room)
            : y(2 * stored, dtype), merged(elements, dtype), room(room / sizeof(float) + 1, DType::F32) {
            require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        }
        Stream(const Stream&) = delete;
        Stream& operator=(const Stream&) = delete;
        ~Stream() { cudaStreamDestroy(stream); }
        cudaStream_t stream{};
        DeviceArray y, merged, room;
    };
    for (const ScanForm& form : forms_of(s)) {
        if (!form.helped) continue;
        std::vector<std::unique_ptr<Stream>> streams;
        const auto stored = static_cast<std::size_t>(scan_elements(s.tokens, s.channels, s.order));
        for (int i = 0; i < 8; ++i)
            streams.push_back(std::make_unique<Stream>(stored, forward.c.size(), s.dtype, scan_room(a, form)));
        for (int turn = 0; turn < 2; ++turn) {
            for (const auto& own : streams) {
                a.forward = forward.direction(s.in_place);
                a.forward.y = own->y.data();
                a.backward.y = own->y.at(stored);
                a.merged = own->merged.data();
                a.chunk_states = own->room.data();
                require(cudaMemsetAsync(a.chunk_states, 0, scan_zeros(a, form), own->stream));
                bidirectional_scan(a, form, own->stream);
            }
        }
        require(cudaDeviceSynchronize());
        for (const auto& own : streams) CHECK(own->merged.values() == streams[0]->merged.values());
    }
}

void check_repeated_runs(const Case& s) {
    const Inputs forward(s, false);
    const Inputs backward(s, true);
    Scan a = scan_of(s);
    const DeviceArray z(normal(static_cast<std::size_t>(s.batch * s.tokens * a.z_stride)), s.dtype);
    a.forward = forward.direction(s.in_place);
    a.backward = backward.direction(s.in_place);
    a.z = z.data();
    for (const ScanForm& form : forms_of(s)) {
        std::vector<double> first;
        for (int turn = 0; turn < 4; ++turn) {
            const DeviceArray merged(forward.c.size(), s.dtype);
            a.merged = merged.data();
            run(a, form);
            if (turn == 0) first = merged.values();
            CHECK(merged.values() == first);
        }
    }
}

TEST(repeated_runs_are_the_same_bit_by_bit) {
    for (const ScanOrder order : {ScanOrder::Rows, ScanOrder::Octets})
        for (const int tokens : {300, 2300})
            check_repeated_runs({2, tokens, 96, 16, 16, DType::F16, 2, true, false, order});
}

TEST(the_form_fits_every_device) {
    const Case cases[] = {{1, 6085, 384, 16, 16},
                          {1, 6085, 1536, 64, 128},
                          {128, 197, 384, 16, 16},
                          {1, 1, 8, 16, 16},
                          {1, 197, 77, 16, 16},
                          {1, 6085, 384, 16, 16, DType::F16, 2, true, true, ScanOrder::Octets},
                          {1, 65537, 384, 16, 16, DType::F16, 1, true, true, ScanOrder::Octets},
                          {8, 6085, 384, 16, 16, DType::F16, 2, true, true, ScanOrder::Octets},
                          {8, 6085, 768, 16, 32, DType::F16, 2, true, true, ScanOrder::Octets},
                          {8, 197, 384, 16, 48, DType::BF16, 2, true, true, ScanOrder::Octets}};
    for (const int shared_bytes : {48 * 1024, 99 * 1024, 163 * 1024, 227 * 1024}) {
        for (const int multiprocessors : {1, 58, 132}) {
            for (const bool clusters : {false, true}) {
                DeviceProperties small;
                small.multiprocessors = multiprocessors;
                small.shared_bytes_per_block = shared_bytes;
                small.clusters = clusters;
                for (const Case& s : cases) {
                    Scan a = scan_of(s);
                    if (s.order == ScanOrder::Octets) a.merged = &a;  // whether, not where
                    CHECK(scan_takes(a, choose_scan_form(a, small, true), small));
                    const ScanForm form = choose_scan_form(a, small);
                    CHECK(!form.helped);
                    CHECK(scan_takes(a, form, small));
                    if (form.kind == ScanForm::Columns)
                        CHECK(scan_columns_shared_bytes(a) <= static_cast<std::size_t>(shared_bytes));
                }
            }
        }
    }
}

// What the device is that forms were measured on.
DeviceProperties measured_device() {
    DeviceProperties hopper;
    hopper.multiprocessors = 132;
    hopper.shared_bytes_per_block = 227 * 1024;
    hopper.clusters = hopper.warpgroup_products = true;
    return hopper;
}
// A scan of the kind that was, to choose a form for; it cannot run.
Scan measured_scan(int batch, int tokens, int channels, int rank, int wanted = -1) {
    static char there = 0;
    Scan a = scan_of({batch, tokens, channels, 16, rank, DType::F16, 2, true, true, ScanOrder::Octets, wanted});
    a.merged = &there;
    return a;
}

TEST(helpers_are_taken_where_they_were_measured) {
    const DeviceProperties hopper = measured_device();
    const auto helped = [&](int batch, int tokens, int channels, int rank, int wanted = -1) {
        const Scan a = measured_scan(batch, tokens, channels, rank, wanted);
        CHECK(!choose_scan_form(a, hopper).helped);
        return choose_scan_form(a, hopper, true).helped;
    };
    CHECK(helped(1, 6085, 384, 16));
    CHECK(helped(1, 6085, 768, 32));
    CHECK(!helped(1, 6085, 1536, 48));  // relays fill the chip
    CHECK(!helped(3, 6085, 384, 16));   // so they do of three images
    CHECK(helped(1, 4097, 384, 16));
    CHECK(helped(1, 4097, 768, 32));
    CHECK(!helped(1, 3137, 384, 16));        // few tokens
    CHECK(!helped(1, 6085, 384, 16, 3042));  // one token alone is wanted
}

TEST(relays_are_set_up_first_but_for_whole_columns_with_help) {
    CHECK(scan_set_up_first({ScanForm::Relay, 0, 12}));
    CHECK(scan_set_up_first({ScanForm::Halves, 0, 12, true}));
    CHECK(!scan_set_up_first({ScanForm::Relay, 0, 12, true}));
    CHECK(!scan_set_up_first({ScanForm::Strips}));
    CHECK(!scan_set_up_first({ScanForm::Octets, 0, 16}));
}

TEST(full_blocks_that_share_lines_merge_beside_z) {
    Scan a;
    a.tokens = 1025;
    CHECK(!scan_merges_over_z(a, {ScanForm::Octets, 0, 12}));
    CHECK(scan_merges_over_z(a, {ScanForm::Octets, 0, 16}));
    CHECK(scan_merges_over_z(a, {ScanForm::Octets}));
    CHECK(scan_merges_over_z(a, {ScanForm::Strips, 0, 12}));
    CHECK(scan_merges_over_z(a, {ScanForm::Relay, 0, 12}));
    a.tokens = 577;
    CHECK(scan_merges_over_z(a, {ScanForm::Octets, 0, 12}));
}

TEST(forms_are_taken_where_they_were_measured) {
    const DeviceProperties hopper = measured_device();
    const auto form_of = [&](int batch, int tokens, int channels, int rank) {
        const Scan a = measured_scan(batch, tokens, channels, rank);
        const ScanForm form = choose_scan_form(a, hopper);
        DeviceProperties small = hopper;
        small.shared_bytes_per_block = 32 * 1024;  // no room for a multiprocessor's strips
        if (form.kind == ScanForm::Strips) CHECK(choose_scan_form(a, small) == ScanForm{ScanForm::Strips});
        return form;
    };
    constexpr auto octets = ScanForm::Octets, strips = ScanForm::Strips, trios = ScanForm::Trios;
    constexpr auto relay = ScanForm::Relay, halves = ScanForm::Halves;
    // Few tokens.
    CHECK(form_of(1, 197, 384, 16) == (ScanForm{halves, 0, 12}));
    CHECK(form_of(2, 197, 384, 16) == (ScanForm{relay, 0, 12}));
    CHECK(form_of(4, 197, 384, 16) == (ScanForm{halves, 0, 4}));
    CHECK(form_of(6, 197, 384, 16) == (ScanForm{relay, 0, 4}));
    for (const int batch : {9, 12, 17, 22}) CHECK(form_of(batch, 197, 384, 16) == ScanForm{strips});
    CHECK(form_of(33, 197, 384, 16) == (ScanForm{octets, 0, 12}));
    CHECK(form_of(44, 197, 384, 16) == (ScanForm{octets, 0, 16}));
    CHECK(form_of(128, 197, 384, 16) == ScanForm{octets});
    CHECK(form_of(1, 197, 1536, 48) == (ScanForm{halves, 0, 4}));
    CHECK(form_of(3, 197, 1536, 48) == ScanForm{strips});
    CHECK(form_of(5, 197, 1536, 48) == ScanForm{octets});  // strips are slower with this rank
    CHECK(form_of(4, 577, 384, 16) == (ScanForm{halves, 0, 4}));
    CHECK(form_of(8, 577, 384, 16) == ScanForm{trios});
    CHECK(form_of(12, 577, 384, 16) == (ScanForm{strips, 0, 12}));
    CHECK(form_of(5, 1025, 384, 16) == ScanForm{strips});
    // Many. Where branches have relays these are taken, whatever they take alone.
    CHECK(form_of(5, 2305, 384, 16).kind == relay);
    CHECK(form_of(8, 6085, 384, 16) == ScanForm{trios});
    CHECK(form_of(11, 4097, 384, 16) == (ScanForm{strips, 0, 8}));
    CHECK(form_of(8, 2305, 768, 32) == (ScanForm{strips, 0, 12}));
    for (const int batch : {18, 20, 22}) CHECK(form_of(batch, 2305, 384, 16) == (ScanForm{strips, 0, 16}));
    CHECK(form_of(23, 2305, 384, 16) == ScanForm{strips});  // not all are there at once
    CHECK(form_of(8, 6085, 1536, 48) == (ScanForm{octets, 0, 12}));
    CHECK(form_of(6, 2305, 1536, 48) == ScanForm{strips});
}

TEST(a_batch_has_rounds_and_branches_where_they_were_measured) {
    const DeviceProperties hopper = measured_device();
    DeviceProperties other = hopper;
    other.warpgroup_products = false;
    const auto branches = [&](int batch, int tokens, int channels, int rank) {
        const Scan a = measured_scan(batch, tokens, channels, rank);
        CHECK(scan_branches(a, other) == 1);
        return scan_branches(a, hopper);
    };
    CHECK(branches(1, 65537, 384, 16) == 1);  // one image
    CHECK(branches(2, 6085, 384, 16) == 2);   // relays of both, and of each, leave multiprocessors idle
    CHECK(branches(3, 16385, 384, 16) == 2);
    CHECK(branches(6, 6085, 384, 16) == 3);
    CHECK(branches(3, 6085, 768, 32) == 3);
    CHECK(branches(4, 6085, 768, 32) == 1);
    CHECK(branches(8, 6085, 384, 16) == 1);  // trios fill the chip
    CHECK(branches(2, 1025, 384, 16) == 1);  // few tokens
    CHECK(branches(14, 1025, 384, 16) == 1);
    for (const int tokens : {197, 577, 2305}) CHECK(branches(22, tokens, 384, 16) == 1);  // in full blocks
    for (const int batch : {33, 40, 44}) CHECK(branches(batch, 197, 384, 16) == 1);
    for (const int batch : {23, 24, 28, 34, 36}) CHECK(branches(batch, 577, 384, 16) == 2);  // not all in full blocks
    for (const int batch : {24, 28}) CHECK(branches(batch, 197, 384, 16) == 2);
    CHECK(branches(6, 6085, 1536, 48) == 2);
    CHECK(branches(8, 6085, 1536, 48) == 1);
    CHECK(branches(14, 197, 768, 32) == 1);  // few tokens, also of all images
    CHECK(branches(14, 1025, 768, 32) == 2);
    CHECK(branches(44, 2305, 384, 16) == 2);
    CHECK(branches(128, 197, 384, 16) == 2);
    CHECK(branches(128, 197, 1536, 48) == 2);
    const auto rounds = [&](int batch, int tokens, int channels, int rank) {
        const Scan a = measured_scan(batch, tokens, channels, rank);
        CHECK(scan_rounds(a, other) == std::vector<int>{batch});
        return scan_rounds(a, hopper);
    };
    CHECK(rounds(1, 65537, 384, 16) == std::vector<int>{1});
    CHECK(rounds(11, 6085, 384, 16) == std::vector<int>{11});  // one column for each quarter
    CHECK(rounds(12, 6085, 384, 16) == (std::vector<int>{11, 1}));
    CHECK(rounds(13, 6085, 384, 16) == (std::vector<int>{11, 2}));
    CHECK(rounds(14, 6085, 384, 16) == std::vector<int>{14});
    CHECK(rounds(16, 6085, 384, 16) == (std::vector<int>{8, 8}));  // trios fill the chip twice
    CHECK(rounds(24, 6085, 384, 16) == (std::vector<int>{8, 8, 8}));
    CHECK(rounds(32, 6085, 384, 16) == std::vector<int>{32});
    CHECK(rounds(16, 4097, 384, 16) == std::vector<int>{16});
    CHECK(rounds(8, 6085, 768, 32) == (std::vector<int>{4, 4}));
    CHECK(rounds(4, 6085, 1536, 48) == std::vector<int>{4});  // there is no room for trios
    CHECK(rounds(22, 2305, 384, 16) == std::vector<int>{22});
    // Two turns and a little of another: branches.
    for (const int batch : {24, 25}) CHECK(rounds(batch, 2305, 384, 16) == std::vector<int>{batch});
    for (const int batch : {24, 25}) CHECK(branches(batch, 2305, 384, 16) == 2);
    CHECK(rounds(12, 1601, 768, 32) == std::vector<int>{12});
    CHECK(branches(12, 1601, 768, 32) == 2);
    CHECK(rounds(6, 6085, 768, 32) == (std::vector<int>{5, 1}));
    CHECK(rounds(7, 6085, 768, 32) == std::vector<int>{7});
    CHECK(rounds(3, 6085, 1536, 48) == (std::vector<int>{2, 1}));
    CHECK(rounds(3, 2305, 1536, 48) == std::vector<int>{3});  // an image is a third of a turn
    CHECK(rounds(12, 1601, 384, 16) == (std::vector<int>{11, 1}));
    CHECK(rounds(12, 1025, 384, 16) == std::vector<int>{12});   // few tokens
    CHECK(rounds(64, 6085, 1536, 48) == std::vector<int>{64});  // many turns
}
