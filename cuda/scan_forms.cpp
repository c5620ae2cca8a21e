// In which form a scan is done, and in which rounds and branches a batch, by its shape and the device. What the choices
// rest on was measured on an H100, and an H200 (docs/performance.md); other devices take theirs by the number of
// multiprocessors.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "bidirectional_scan.h"
#include "lowering_rules.h"

namespace vimrt::cuda {

namespace {

bool is_relay(const ScanForm& form) {
    return form.kind == ScanForm::Relay || form.kind == ScanForm::Halves;
}

// Columns of all directions for each multiprocessor: what trios have, six halves; and the most that forms were timed
// with. More go fastest by octets in small blocks.
constexpr double trio_columns = 3, timed_columns = 16;

// A form, how many columns of all directions it gives a multiprocessor at a time, and how long it takes where all have
// as many (`scan_bench`): microseconds to begin and end, less what any launch takes, and nanoseconds for each token
// with one such share on a multiprocessor, with two, and so on up to as many as there is room for. What is left then
// takes its turn.
struct TimedForm {
    ScanForm form;
    double columns;
    double begin;
    std::vector<double> token;
};

// Strips and octets with `warps`: warps of several blocks get on unevenly, as a scheduler prefers those of the oldest.
// That does no harm as long as others take the places of those that are done. Where the chip has room for all of them
// at once, a block has all of a multiprocessor's, which are done at about the same time.
const std::vector<TimedForm>& timed_forms() {
    static const std::vector<TimedForm> forms{
        {{ScanForm::Halves, 0, 12}, 0.5, 2.8, {8.2}},
        {{ScanForm::Halves, 0, 4}, 0.5, 3.4, {12.4, 18.4, 24.6}},
        {{ScanForm::Relay, 0, 12}, 1, 3.3, {15.8}},
        {{ScanForm::Relay, 0, 6}, 1, 2.0, {21.4, 33}},
        {{ScanForm::Relay, 0, 4}, 1, 2.9, {24, 32.3, 46.5}},
        {{ScanForm::Strips}, 2, 1.6, {30.6, 50.6, 76.7, 99, 125, 149}},
        {{ScanForm::Trios}, trio_columns, 3.4, {40.3, 82, 125}},
        {{ScanForm::Strips, 0, 8}, 4, 2.6, {49.5}},
        {{ScanForm::Strips, 0, 12}, 6, 3.0, {71}},
        {{ScanForm::Strips, 0, 16}, 8, 3.0, {93.5}},
        {{ScanForm::Octets}, 4, 0, {92, 108, 153, 205}},
        {{ScanForm::Octets, 0, 12}, 12, 2.8, {138.6}},
        {{ScanForm::Octets, 0, 16}, timed_columns, 3.6, {181.3}},
    };
    return forms;
}

// Forms that find time steps for fewer channels at a time than octets do take longer where their rank is high, as part
// of those products is nothing.
constexpr int high_rank = 32;
constexpr double slower_by_rank = 1.07;

// Relays that are set up early save so much of a launch. But then they crowd on the multiprocessors that come free
// first, as many as there is room for.
constexpr double early_saves = 1.2;

// How long a form takes for so many columns, but for a launch: microseconds.
double time_of(const TimedForm& timed, const Scan& a, int columns, int chip) {
    const auto shares = static_cast<std::size_t>(std::ceil(columns / (timed.columns * chip)));
    const std::size_t room = timed.token.size(), rest = shares % room;
    const bool early = is_relay(timed.form) && a.tokens <= early_relay_tokens;
    double token = static_cast<double>(shares / room) * timed.token.back();
    if (rest > 0) token += early ? timed.token.back() : timed.token[rest - 1];
    if (a.rank > high_rank && timed.form.kind != ScanForm::Octets) token *= slower_by_rank;
    const double begin = timed.begin * static_cast<double>((shares + room - 1) / room);
    return begin + 1e-3 * token * a.tokens - (early ? early_saves : 0);
}

// Help saves a relay of fewer tokens less than it costs to begin with.
constexpr int helped_tokens = 4000;

// Where there are no relays or no room for them: warps by multiprocessor that chunks should make, of so many octets at
// least, and so many of them.
constexpr int chunk_warps = 14;
constexpr int least_chunk = 20;
constexpr int enough_chunks = 5;

// Multiprocessors, as everything below counts them.
int chip_of(const DeviceProperties& device) {
    return std::max(1, device.multiprocessors);
}

// Columns of all directions and images.
int columns_of_all(const Scan& a) {
    return std::max(1, a.batch * a.directions * (a.channels / column_channels));
}

// Turns of whole columns: how many times each quarter of a multiprocessor has one.
double turns_of(int columns, int chip) {
    return columns / (4.0 * chip);
}

// Trios of whole columns, for each multiprocessor.
double trios_of(int columns, int chip) {
    return columns / (trio_columns * chip);
}

// Images that do not go into one full turn are a round of their own, if what goes beyond is no more of another turn
// than this. They need many tokens for that to pay, and more of them where they take a larger part of a turn.
constexpr double little_of_a_turn = 0.2;
constexpr int round_tokens = 1536, large_round_tokens = 4096;

// Two or three times as many columns as trios fill the chip with take hardly more time one round after the other than
// at once, and a half or a third of the memory.
constexpr int trio_rounds = 3, trio_round_tokens = 6000;
constexpr double full_of_trios = 0.95;

// Whether nearly all multiprocessors have a block to themselves, of a form with as many warps to one.
constexpr double nearly_all = 0.9;
bool has_full_blocks(const ScanForm& form, int columns, int chip) {
    const auto own = std::ranges::find(timed_forms(), form, &TimedForm::form);
    return form.warps > 0 && own != timed_forms().end() && columns >= nearly_all * own->columns * chip;
}

// While the scan of one branch leaves multiprocessors idle, as at its end, others' steps have them. That serves whole
// columns and strips where each of two branches still has many turns, but for full blocks of few tokens, which are done
// at one time. With half as many turns it serves those that no full blocks have, if tokens of all images are many.
constexpr double branch_turns = 4;
constexpr int few_tokens = 1024;
constexpr int branch_rows = 4000;
bool columns_have_branches(const Scan& a, const ScanForm& form, int columns, int chip) {
    const double turns = turns_of(columns, chip);
    if (has_full_blocks(form, columns, chip)) return turns >= branch_turns && a.tokens > few_tokens;
    const bool many_rows = static_cast<std::int64_t>(a.batch) * a.tokens >= branch_rows;
    return turns >= branch_turns || (turns > branch_turns / 2 && many_rows);
}
// And it serves relays of many tokens where columns are about two for each multiprocessor at most, in branches of as
// many as an image of Vim-S has, or fewer.
constexpr int branch_tokens = 2048;
constexpr double most_branched_columns = 2.2, branch_columns = 0.72;  // for each multiprocessor
bool relays_have_branches(int tokens, int columns, int chip) {
    return tokens >= branch_tokens && columns <= most_branched_columns * chip;
}

// Forms in the order of preference.
std::vector<ScanForm> preferred_forms(const Scan& a, const DeviceProperties& device, bool may_be_helped) {
    const int chip = chip_of(device);
    const int columns = columns_of_all(a);
    const ScanForm whole{ScanForm::Octets}, wide{ScanForm::Columns};
    if (columns > timed_columns * chip) return {whole, wide};
    // Where a batch has branches, relays leave multiprocessors to others' steps, whatever they take by themselves.
    const bool relays_first = relays_have_branches(a.tokens, columns, chip);
    std::vector<std::pair<std::tuple<bool, double>, ScanForm>> places;
    for (const TimedForm& timed : timed_forms())
        places.push_back({{relays_first && !is_relay(timed.form), time_of(timed, a, columns, chip)}, timed.form});
    std::ranges::stable_sort(places, {}, [](const auto& place) { return place.first; });
    std::vector<ScanForm> forms;
    for (const auto& [place, form] : places) forms.push_back(form);
    forms.push_back(wide);
    const ScanForm best = forms.front();
    if (!is_relay(best)) return forms;
    const ScanForm chunks{ScanForm::Octets,
                          std::min(chunk_warps * chip / columns, a.tokens / octet_tokens / 2 / least_chunk)};
    if (chunks.chunks >= enough_chunks) forms.insert(std::find_if_not(forms.begin(), forms.end(), is_relay), chunks);
    if (may_be_helped && a.tokens >= helped_tokens) forms.insert(forms.begin(), {best.kind, 0, best.warps, true});
    return forms;
}

}  // namespace

const char* name_of(ScanForm::Kind kind) {
    switch (kind) {
        case ScanForm::Channels:
            return "channels";
        case ScanForm::Columns:
            return "columns";
        case ScanForm::Octets:
            return "octets";
        case ScanForm::Strips:
            return "strips";
        case ScanForm::Trios:
            return "trios";
        case ScanForm::Relay:
            return "relay";
        case ScanForm::Halves:
            return "halves";
    }
    return "";
}

bool scan_takes(const Scan& a, const ScanForm& form, const DeviceProperties& device) {
    switch (form.kind) {
        case ScanForm::Channels:
            return a.order == ScanOrder::Rows;
        case ScanForm::Columns:
            return scan_columns_takes(a) &&
                   scan_columns_shared_bytes(a) <= static_cast<std::size_t>(device.shared_bytes_per_block);
        case ScanForm::Octets:
            return scan_octets_takes(a, form.warps) && 2 * form.chunks <= a.tokens / octet_tokens;
        case ScanForm::Strips:
            return scan_strips_takes(a, form.warps, device);
        case ScanForm::Trios:
            return scan_trios_takes(a, device);
        case ScanForm::Relay:
        case ScanForm::Halves:
            return scan_relay_takes(a, form, device);
    }
    return false;
}

std::vector<ScanForm> scan_forms(const Scan& a, const DeviceProperties& device) {
    std::vector<ScanForm> forms{{ScanForm::Channels}, {ScanForm::Columns}};
    for (const TimedForm& timed : timed_forms()) forms.push_back(timed.form);
    for (const auto kind : {ScanForm::Relay, ScanForm::Halves}) forms.push_back({kind, 0, 12, true});
    for (const int chunks : {1, 2, 7, 14, 28}) forms.push_back({ScanForm::Octets, chunks});
    std::erase_if(forms, [&](const ScanForm& form) { return !scan_takes(a, form, device); });
    return forms;
}

ScanForm choose_scan_form(const Scan& a, const DeviceProperties& device, bool may_be_helped) {
    for (const ScanForm& form : preferred_forms(a, device, may_be_helped))
        if (scan_takes(a, form, device)) return form;
    return {};
}

// Relays have a multiprocessor each, or take all places there are, so that they do not crowd. But with help, those of
// whole columns lose a quarter of what it saves, or all, which was not explained.
bool scan_set_up_first(const ScanForm& form) {
    return is_relay(form) && !(form.kind == ScanForm::Relay && form.helped);
}

// Full blocks of octets that share lines of memory take 3% to 4% longer with them there, of many tokens.
bool scan_merges_over_z(const Scan& a, const ScanForm& form) {
    constexpr int short_walk = 800, line_channels = 64;
    const int block_channels = form.warps / a.directions * column_channels;
    return form.kind != ScanForm::Octets || block_channels % line_channels == 0 || a.tokens <= short_walk;
}

std::vector<int> scan_rounds(const Scan& a, const DeviceProperties& device) {
    if (!device.warpgroup_products) return {a.batch};
    const int chip = chip_of(device);
    for (int rounds = 2; rounds <= trio_rounds && a.tokens >= trio_round_tokens; ++rounds) {
        Scan part = a;
        part.batch = a.batch / rounds;
        const bool fills = a.batch % rounds == 0 && trios_of(columns_of_all(part), chip) >= full_of_trios;
        if (fills && choose_scan_form(part, device).kind == ScanForm::Trios)
            return std::vector<int>(static_cast<std::size_t>(rounds), part.batch);
    }
    const double turns = turns_of(columns_of_all(a), chip);
    if (turns < 1 || turns > 1 + little_of_a_turn) return {a.batch};
    Scan first = a;  // as many images as a full turn takes
    while (first.batch > 1 && turns_of(columns_of_all(first), chip) > 1) --first.batch;
    const int rest = a.batch - first.batch;
    const bool little = turns * rest / a.batch <= little_of_a_turn;
    if (rest == 0 || a.tokens < (little ? round_tokens : large_round_tokens)) return {a.batch};
    return {first.batch, rest};
}

int scan_branches(const Scan& a, const DeviceProperties& device) {
    if (!device.warpgroup_products) return 1;
    const int chip = chip_of(device);
    const int columns = columns_of_all(a);
    const ScanForm form = choose_scan_form(a, device);
    const bool whole = (form.kind == ScanForm::Octets && form.chunks == 0) || form.kind == ScanForm::Strips;
    int branches = 1;
    if (whole && columns_have_branches(a, form, columns, chip)) branches = 2;
    if (is_relay(form) && relays_have_branches(a.tokens, columns, chip))
        branches = std::max(2, static_cast<int>(columns / (branch_columns * chip)));
    return std::min(branches, a.batch);
}

std::size_t scan_room(const Scan& a, const ScanForm& form) {
    return form.kind == ScanForm::Octets ? scan_octets_chunk_bytes(a, form.chunks) : scan_relay_room(a, form);
}

std::size_t scan_zeros(const Scan& a, const ScanForm& form) {
    return scan_relay_zeros(a, form);
}

void bidirectional_scan(const Scan& a, const ScanForm& form, cudaStream_t stream) {
    switch (form.kind) {
        case ScanForm::Channels:
            return scan_over_channels(a, stream);
        case ScanForm::Columns:
            return scan_columns(a, stream);
        case ScanForm::Octets:
            return scan_octets(a, form, stream);
        case ScanForm::Strips:
            return scan_strips(a, form, stream);
        case ScanForm::Trios:
            return scan_trios(a, stream);
        case ScanForm::Relay:
        case ScanForm::Halves:
            return scan_relay(a, form, stream);
    }
}

}  // namespace vimrt::cuda
