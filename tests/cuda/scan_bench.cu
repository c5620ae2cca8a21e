// Times the scan alone in every form on the published models' shapes: T state updates/s, where the floor is the rate of
// exponentials (4.2 T/s on an H100), for all shapes, for those whose names contain the argument, or for any other:
// scan_bench [NAME | BATCH TOKENS CHANNELS RANK]. A star marks the form that choose_scan_form() takes.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "bidirectional_scan.h"
#include "device_array.h"
#include "event_timer.h"

using namespace vimrt;
using namespace vimrt::cuda;
using namespace vimrt::cuda::test;

namespace {

struct Work {
    const char* name;
    int batch, tokens, channels, rank;
};

constexpr Work works[] = {
    {"Ti 224 B128", 128, 197, 384, 16}, {"S 224 B128", 128, 197, 768, 32},    {"B 224 B128", 128, 197, 1536, 48},
    {"Ti 224 B1", 1, 197, 384, 16},     {"S 224 B1", 1, 197, 768, 32},        {"B 224 B1", 1, 197, 1536, 48},
    {"Ti 1248 B1", 1, 6085, 384, 16},   {"S 1248 B1", 1, 6085, 768, 32},      {"B 1248 B1", 1, 6085, 1536, 48},
    {"Ti 1248 B8", 8, 6085, 384, 16},   {"S 1248 B8", 8, 6085, 768, 32},      {"Ti 512 B32", 32, 1025, 384, 16},
    {"Ti 768 B24", 24, 2305, 384, 16},  {"Ti 4096 B1", 1, 65537, 384, 16},    {"Ti 224 B16", 16, 197, 384, 16},
    {"S 1248 B4", 4, 6085, 768, 32},    {"B 1248 B8", 8, 6085, 1536, 48},     {"Ti 768 B10", 10, 2305, 384, 16},
    {"Ti 768 B12", 12, 2305, 384, 16},  {"Ti 768 B14", 14, 2305, 384, 16},    {"Ti 768 B16", 16, 2305, 384, 16},
    {"Ti 768 B18", 18, 2305, 384, 16},  {"Ti 768 B20", 20, 2305, 384, 16},    {"Ti 768 B22", 22, 2305, 384, 16},
    {"Ti 1248 B7", 7, 6085, 384, 16},   {"Ti 1024 B8", 8, 4097, 384, 16},     {"Ti 512 B8", 8, 1025, 384, 16},
    {"Ti 1248 B3", 3, 6085, 384, 16},   {"Ti 1248 B6", 6, 6085, 384, 16},     {"S 1248 B2", 2, 6085, 768, 32},
    {"Ti 224 B22", 22, 197, 384, 16},   {"Ti 224 B33", 33, 197, 384, 16},     {"Ti 224 B44", 44, 197, 384, 16},
    {"Ti 224 B512", 512, 197, 384, 16}, {"Ti 224 B2048", 2048, 197, 384, 16}, {"Ti 512 B30", 30, 1025, 384, 16},
    {"Ti 512 B33", 33, 1025, 384, 16},  {"Ti 512 B44", 44, 1025, 384, 16},    {"Ti 768 B11", 11, 2305, 384, 16},
    {"Ti 768 B44", 44, 2305, 384, 16},  {"Ti 1024 B11", 11, 4097, 384, 16},   {"S 768 B11", 11, 2305, 768, 32},
    {"B 224 B8", 8, 197, 1536, 48},     {"B 224 B11", 11, 197, 1536, 48},     {"B 768 B4", 4, 2305, 1536, 48},
};

float median_ms(const Scan& a, const ScanForm& form) {
    const std::size_t zeros = scan_zeros(a, form);
    const float ms = EventTimer().median_ms(30, 21, [&] {
        if (zeros > 0) require(cudaMemsetAsync(a.chunk_states, 0, zeros, nullptr));
        bidirectional_scan(a, form, nullptr);
    });
    require(cudaGetLastError());
    return ms;
}

// Values that repeat: what is timed does not depend on them.
std::vector<double> repeated(std::size_t count, double scale, double mean) {
    const std::vector<double> few = normal(4099, scale, mean);
    std::vector<double> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = few[i % few.size()];
    return values;
}

void bench(const Work& s, const DeviceProperties& device) {
    constexpr int states = 16;
    const auto elements = static_cast<std::size_t>(s.batch) * s.tokens * s.channels;
    const std::size_t stored =
        static_cast<std::size_t>(s.batch * scan_elements(s.tokens, s.channels, ScanOrder::Octets));
    const DeviceArray c(repeated(2 * stored, 1, 0), DType::F16);
    const DeviceArray y(2 * stored, DType::F16);
    const DeviceArray x_and_z(repeated(2 * elements, 1, 0), DType::F16);
    const auto rows = static_cast<std::size_t>(s.batch) * s.tokens * (s.rank + 2 * states);
    const DeviceArray projected(repeated(2 * rows, 0.7, 0), DType::F16);
    const DeviceArray weights(repeated(static_cast<std::size_t>(s.rank) * s.channels, 0.2, 0), DType::F16);
    const DeviceArray bias(repeated(static_cast<std::size_t>(s.channels), 1, -4), DType::F32);
    const DeviceArray decay(repeated(static_cast<std::size_t>(s.channels) * states, 1, -8), DType::F32);
    Scan a;
    a.forward = {c.data(), projected.data(), weights.data(), bias.floats(), decay.floats(), bias.floats(), y.data()};
    a.backward = a.forward;
    a.backward.c = c.at(stored);
    a.backward.projected = projected.at(rows);
    a.backward.y = y.at(stored);
    a.merged = x_and_z.data();
    a.z = x_and_z.at(static_cast<std::size_t>(s.channels));
    a.merged_stride = a.z_stride = 2 * s.channels;
    a.factor = 0.5F;
    a.batch = s.batch;
    a.tokens = s.tokens;
    a.channels = s.channels;
    a.states = states;
    a.rank = s.rank;
    a.dtype = DType::F16;

    std::printf("%-12s", s.name);
    const double updates = 2.0 * static_cast<double>(elements) * states;
    for (const ScanOrder order : {ScanOrder::Rows, ScanOrder::Octets}) {
        a.order = order;
        const ScanForm chosen = choose_scan_form(a, device, true);
        std::vector<ScanForm> forms = scan_forms(a, device);
        if (std::find(forms.begin(), forms.end(), chosen) == forms.end()) forms.push_back(chosen);
        for (const ScanForm& form : forms) {
            if (form.kind == ScanForm::Channels) continue;
            const DeviceArray room(scan_room(a, form) / sizeof(float) + 1, DType::F32);
            a.chunk_states = room.data();
            std::printf("  %s", name_of(form.kind));
            if (form.kind == ScanForm::Octets) std::printf("/%d", form.chunks);
            if (form.warps > 0) std::printf("/%d%s", form.warps, form.helped ? " helped" : "");
            std::printf(" %.2f%s", updates / static_cast<double>(median_ms(a, form)) * 1e-9, form == chosen ? "*" : "");
        }
    }
    std::printf("\n");
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    const DeviceProperties device = find_device(0);
    std::printf("%s, T updates/s\n", device.name.c_str());
    if (argc == 5) {
        bench({"this", std::atoi(argv[1]), std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4])}, device);
        return 0;
    }
    for (const Work& work : works) {
        if (argc < 2 || std::string(work.name).find(argv[1]) != std::string::npos) bench(work, device);
    }
    return 0;
}
