// Moves the selection of a token ahead of operators that take each token by itself, so that they compute it alone.
#pragma once

#include <vector>

#include "graph.h"

namespace vimrt {

// The graph with each select_tokens of one token put in front of the nodes that it stands directly behind, as far as
// the operator table lets it (Operator::selects_early) and nobody else reads what they compute: neither another node
// nor `outputs`. All other values stay the same.
Graph select_early(Graph graph, const std::vector<ValueId>& outputs);

}  // namespace vimrt
