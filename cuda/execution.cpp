#include "execution.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "vimrt/error.h"

namespace vimrt::cuda {

namespace {

// Sets of pointers for which an execution keeps a graph: a caller that takes turns with a few inputs and outputs
// has none captured again.
constexpr std::size_t max_graphs = 4;

// Passes before those that profile() counts.
constexpr int profile_warm_up = 5;

class GraphHandle {
public:
    ~GraphHandle() {
        if (graph != nullptr) cudaGraphDestroy(graph);
    }
    cudaGraph_t graph = nullptr;
};

// An error of a device that failed comes up at whatever is enqueued next: it is the step's own only where steps are
// waited for one by one.
std::string culprit(const Step& step, bool one_by_one) {
    return !one_by_one && device_failed() ? program_failed : "step \"" + step.name + "\"";
}

Frame frame_for(void* const* buffers, Launch& launch) {
    Frame frame;
    frame.buffers = buffers;
    frame.backend = &launch;
    return frame;
}

void enqueue_step(const Step& step, const Frame& frame, bool one_by_one = false) {
    try {
        step.function(step.parameters.get(), frame);
    } catch (const DeviceError& error) {
        throw DeviceError(culprit(step, one_by_one) + ": " + error.what());
    }
    if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) check(status, culprit(step, one_by_one));
}

}  // namespace

// An event with its time.
class CudaExecution::TimedEvent {
public:
    TimedEvent() { check(cudaEventCreate(&event_), "a CUDA event cannot be made"); }
    ~TimedEvent() { cudaEventDestroy(event_); }
    TimedEvent(const TimedEvent&) = delete;
    TimedEvent& operator=(const TimedEvent&) = delete;
    cudaEvent_t get() const { return event_; }

    // In a captured stream: a node that records the event whenever the graph is launched.
    void record_in_graph(cudaStream_t stream) const {
        check(cudaEventRecordWithFlags(event_, stream, cudaEventRecordExternal), "a step cannot be marked");
    }

private:
    cudaEvent_t event_ = nullptr;
};

class CudaExecution::Branches {
public:
    explicit Branches(int count) : beside_(static_cast<std::size_t>(count) - 1) {}

    // What is enqueued on them from now on comes behind what is enqueued on `first`, the stream of the first branch.
    void begin(cudaStream_t first) {
        first_ = first;
        if (beside_.empty()) return;
        check(cudaEventRecord(begin_.get(), first), "a program's branches cannot begin");
        for (const Beside& branch : beside_) wait(branch.stream.get(), begin_);
    }
    cudaStream_t stream(int branch) const {
        return branch == 0 ? first_ : beside_[static_cast<std::size_t>(branch) - 1].stream.get();
    }
    // What is enqueued on the first one's stream from now on comes behind all of theirs.
    void end() const {
        for (const Beside& branch : beside_) {
            check(cudaEventRecord(branch.end.get(), branch.stream.get()), "a program's branches cannot end");
            wait(first_, branch.end);
        }
    }

private:
    struct Beside {
        Stream stream;
        Event end;
    };

    static void wait(cudaStream_t stream, const Event& event) {
        check(cudaStreamWaitEvent(stream, event.get(), 0), "a program's branches cannot wait for each other");
    }

    std::vector<Beside> beside_;
    Event begin_;
    cudaStream_t first_ = nullptr;
};

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
        branch_count_ = std::max(branch_count_, step.branch + 1);
    }
    branches_ = std::make_unique<Branches>(branch_count_);
}

CudaExecution::~CudaExecution() = default;

void CudaExecution::run(void* const* buffers, void* stream) {
    const DeviceGuard guard(device_);
    const auto target = static_cast<cudaStream_t>(stream);
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(target, &capturing), "the stream cannot be used");
    if (capturing != cudaStreamCaptureStatusNone) {
        {
            const AllowWhileCapturing allowed;
            captured_branches_.push_back(std::make_unique<Branches>(branch_count_));
        }
        return enqueue(buffers, target, *captured_branches_.back());
    }

    static const bool one_by_one =
        std::getenv("VIMRT_CUDA_SYNC") != nullptr && std::strcmp(std::getenv("VIMRT_CUDA_SYNC"), "1") == 0;
    if (one_by_one) return enqueue_one_by_one(buffers, target);
    const cudaGraphExec_t graph = graph_for(buffers);
    if (graph == nullptr) return enqueue(buffers, target, *branches_);
    check(cudaGraphLaunch(graph, target), "the program's graph cannot be launched");
}

void CudaExecution::enqueue(void* const* buffers, cudaStream_t stream, Branches& branches) const {
    Launch launch{stream, &blas_};
    const Frame frame = frame_for(buffers, launch);
    branches.begin(stream);
    int round = 0;
    for (const Step& step : steps_) {
        if (step.round != round) {
            branches.end();
            branches.begin(stream);
            round = step.round;
        }
        launch.stream = branches.stream(step.branch);
        enqueue_step(step, frame);
    }
    branches.end();
}

void CudaExecution::enqueue_one_by_one(void* const* buffers, cudaStream_t stream) const {
    Launch launch{stream, &blas_};
    const Frame frame = frame_for(buffers, launch);
    for (const Step& step : steps_) {
        enqueue_step(step, frame, true);
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
    } catch (const DeviceError&) {
        // Something else in the process broke the capture. That costs the graph, not the run, whose own errors come up
        // again where its steps are enqueued.
        graphs_.pop_front();
        return nullptr;
    }
    return graph.exec;
}

// Captures the steps with the graph's buffers. A graph of the same steps takes over their new pointers; that is much
// cheaper than instantiating it again.
void CudaExecution::capture(Graph& graph) {
    GraphHandle captured;
    const std::unique_lock alone(capture_mutex());
    const AllowWhileCapturing allowed;
    check(cudaStreamBeginCapture(capture_stream_.get(), cudaStreamCaptureModeThreadLocal),
          "the program cannot be captured");
    try {
        enqueue(graph.buffers.data(), capture_stream_.get(), *branches_);
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

std::vector<double> CudaExecution::profile(void* const* buffers, void* stream, int repetitions) {
    const DeviceGuard guard(device_);
    const auto target = static_cast<cudaStream_t>(stream);
    const std::vector<TimedEvent> marks(steps_.size() + 1);
    Graph graph;
    capture_marked(graph, buffers, marks);

    std::vector<double> seconds;
    seconds.reserve(static_cast<std::size_t>(repetitions) * steps_.size());
    for (int i = -profile_warm_up; i < repetitions; ++i) {
        check(cudaGraphLaunch(graph.exec, target), "the profiled program cannot be launched");
        check(cudaStreamSynchronize(target), "the profiled program failed on the device");
        for (std::size_t step = 0; i >= 0 && step < steps_.size(); ++step) {
            float milliseconds = 0;
            check(cudaEventElapsedTime(&milliseconds, marks[step].get(), marks[step + 1].get()),
                  "a step's time cannot be read");
            seconds.push_back(1e-3 * static_cast<double>(milliseconds));
        }
    }
    return seconds;
}

// Captures the steps, with an event before the first and after each.
void CudaExecution::capture_marked(Graph& graph, void* const* buffers, const std::vector<TimedEvent>& marks) {
    const cudaStream_t stream = capture_stream_.get();
    Launch launch{stream, &blas_};
    const Frame frame = frame_for(buffers, launch);
    GraphHandle captured;
    const std::unique_lock alone(capture_mutex());
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "the program cannot be captured");
    try {
        marks.front().record_in_graph(stream);
        for (std::size_t step = 0; step < steps_.size(); ++step) {
            enqueue_step(steps_[step], frame);
            marks[step + 1].record_in_graph(stream);
        }
    } catch (...) {
        cudaStreamEndCapture(stream, &captured.graph);
        cudaGetLastError();
        throw;
    }
    check(cudaStreamEndCapture(stream, &captured.graph), "the program cannot be captured");
    check(cudaGraphInstantiate(&graph.exec, captured.graph, 0), "the program's graph cannot be instantiated");
}

}  // namespace vimrt::cuda
