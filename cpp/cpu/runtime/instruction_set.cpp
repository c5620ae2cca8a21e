#include "runtime/instruction_set.h"

#include <cpuid.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "vimrt/error.h"

namespace vimrt::cpu {

namespace {

// Not every compiler's __builtin_cpu_supports() knows it by name.
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace

InstructionSet choose_instruction_set() {
    __builtin_cpu_init();
    const InstructionSet avx2{"avx2", "AVX2", avx2::operators, avx2::probe_fma, avx2::probe_exp};
    const InstructionSet avx512{"avx512", "AVX-512", avx512::operators, avx512::probe_fma, avx512::probe_exp};
    const char* wanted = std::getenv("VIMRT_CPU_ISA");
    if (wanted == nullptr || *wanted == '\0') {
        if (has_avx512()) return avx512;
        if (has_avx2()) return avx2;
        throw DeviceError(
            "this processor has neither AVX-512 nor AVX2 with FMA and F16C; vimrt needs an x86-64 processor of 2013 "
            "or later, and a virtual machine must pass those features on");
    }
    for (const InstructionSet& set : {avx2, avx512}) {
        if (std::strcmp(wanted, set.name) != 0) continue;
        const bool supported = std::strcmp(set.name, "avx2") == 0 ? has_avx2() : has_avx512();
        if (supported) return set;
        throw DeviceError("VIMRT_CPU_ISA asks for " + std::string(set.description) +
                          ", which this processor lacks; unset it to let vimrt choose");
    }
    throw DeviceError("VIMRT_CPU_ISA is \"" + std::string(wanted).substr(0, 50) +
                      "\"; give avx2 or avx512, or unset it");
}

}  // namespace vimrt::cpu
