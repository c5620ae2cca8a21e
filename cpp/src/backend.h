// What a device must offer. The core knows no device beyond this interface.
//
// The CPU backend is linked in; any other is a shared object of its own, libvimrt_<name>.so, found beside libvimrt and
// loaded only when it is asked for (backend_registry.h), so that one build serves machines with and without the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lowering.h"
#include "vimrt/tensor.h"

namespace vimrt {

// One operation of a Program.
struct Step {
    std::string name;
    StepFunction function = nullptr;
    std::unique_ptr<std::byte[]> parameters;  // a trivially copyable struct of the step's own
    std::size_t parameter_bytes = 0;
    std::vector<BufferId> reads;
    std::vector<BufferId> writes;
    // Rounds run one after the other. In a round, steps of one branch run in their order; those of different branches
    // share nothing that any of them writes, and may run side by side.
    int round = 0;
    int branch = 0;
    std::int64_t images = 0;  // of the branch
};

struct BackendOptions {
    int device_index = 0;
    int threads = 0;                // 0: as many as the process may use
    std::optional<DType> dtype;     // storage of activations and weights; empty: the backend's choice for `file_dtype`
    DType file_dtype = DType::F32;  // of the file's matrices
    std::vector<std::string> library_folders;  // where libraries that the device needs may lie, before the usual places
};

// A Program made ready to run on its device, again and again, from one thread at a time.
class VIMRT_API Execution {
public:
    virtual ~Execution();
    // `buffers` holds a device pointer per BufferId. The pointers may differ from run to run. The work is enqueued on
    // `stream`, one of a caller's or of Backend's, and the call may return before it is done.
    virtual void run(void* const* buffers, void* stream) = 0;
    // Runs the steps `repetitions` times in order, after a warm-up, and gives the seconds of every step, pass after
    // pass.
    virtual std::vector<double> profile(void* const* buffers, void* stream, int repetitions) = 0;
};

// A point in the work of a stream that other streams and the host can wait for. Before the first record() it is in the
// past. Usable beyond its backend's end.
class VIMRT_API Fence {
public:
    virtual ~Fence();
    virtual void record(void* stream) = 0;  // the point is behind all that is enqueued on `stream` now
    virtual void hold(void* stream) = 0;    // what is enqueued on `stream` from now on waits for the point
    virtual bool done() = 0;
    virtual void wait() = 0;  // the calling thread waits; throws DeviceError where the work failed
};

class VIMRT_API Backend {
public:
    virtual ~Backend();

    virtual Device device() const = 0;
    virtual std::string description() const = 0;  // for people: "AVX-512, 2 threads"
    virtual DType dtype() const = 0;              // how activations are stored
    virtual int threads() const = 0;
    virtual std::size_t alignment() const = 0;  // of buffers in the arena, bytes, a power of two
    // Images per slice that serve the caches best, at most `batch`. `bytes_per_image` tells how much of the arena one
    // needs, for which it must be lowered: asked only where that counts.
    virtual std::int64_t preferred_slice(std::int64_t batch,
                                         const std::function<std::int64_t()>& bytes_per_image) const = 0;

    // Device memory. allocate() throws OutOfMemory saying how much was asked for and, where known, how much was free.
    virtual void* allocate(std::size_t bytes) = 0;
    virtual void deallocate(void* memory, std::size_t bytes) noexcept = 0;
    // Copies between this device and the host, either way, or within the device; ordered on `stream`. Between the
    // device and allocate_staging() memory, or within the device, the copy may still be under way when the call
    // returns.
    virtual void copy(void* to, const void* from, std::size_t bytes, void* stream) = 0;
    virtual void synchronize(void* stream) = 0;  // waits for all that is enqueued on `stream`
    virtual bool host_accessible() const = 0;    // device memory may be read and written by the host directly

    virtual bool supports(const std::string& op) const = 0;
    // Into what a program's batch is best split: rounds, in the same memory one after the other, and branches, which
    // may run side by side, at most one for each image. `lowering` is that of the whole batch; none is for no split.
    virtual std::vector<Round> preferred_rounds(const Lowering& lowering) const;
    // Emits the steps of graph node `node` and possibly of its successors; returns how many nodes that was.
    virtual int lower(Lowering& lowering, int node) = 0;
    // Emits a step that copies a matrix, so that a value the caller asked for leaves the arena as dense fp32.
    virtual void lower_copy(Lowering& lowering, const Operand& source, const Operand& destination, std::int64_t rows,
                            std::int64_t columns) = 0;
    // The steps outlive the Execution.
    virtual std::unique_ptr<Execution> prepare(const std::vector<Step>& steps) = 0;

    // The rest is for devices that work beside the host. The defaults are right where work is done when a call returns.

    // The calling thread's own stream, for runs that are waited for; different threads may have the same handle.
    virtual void* own_stream() { return nullptr; }
    // A stream of the backend's for a run that is not waited for; a few take turns.
    virtual void* next_stream() { return nullptr; }
    // Work on `stream` is being recorded for later, once or often: memory it uses must stay as it is.
    virtual bool is_capturing(void* stream);
    virtual std::unique_ptr<Fence> make_fence();
    // Where `memory` is, for memory that a caller says is on a device.
    virtual Device device_of(const void* memory);
    // Device memory for work on `stream` and after. It is free for other work, in the order of the streams, when the
    // last owner is gone and `last_use` is past. Outlives the backend. Throws OutOfMemory.
    virtual std::shared_ptr<void> allocate_result(std::size_t bytes, void* stream, std::shared_ptr<Fence> last_use);
    // Host memory that copies to and from the device need not wait for. Outlives the backend. Throws OutOfMemory.
    virtual std::shared_ptr<void> allocate_staging(std::size_t bytes);
};

namespace cpu {
std::unique_ptr<Backend> create_backend(const BackendOptions& options);
}

// What a separately loaded backend exports with C linkage, as `vimrt_backend_entry`.
struct BackendEntry {
    int abi_version = 0;  // must equal backend_abi_version; both sides are built from one source tree
    // Throws DeviceError where the device, its driver or a library is missing, saying which and how to get it.
    std::unique_ptr<Backend> (*create)(const BackendOptions& options) = nullptr;
};
inline constexpr int backend_abi_version = 8;

}  // namespace vimrt
