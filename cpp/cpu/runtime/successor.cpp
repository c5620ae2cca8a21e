#include "runtime/successor.h"

namespace vimrt::cpu {

bool feeds_next(const Lowering& lowering, int node, ValueId value, const char* op) {
    return node + 1 < lowering.node_count() && lowering.feeds_only(value, node + 1) &&
           lowering.node(node + 1).op() == op;
}

}  // namespace vimrt::cpu
