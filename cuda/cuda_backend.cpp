#include "cuda_backend.h"

#include <algorithm>

#include "fence.h"
#include "operators.h"
#include "vimrt/error.h"

namespace vimrt::cuda {

namespace {

// Grids of blocks have at most 65,535 rows.
constexpr std::int64_t max_slice = 32768;

std::unique_ptr<const CublasLt> open_blas(int device, const std::vector<std::string>& folders) {
    const DeviceGuard guard(device);
    check(cudaFree(nullptr), "the device cannot be started");  // makes the context that cuBLASLt's handle belongs to
    return std::make_unique<const CublasLt>(folders);
}

DType storage_for(const BackendOptions& options) {
    const DType dtype = options.dtype.value_or(options.file_dtype);
    if (dtype == DType::U8)
        throw InvalidArgument("activations cannot be stored as uint8; use \"fp32\", \"fp16\" or \"bf16\"");
    return dtype;
}

bool is_pageable(const void* memory) {
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, memory), "a pointer cannot be looked up");
    return attributes.type == cudaMemoryTypeUnregistered;
}

}  // namespace

CudaBackend::CudaBackend(const BackendOptions& options)
    : properties_(find_device(options.device_index)),
      blas_(open_blas(properties_.index, options.library_folders)),
      algorithms_(*blas_),
      results_(std::make_shared<ResultMemory>(properties_.index)),
      pinned_(std::make_shared<PinnedMemory>(properties_.index)),
      target_{storage_for(options), properties_, &algorithms_} {}

std::string CudaBackend::description() const {
    return properties_.name + ", " + std::string(name_of(target_.dtype)) + ", cuBLASLt " + blas_->version();
}

std::int64_t CudaBackend::preferred_slice(std::int64_t batch,
                                          const std::function<std::int64_t()>& /*bytes_per_image*/) const {
    return std::min(batch, max_slice);
}

void* CudaBackend::allocate(std::size_t bytes) {
    const DeviceGuard guard(properties_.index);
    const MemoryGuard memory_guard;
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, std::max<std::size_t>(bytes, 1));
    if (status == cudaErrorMemoryAllocation) refuse_memory(bytes, "device memory");
    check(status, "device memory cannot be allocated");
    return memory;
}

// Work that is enqueued may still use the memory, so all of it is waited for; memory is given back rarely.
void CudaBackend::deallocate(void* memory, std::size_t /*bytes*/) noexcept {
    try {
        const DeviceGuard guard(properties_.index);
        const MemoryGuard memory_guard;
        cudaDeviceSynchronize();
        cudaFree(memory);
    } catch (...) {
        // A device that failed, or a process at its end, needs no memory back.
    }
}

void CudaBackend::copy(void* to, const void* from, std::size_t bytes, void* stream) {
    if (bytes == 0) return;
    const DeviceGuard guard(properties_.index);
    const AllowWhileCapturing allowed;
    const auto target = static_cast<cudaStream_t>(stream);
    if (is_pageable(from)) return staging_.upload(to, from, bytes, target);
    if (is_pageable(to)) return staging_.download(to, from, bytes, target);
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, target), "a copy failed");
}

void CudaBackend::synchronize(void* stream) {
    const DeviceGuard guard(properties_.index);
    const AllowWhileCapturing allowed;
    check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), program_failed);
}

void* CudaBackend::next_stream() {
    const DeviceGuard guard(properties_.index);
    const std::lock_guard lock(streams_mutex_);
    std::unique_ptr<Stream>& stream = streams_[turn_++ % streams_.size()];
    if (stream == nullptr) stream = std::make_unique<Stream>();
    return stream->get();
}

bool CudaBackend::is_capturing(void* stream) {
    const DeviceGuard guard(properties_.index);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "the stream cannot be used");
    return status != cudaStreamCaptureStatusNone;
}

std::unique_ptr<Fence> CudaBackend::make_fence() {
    return std::make_unique<CudaFence>(properties_.index);
}

Device CudaBackend::device_of(const void* memory) {
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, memory), "a pointer cannot be looked up");
    if (attributes.type == cudaMemoryTypeUnregistered) return {};
    if (attributes.type == cudaMemoryTypeDevice) return {Device::Kind::CUDA, attributes.device};
    return device();  // pinned and managed memory are within any device's reach
}

std::shared_ptr<void> CudaBackend::allocate_result(std::size_t bytes, void* stream, std::shared_ptr<Fence> last_use) {
    return results_->allocate(bytes, static_cast<cudaStream_t>(stream), std::move(last_use));
}

std::shared_ptr<void> CudaBackend::allocate_staging(std::size_t bytes) {
    return pinned_->allocate(bytes);
}

bool CudaBackend::supports(const std::string& op) const {
    return find_operator(op) != nullptr;
}

int CudaBackend::lower(Lowering& lowering, int node) {
    const Node& first = lowering.node(node);
    for (int i = 0; i < first.input_count(); ++i) {
        if (lowering.read(first.input(i)).dtype == DType::U8 && first.op() != "patch_embed") {
            lowering.fail(node,
                          "reads 8-bit pixels, which patch_embed alone takes; give the image as normalised float32");
        }
    }
    const DeviceGuard guard(properties_.index);
    return find_operator(first.op())(lowering, node, target_for(lowering));
}

Target CudaBackend::target_for(const Lowering& lowering) const {
    Target target = target_;
    target.parts = target.dtype != DType::F32 && needs_parts(lowering);
    return target;
}

std::vector<Round> CudaBackend::preferred_rounds(const Lowering& lowering) const {
    return cuda::preferred_rounds(lowering, target_for(lowering));
}

void CudaBackend::lower_copy(Lowering& lowering, const Operand& source, const Operand& destination, std::int64_t rows,
                             std::int64_t columns) {
    cuda::lower_copy(lowering, "output", source, destination, rows, columns);
}

std::unique_ptr<Execution> CudaBackend::prepare(const std::vector<Step>& steps) {
    const DeviceGuard guard(properties_.index);
    return std::make_unique<CudaExecution>(properties_.index, *blas_, steps);
}

}  // namespace vimrt::cuda
