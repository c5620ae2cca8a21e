// A program's steps as CUDA graphs.
#pragma once

#include <cuda_runtime.h>

#include <list>
#include <memory>
#include <vector>

#include "backend.h"
#include "device.h"
#include "lowering_rules.h"

namespace vimrt::cuda {

class CudaExecution final : public Execution {
public:
    CudaExecution(int device, const CublasLt& blas, const std::vector<Step>& steps);
    ~CudaExecution() override;

    // Launches the graph that was captured with these buffers. A stream that is itself being captured gets the steps.
    // Launches of one graph follow each other, whatever their streams, and a graph may take over new pointers while
    // earlier launches of it are under way: CUDA says so of cudaGraphLaunch and of updates.
    // With VIMRT_CUDA_SYNC=1 in the environment steps run one by one, so that the error of a kernel names its step.
    void run(void* const* buffers, void* stream) override;

    // Replays a graph of its own, in which an event follows every step, so that no launch by the host is timed.
    std::vector<double> profile(void* const* buffers, void* stream, int repetitions) override;

private:
    // A graph is good for the pointers that it was captured with.
    struct Graph {
        std::vector<void*> buffers;
        cudaGraphExec_t exec = nullptr;

        Graph() = default;
        ~Graph();
        Graph(const Graph&) = delete;
        Graph& operator=(const Graph&) = delete;
    };

    // Streams of the steps' branches beside that of the first.
    class Branches;

    void enqueue(void* const* buffers, cudaStream_t stream, Branches& branches) const;
    void enqueue_one_by_one(void* const* buffers, cudaStream_t stream) const;
    cudaGraphExec_t graph_for(void* const* buffers);  // null where it cannot be captured now
    void capture(Graph& graph);
    class TimedEvent;
    void capture_marked(Graph& graph, void* const* buffers, const std::vector<TimedEvent>& marks);

    const int device_;
    const CublasLt& blas_;
    const std::vector<Step>& steps_;
    std::size_t buffer_count_ = 0;
    int branch_count_ = 1;
    Stream capture_stream_;
    std::unique_ptr<Branches> branches_;
    // Those that a caller's capture has taken in: they belong to it until it ends, of which nobody tells.
    std::list<std::unique_ptr<Branches>> captured_branches_;
    std::list<Graph> graphs_;  // most recently used first
};

}  // namespace vimrt::cuda
