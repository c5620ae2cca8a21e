#include "vimrt/rates.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "runtime/instruction_set.h"
#include "runtime/thread_team.h"
#include "vimrt/error.h"

namespace vimrt {

namespace {

// Short enough that a thread is rarely interrupted within one, long enough for the clock.
constexpr double seconds_per_try = 5e-3;
constexpr int tries = 60;

struct Probe {
    double (*function)(long steps);
    long steps;
    std::vector<double> done;  // by thread
};

void run_probe(void* argument, int thread) {
    auto& probe = *static_cast<Probe*>(argument);
    probe.done[static_cast<std::size_t>(thread)] = probe.function(probe.steps);
}

// Operations per second of all threads together.
double best_rate(cpu::ThreadTeam& team, double (*function)(long steps)) {
    using Clock = std::chrono::steady_clock;
    Probe probe{function, 1000, std::vector<double>(static_cast<std::size_t>(team.threads()))};
    double best = 0;
    for (int i = 0; i < tries;) {
        const auto begin = Clock::now();
        team.run(run_probe, &probe);
        const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
        if (seconds < seconds_per_try && probe.steps < 1L << 40) {
            probe.steps *= 2;
            continue;
        }
        double total = 0;
        for (const double operations : probe.done) total += operations;
        best = std::max(best, total / seconds);
        ++i;
    }
    return best;
}

}  // namespace

CpuRates measure_cpu_rates(int threads) {
    if (threads < 0 || threads > 1024) {
        throw InvalidArgument("threads is " + std::to_string(threads) + "; give 1 to 1024, or 0 for all");
    }
    const cpu::InstructionSet isa = cpu::choose_instruction_set();
    cpu::ThreadTeam team(threads > 0 ? threads : cpu::available_threads());
    return {best_rate(team, isa.probe_exp), best_rate(team, isa.probe_fma)};
}

}  // namespace vimrt
