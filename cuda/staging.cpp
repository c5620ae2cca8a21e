#include "staging.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "vimrt/error.h"

namespace vimrt::cuda {

namespace {

constexpr std::size_t chunk_bytes = 4 << 20;

}  // namespace

struct PinnedStaging::Pair {
    Pair() {
        const MemoryGuard memory_guard;
        for (void*& chunk : chunks) {
            if (cudaHostAlloc(&chunk, chunk_bytes, cudaHostAllocDefault) != cudaSuccess) {
                cudaGetLastError();
                throw OutOfMemory("the system refused " + std::to_string(chunk_bytes) +
                                  " bytes of pinned host memory for copies to the device");
            }
        }
    }
    ~Pair() {
        for (void* chunk : chunks) cudaFreeHost(chunk);
    }
    Pair(const Pair&) = delete;
    Pair& operator=(const Pair&) = delete;

    void* chunks[2] = {};
    Event done[2];  // of the copies that last used the chunks
};

class PinnedStaging::Loan {
public:
    explicit Loan(PinnedStaging& staging) : staging_(staging) {
        const std::lock_guard lock(staging_.mutex_);
        if (staging_.idle_.empty()) {
            staging_.idle_.reserve(++staging_.pairs_);  // giving back must not allocate
            pair_ = new Pair;
        } else {
            pair_ = staging_.idle_.back();
            staging_.idle_.pop_back();
        }
    }
    ~Loan() {
        const std::lock_guard lock(staging_.mutex_);
        staging_.idle_.push_back(pair_);
    }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;

    Pair& operator*() const { return *pair_; }

private:
    PinnedStaging& staging_;
    Pair* pair_ = nullptr;
};

PinnedStaging::~PinnedStaging() {
    for (const Pair* pair : idle_) delete pair;
}

void PinnedStaging::upload(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    const Loan loan(*this);
    Pair& pair = *loan;
    int turn = 0;
    for (std::size_t at = 0; at < bytes; at += chunk_bytes, turn = 1 - turn) {
        const std::size_t count = std::min(chunk_bytes, bytes - at);
        if (at >= 2 * chunk_bytes) check(cudaEventSynchronize(pair.done[turn].get()), "a copy to the device failed");
        std::memcpy(pair.chunks[turn], static_cast<const char*>(from) + at, count);
        check(cudaMemcpyAsync(static_cast<char*>(to) + at, pair.chunks[turn], count, cudaMemcpyHostToDevice, stream),
              "a copy to the device failed");
        check(cudaEventRecord(pair.done[turn].get(), stream), "a copy to the device failed");
    }
    check(cudaStreamSynchronize(stream), "a copy to the device failed");
}

void PinnedStaging::download(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    const Loan loan(*this);
    Pair& pair = *loan;
    const std::size_t chunks = (bytes + chunk_bytes - 1) / chunk_bytes;
    const auto start = [&](std::size_t chunk) {
        const std::size_t at = chunk * chunk_bytes;
        check(cudaMemcpyAsync(pair.chunks[chunk % 2], static_cast<const char*>(from) + at,
                              std::min(chunk_bytes, bytes - at), cudaMemcpyDeviceToHost, stream),
              "a copy from the device failed");
        check(cudaEventRecord(pair.done[chunk % 2].get(), stream), "a copy from the device failed");
    };
    if (chunks > 0) start(0);
    for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
        if (chunk + 1 < chunks) start(chunk + 1);
        check(cudaEventSynchronize(pair.done[chunk % 2].get()), "a copy from the device failed");
        const std::size_t at = chunk * chunk_bytes;
        std::memcpy(static_cast<char*>(to) + at, pair.chunks[chunk % 2], std::min(chunk_bytes, bytes - at));
    }
}

}  // namespace vimrt::cuda
