#include "runtime/pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace vimrt::cpu {

namespace {

constexpr std::size_t huge_page = std::size_t{2} << 20;

std::size_t whole_pages(std::size_t bytes) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
}

std::byte* map(std::size_t bytes) {
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

}  // namespace

void* allocate_pages(std::size_t bytes) {
    const std::size_t size = whole_pages(bytes);
    if (size < bytes || size + huge_page < size) return nullptr;
    if (size < huge_page) return map(size);
    // A boundary lies somewhere in a mapping that is one huge page longer; what is before and behind goes back.
    std::byte* const begin = map(size + huge_page);
    if (begin == nullptr) return nullptr;
    const std::size_t before = (huge_page - reinterpret_cast<std::uintptr_t>(begin) % huge_page) % huge_page;
    std::byte* const memory = begin + before;
    if (before > 0) ::munmap(begin, before);
    if (before < huge_page) ::munmap(memory + size, huge_page - before);
    ::madvise(memory, size, MADV_HUGEPAGE);  // advice: without huge pages it works all the same
    return memory;
}

void free_pages(void* memory, std::size_t bytes) noexcept {
    ::munmap(memory, whole_pages(bytes));
}

}  // namespace vimrt::cpu
