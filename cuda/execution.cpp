#include "execution.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "vimrt/error.h"

namespace vimrt::cuda {

namespace {

// Sets of pointers for which an execution keeps a graph: a caller that takes turns with a few inputs and outputs
// has none captured again.
constexpr std::size_t max_graphs = 4;

class GraphHandle {
public:
    ~GraphHandle() {
        if (graph != nullptr) cudaGraphDestroy(graph);
    }
    cudaGraph_t graph = nullptr;
};

}  // namespace

CudaExecution::Graph::~Graph() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
}

CudaExecution::CudaExecution(int device, const CublasLt& blas, const std::vector<Step>& steps)
    : device_(device), blas_(blas), steps_(steps) {
    for (const Step& step : steps) {
        for (const auto* list : {&step.reads, &step.writes}) {
            for (const BufferId buffer : *list)
                buffer_count_ = std::max(buffer_count_, static_cast<std::size_t>(buffer) + 1);
        }
    }
}

void CudaExecution::run(void* const* buffers, void* stream) {
    const DeviceGuard guard(device_);
    const auto target = static_cast<cudaStream_t>(stream);
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(target, &capturing), "the stream cannot be used");
    if (capturing != cudaStreamCaptureStatusNone) return enqueue(buffers, target, false);

    static const bool one_by_one =
        std::getenv("VIMRT_CUDA_SYNC") != nullptr && std::strcmp(std::getenv("VIMRT_CUDA_SYNC"), "1") == 0;
    if (one_by_one) return enqueue(buffers, target, true);
    check(cudaGraphLaunch(graph_for(buffers), target), "the program's graph cannot be launched");
}

void CudaExecution::enqueue(void* const* buffers, cudaStream_t stream, bool wait_for_each) const {
    const Launch launch{stream, &blas_};
    Frame frame;
    frame.buffers = buffers;
    frame.backend = const_cast<Launch*>(&launch);
    for (const Step& step : steps_) {
        try {
            step.function(step.parameters.get(), frame);
        } catch (const DeviceError& error) {
            throw DeviceError("step \"" + step.name + "\": " + error.what());
        }
        if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) {
            check(status, "step \"" + step.name + "\" cannot be launched");
        }
        if (!wait_for_each) continue;
        if (const cudaError_t status = cudaStreamSynchronize(stream); status != cudaSuccess) {
            check(status, "step \"" + step.name + "\" failed on the device");
        }
    }
}

cudaGraphExec_t CudaExecution::graph_for(void* const* buffers) {
    const auto found = std::find_if(graphs_.begin(), graphs_.end(), [&](const Graph& graph) {
        return std::equal(graph.buffers.begin(), graph.buffers.end(), buffers);
    });
    if (found != graphs_.end()) {
        graphs_.splice(graphs_.begin(), graphs_, found);
        return graphs_.front().exec;
    }
    if (graphs_.size() < max_graphs) {
        graphs_.emplace_front();
        graphs_.front().buffers.resize(buffer_count_);
    } else {
        graphs_.splice(graphs_.begin(), graphs_, std::prev(graphs_.end()));
    }
    Graph& graph = graphs_.front();
    std::copy_n(buffers, buffer_count_, graph.buffers.begin());
    try {
        capture(graph);
    } catch (...) {
        graphs_.pop_front();
        throw;
    }
    return graph.exec;
}

// Captures the steps with the graph's buffers. A graph of the same steps takes over their new pointers; that is much
// cheaper than instantiating it again.
void CudaExecution::capture(Graph& graph) {
    GraphHandle captured;
    const AllowWhileCapturing allowed;
    check(cudaStreamBeginCapture(capture_stream_.get(), cudaStreamCaptureModeThreadLocal),
          "the program cannot be captured");
    try {
        enqueue(graph.buffers.data(), capture_stream_.get(), false);
    } catch (...) {
        cudaStreamEndCapture(capture_stream_.get(), &captured.graph);
        cudaGetLastError();
        throw;
    }
    check(cudaStreamEndCapture(capture_stream_.get(), &captured.graph), "the program cannot be captured");
    if (graph.exec != nullptr) {
        cudaGraphExecUpdateResultInfo info{};
        if (cudaGraphExecUpdate(graph.exec, captured.graph, &info) == cudaSuccess) return;
        cudaGetLastError();
        cudaGraphExecDestroy(graph.exec);
        graph.exec = nullptr;
    }
    check(cudaGraphInstantiate(&graph.exec, captured.graph, 0), "the program's graph cannot be instantiated");
}

}  // namespace vimrt::cuda
