// split: parts of the last axis, as views. Nothing is computed.
#include "lowering_rules.h"

namespace vimrt::cpu::VIMRT_ISA {

int lower_split(Lowering& lowering, int node) {
    const Node& split = lowering.node(node);
    std::int64_t column = 0;
    for (int i = 0; i < split.output_count(); ++i) {
        lowering.view(split.output(i), split.input(0), column);
        column += columns_of(lowering, split.output(i));
    }
    return 1;
}

}  // namespace vimrt::cpu::VIMRT_ISA
