// The graph's JSON (docs/file-format.md, "Graph") to a checked Graph.
#pragma once

#include <map>
#include <string>

#include "graph.h"

namespace vimrt {

// `weights` must outlive the graph. Throws FormatError naming the node and what is wrong with it.
Graph parse_graph(const std::string& text, const std::map<std::string, Weight, std::less<>>& weights,
                  const std::string& path);

}  // namespace vimrt
