// The engine: load a .vimrt file once, run it from any number of threads.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vimrt/planner.h"
#include "vimrt/preprocess.h"
#include "vimrt/tensor.h"

namespace vimrt {

struct EngineOptions {
    std::string device = "auto";  // "auto", "cpu", "cuda" or "cuda:N"
    std::optional<DType> dtype;   // storage of activations on the device; the CPU computes in F32 only
    int threads = 0;              // CPU threads; 0: as many as the process may use
    std::int64_t max_memory = 0;  // bytes of activations the engine may hold at a time; 0: no limit
    std::vector<std::string> library_folders = {};  // where cuBLASLt may lie, before the usual places
};

struct Prediction {
    std::string label;      // the file's label, or "class <index>" where it has none
    float probability = 0;  // softmax over the logits
    std::int64_t index = 0;
};

struct WeightInfo {
    std::string name;
    DType dtype = DType::F32;
    Shape shape;
};

struct NodeInfo {
    std::string op;
    std::string name;
    std::vector<std::string> inputs;
    std::vector<std::string> outputs;
};

// What the file says of itself.
struct ModelInfo {
    std::string path;
    int format_version = 0;
    std::map<std::string, std::string> metadata;  // the file's, verbatim
    Preprocessing preprocessing;
    std::vector<std::string> labels;   // empty, or one for each class
    std::vector<std::string> outputs;  // names for run(); the first is its default
    std::vector<WeightInfo> weights;
    std::vector<NodeInfo> nodes;
    std::int64_t parameters = 0;    // elements of all weights
    std::int64_t weight_bytes = 0;  // as stored
};

struct ProgramStep {
    std::string name;
    std::vector<int> reads;  // indices into ProgramInfo::buffers
    std::vector<int> writes;
    int round = 0;            // parts of the batch that run one after the other
    int branch = 0;           // steps of a round's different branches, which have parts of it, may run side by side
    std::int64_t images = 0;  // of the branch
};

struct ProgramBuffer {
    std::string name;
    std::int64_t size = 0;   // bytes
    std::int64_t begin = 0;  // lives in steps [begin, end)
    std::int64_t end = 0;
    std::int64_t offset = -1;  // in the arena; -1 for inputs and outputs, which are the caller's
};

// The steps that really run for one input size, and where their buffers lie.
struct ProgramInfo {
    std::vector<ProgramStep> steps;
    std::vector<ProgramBuffer> buffers;
    std::int64_t peak = 0;         // bytes of the arena
    std::int64_t lower_bound = 0;  // no placement needs less
};

struct StepTime {
    std::string name;
    double seconds = 0;  // the median of its repetitions
};

// The steps of a run, timed one by one. A batch that runs in slices repeats them for every `images` images.
struct Profile {
    std::int64_t images = 0;
    std::vector<StepTime> steps;
};

struct RunOptions {
    // CUDA: a cudaStream_t. The run is ordered on it, and with results on the device the call returns when the work is
    // enqueued. nullptr: the call waits for the results; what an input on the device needs must be done by then.
    void* stream = nullptr;
};

// A run that may still be under way. Movable; may outlive its engine. From one thread at a time.
class VIMRT_API Pending {
public:
    Pending(Pending&&) noexcept;
    Pending& operator=(Pending&&) noexcept;
    Pending(const Pending&) = delete;
    Pending& operator=(const Pending&) = delete;
    ~Pending();  // waits where results are to come to the host

    bool done() const;
    void wait() const;  // throws DeviceError where the run failed
    // What is enqueued on `stream` from now on waits for the results; the calling thread does not.
    void hold(void* stream) const;
    void* stream() const;  // that the run is on
    // Waits, and gives the results.
    const std::vector<Tensor>& results() const;
    // The results, which may not be there yet.
    const std::vector<Tensor>& unfinished() const;
    // A copy on the host of one of the results. Waits.
    Tensor to_host(const Tensor& result) const;

    struct State;
    explicit Pending(std::unique_ptr<State> state);

private:
    std::unique_ptr<State> state_;
};

// Immutable after construction; every method may be called from several threads at once.
class VIMRT_API Engine {
public:
    // Throws FormatError for a bad file, DeviceError for a device that is not there, InvalidArgument for bad options.
    explicit Engine(const std::string& path, const EngineOptions& options = {});
    ~Engine();
    Engine(Engine&&) noexcept;
    Engine& operator=(Engine&&) noexcept;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    const ModelInfo& info() const;                   // put together when it is first asked for
    const std::vector<std::string>& labels() const;  // empty, or one for each class
    std::vector<std::string> outputs() const;        // names for run(); the first is its default
    const Preprocessing& preprocessing() const;
    Device device() const;
    std::string backend() const;  // for people: "cpu (AVX-512, 2 threads)"
    // Why device "auto" took the CPU although this machine has an NVIDIA driver: one sentence; empty where all is well.
    const std::string& warning() const;
    DType dtype() const;
    int threads() const;

    // float32 (B, 3, H, W): taken as already normalised; any H and W the graph allows. uint8 (B, H, W, 3) or (H, W, 3):
    // photographs, preprocessed by the file's recipe; those on the device, (B, H, W, 3), have their final size already
    // and are only normalised. Results are float32 on the input's device: logits (B, classes), features (B, D), tokens
    // (B, T, D), or any value of the graph by its name. Throws InvalidArgument for a shape, dtype, device or name that
    // does not fit, OutOfMemory where a single image passes the limit or the memory there is.
    Tensor run(const Tensor& input) const;
    std::vector<Tensor> run(const Tensor& input, std::span<const std::string> outputs) const;
    // Writes into the caller's dense float32 tensors. For an input that needs no resizing, of a size seen before,
    // allocates nothing. Input and results may be on the host or on the engine's device, in any combination; results on
    // the host are there when the call returns.
    //
    // The stream may be under capture, with all tensors on the device: the graph may be launched until the engine ends.
    // Memory for such a run is set aside for good.
    void run(const Tensor& input, std::span<const std::string> outputs, std::span<Tensor> results,
             const RunOptions& options = {}) const;

    // As run(), without waiting. An input on the host is copied before the call returns; one on the device must stay as
    // it is until the run is done. Without a stream the run gets one of the engine's. The CPU runs before it returns.
    Pending start(const Tensor& input, std::span<const std::string> outputs = {}, const RunOptions& options = {}) const;
    Pending start_images(std::span<const ImageView> images, std::span<const std::string> outputs = {},
                         std::optional<std::array<std::int64_t, 2>> image_size = {}) const;

    // CUDA: what is enqueued on `stream` from now on waits, on the device, for what is enqueued on `after` now.
    void order(void* stream, void* after) const;

    // New, uninitialised memory on the engine's device.
    Tensor empty(const Shape& shape, DType dtype = DType::F32) const;

    // Photographs of any sizes, preprocessed by the file's recipe, or by the recipe with another image_size.
    std::vector<Tensor> run_images(std::span<const ImageView> images, std::span<const std::string> outputs = {},
                                   std::optional<std::array<std::int64_t, 2>> image_size = {}) const;

    // The shapes run() would return for this input. Throws as run() does.
    std::vector<Shape> output_shapes(const Tensor& input, std::span<const std::string> outputs) const;

    // The `top_k` most probable classes of one image, most probable first.
    std::vector<Prediction> classify(const ImageView& image, int top_k = 5) const;
    // The same from logits (classes,), as run() gives them.
    std::vector<Prediction> top(std::span<const float> logits, int top_k = 5) const;

    // Photographs of any sizes to the float32 (B, 3, rows, columns) that run() takes as already normalised.
    Tensor preprocess(std::span<const ImageView> images,
                      std::optional<std::array<std::int64_t, 2>> image_size = {}) const;

    // Lowers and plans without running or allocating the arena.
    ProgramInfo program(std::int64_t batch, std::int64_t height, std::int64_t width,
                        std::span<const std::string> outputs = {}) const;

    // Runs a float32 input on the host `repetitions` times and times every step of its (first) slice: by events on the
    // device between one step and the next, or by the CPU's clock. Throws as run() does.
    Profile profile(const Tensor& input, int repetitions = 20) const;

    // Bytes now held: activations in arenas; packed weights and tables on the device; on the host's heap the loaded
    // graph and the programs made of it.
    std::int64_t arena_bytes() const;
    std::int64_t constant_bytes() const;
    std::int64_t program_bytes() const;

private:
    std::vector<Tensor> run_prepared(const Tensor& pixels, std::span<const std::string> outputs) const;

    class Impl;
    std::unique_ptr<Impl> impl_;
};

VIMRT_API std::string version();  // of the library, "0.1.0"

}  // namespace vimrt
