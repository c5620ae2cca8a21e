#include "vimrt/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <list>
#include <mutex>
#include <numeric>
#include <utility>

#include "arena_pool.h"
#include "backend_registry.h"
#include "file.h"
#include "footprint.h"
#include "operators.h"
#include "pending.h"
#include "program.h"
#include "quote.h"
#include "version.h"
#include "vimrt/error.h"

namespace vimrt {

std::string version() {
    return VIMRT_VERSION;
}

namespace {

// Programs kept; a size beyond that replaces the one that was used longest ago.
constexpr std::size_t max_cached_programs = 16;

std::string joined(const std::vector<std::string>& names) {
    std::string list;
    for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
    return list;
}

std::vector<std::string> output_names(const Graph& graph) {
    std::vector<std::string> names;
    names.reserve(graph.outputs.size());
    for (const auto& output : graph.outputs) names.push_back(output.first);
    return names;
}

ModelInfo describe(const ModelFile& file) {
    ModelInfo info;
    info.path = file.path;
    info.format_version = file.format_version;
    info.metadata = file.metadata();
    info.preprocessing = file.preprocessing;
    info.labels = file.labels;
    info.outputs = output_names(file.graph);
    for (const Weight& weight : file.weights) {
        info.weights.push_back({weight.name, weight.dtype, weight.shape});
        info.parameters += weight.shape.elements();
        info.weight_bytes += weight.shape.elements() * static_cast<std::int64_t>(size_of(weight.dtype));
    }
    for (const Node& node : file.graph.nodes) {
        NodeInfo entry{node.op(), node.name(), {}, {}};
        for (const ValueId id : node.inputs_)
            entry.inputs.push_back(file.graph.value_names[static_cast<std::size_t>(id)]);
        for (const ValueId id : node.outputs_)
            entry.outputs.push_back(file.graph.value_names[static_cast<std::size_t>(id)]);
        info.nodes.push_back(std::move(entry));
    }
    return info;
}

// The dtype of the file's matrices: that of most of its bytes.
DType matrix_dtype(const ModelFile& file) {
    std::int64_t elements[4] = {};
    for (const Weight& weight : file.weights) {
        elements[static_cast<int>(weight.dtype)] += weight.shape.elements();
    }
    return static_cast<DType>(std::max_element(std::begin(elements), std::end(elements)) - std::begin(elements));
}

// A list of values that needs no heap for the few outputs of an ordinary run.
class ValueList {
public:
    void push_back(ValueId value) {
        if (size_ < inline_.size()) {
            inline_[size_] = value;
        } else {
            if (size_ == inline_.size()) heap_.assign(inline_.begin(), inline_.end());
            heap_.push_back(value);
        }
        ++size_;
    }
    std::span<const ValueId> span() const { return {size_ > inline_.size() ? heap_.data() : inline_.data(), size_}; }

private:
    std::array<ValueId, 16> inline_{};
    std::vector<ValueId> heap_;
    std::size_t size_ = 0;
};

// The size of a run, without the allocation that a ProgramKey makes.
struct RunSize {
    std::int64_t batch, height, width;
    DType input_dtype;
    std::span<const ValueId> outputs;

    RunSize with_batch(std::int64_t other) const { return {other, height, width, input_dtype, outputs}; }
    bool matches(const ProgramKey& key) const {
        return key.batch == batch && key.height == height && key.width == width && key.input_dtype == input_dtype &&
               std::equal(key.outputs.begin(), key.outputs.end(), outputs.begin(), outputs.end());
    }
};

// A Program and the executions made of it, each of which serves one run at a time.
struct CachedProgram {
    std::unique_ptr<Program> program;
    struct Slot {
        std::unique_ptr<Execution> execution;
        std::vector<void*> buffers;  // device pointers by BufferId
    };
    std::mutex mutex;
    std::vector<Slot> idle;
    std::size_t slots = 0;

    std::int64_t constant_bytes() const { return program->constants.bytes(); }

    Slot take(Backend& backend) {
        {
            const std::lock_guard lock(mutex);
            if (!idle.empty()) {
                Slot slot = std::move(idle.back());
                idle.pop_back();
                return slot;
            }
            idle.reserve(++slots);  // give_back() must not allocate
        }
        return {backend.prepare(program->steps), std::vector<void*>(program->buffers.size())};
    }

    void give_back(Slot slot) noexcept {
        const std::lock_guard lock(mutex);
        idle.push_back(std::move(slot));
    }

    std::int64_t heap_bytes() {
        const std::lock_guard lock(mutex);
        const auto pointers = static_cast<std::int64_t>(slots * program->buffers.size() * sizeof(void*));
        return vimrt::heap_bytes(*program) + pointers;
    }
};

// Device memory of a call's own.
class DeviceMemory {
public:
    DeviceMemory(Backend& backend, std::size_t bytes)
        : backend_(&backend), bytes_(bytes), memory_(backend.allocate(bytes)) {}
    ~DeviceMemory() {
        if (memory_ != nullptr) backend_->deallocate(memory_, bytes_);
    }
    DeviceMemory(DeviceMemory&& other) noexcept
        : backend_(other.backend_), bytes_(other.bytes_), memory_(std::exchange(other.memory_, nullptr)) {}
    DeviceMemory& operator=(DeviceMemory&&) = delete;
    void* get() const { return memory_; }

private:
    Backend* backend_;
    std::size_t bytes_;
    void* memory_;
};

// `seconds` as Execution::profile() gives them.
std::vector<StepTime> median_times(const std::vector<Step>& steps, const std::vector<double>& seconds) {
    std::vector<StepTime> times;
    std::vector<double> of_step(seconds.size() / std::max<std::size_t>(steps.size(), 1));
    for (std::size_t step = 0; step < steps.size(); ++step) {
        for (std::size_t i = 0; i < of_step.size(); ++i) of_step[i] = seconds[i * steps.size() + step];
        const auto middle = of_step.begin() + static_cast<std::ptrdiff_t>(of_step.size() / 2);
        std::nth_element(of_step.begin(), middle, of_step.end());
        times.push_back({steps[step].name, *middle});
    }
    return times;
}

}  // namespace

class Engine::Impl {
public:
    Impl(const std::string& path, const EngineOptions& options)
        : file_(path),
          backend_(create_backend(checked(options).device, backend_options(options), warning_)),
          max_memory_(options.max_memory),
          constants_(*backend_),
          arenas_(*backend_, options.max_memory) {
        check_graph();
    }

    const std::string& warning() const { return warning_; }
    const ModelFile& file() const { return file_; }
    // Made when it is first asked for: it says again, in texts, much of what the file holds.
    const ModelInfo& info() const {
        std::call_once(described_, [&] { info_ = describe(file_); });
        return info_;
    }
    Backend& backend() const { return *backend_; }
    const std::shared_ptr<Backend>& shared_backend() const { return backend_; }
    std::int64_t arena_bytes() const { return arenas_.bytes(); }

    std::int64_t program_bytes() const {
        const std::scoped_lock lock(lowering_mutex_, programs_mutex_);
        std::int64_t bytes = heap_bytes(file_) + heap_bytes(constants_);
        for (const auto& cached : programs_) bytes += cached->heap_bytes();
        return bytes;
    }

    std::int64_t constant_bytes() const {
        const std::scoped_lock lock(lowering_mutex_, programs_mutex_);
        std::int64_t bytes = constants_.bytes();
        for (const auto& cached : programs_) bytes += cached->constant_bytes();
        return bytes;
    }

    ValueList resolve(std::span<const std::string> names) const {
        ValueList values;
        if (names.empty()) values.push_back(file_.graph.outputs.front().second);
        for (const std::string& name : names) values.push_back(resolve(name));
        return values;
    }

    // Checks an input of float32, or of photographs at their final size, and gives the run's size. Throws
    // InvalidArgument.
    RunSize size_of_input(const Tensor& input, std::span<const ValueId> outputs) const {
        const Shape& shape = input.shape();
        if (input.dtype() != DType::F32 && input.dtype() != DType::U8) {
            throw InvalidArgument("the input's dtype is " + std::string(name_of(input.dtype())) +
                                  "; give float32 (B, 3, H, W), already normalised, or uint8 (B, H, W, 3)");
        }
        const bool is_float = input.dtype() == DType::F32;
        const std::int64_t channels = is_float ? file_.graph.input.channels : 3;
        if (shape.rank() != 4 || shape[is_float ? 1 : 3] != channels) {
            throw InvalidArgument(
                "the input's shape is " + shape.to_string() +
                (is_float ? "; float32 inputs must be (B, " + std::to_string(channels) + ", H, W), already normalised"
                          : "; uint8 inputs on a device must be (B, H, W, 3), at their final size"));
        }
        if (shape.elements() == 0) throw InvalidArgument("the input's shape is " + shape.to_string() + ": it is empty");
        check_device(input, "the input");
        if (is_float) return {shape[0], shape[2], shape[3], DType::F32, outputs};
        return {shape[0], shape[1], shape[2], DType::U8, outputs};
    }

    // Throws InvalidArgument where this engine cannot reach the tensor. `what` begins the message.
    void check_device(const Tensor& tensor, const std::string& what) const {
        if (tensor.raw() == nullptr) throw InvalidArgument(what + " has no data: its pointer is null");
        if (tensor.device().kind == Device::Kind::CPU) return;
        const Device device =
            tensor.device() == backend_->device() ? backend_->device_of(tensor.raw()) : tensor.device();
        if (device == backend_->device()) return;
        throw InvalidArgument(what + " is on " + device.to_string() + ", but this engine runs on " +
                              backend_->device().to_string() + "; move it to the host or to that device");
    }

    std::vector<Shape> output_shapes(const RunSize& size) const {
        // Shapes do not depend on the batch beyond their first axis, so the program of one slice tells them.
        std::vector<Shape> shapes = program_for(size.with_batch(slice(size)))->program->output_shapes;
        for (Shape& shape : shapes) {
            std::vector<std::int64_t> dims(shape.begin(), shape.end());
            dims[0] = size.batch;
            shape = Shape(std::span<const std::int64_t>(dims));
        }
        return shapes;
    }

    // Enqueues the run on `stream`, null for the calling thread's own. Waits for the results where `wait` says so or
    // where they go to ordinary host memory.
    void run(const Tensor& input, const RunSize& size, std::span<Tensor> results, void* stream, bool wait) const {
        const std::int64_t step = slice(size);
        const std::int64_t rest = size.batch % step;
        const auto program = program_for(size.with_batch(step));
        const auto last = rest > 0 ? program_for(size.with_batch(rest)) : program;
        check_results(*program->program, size, results);

        const Staging staging = staging_for(input, results);
        if (stream == nullptr) stream = backend_->own_stream();
        const bool captured = backend_->is_capturing(stream);
        if (captured) {
            if (staging.input || staging.results || wait) {
                throw InvalidArgument(
                    "a run that is captured in a graph needs its input and its results on the device, and cannot wait");
            }
            keep_for_good({program, last});
        }
        ArenaPool::Lease arena(arenas_, std::max(arena_size(*program, staging), arena_size(*last, staging)), stream,
                               captured);
        for (std::int64_t first = 0; first < size.batch; first += step) {
            run_slice(first + step > size.batch ? *last : *program, input, results, first, arena.data(), stream);
        }
        if (!wait) return;
        backend_->synchronize(stream);
        arena.finished();
    }

    // Enqueues the run, with its results in new memory: on the device for an input there, on the host for one there.
    Pending start(const Tensor& input, const RunSize& size, void* stream) const {
        auto state = std::make_unique<Pending::State>();
        const bool on_device = input.device().kind != Device::Kind::CPU;
        const bool staged = !on_device && !backend_->host_accessible();
        state->backend = backend_;
        state->fence = backend_->make_fence();
        state->stream = stream != nullptr ? stream : backend_->next_stream();
        Tensor source = input;
        if (staged) {
            state->staging = backend_->allocate_staging(input.bytes());
            std::memcpy(state->staging.get(), input.raw(), input.bytes());
            source = Tensor::view(state->staging.get(), input.shape(), input.dtype());
        }
        for (const Shape& shape : output_shapes(size)) {
            const std::size_t bytes = static_cast<std::size_t>(shape.elements()) * sizeof(float);
            auto memory = on_device ? backend_->allocate_result(bytes, state->stream, state->fence)
                                    : backend_->allocate_staging(bytes);
            void* const data = memory.get();
            state->results.push_back(
                Tensor::view(data, shape, DType::F32, on_device ? input.device() : Device{}, std::move(memory)));
        }
        run(source, size, state->results, state->stream, false);
        if (!backend_->is_capturing(state->stream)) {
            state->fence->record(state->stream);
            state->fenced = true;
        }
        return Pending(std::move(state));
    }

    Profile profile(const Tensor& input, const RunSize& size, int repetitions) const {
        using Kind = ProgramBufferRecord::Kind;
        const std::int64_t images = slice(size);
        const auto cached = program_for(size.with_batch(images));
        const Program& program = *cached->program;
        void* const stream = backend_->own_stream();
        const ArenaPool::Lease arena(arenas_, arena_size(*cached, Staging{}), stream);
        CachedProgram::Slot slot = cached->take(*backend_);
        std::vector<DeviceMemory> own;  // inputs and outputs
        for (std::size_t i = 0; i < program.buffers.size(); ++i) {
            const ProgramBufferRecord& buffer = program.buffers[i];
            if (buffer.kind == Kind::Arena) {
                slot.buffers[i] = arena.data() + buffer.offset;
                continue;
            }
            const auto bytes = static_cast<std::size_t>(buffer.size);
            slot.buffers[i] = own.emplace_back(*backend_, bytes).get();
            if (buffer.kind == Kind::Input) backend_->copy(slot.buffers[i], part_of(input, buffer, 0), bytes, stream);
        }
        backend_->synchronize(stream);
        const std::vector<double> seconds = slot.execution->profile(slot.buffers.data(), stream, repetitions);
        cached->give_back(std::move(slot));
        return {images, median_times(program.steps, seconds)};
    }

    ProgramInfo describe_program(const RunSize& size) const { return program_for(size)->program->describe(); }

    // The file's recipe, or the recipe for another size. Throws InvalidArgument.
    Preprocessing recipe(const std::optional<std::array<std::int64_t, 2>>& image_size) const {
        Preprocessing recipe = file_.preprocessing;
        if (image_size) recipe.image_size = *image_size;
        if (recipe.image_size[0] < 1 || recipe.image_size[1] < 1) {
            throw InvalidArgument("the image size is " + std::to_string(recipe.image_size[0]) + "x" +
                                  std::to_string(recipe.image_size[1]) + "; both sides must be positive");
        }
        return recipe;
    }

private:
    static EngineOptions checked(EngineOptions options) {
        if (options.threads < 0 || options.threads > 1024) {
            throw InvalidArgument("threads is " + std::to_string(options.threads) + "; give 1 to 1024, or 0 for all");
        }
        if (options.max_memory < 0) {
            throw InvalidArgument("max_memory is " + std::to_string(options.max_memory) +
                                  " bytes; give a positive number, or 0 for no limit");
        }
        return options;
    }

    BackendOptions backend_options(const EngineOptions& options) const {
        BackendOptions chosen;
        chosen.threads = options.threads;
        chosen.dtype = options.dtype;
        chosen.file_dtype = matrix_dtype(file_);
        chosen.library_folders = options.library_folders;
        return chosen;
    }

    // A graph whose shapes do not fit together, or that the device cannot run, is refused when it is loaded.
    void check_graph() const {
        for (const Node& node : file_.graph.nodes) {
            if (!backend_->supports(node.op())) {
                throw DeviceError(file_.path + ": node \"" + node.name() + "\" needs the operator " + node.op() +
                                  ", which the " + backend_->device().to_string() + " backend does not have");
            }
        }
        std::vector<ValueInfo> values;
        try {
            values = infer_shapes(file_.graph, 1, file_.preprocessing.image_size[0], file_.preprocessing.image_size[1],
                                  file_.path);
        } catch (const InvalidArgument& error) {
            throw FormatError(error.what());
        }
        const ValueId first = file_.graph.outputs.front().second;
        const Shape& logits = values[static_cast<std::size_t>(first)].shape;
        if (!file_.labels.empty() && logits[-1] != static_cast<std::int64_t>(file_.labels.size())) {
            throw FormatError(file_.path + ": there are " + std::to_string(file_.labels.size()) +
                              " labels where the output \"" + file_.graph.outputs.front().first + "\" has " +
                              std::to_string(logits[-1]) + " classes");
        }
    }

    ValueId resolve(const std::string& name) const {
        for (const auto& [output, value] : file_.graph.outputs) {
            if (output == name) return value;
        }
        const ValueId value = file_.graph.find_value(name);
        if (value < 0 || value == file_.graph.input.value) {
            throw InvalidArgument("there is no output " + in_quotes(name) + "; this model has " +
                                  joined(output_names(file_.graph)) +
                                  ", and every value that `vimrt info --graph` lists");
        }
        return value;
    }

    void check_results(const Program& program, const RunSize& size, std::span<Tensor> results) const {
        const auto& shapes = program.output_shapes;
        if (results.size() != shapes.size()) {
            throw InvalidArgument(std::to_string(results.size()) + " result tensors were given for " +
                                  std::to_string(shapes.size()) + " outputs");
        }
        for (std::size_t i = 0; i < shapes.size(); ++i) {
            const Shape& have = results[i].shape();
            bool fits = results[i].dtype() == DType::F32 && have.rank() == shapes[i].rank() && have.rank() > 0 &&
                        have[0] == size.batch && results[i].raw() != nullptr;
            for (int axis = 1; fits && axis < have.rank(); ++axis) fits = have[axis] == shapes[i][axis];
            if (!fits) {
                throw InvalidArgument("result " + std::to_string(i) + " is " +
                                      std::string(name_of(results[i].dtype())) + " " + have.to_string() +
                                      " where float32 with the shape " + shapes[i].to_string() +
                                      " and a first axis of " + std::to_string(size.batch) + " was expected");
            }
            check_device(results[i], "result " + std::to_string(i));
        }
    }

    // Images per slice: what the memory limit allows and the backend's caches like.
    std::int64_t slice(const RunSize& size) const {
        if (size.batch == 1 && max_memory_ == 0) return 1;
        constexpr Staging everything{true, true};
        const auto bytes_of = [&](std::int64_t images) {
            return arena_size(*program_for(size.with_batch(images)), everything);
        };
        const auto preferred = [&](const std::function<std::int64_t()>& bytes_per_image) {
            return std::clamp<std::int64_t>(backend_->preferred_slice(size.batch, bytes_per_image), 1, size.batch);
        };
        if (max_memory_ == 0) return preferred([&] { return bytes_of(1); });
        const std::int64_t one = bytes_of(1);
        if (one > max_memory_) {
            throw OutOfMemory(file_.path + ": one image of " + std::to_string(size.height) + "x" +
                              std::to_string(size.width) + " needs " + std::to_string(one) +
                              " bytes of activations, over max_memory = " + std::to_string(max_memory_) +
                              "; raise the limit or use a smaller image");
        }
        std::int64_t count = std::min(preferred([&] { return one; }), max_memory_ / std::max<std::int64_t>(one, 1));
        // Memory grows a little less or more than in proportion: what a program scratches does not depend on the batch.
        while (count > 1 && bytes_of(count) > max_memory_) --count;
        return count;
    }

    std::shared_ptr<CachedProgram> find_program(const RunSize& size) const {
        const std::lock_guard lock(programs_mutex_);
        for (auto it = programs_.begin(); it != programs_.end(); ++it) {
            if (!size.matches((*it)->program->key)) continue;
            programs_.splice(programs_.begin(), programs_, it);
            return programs_.front();
        }
        return nullptr;
    }

    // Programs are lowered one at a time, while programs that are there already run.
    std::shared_ptr<CachedProgram> program_for(const RunSize& size) const {
        if (auto found = find_program(size)) return found;
        const std::lock_guard lowering(lowering_mutex_);
        if (auto found = find_program(size)) return found;  // another thread was first
        auto cached = std::make_shared<CachedProgram>();
        ProgramKey key{
            size.batch, size.height, size.width, size.input_dtype, {size.outputs.begin(), size.outputs.end()}};
        cached->program =
            lower_program(file_.graph, file_.preprocessing, *backend_, constants_, std::move(key), file_.path);
        // Lowering packed what it needed; the file's own pages are not read again.
        file_.mapping.release_pages(file_.mapping.data(), file_.mapping.size());
        std::shared_ptr<CachedProgram> replaced;  // ends when the lock is given back
        const std::lock_guard lock(programs_mutex_);
        programs_.push_front(cached);
        if (programs_.size() > max_cached_programs) {
            replaced = std::move(programs_.back());
            programs_.pop_back();
        }
        return cached;
    }

    // A captured graph may repeat the programs' work until the engine ends.
    void keep_for_good(std::initializer_list<std::shared_ptr<CachedProgram>> programs) const {
        const std::lock_guard lock(programs_mutex_);
        for (const auto& program : programs) {
            if (std::find(kept_programs_.begin(), kept_programs_.end(), program) == kept_programs_.end()) {
                kept_programs_.push_back(program);
            }
        }
    }

    // What is copied between the host and the arena, because the device cannot reach the host's memory.
    struct Staging {
        bool input = false;
        bool results = false;
    };

    bool is_staged(const Tensor& tensor) const {
        return tensor.device().kind == Device::Kind::CPU && !backend_->host_accessible();
    }

    Staging staging_for(const Tensor& input, std::span<const Tensor> results) const {
        return {is_staged(input),
                std::any_of(results.begin(), results.end(), [&](const Tensor& t) { return is_staged(t); })};
    }

    // The planned peak, and room for copies of inputs and outputs.
    std::int64_t arena_size(const CachedProgram& cached, Staging staging) const {
        using Kind = ProgramBufferRecord::Kind;
        std::int64_t bytes = cached.program->peak;
        if (backend_->host_accessible()) return bytes;
        const auto alignment = static_cast<std::int64_t>(backend_->alignment());
        for (const ProgramBufferRecord& buffer : cached.program->buffers) {
            const bool staged =
                (buffer.kind == Kind::Input && staging.input) || (buffer.kind == Kind::Output && staging.results);
            if (staged) bytes = round_up(bytes, alignment) + buffer.size;
        }
        return bytes;
    }

    // Enqueues images [first, first + the program's batch) on `stream`.
    void run_slice(CachedProgram& cached, const Tensor& input, std::span<Tensor> results, std::int64_t first,
                   std::byte* arena, void* stream) const {
        using Kind = ProgramBufferRecord::Kind;
        const Program& program = *cached.program;
        CachedProgram::Slot slot = cached.take(*backend_);

        const auto alignment = static_cast<std::int64_t>(backend_->alignment());
        std::int64_t staged_at = program.peak;
        // The slice's part of `tensor`, or its place in the arena where the device cannot reach the tensor.
        const auto place = [&](const ProgramBufferRecord& buffer, const Tensor& tensor) -> void* {
            if (!is_staged(tensor)) return part_of(tensor, buffer, first);
            staged_at = round_up(staged_at, alignment);
            std::byte* const at = arena + staged_at;
            staged_at += buffer.size;
            return at;
        };
        for (std::size_t i = 0; i < program.buffers.size(); ++i) {
            const ProgramBufferRecord& buffer = program.buffers[i];
            switch (buffer.kind) {
                case Kind::Arena:
                    slot.buffers[i] = arena + buffer.offset;
                    break;
                case Kind::Input:
                    slot.buffers[i] = place(buffer, input);
                    if (is_staged(input)) {
                        backend_->copy(slot.buffers[i], part_of(input, buffer, first),
                                       static_cast<std::size_t>(buffer.size), stream);
                    }
                    break;
                case Kind::Output:
                    slot.buffers[i] = place(buffer, results[static_cast<std::size_t>(buffer.output)]);
                    break;
            }
        }
        slot.execution->run(slot.buffers.data(), stream);
        for (std::size_t i = 0; i < program.buffers.size(); ++i) {
            const ProgramBufferRecord& buffer = program.buffers[i];
            if (buffer.kind != Kind::Output || !is_staged(results[static_cast<std::size_t>(buffer.output)])) continue;
            backend_->copy(part_of(results[static_cast<std::size_t>(buffer.output)], buffer, first), slot.buffers[i],
                           static_cast<std::size_t>(buffer.size), stream);
        }
        cached.give_back(std::move(slot));
    }

    // Where the images that the buffer holds begin in a whole batch, of a program that begins with image `first`. Steps
    // read inputs only.
    static void* part_of(const Tensor& tensor, const ProgramBufferRecord& buffer, std::int64_t first) {
        const std::int64_t image_bytes = buffer.size / buffer.images;
        return const_cast<std::byte*>(static_cast<const std::byte*>(tensor.raw())) +
               (first + buffer.first) * image_bytes;
    }

    ModelFile file_;
    mutable std::once_flag described_;
    mutable ModelInfo info_;
    std::string warning_;
    std::shared_ptr<Backend> backend_;
    std::int64_t max_memory_;
    mutable std::mutex lowering_mutex_;  // taken before programs_mutex_; guards constants_
    mutable std::mutex programs_mutex_;  // guards programs_ and kept_programs_
    mutable ConstantStore constants_;
    mutable std::list<std::shared_ptr<CachedProgram>> programs_;  // most recently used first
    mutable std::vector<std::shared_ptr<CachedProgram>> kept_programs_;
    mutable ArenaPool arenas_;
};

Engine::Engine(const std::string& path, const EngineOptions& options) : impl_(std::make_unique<Impl>(path, options)) {}
Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

const ModelInfo& Engine::info() const {
    return impl_->info();
}
const std::vector<std::string>& Engine::labels() const {
    return impl_->file().labels;
}
std::vector<std::string> Engine::outputs() const {
    return output_names(impl_->file().graph);
}
const Preprocessing& Engine::preprocessing() const {
    return impl_->file().preprocessing;
}
Device Engine::device() const {
    return impl_->backend().device();
}
std::string Engine::backend() const {
    return impl_->backend().device().to_string() + " (" + impl_->backend().description() + ")";
}
const std::string& Engine::warning() const {
    return impl_->warning();
}
DType Engine::dtype() const {
    return impl_->backend().dtype();
}
int Engine::threads() const {
    return impl_->backend().threads();
}
std::int64_t Engine::arena_bytes() const {
    return impl_->arena_bytes();
}
std::int64_t Engine::constant_bytes() const {
    return impl_->constant_bytes();
}
std::int64_t Engine::program_bytes() const {
    return impl_->program_bytes();
}

namespace {

// Photographs on the host are resized there; those on a device are taken as they are.
bool is_to_be_resized(const Tensor& input) {
    return input.dtype() == DType::U8 && input.device().kind == Device::Kind::CPU;
}

// The images of a uint8 (B, H, W, 3) or (H, W, 3) tensor on the host.
std::vector<ImageView> images_of(const Tensor& input) {
    const Shape& shape = input.shape();
    const bool batched = shape.rank() == 4;
    if ((shape.rank() != 3 && !batched) || shape[-1] != 3 || shape.elements() == 0 || input.raw() == nullptr) {
        throw InvalidArgument("the uint8 input's shape is " + shape.to_string() +
                              "; photographs must be (H, W, 3) or (B, H, W, 3), RGB, and not empty");
    }
    const std::int64_t rows = shape[-3];
    const std::int64_t columns = shape[-2];
    std::vector<ImageView> images(static_cast<std::size_t>(batched ? shape[0] : 1));
    for (std::size_t i = 0; i < images.size(); ++i) {
        images[i] = {input.data<std::uint8_t>() + static_cast<std::int64_t>(i) * rows * columns * 3, rows, columns,
                     columns * 3};
    }
    return images;
}

// Photographs to one uint8 (B, rows, columns, 3), resized and cropped, not yet normalised.
Tensor resized(std::span<const ImageView> images, const Preprocessing& recipe) {
    if (images.empty()) throw InvalidArgument("there are no images");
    const auto [rows, columns] = recipe.image_size;
    const auto count = static_cast<std::int64_t>(images.size());
    Tensor pixels = Tensor::empty({count, rows, columns, 3}, DType::U8);
    for (std::int64_t i = 0; i < count; ++i) {
        resize_and_crop(images[static_cast<std::size_t>(i)], recipe,
                        pixels.data<std::uint8_t>() + i * rows * columns * 3);
    }
    return pixels;
}

}  // namespace

Tensor Engine::preprocess(std::span<const ImageView> images,
                          std::optional<std::array<std::int64_t, 2>> image_size) const {
    const Preprocessing recipe = impl_->recipe(image_size);
    const Tensor pixels = resized(images, recipe);
    const auto [rows, columns] = recipe.image_size;
    const std::int64_t count = pixels.shape()[0];
    Tensor batch = Tensor::empty({count, 3, rows, columns}, DType::F32);
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t at = i * 3 * rows * columns;
        normalize(pixels.data<std::uint8_t>() + at, rows, columns, recipe, batch.data<float>() + at);
    }
    return batch;
}

std::vector<Shape> Engine::output_shapes(const Tensor& input, std::span<const std::string> outputs) const {
    const ValueList values = impl_->resolve(outputs);
    if (!is_to_be_resized(input)) return impl_->output_shapes(impl_->size_of_input(input, values.span()));
    const auto& size = impl_->recipe({}).image_size;
    return impl_->output_shapes(
        {static_cast<std::int64_t>(images_of(input).size()), size[0], size[1], DType::U8, values.span()});
}

void Engine::order(void* stream, void* after) const {
    const auto fence = impl_->backend().make_fence();
    fence->record(after);
    fence->hold(stream);
}

Tensor Engine::empty(const Shape& shape, DType dtype) const {
    if (device().kind == Device::Kind::CPU) return Tensor::empty(shape, dtype);
    const std::size_t bytes = static_cast<std::size_t>(shape.elements()) * size_of(dtype);
    Backend& backend = impl_->backend();
    auto memory = backend.allocate_result(bytes, backend.own_stream(), nullptr);
    backend.synchronize(backend.own_stream());
    void* const data = memory.get();
    return Tensor::view(data, shape, dtype, device(), std::move(memory));
}

void Engine::run(const Tensor& input, std::span<const std::string> outputs, std::span<Tensor> results,
                 const RunOptions& options) const {
    const ValueList values = impl_->resolve(outputs);
    const Tensor pixels = is_to_be_resized(input) ? resized(images_of(input), impl_->recipe({})) : input;
    const auto on_host = [](const Tensor& tensor) { return tensor.device().kind == Device::Kind::CPU; };
    const bool wait = options.stream == nullptr || std::any_of(results.begin(), results.end(), on_host);
    impl_->run(pixels, impl_->size_of_input(pixels, values.span()), results, options.stream, wait);
}

std::vector<Tensor> Engine::run_prepared(const Tensor& pixels, std::span<const std::string> outputs) const {
    const ValueList values = impl_->resolve(outputs);
    const RunSize size = impl_->size_of_input(pixels, values.span());
    if (pixels.device().kind != Device::Kind::CPU) return impl_->start(pixels, size, nullptr).results();
    std::vector<Tensor> results;
    for (const Shape& shape : impl_->output_shapes(size)) results.push_back(Tensor::empty(shape));
    impl_->run(pixels, size, results, nullptr, true);
    return results;
}

std::vector<Tensor> Engine::run(const Tensor& input, std::span<const std::string> outputs) const {
    return is_to_be_resized(input) ? run_images(images_of(input), outputs) : run_prepared(input, outputs);
}

std::vector<Tensor> Engine::run_images(std::span<const ImageView> images, std::span<const std::string> outputs,
                                       std::optional<std::array<std::int64_t, 2>> image_size) const {
    return run_prepared(resized(images, impl_->recipe(image_size)), outputs);
}

Pending Engine::start(const Tensor& input, std::span<const std::string> outputs, const RunOptions& options) const {
    const ValueList values = impl_->resolve(outputs);
    const Tensor pixels = is_to_be_resized(input) ? resized(images_of(input), impl_->recipe({})) : input;
    return impl_->start(pixels, impl_->size_of_input(pixels, values.span()), options.stream);
}

Pending Engine::start_images(std::span<const ImageView> images, std::span<const std::string> outputs,
                             std::optional<std::array<std::int64_t, 2>> image_size) const {
    const ValueList values = impl_->resolve(outputs);
    const Tensor pixels = resized(images, impl_->recipe(image_size));
    return impl_->start(pixels, impl_->size_of_input(pixels, values.span()), nullptr);
}

Tensor Engine::run(const Tensor& input) const {
    return run(input, std::span<const std::string>{}).front();
}

std::vector<Prediction> Engine::classify(const ImageView& image, int top_k) const {
    const Tensor logits = run_images(std::span(&image, 1)).front();
    return top({logits.data<float>(), static_cast<std::size_t>(logits.shape().elements())}, top_k);
}

std::vector<Prediction> Engine::top(std::span<const float> logits, int top_k) const {
    if (top_k < 1) throw InvalidArgument("top_k is " + std::to_string(top_k) + "; give at least 1");
    if (logits.empty()) throw InvalidArgument("there are no logits");
    if (!std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); })) {
        throw InvalidArgument(
            "the logits are not finite, so no class can be named; check the input for NaN and infinity");
    }
    std::vector<std::int64_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    const auto count = std::min<std::size_t>(static_cast<std::size_t>(top_k), logits.size());
    const auto logit = [&](std::int64_t i) { return static_cast<double>(logits[static_cast<std::size_t>(i)]); };
    std::partial_sort(
        order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
        [&](std::int64_t a, std::int64_t b) { return logit(a) != logit(b) ? logit(a) > logit(b) : a < b; });
    double total = 0;
    for (const float x : logits) total += std::exp(static_cast<double>(x) - logit(order[0]));
    const auto& labels = this->labels();
    std::vector<Prediction> predictions;
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t index = order[i];
        const auto at = static_cast<std::size_t>(index);
        predictions.push_back({at < labels.size() ? labels[at] : "class " + std::to_string(index),
                               static_cast<float>(std::exp(logit(index) - logit(order[0])) / total), index});
    }
    return predictions;
}

ProgramInfo Engine::program(std::int64_t batch, std::int64_t height, std::int64_t width,
                            std::span<const std::string> outputs) const {
    if (batch < 1 || height < 1 || width < 1) {
        throw InvalidArgument("batch " + std::to_string(batch) + " and image size " + std::to_string(height) + "x" +
                              std::to_string(width) + " must be positive");
    }
    const ValueList values = impl_->resolve(outputs);
    return impl_->describe_program({batch, height, width, DType::F32, values.span()});
}

Profile Engine::profile(const Tensor& input, int repetitions) const {
    if (repetitions < 1) {
        throw InvalidArgument("repetitions is " + std::to_string(repetitions) + "; give at least 1");
    }
    if (input.dtype() != DType::F32 || input.device().kind != Device::Kind::CPU) {
        throw InvalidArgument("profiling takes a float32 input on the host");
    }
    const ValueList values = impl_->resolve(std::span<const std::string>{});
    return impl_->profile(input, impl_->size_of_input(input, values.span()), repetitions);
}

}  // namespace vimrt
