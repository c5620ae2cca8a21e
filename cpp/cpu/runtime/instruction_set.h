// Which copy of the kernels this processor gets.
#pragma once

#include "runtime/operator_tables.h"

namespace vimrt::cpu {

struct InstructionSet {
    const char* name = nullptr;         // as VIMRT_CPU_ISA has it
    const char* description = nullptr;  // for people
    const OperatorEntry* operators = nullptr;
    double (*probe_fma)(long steps) = nullptr;
    double (*probe_exp)(long steps) = nullptr;
};

// The widest that the processor and the system support, or the one that the environment variable VIMRT_CPU_ISA names
// (avx2 or avx512). Throws DeviceError where that one, or any, is missing.
InstructionSet choose_instruction_set();

}  // namespace vimrt::cpu
