// A program's steps as CUDA graphs.
#pragma once

#include <cuda_runtime.h>

#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "backend.h"
#include "device.h"
#include "lowering_rules.h"

namespace vimrt::cuda {

// Orders the runs of one engine that are enqueued on different streams: they share arenas, which go back to the pool
// when a run is enqueued, not when it is done. Runs that wait for their result are done when their arena goes back.
class RunOrder {
public:
    // Makes `stream` wait for the last run that was enqueued on another one and not waited for.
    void begin(cudaStream_t stream);
    // Marks the end of a run that nobody waits for.
    void end(cudaStream_t stream);

private:
    std::mutex mutex_;
    std::unique_ptr<Event> last_;  // made with the first such run
    cudaStream_t last_stream_ = nullptr;
};

class CudaExecution final : public Execution {
public:
    CudaExecution(int device, const CublasLt& blas, RunOrder& order, const std::vector<Step>& steps);

    // Replays the graph that was captured with these buffers. A stream that is itself being captured gets the steps.
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

    void enqueue(void* const* buffers, cudaStream_t stream, bool wait_for_each) const;
    void enqueue_step(const Step& step, const Frame& frame) const;
    cudaGraphExec_t graph_for(void* const* buffers);
    void capture(Graph& graph);
    class TimedEvent;
    void capture_marked(Graph& graph, void* const* buffers, const std::vector<TimedEvent>& marks);

    const int device_;
    const CublasLt& blas_;
    RunOrder& order_;
    const std::vector<Step>& steps_;
    std::size_t buffer_count_ = 0;
    Stream capture_stream_;
    std::list<Graph> graphs_;  // most recently used first
};

}  // namespace vimrt::cuda
