// Arenas of runs that are enqueued and not waited for, with a device whose work is done when the test says so.
#include "arena_pool.h"

#include <map>
#include <memory>
#include <new>
#include <set>
#include <string>

#include "check.h"
#include "vimrt/error.h"

namespace {

using vimrt::ArenaPool;

// A device that records what waits for what.
class FakeBackend final : public vimrt::Backend {
public:
    struct Work {
        bool done = false;
    };

    class FakeFence final : public vimrt::Fence {
    public:
        explicit FakeFence(FakeBackend& backend) : backend_(backend) {}
        void record(void* stream) override { work_ = backend_.enqueued[stream] = std::make_shared<Work>(); }
        void hold(void* stream) override { backend_.held.insert(stream); }
        bool done() override { return work_ == nullptr || work_->done; }
        void wait() override {
            ++backend_.waits;
            if (work_ != nullptr) work_->done = true;
        }

    private:
        FakeBackend& backend_;
        std::shared_ptr<Work> work_;
    };

    vimrt::Device device() const override { return {vimrt::Device::Kind::CUDA, 0}; }
    std::string description() const override { return "fake"; }
    vimrt::DType dtype() const override { return vimrt::DType::F32; }
    int threads() const override { return 1; }
    std::size_t alignment() const override { return 256; }
    std::int64_t preferred_slice(std::int64_t batch, const std::function<std::int64_t()>&) const override {
        return batch;
    }
    void* allocate(std::size_t bytes) override {
        if (held_bytes + bytes > capacity) throw vimrt::OutOfMemory("the fake device is full");
        held_bytes += bytes;
        ++allocations;
        return ::operator new(bytes);
    }
    void deallocate(void* memory, std::size_t bytes) noexcept override {
        held_bytes -= bytes;
        ::operator delete(memory);
    }
    void copy(void*, const void*, std::size_t, void*) override {}
    void synchronize(void*) override {}
    bool host_accessible() const override { return false; }
    bool supports(const std::string&) const override { return true; }
    int lower(vimrt::Lowering&, int) override { return 1; }
    void lower_copy(vimrt::Lowering&, const vimrt::Operand&, const vimrt::Operand&, std::int64_t,
                    std::int64_t) override {}
    std::unique_ptr<vimrt::Execution> prepare(const std::vector<vimrt::Step>&) override { return nullptr; }
    std::unique_ptr<vimrt::Fence> make_fence() override { return std::make_unique<FakeFence>(*this); }
    void* own_stream() override { return this; }

    void finish(void* stream) { enqueued.at(stream)->done = true; }

    std::map<void*, std::shared_ptr<Work>> enqueued;  // the last of each stream
    std::set<void*> held;                             // streams that wait for another's work
    std::size_t capacity = 1 << 20;
    std::size_t held_bytes = 0;
    int allocations = 0;
    int waits = 0;
};

// A run of `bytes` that is enqueued on `stream`; returns where its arena was.
void* enqueue(ArenaPool& pool, std::int64_t bytes, void* stream) {
    return ArenaPool::Lease(pool, bytes, stream).data();
}

int streams[3];
void* const one = &streams[0];
void* const two = &streams[1];
void* const three = &streams[2];

}  // namespace

TEST(runs_on_one_stream_share_an_arena_and_wait_for_nothing) {
    FakeBackend backend;
    ArenaPool pool(backend, 0);
    void* const first = enqueue(pool, 100, one);
    for (int run = 0; run < 5; ++run) CHECK_EQ(enqueue(pool, 100, one), first);
    CHECK_EQ(backend.allocations, 1);
    CHECK_EQ(backend.waits, 0);
}

TEST(streams_with_work_under_way_get_arenas_of_their_own) {
    FakeBackend backend;
    ArenaPool pool(backend, 0);
    void* const first = enqueue(pool, 100, one);
    void* const second = enqueue(pool, 100, two);
    CHECK(first != second);
    CHECK_EQ(enqueue(pool, 100, one), first);
    CHECK_EQ(enqueue(pool, 100, two), second);
    backend.finish(one);
    CHECK_EQ(enqueue(pool, 100, three), first);
    CHECK_EQ(backend.allocations, 2);
    CHECK(backend.held.empty());
}

TEST(under_a_limit_streams_follow_each_other_in_one_arena) {
    FakeBackend backend;
    ArenaPool pool(backend, 150);
    void* const first = enqueue(pool, 100, one);
    CHECK_EQ(enqueue(pool, 100, two), first);
    CHECK(backend.held.count(two) == 1);
    CHECK_EQ(backend.waits, 0);
    CHECK_EQ(pool.bytes(), 100);
}

TEST(on_a_full_device_streams_follow_each_other_in_one_arena) {
    FakeBackend backend;
    backend.capacity = 150;
    ArenaPool pool(backend, 0);
    void* const first = enqueue(pool, 100, one);
    CHECK_EQ(enqueue(pool, 90, two), first);
    CHECK(backend.held.count(two) == 1);
    CHECK_THROWS(enqueue(pool, 200, three), vimrt::OutOfMemory, "full");
    backend.capacity = 400;
    CHECK(enqueue(pool, 200, three) != nullptr);
}

TEST(an_arena_in_use_by_enqueued_work_is_waited_for_before_it_is_freed) {
    FakeBackend backend;
    {
        ArenaPool pool(backend, 0);
        enqueue(pool, 100, one);
        enqueue(pool, 200, one);
        CHECK_EQ(backend.waits, 1);
        CHECK_EQ(pool.bytes(), 200);
    }
    CHECK_EQ(backend.waits, 2);
    CHECK_EQ(backend.held_bytes, 0U);
}

TEST(the_threads_own_streams_are_never_taken_for_one) {
    FakeBackend backend;
    ArenaPool pool(backend, 0);
    void* const first = enqueue(pool, 100, backend.own_stream());
    CHECK(enqueue(pool, 100, backend.own_stream()) != first);
}

TEST(work_that_was_waited_for_leaves_its_arena_ready) {
    FakeBackend backend;
    ArenaPool pool(backend, 0);
    void* first = nullptr;
    {
        ArenaPool::Lease lease(pool, 100, one);
        first = lease.data();
        lease.finished();
    }
    CHECK(backend.enqueued.empty());
    CHECK_EQ(enqueue(pool, 100, two), first);
    CHECK(backend.held.empty());
}

TEST(an_arena_of_captured_work_serves_nobody_else) {
    FakeBackend backend;
    ArenaPool pool(backend, 250);
    void* const captured = ArenaPool::Lease(pool, 100, one, true).data();
    CHECK(enqueue(pool, 100, one) != captured);
    CHECK_EQ(pool.bytes(), 200);
    CHECK_THROWS(enqueue(pool, 200, one), vimrt::OutOfMemory, "captured graphs");
}
