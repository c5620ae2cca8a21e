// What the loaded graph and its programs hold on the heap, besides weights and activations, so that an engine can say
// what all of it costs.
#pragma once

#include <cstdint>

#include "file.h"
#include "program.h"

namespace vimrt {

std::int64_t heap_bytes(const ModelFile& file);
std::int64_t heap_bytes(const Program& program);
std::int64_t heap_bytes(const ConstantStore& store);  // its index; the blocks are the device's

}  // namespace vimrt
