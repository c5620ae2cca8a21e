// What this processor can do at most: the floor under a benchmark's times.
#pragma once

#include "vimrt/export.h"

namespace vimrt {

struct CpuRates {
    double exp_per_second = 0;        // single-precision exponentials, as the scan computes them
    double fma_flops_per_second = 0;  // single-precision multiply-adds from registers, two operations each
};

// Measures for about a second on `threads` threads (0: as many as the process may use), all at once, with the
// instruction set that the engine uses. The best of several tries: other work on the machine only slows.
VIMRT_API CpuRates measure_cpu_rates(int threads);

}  // namespace vimrt
