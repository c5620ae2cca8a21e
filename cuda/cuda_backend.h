// The CUDA backend: one device, its memory, and programs lowered for it.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend.h"
#include "cublaslt.h"
#include "device.h"
#include "execution.h"
#include "matmul.h"
#include "run_memory.h"
#include "staging.h"

namespace vimrt::cuda {

class CudaBackend final : public Backend {
public:
    // Throws DeviceError where the device, its driver or cuBLASLt is missing.
    explicit CudaBackend(const BackendOptions& options);

    Device device() const override { return {Device::Kind::CUDA, properties_.index}; }
    std::string description() const override;
    DType dtype() const override { return target_.dtype; }
    int threads() const override { return 1; }
    std::size_t alignment() const override { return 256; }
    std::int64_t preferred_slice(std::int64_t batch,
                                 const std::function<std::int64_t()>& bytes_per_image) const override;

    void* allocate(std::size_t bytes) override;
    void deallocate(void* memory, std::size_t bytes) noexcept override;
    void copy(void* to, const void* from, std::size_t bytes, void* stream) override;
    void synchronize(void* stream) override;
    bool host_accessible() const override { return false; }

    bool supports(const std::string& op) const override;
    std::vector<Round> preferred_rounds(const Lowering& lowering) const override;
    int lower(Lowering& lowering, int node) override;
    void lower_copy(Lowering& lowering, const Operand& source, const Operand& destination, std::int64_t rows,
                    std::int64_t columns) override;
    std::unique_ptr<Execution> prepare(const std::vector<Step>& steps) override;

    void* own_stream() override { return cudaStreamPerThread; }
    void* next_stream() override;
    bool is_capturing(void* stream) override;
    std::unique_ptr<Fence> make_fence() override;
    Device device_of(const void* memory) override;
    std::shared_ptr<void> allocate_result(std::size_t bytes, void* stream, std::shared_ptr<Fence> last_use) override;
    std::shared_ptr<void> allocate_staging(std::size_t bytes) override;

private:
    Target target_for(const Lowering& lowering) const;

    const DeviceProperties properties_;
    const std::unique_ptr<const CublasLt> blas_;
    MatmulAlgorithms algorithms_;
    PinnedStaging staging_;
    const std::shared_ptr<ResultMemory> results_;
    const std::shared_ptr<PinnedMemory> pinned_;
    // Copies of one run that is not waited for go on beside the work of the other.
    std::mutex streams_mutex_;
    std::array<std::unique_ptr<Stream>, 2> streams_;
    std::size_t turn_ = 0;
    Target target_;
};

}  // namespace vimrt::cuda
