// What is compiled once for each instruction set: which function lowers which operator, and the probes of the rates.
// The tables are written by cpp/cpu/CMakeLists.txt.
#pragma once

#include "lowering.h"

namespace vimrt::cpu {

struct OperatorEntry {
    const char* name = nullptr;  // null after the last
    int (*lower)(Lowering& lowering, int node) = nullptr;
};

namespace avx2 {
extern const OperatorEntry operators[];
double probe_fma(long steps);  // probes/rates.cpp
double probe_exp(long steps);
}  // namespace avx2
namespace avx512 {
extern const OperatorEntry operators[];
double probe_fma(long steps);
double probe_exp(long steps);
}  // namespace avx512

}  // namespace vimrt::cpu
