#include "operators.h"

namespace vimrt::cuda {

LowerFunction find_operator(const std::string& op) {
    const OperatorEntry* entry = operators;
    while (entry->name != nullptr && op != entry->name) ++entry;
    return entry->lower;
}

}  // namespace vimrt::cuda
