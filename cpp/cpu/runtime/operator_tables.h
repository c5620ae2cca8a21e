// Which function lowers which operator, for each instruction set. The tables are written by cpp/cpu/CMakeLists.txt.
#pragma once

#include "lowering.h"

namespace vimrt::cpu {

struct OperatorEntry {
    const char* name = nullptr;  // null after the last
    int (*lower)(Lowering& lowering, int node) = nullptr;
};

namespace avx2 {
extern const OperatorEntry operators[];
}
namespace avx512 {
extern const OperatorEntry operators[];
}

}  // namespace vimrt::cpu
