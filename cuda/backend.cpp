// The entry through which libvimrt reaches the CUDA backend.
#include "backend.h"

#include "cuda_backend.h"

namespace vimrt::cuda {

namespace {

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
    return std::make_unique<CudaBackend>(options);
}

}  // namespace

}  // namespace vimrt::cuda

extern "C" __attribute__((visibility("default")))
const vimrt::BackendEntry vimrt_backend_entry{vimrt::backend_abi_version, &vimrt::cuda::create_backend};
