#include "vimrt/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <list>
#include <mutex>
#include <numeric>

#include "arena_pool.h"
#include "backend_registry.h"
#include "file.h"
#include "footprint.h"
#include "operators.h"
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

std::int64_t round_up(std::int64_t bytes, std::int64_t alignment) {
    return (bytes + alignment - 1) / alignment * alignment;
}

std::string joined(const std::vector<std::string>& names) {
    std::string list;
    for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
    return list;
}

ModelInfo describe(const ModelFile& file) {
    ModelInfo info;
    info.path = file.path;
    info.format_version = file.format_version;
    info.metadata = file.metadata();
    info.preprocessing = file.preprocessing;
    info.labels = file.labels;
    for (const auto& output : file.graph.outputs) info.outputs.push_back(output.first);
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

}  // namespace

class Engine::Impl {
public:
    Impl(const std::string& path, const EngineOptions& options)
        : file_(path),
          backend_(create_backend(checked(options).device, {0, options.threads, options.dtype, matrix_dtype(file_)})),
          max_memory_(options.max_memory),
          constants_(*backend_),
          arenas_(*backend_, options.max_memory) {
        check_graph();
    }

    const ModelFile& file() const { return file_; }
    // Made when it is first asked for: it says again, in texts, much of what the file holds.
    const ModelInfo& info() const {
        std::call_once(described_, [&] { info_ = describe(file_); });
        return info_;
    }
    Backend& backend() const { return *backend_; }
    std::int64_t arena_bytes() const { return arenas_.bytes(); }

    std::vector<std::string> output_names() const {
        std::vector<std::string> names;
        for (const auto& [name, value] : file_.graph.outputs) names.push_back(name);
        return names;
    }

    std::int64_t program_bytes() const {
        const std::lock_guard lock(programs_mutex_);
        std::int64_t bytes = heap_bytes(file_) + heap_bytes(constants_);
        for (const auto& cached : programs_) bytes += cached->heap_bytes();
        return bytes;
    }

    std::int64_t constant_bytes() const {
        const std::lock_guard lock(programs_mutex_);
        std::int64_t bytes = constants_.bytes();
        for (const auto& cached : programs_) bytes += cached->program->constants.bytes();
        return bytes;
    }

    ValueList resolve(std::span<const std::string> names) const {
        ValueList values;
        if (names.empty()) values.push_back(file_.graph.outputs.front().second);
        for (const std::string& name : names) values.push_back(resolve(name));
        return values;
    }

    // Checks a float input, or takes resized photographs as they are, and gives the run's size. Throws InvalidArgument.
    RunSize size_of_input(const Tensor& input, std::span<const ValueId> outputs) const {
        const Shape& shape = input.shape();
        if (input.dtype() == DType::U8) return {shape[0], shape[1], shape[2], DType::U8, outputs};
        if (input.dtype() != DType::F32) {
            throw InvalidArgument("the input's dtype is " + std::string(name_of(input.dtype())) +
                                  "; give float32 (B, 3, H, W), already normalised, or uint8 (B, H, W, 3)");
        }
        if (shape.rank() != 4 || shape[1] != file_.graph.input.channels) {
            throw InvalidArgument("the input's shape is " + shape.to_string() + "; float32 inputs must be (B, " +
                                  std::to_string(file_.graph.input.channels) + ", H, W), already normalised");
        }
        if (shape.elements() == 0) throw InvalidArgument("the input's shape is " + shape.to_string() + ": it is empty");
        if (input.device().kind != Device::Kind::CPU && input.device() != backend_->device()) {
            throw InvalidArgument("the input is on " + input.device().to_string() + ", but this engine runs on " +
                                  backend_->device().to_string() + "; move the input to the host or to that device");
        }
        if (input.raw() == nullptr) throw InvalidArgument("the input has no data: its pointer is null");
        return {shape[0], shape[2], shape[3], DType::F32, outputs};
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

    void run(const Tensor& input, const RunSize& size, std::span<Tensor> results, const RunOptions& options) const {
        const std::int64_t step = slice(size);
        const std::size_t image_bytes = input.bytes() / static_cast<std::size_t>(size.batch);
        check_results(size, results);
        for (std::int64_t first = 0; first < size.batch; first += step) {
            const std::int64_t count = std::min(step, size.batch - first);
            const auto program = program_for(size.with_batch(count));
            run_slice(*program,
                      static_cast<const std::byte*>(input.raw()) + static_cast<std::size_t>(first) * image_bytes,
                      input.device(), results, first, options.stream);
        }
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
    static const EngineOptions& checked(const EngineOptions& options) {
        if (options.threads < 0 || options.threads > 1024) {
            throw InvalidArgument("threads is " + std::to_string(options.threads) + "; give 1 to 1024, or 0 for all");
        }
        if (options.max_memory < 0) {
            throw InvalidArgument("max_memory is " + std::to_string(options.max_memory) +
                                  " bytes; give a positive number, or 0 for no limit");
        }
        return options;
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
                                  joined(output_names()) + ", and every value that `vimrt info --graph` lists");
        }
        return value;
    }

    void check_results(const RunSize& size, std::span<Tensor> results) const {
        const auto program = program_for(size.with_batch(slice(size)));
        const auto& shapes = program->program->output_shapes;
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
        }
    }

    // Images per slice: what the memory limit allows and the backend's caches like.
    std::int64_t slice(const RunSize& size) const {
        if (size.batch == 1 && max_memory_ == 0) return 1;
        const std::int64_t one = arena_size(*program_for(size.with_batch(1)), true);
        if (max_memory_ > 0 && one > max_memory_) {
            throw OutOfMemory(file_.path + ": one image of " + std::to_string(size.height) + "x" +
                              std::to_string(size.width) + " needs " + std::to_string(one) +
                              " bytes of activations, over max_memory = " + std::to_string(max_memory_) +
                              "; raise the limit or use a smaller image");
        }
        std::int64_t count = std::clamp<std::int64_t>(backend_->preferred_slice(size.batch, one), 1, size.batch);
        if (max_memory_ > 0) {
            count = std::min(count, max_memory_ / std::max<std::int64_t>(one, 1));
            // Memory grows a little less or more than in proportion: what a program scratches does not depend on the
            // batch.
            while (count > 1 && arena_size(*program_for(size.with_batch(count)), true) > max_memory_) --count;
        }
        return count;
    }

    std::shared_ptr<CachedProgram> program_for(const RunSize& size) const {
        const std::lock_guard lock(programs_mutex_);
        for (auto it = programs_.begin(); it != programs_.end(); ++it) {
            if (!size.matches((*it)->program->key)) continue;
            programs_.splice(programs_.begin(), programs_, it);
            return programs_.front();
        }
        auto cached = std::make_shared<CachedProgram>();
        ProgramKey key{
            size.batch, size.height, size.width, size.input_dtype, {size.outputs.begin(), size.outputs.end()}};
        cached->program =
            lower_program(file_.graph, file_.preprocessing, *backend_, constants_, std::move(key), file_.path);
        // Lowering packed what it needed; the file's own pages are not read again.
        file_.mapping.release_pages(file_.mapping.data(), file_.mapping.size());
        programs_.push_front(std::move(cached));
        if (programs_.size() > max_cached_programs) programs_.pop_back();
        return programs_.front();
    }

    // The planned peak, and room for copies of inputs and outputs where the device cannot reach the host's.
    std::int64_t arena_size(const CachedProgram& cached, bool host_tensors) const {
        std::int64_t bytes = cached.program->peak;
        if (!host_tensors || backend_->host_accessible()) return bytes;
        const auto alignment = static_cast<std::int64_t>(backend_->alignment());
        for (const ProgramBufferRecord& buffer : cached.program->buffers) {
            if (buffer.kind != ProgramBufferRecord::Kind::Arena) bytes = round_up(bytes, alignment) + buffer.size;
        }
        return bytes;
    }

    void run_slice(CachedProgram& cached, const std::byte* input, Device input_device, std::span<Tensor> results,
                   std::int64_t first, void* stream) const {
        using Kind = ProgramBufferRecord::Kind;
        const Program& program = *cached.program;
        const bool staged = !backend_->host_accessible() && input_device.kind == Device::Kind::CPU;
        const ArenaPool::Lease arena(arenas_, arena_size(cached, staged));
        CachedProgram::Slot slot = cached.take(*backend_);

        const auto alignment = static_cast<std::int64_t>(backend_->alignment());
        std::int64_t staging = program.peak;
        const auto stage = [&](std::int64_t size) {
            staging = round_up(staging, alignment);
            std::byte* place = arena.data() + staging;
            staging += size;
            return place;
        };
        const auto result_at = [&](const ProgramBufferRecord& buffer) {
            Tensor& result = results[static_cast<std::size_t>(buffer.output)];
            const std::size_t image_bytes =
                static_cast<std::size_t>(buffer.size) / static_cast<std::size_t>(program.key.batch);
            return static_cast<std::byte*>(result.raw()) + static_cast<std::size_t>(first) * image_bytes;
        };
        for (std::size_t i = 0; i < program.buffers.size(); ++i) {
            const ProgramBufferRecord& buffer = program.buffers[i];
            switch (buffer.kind) {
                case Kind::Arena:
                    slot.buffers[i] = arena.data() + buffer.offset;
                    break;
                case Kind::Input:
                    // Steps read inputs only.
                    slot.buffers[i] = staged ? stage(buffer.size) : const_cast<std::byte*>(input);
                    if (staged) backend_->copy(slot.buffers[i], input, static_cast<std::size_t>(buffer.size), stream);
                    break;
                case Kind::Output:
                    slot.buffers[i] = staged ? stage(buffer.size) : result_at(buffer);
                    break;
            }
        }
        slot.execution->run(slot.buffers.data(), stream);
        if (staged) {
            for (std::size_t i = 0; i < program.buffers.size(); ++i) {
                const ProgramBufferRecord& buffer = program.buffers[i];
                if (buffer.kind != Kind::Output) continue;
                backend_->copy(result_at(buffer), slot.buffers[i], static_cast<std::size_t>(buffer.size), stream);
            }
            backend_->synchronize(stream);
        }
        cached.give_back(std::move(slot));
    }

    ModelFile file_;
    mutable std::once_flag described_;
    mutable ModelInfo info_;
    std::unique_ptr<Backend> backend_;
    std::int64_t max_memory_;
    mutable std::mutex programs_mutex_;  // guards programs_ and constants_
    mutable ConstantStore constants_;
    mutable std::list<std::shared_ptr<CachedProgram>> programs_;  // most recently used first
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
    return impl_->output_names();
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

// The images of a uint8 (B, H, W, 3) or (H, W, 3) tensor on the host.
std::vector<ImageView> images_of(const Tensor& input) {
    const Shape& shape = input.shape();
    const bool batched = shape.rank() == 4;
    if ((shape.rank() != 3 && !batched) || shape[-1] != 3 || shape.elements() == 0 || input.raw() == nullptr) {
        throw InvalidArgument("the uint8 input's shape is " + shape.to_string() +
                              "; photographs must be (H, W, 3) or (B, H, W, 3), RGB, and not empty");
    }
    if (input.device().kind != Device::Kind::CPU) {
        throw InvalidArgument(
            "uint8 photographs are preprocessed on the host; give host memory, or a normalised float32 tensor");
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
    if (input.dtype() != DType::U8) return impl_->output_shapes(impl_->size_of_input(input, values.span()));
    const auto& size = impl_->recipe({}).image_size;
    return impl_->output_shapes(
        {static_cast<std::int64_t>(images_of(input).size()), size[0], size[1], DType::U8, values.span()});
}

void Engine::run(const Tensor& input, std::span<const std::string> outputs, std::span<Tensor> results,
                 const RunOptions& options) const {
    const ValueList values = impl_->resolve(outputs);
    const Tensor pixels = input.dtype() == DType::U8 ? resized(images_of(input), impl_->recipe({})) : input;
    impl_->run(pixels, impl_->size_of_input(pixels, values.span()), results, options);
}

std::vector<Tensor> Engine::run_prepared(const Tensor& pixels, std::span<const std::string> outputs) const {
    const ValueList values = impl_->resolve(outputs);
    const RunSize size = impl_->size_of_input(pixels, values.span());
    std::vector<Tensor> results;
    for (const Shape& shape : impl_->output_shapes(size)) results.push_back(Tensor::empty(shape));
    impl_->run(pixels, size, results, {});
    return results;
}

std::vector<Tensor> Engine::run(const Tensor& input, std::span<const std::string> outputs) const {
    return input.dtype() == DType::U8 ? run_images(images_of(input), outputs) : run_prepared(input, outputs);
}

std::vector<Tensor> Engine::run_images(std::span<const ImageView> images, std::span<const std::string> outputs,
                                       std::optional<std::array<std::int64_t, 2>> image_size) const {
    return run_prepared(resized(images, impl_->recipe(image_size)), outputs);
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

}  // namespace vimrt
