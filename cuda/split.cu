// split: parts of the last axis, as views; nothing is computed.
#include "lowering_rules.h"

namespace vimrt::cuda {

int lower_split(Lowering& lowering, int node, const Target& /*target*/) {
    const Node& split = lowering.node(node);
    const auto& sizes = split.integers("sizes");
    std::int64_t column = 0;
    for (int i = 0; i < split.output_count(); ++i) {
        lowering.view(split.output(i), split.input(0), column);
        column += sizes[static_cast<std::size_t>(i)];
    }
    return 1;
}

}  // namespace vimrt::cuda
