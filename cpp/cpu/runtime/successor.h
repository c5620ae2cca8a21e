// The question that every fusion asks.
#pragma once

#include "lowering.h"

namespace vimrt::cpu {

// True when `value` is read by node `node` + 1 alone, that node's operator is `op`, and nobody asked for the value: the
// two nodes may be computed together, and `value` need not exist.
bool feeds_next(const Lowering& lowering, int node, ValueId value, const char* op);

}  // namespace vimrt::cpu
