// Which function lowers which operator.
#pragma once

#include <string>

#include "lowering_rules.h"

namespace vimrt::cuda {

// Emits the steps of a node, and possibly of its successors; returns how many nodes that was.
using LowerFunction = int (*)(Lowering& lowering, int node, const Target& target);

struct OperatorEntry {
    const char* name;
    LowerFunction lower;
};
extern const OperatorEntry operators[];  // the last one's name is null

// Null where the CUDA backend does not have the operator.
LowerFunction find_operator(const std::string& op);

}  // namespace vimrt::cuda
