// The graph's JSON (docs/file-format.md, "Graph") to a checked Graph.
#pragma once

#include <string>
#include <vector>

#include "graph.h"

namespace vimrt {

// `weights`, ascending by name, must outlive the graph. Throws FormatError naming the node and what is wrong with it.
Graph parse_graph(const std::string& text, const std::vector<Weight>& weights, const std::string& path);

}  // namespace vimrt
