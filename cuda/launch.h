// Launches of kernels that may be set up while the one before them on the stream still runs: programmatic dependent
// launch, compute capability 9.0 or newer. Such a kernel begins with wait_for_predecessor().
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "device.h"

namespace vimrt::cuda {

struct Grid {
    dim3 blocks, threads;
    std::size_t shared_bytes = 0;
    unsigned cluster = 1;   // neighbouring blocks that run at the same time; more than one from 9.0 on
    bool early = true;      // may be set up while the kernel before still runs
    bool together = false;  // blocks wait for one another, and so must all be on the device at once
};

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream,
            const Arguments&... arguments) {
    cudaLaunchAttribute attributes[3]{};
    unsigned count = 0;
    if (grid.early && runs_code_of_hopper()) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (grid.cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count++].val.clusterDim = {grid.cluster, 1, 1};
    }
    if (grid.together) {
        attributes[count].id = cudaLaunchAttributeCooperative;
        attributes[count++].val.cooperative = 1;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid.blocks;
    config.blockDim = grid.threads;
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = count;
    if (grid.shared_bytes > 0) allow_shared_memory(reinterpret_cast<const void*>(kernel), grid.shared_bytes, name);
    check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}

#ifdef __CUDACC__
// Until what the kernel before wrote can be read, and what it reads be overwritten. Every thread that does either calls
// it.
__device__ inline void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The kernel behind may be set up where there is room, once all blocks of this one have said so or are done.
__device__ inline void let_successor_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
#endif

}  // namespace vimrt::cuda
