// Memory in whole pages, straight from the system.
//
// malloc puts a header before each block, which costs a block of whole pages one more, and keeps what is freed. Pages
// come and go exactly; from 2 MiB on they begin on a huge page's boundary and the system is asked for huge pages.
#pragma once

#include <cstddef>

namespace vimrt::cpu {

void* allocate_pages(std::size_t bytes);  // zeroed; nullptr where the system refuses
void free_pages(void* memory, std::size_t bytes) noexcept;

}  // namespace vimrt::cpu
