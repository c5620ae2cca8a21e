// The CPU backend: fp32 throughout, a team of threads that walks a program's steps together.
#include "backend.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime/copy.h"
#include "runtime/instruction_set.h"
#include "runtime/pages.h"
#include "runtime/thread_team.h"
#include "vimrt/error.h"

namespace vimrt::cpu {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t cache_line = 64;
// Blocks from here on are mapped, smaller ones share the heap's pages.
constexpr std::size_t mapped_bytes = std::size_t{64} * 1024;

class CpuExecution final : public Execution {
public:
    CpuExecution(ThreadTeam& team, const std::vector<Step>& steps) : team_(team), steps_(steps) {}

    void run(void* const* buffers, void* /*stream*/) override {
        Call call{this, buffers, nullptr};
        team_.run(walk, &call);
    }

    std::vector<double> profile(void* const* buffers, void* stream, int repetitions) override {
        std::vector<double> seconds(static_cast<std::size_t>(repetitions) * steps_.size());
        run(buffers, stream);
        for (int i = 0; i < repetitions; ++i) {
            Call call{this, buffers, seconds.data() + static_cast<std::size_t>(i) * steps_.size()};
            team_.run(walk, &call);
        }
        return seconds;
    }

private:
    struct Call {
        CpuExecution* self;
        void* const* buffers;
        double* seconds;  // receives each step's time; null where nobody asks
    };

    static void walk(void* argument, int thread) {
        const Call& call = *static_cast<const Call*>(argument);
        ThreadTeam& team = call.self->team_;
        const Frame frame{call.buffers, thread, team.threads(), &team};
        const bool timed = call.seconds != nullptr && thread == 0;
        double* seconds = call.seconds;
        Clock::time_point before = timed ? Clock::now() : Clock::time_point{};
        for (const Step& step : call.self->steps_) {
            step.function(step.parameters.get(), frame);
            team.wait(0, team.threads());
            if (!timed) continue;
            const Clock::time_point after = Clock::now();
            *seconds++ = std::chrono::duration<double>(after - before).count();
            before = after;
        }
    }

    ThreadTeam& team_;
    const std::vector<Step>& steps_;
};

class CpuBackend final : public Backend {
public:
    explicit CpuBackend(const BackendOptions& options)
        : isa_(choose_instruction_set()), team_(options.threads > 0 ? options.threads : available_threads()) {
        if (options.dtype && *options.dtype != DType::F32) {
            throw InvalidArgument("the CPU computes in float32, and dtype is " + std::string(name_of(*options.dtype)) +
                                  "; leave dtype out (weights of any type are converted when they are loaded)");
        }
        if (options.device_index != 0) {
            throw DeviceError("there is no device cpu:" + std::to_string(options.device_index) + "; use cpu");
        }
    }

    Device device() const override { return {}; }
    std::string description() const override {
        return std::string(isa_.description) + ", " + std::to_string(team_.threads()) +
               (team_.threads() == 1 ? " thread" : " threads");
    }
    DType dtype() const override { return DType::F32; }
    int threads() const override { return team_.threads(); }
    std::size_t alignment() const override { return cache_line; }

    // An image for every thread, so that each runs without the others; more where those still fit the caches.
    std::int64_t preferred_slice(std::int64_t batch,
                                 const std::function<std::int64_t()>& bytes_per_image) const override {
        const std::int64_t threads = team_.threads();
        const std::int64_t rounds =
            std::max<std::int64_t>(1, cached_bytes_ / std::max<std::int64_t>(1, bytes_per_image() * threads));
        return std::min(batch, rounds * threads);
    }

    void* allocate(std::size_t bytes) override {
        const std::size_t padded = (std::max<std::size_t>(bytes, 1) + cache_line - 1) / cache_line * cache_line;
        void* memory = bytes >= mapped_bytes ? allocate_pages(bytes) : std::aligned_alloc(cache_line, padded);
        if (memory == nullptr) {
            throw OutOfMemory(
                "the system refused " + std::to_string(bytes) + " bytes of memory (" + std::to_string(free_bytes()) +
                " are free); use a smaller batch or image, or give max_memory so that batches run in slices");
        }
        return memory;
    }
    void deallocate(void* memory, std::size_t bytes) noexcept override {
        if (bytes >= mapped_bytes) {
            free_pages(memory, bytes);
        } else {
            std::free(memory);
        }
    }
    void copy(void* to, const void* from, std::size_t bytes, void* /*stream*/) override {
        if (bytes > 0) std::memcpy(to, from, bytes);
    }
    void synchronize(void* /*stream*/) override {}
    bool host_accessible() const override { return true; }

    bool supports(const std::string& op) const override { return find(op) != nullptr; }

    int lower(Lowering& lowering, int node) override {
        const Node& first = lowering.node(node);
        for (int i = 0; i < first.input_count(); ++i) {
            if (lowering.read(first.input(i)).dtype != DType::F32 && first.op() != "patch_embed") {
                lowering.fail(
                    node, "reads 8-bit pixels, which patch_embed alone takes; give the image as normalised float32");
            }
        }
        return find(first.op())->lower(lowering, node);
    }

    void lower_copy(Lowering& lowering, const Operand& source, const Operand& destination, std::int64_t rows,
                    std::int64_t columns) override {
        cpu::lower_copy(lowering, source, destination, rows, columns);
    }

    std::unique_ptr<Execution> prepare(const std::vector<Step>& steps) override {
        return std::make_unique<CpuExecution>(team_, steps);
    }

private:
    const OperatorEntry* find(const std::string& op) const {
        for (const OperatorEntry* entry = isa_.operators; entry->name != nullptr; ++entry) {
            if (op == entry->name) return entry;
        }
        return nullptr;
    }

    static long long free_bytes() {
        return static_cast<long long>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<long long>(sysconf(_SC_PAGESIZE));
    }

    // Half of the last-level cache, or 8 MiB where the system does not tell.
    static std::int64_t cache_share() {
        const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
        return bytes > 0 ? bytes / 2 : 8 << 20;
    }

    InstructionSet isa_;
    ThreadTeam team_;
    std::int64_t cached_bytes_ = cache_share();
};

}  // namespace

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
    return std::make_unique<CpuBackend>(options);
}

}  // namespace vimrt::cpu
