#include "operators.h"

#include <algorithm>
#include <iterator>

namespace vimrt::cuda {

// Each in <operator>.cu.
int lower_add_norm(Lowering& lowering, int node, const Target& target);
int lower_add_position(Lowering& lowering, int node, const Target& target);
int lower_bidirectional_scan(Lowering& lowering, int node, const Target& target);
int lower_gated_merge(Lowering& lowering, int node, const Target& target);
int lower_insert_tokens(Lowering& lowering, int node, const Target& target);
int lower_linear(Lowering& lowering, int node, const Target& target);
int lower_patch_embed(Lowering& lowering, int node, const Target& target);
int lower_pool(Lowering& lowering, int node, const Target& target);
int lower_rope(Lowering& lowering, int node, const Target& target);
int lower_scale(Lowering& lowering, int node, const Target& target);
int lower_select_tokens(Lowering& lowering, int node, const Target& target);
int lower_split(Lowering& lowering, int node, const Target& target);

namespace {

struct Entry {
    const char* name;
    LowerFunction lower;
};

constexpr Entry entries[] = {
    {"add_norm", lower_add_norm},
    {"add_position", lower_add_position},
    {"bidirectional_scan", lower_bidirectional_scan},
    {"gated_merge", lower_gated_merge},
    {"insert_tokens", lower_insert_tokens},
    {"linear", lower_linear},
    {"patch_embed", lower_patch_embed},
    {"pool", lower_pool},
    {"rope", lower_rope},
    {"scale", lower_scale},
    {"select_tokens", lower_select_tokens},
    {"split", lower_split},
};

}  // namespace

LowerFunction find_operator(const std::string& op) {
    const auto* found =
        std::find_if(std::begin(entries), std::end(entries), [&](const Entry& entry) { return op == entry.name; });
    return found == std::end(entries) ? nullptr : found->lower;
}

}  // namespace vimrt::cuda
