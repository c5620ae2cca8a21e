#include "lowering.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "operators.h"
#include "program.h"
#include "select_early.h"
#include "vimrt/error.h"
#include "vimrt/planner.h"

namespace vimrt {

ConstantStore::~ConstantStore() {
    for (const auto& [key, block] : blocks_) backend_.deallocate(block.memory, block.bytes);
}

const void* ConstantStore::get(const std::string& key, std::size_t bytes, void (*fill)(void*, const void*),
                               const void* context) {
    if (const auto found = blocks_.find(key); found != blocks_.end()) {
        if (found->second.bytes != bytes)
            throw std::logic_error("two constants of different sizes share the key " + key);
        return found->second.memory;
    }
    Block block{backend_.allocate(bytes), bytes};
    try {
        if (backend_.host_accessible()) {
            fill(block.memory, context);
        } else {
            const auto staging = std::make_unique<std::byte[]>(bytes);
            fill(staging.get(), context);
            backend_.copy(block.memory, staging.get(), bytes, backend_.own_stream());
            backend_.synchronize(backend_.own_stream());
        }
        blocks_.emplace(key, block);
    } catch (...) {
        backend_.deallocate(block.memory, bytes);
        throw;
    }
    bytes_ += static_cast<std::int64_t>(bytes);
    return block.memory;
}

// Images of a program's batch.
struct Images {
    std::int64_t first, count;
    bool alone;  // their steps have no others beside them
};

// Of the arena, what is taken, and what no placement could do without.
struct MemoryEnds {
    std::int64_t peak = 0, lower_bound = 0;
};

// Lowers the graph for some of a program's images, behind what was lowered for others.
class LoweringImpl {
public:
    LoweringImpl(const Graph& graph, const Preprocessing& recipe, Backend& backend, ConstantStore& engine_constants,
                 Program& program, Images images, const std::string& place)
        : graph_(graph),
          recipe_(recipe),
          backend_(backend),
          engine_constants_(engine_constants),
          program_(program),
          images_(images),
          place_(place),
          values_(infer_shapes(graph, images.count, program.key.height, program.key.width, place)),
          storage_(graph.value_names.size()),
          last_reader_(graph.value_names.size(), -1),
          readers_(graph.value_names.size(), 0),
          needed_(graph.nodes.size(), false),
          first_buffer_(program.buffers.size()) {
        mark_needed();
    }

    std::vector<Round> preferred_rounds() { return backend_.preferred_rounds(Lowering(*this)); }

    std::vector<Shape> output_shapes() const {
        std::vector<Shape> shapes;
        shapes.reserve(program_.key.outputs.size());
        for (const ValueId value : program_.key.outputs) shapes.push_back(values_[index(value)].shape);
        return shapes;
    }

    // Steps of the nodes, in order, each followed by copies of the outputs it produced.
    void lower() {
        bind_input();
        bind_outputs();
        Lowering lowering(*this);
        const int count = static_cast<int>(graph_.nodes.size());
        for (int node = 0; node < count;) {
            if (!needed_[static_cast<std::size_t>(node)]) {
                ++node;
                continue;
            }
            current_ = node;
            const int taken = backend_.lower(lowering, node);
            if (taken < 1 || node + taken > count) throw std::logic_error("a backend took no or too many nodes");
            for (int i = node; i < node + taken; ++i) copy_outputs(lowering, i);
            node += taken;
        }
    }

    // Places the buffers, at the arena's byte `begin` or behind it; returns where they end, and where they would at
    // best.
    MemoryEnds plan(const MemoryEnds& begin) {
        std::vector<BufferLifetime> lifetimes;
        std::vector<std::size_t> planned;
        for (std::size_t i = first_buffer_; i < program_.buffers.size(); ++i) {
            const ProgramBufferRecord& buffer = program_.buffers[i];
            if (buffer.kind != ProgramBufferRecord::Kind::Arena) continue;
            if (buffer.begin < 0) throw std::logic_error("no step uses the buffer " + buffer.name);
            lifetimes.push_back({buffer.size, buffer.begin, buffer.end});
            planned.push_back(i);
        }
        PlanOptions options;
        options.alignment = static_cast<std::int64_t>(backend_.alignment());
        const MemoryPlan plan = plan_memory(lifetimes, options);
        const std::int64_t first = round_up(begin.peak, options.alignment);
        for (std::size_t i = 0; i < planned.size(); ++i) program_.buffers[planned[i]].offset = first + plan.offsets[i];
        return {first + plan.peak, round_up(begin.lower_bound, options.alignment) + plan.lower_bound};
    }

    static std::size_t index(std::int32_t id) { return static_cast<std::size_t>(id); }

    bool requested(ValueId value) const {
        const auto& outputs = program_.key.outputs;
        return std::find(outputs.begin(), outputs.end(), value) != outputs.end();
    }

    std::int64_t columns(ValueId value) const { return values_[index(value)].shape[-1]; }

    std::int64_t rows(ValueId value) const {
        const Shape& shape = values_[index(value)].shape;
        return shape.elements() / std::max<std::int64_t>(shape[-1], 1);
    }

    Operand new_buffer(std::string name, std::int64_t elements, DType dtype, std::int64_t row_stride,
                       ProgramBufferRecord::Kind kind = ProgramBufferRecord::Kind::Arena, int output = -1) {
        ProgramBufferRecord record;
        record.name = std::move(name);
        record.kind = kind;
        record.output = output;
        record.first = images_.first;
        record.images = images_.count;
        if (__builtin_mul_overflow(elements, static_cast<std::int64_t>(size_of(dtype)), &record.size)) {
            throw InvalidArgument(place_ + ": the value \"" + record.name +
                                  "\" would need more bytes than fit in 63 bits");
        }
        program_.buffers.push_back(std::move(record));
        return {static_cast<BufferId>(program_.buffers.size() - 1), dtype, 0, row_stride};
    }

    Operand& storage(ValueId value) { return storage_[index(value)]; }

    void use(const Operand& operand) {
        ProgramBufferRecord& buffer = program_.buffers[index(operand.buffer)];
        const auto step = static_cast<std::int64_t>(program_.steps.size()) - 1;
        if (buffer.begin < 0) buffer.begin = step;
        buffer.end = step + 1;
    }

    const Graph& graph_;
    const Preprocessing& recipe_;
    Backend& backend_;
    ConstantStore& engine_constants_;
    Program& program_;
    const Images images_;
    const std::string& place_;
    std::vector<ValueInfo> values_;
    std::vector<Operand> storage_;  // by ValueId; buffer -1 while the value does not exist
    std::vector<int> last_reader_;  // by ValueId: the last node that reads it, -1 for none
    std::vector<int> readers_;      // by ValueId: how many inputs of nodes it is
    std::vector<bool> needed_;      // by node
    const std::size_t first_buffer_;
    int current_ = 0;  // the node being lowered

private:
    void bind_input() {
        const Shape& shape = values_[index(graph_.input.value)].shape;
        storage_[index(graph_.input.value)] = new_buffer(graph_.input.name, shape.elements(), program_.key.input_dtype,
                                                         shape[-1], ProgramBufferRecord::Kind::Input);
    }

    void bind_outputs() {
        for (std::size_t i = 0; i < program_.key.outputs.size(); ++i) {
            const ValueId value = program_.key.outputs[i];
            destinations_.push_back(new_buffer(graph_.value_names[index(value)], rows(value) * columns(value),
                                               DType::F32, columns(value), ProgramBufferRecord::Kind::Output,
                                               static_cast<int>(i)));
        }
    }

    // Nodes whose results no requested output depends on are left out, and count as no readers.
    void mark_needed() {
        std::vector<bool> live(graph_.value_names.size(), false);
        for (const ValueId value : program_.key.outputs) live[index(value)] = true;
        for (std::size_t i = graph_.nodes.size(); i-- > 0;) {
            const Node& node = graph_.nodes[i];
            needed_[i] = std::any_of(node.outputs_.begin(), node.outputs_.end(),
                                     [&](ValueId value) { return live[index(value)]; });
            if (needed_[i]) {
                for (const ValueId value : node.inputs_) live[index(value)] = true;
            }
        }
        for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
            if (!needed_[i]) continue;
            for (const ValueId value : graph_.nodes[i].inputs_) {
                last_reader_[index(value)] = static_cast<int>(i);
                ++readers_[index(value)];
            }
        }
    }

    void copy_outputs(Lowering& lowering, int node) {
        for (const ValueId value : graph_.nodes[static_cast<std::size_t>(node)].outputs_) {
            for (std::size_t i = 0; i < program_.key.outputs.size(); ++i) {
                if (program_.key.outputs[i] != value) continue;
                if (storage(value).buffer < 0) {
                    throw std::logic_error("the requested value " + graph_.value_names[index(value)] +
                                           " was fused away");
                }
                backend_.lower_copy(lowering, storage(value), destinations_[i], rows(value), columns(value));
            }
        }
    }

    std::vector<Operand> destinations_;  // by requested output
};

SelectedTokens selected_tokens(const Node& select, std::int64_t tokens) {
    if (select.is("position", "middle")) return {(tokens - 1) / 2, (tokens - 1) / 2};
    if (select.is("position", "last")) return {tokens - 1, tokens - 1};
    return {0, select.is("position", "ends") ? tokens - 1 : 0};
}

int Lowering::node_count() const {
    return static_cast<int>(impl_.graph_.nodes.size());
}
const Node& Lowering::node(int index) const {
    return impl_.graph_.nodes.at(static_cast<std::size_t>(index));
}
const ValueInfo& Lowering::value(ValueId value) const {
    return impl_.values_[LoweringImpl::index(value)];
}
DType Lowering::input_dtype() const {
    return impl_.program_.key.input_dtype;
}
const float* Lowering::input_mean() const {
    return impl_.recipe_.mean.data();
}
const float* Lowering::input_std() const {
    return impl_.recipe_.std.data();
}
int Lowering::threads() const {
    return impl_.backend_.threads();
}
bool Lowering::alone() const {
    return impl_.images_.alone;
}

bool Lowering::feeds_next(int node, ValueId value, const char* op) const {
    return node + 1 < node_count() && impl_.readers_[LoweringImpl::index(value)] == 1 &&
           impl_.last_reader_[LoweringImpl::index(value)] == node + 1 && !impl_.requested(value) &&
           this->node(node + 1).op() == op;
}

std::int64_t Lowering::token_selected_next(int node, ValueId value) const {
    if (!feeds_next(node, value, "select_tokens")) return -1;
    const SelectedTokens selected = selected_tokens(this->node(node + 1), this->value(value).shape[1]);
    return selected.first == selected.second ? selected.first : -1;
}

bool Lowering::last_read_at(ValueId value, int index) const {
    // The caller's input stays the caller's.
    return value != impl_.graph_.input.value && impl_.last_reader_[LoweringImpl::index(value)] <= index;
}

Operand Lowering::read(ValueId value) {
    const Operand operand = impl_.storage(value);
    if (operand.buffer < 0) {
        throw std::logic_error("the value " + impl_.graph_.value_names[LoweringImpl::index(value)] +
                               " was never computed");
    }
    return operand;
}

Operand Lowering::write(ValueId value, DType dtype, std::int64_t room) {
    const std::int64_t columns = impl_.columns(value);
    return impl_.storage(value) = impl_.new_buffer(impl_.graph_.value_names[LoweringImpl::index(value)],
                                                   impl_.rows(value) * columns + room, dtype, columns);
}

Operand Lowering::in_place(ValueId result, ValueId source) {
    return impl_.storage(result) = read(source);
}

void Lowering::view(ValueId part, ValueId whole, std::int64_t column) {
    Operand operand = read(whole);
    operand.offset += column;
    impl_.storage(part) = operand;
}

bool Lowering::view_selected_token(int node) {
    const Node& select = this->node(node);
    const ValueId whole = select.input(0);
    const std::int64_t tokens = value(whole).shape[1];
    const auto [first, second] = selected_tokens(select, tokens);
    if (first != second || !last_read_at(whole, node)) return false;
    Operand operand = read(whole);
    operand.offset += first * operand.row_stride;
    operand.row_stride *= tokens;
    impl_.storage(select.output(0)) = operand;
    return true;
}

Operand Lowering::scratch(std::size_t bytes) {
    if (bytes > static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max()))
        fail(impl_.current_, "scratch too large");
    return impl_.new_buffer(node(impl_.current_).name() + " scratch", static_cast<std::int64_t>(bytes), DType::U8, 0);
}

const void* Lowering::engine_constant(const char* key, std::size_t bytes, void (*fill)(void*, const void*),
                                      const void* context) {
    return impl_.engine_constants_.get(key, bytes, fill, context);
}

const void* Lowering::program_constant(const char* key, std::size_t bytes, void (*fill)(void*, const void*),
                                       const void* context) {
    return impl_.program_.constants.get(key, bytes, fill, context);
}

void Lowering::add_step(const char* name, StepFunction function, const void* parameters, std::size_t bytes,
                        const Operand* reads, int read_count, const Operand* writes, int write_count) {
    Step step;
    step.name = name;
    step.function = function;
    step.parameters = std::make_unique<std::byte[]>(bytes);
    step.parameter_bytes = bytes;
    std::memcpy(step.parameters.get(), parameters, bytes);
    step.reads.reserve(static_cast<std::size_t>(read_count));
    step.writes.reserve(static_cast<std::size_t>(write_count));
    for (int i = 0; i < read_count; ++i) step.reads.push_back(reads[i].buffer);
    for (int i = 0; i < write_count; ++i) step.writes.push_back(writes[i].buffer);
    impl_.program_.steps.push_back(std::move(step));
    for (int i = 0; i < read_count; ++i) impl_.use(reads[i]);
    for (int i = 0; i < write_count; ++i) impl_.use(writes[i]);
}

void Lowering::fail(int node, const char* what) const {
    throw InvalidArgument(impl_.place_ + ", node \"" + this->node(node).name() + "\": " + what);
}

ProgramInfo Program::describe() const {
    ProgramInfo info;
    for (const Step& step : steps) {
        info.steps.push_back({step.name,
                              {step.reads.begin(), step.reads.end()},
                              {step.writes.begin(), step.writes.end()},
                              step.round,
                              step.branch,
                              step.images});
    }
    for (const ProgramBufferRecord& b : buffers) info.buffers.push_back({b.name, b.size, b.begin, b.end, b.offset});
    info.peak = peak;
    info.lower_bound = lower_bound;
    return info;
}

namespace {

// Puts steps from `first` on, which lie branch by branch, in the order in which branches side by side come to them, so
// that lifetimes tell what is alive at the same time.
void take_turns(Program& program, std::size_t first) {
    auto& steps = program.steps;
    std::vector<std::size_t> order(steps.size()), turn(steps.size()), place(steps.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (std::size_t i = first + 1; i < steps.size(); ++i)
        turn[i] = steps[i].branch == steps[i - 1].branch ? turn[i - 1] + 1 : 0;
    std::stable_sort(order.begin() + static_cast<std::ptrdiff_t>(first), order.end(),
                     [&](std::size_t a, std::size_t b) { return turn[a] < turn[b]; });
    std::vector<Step> ordered;
    ordered.reserve(order.size());
    for (const std::size_t step : order) {
        place[step] = ordered.size();
        ordered.push_back(std::move(steps[step]));
    }
    steps = std::move(ordered);
    for (ProgramBufferRecord& buffer : program.buffers) {
        if (buffer.begin < 0) continue;
        buffer.begin = static_cast<std::int64_t>(place[static_cast<std::size_t>(buffer.begin)]);
        buffer.end = static_cast<std::int64_t>(place[static_cast<std::size_t>(buffer.end) - 1]) + 1;
    }
}

}  // namespace

std::unique_ptr<Program> lower_program(const Graph& graph, const Preprocessing& recipe, Backend& backend,
                                       ConstantStore& engine_constants, ProgramKey key, const std::string& place) {
    auto program = std::make_unique<Program>(backend, std::move(key));
    const Graph own = select_early(graph, program->key.outputs);
    const auto lowering_of = [&](Images images) {
        return LoweringImpl(own, recipe, backend, engine_constants, *program, images, place);
    };
    const std::int64_t batch = program->key.batch;
    LoweringImpl whole = lowering_of({0, batch, true});
    program->output_shapes = whole.output_shapes();
    std::vector<Round> rounds = whole.preferred_rounds();
    if (rounds.empty()) rounds.push_back({batch});

    const auto lower_images = [&](LoweringImpl& lowering, int round, int branch, std::int64_t images,
                                  const MemoryEnds& begin) {
        const std::size_t first_step = program->steps.size();
        lowering.lower();
        const MemoryEnds ends = lowering.plan(begin);
        for (std::size_t i = first_step; i < program->steps.size(); ++i) {
            Step& step = program->steps[i];
            step.round = round, step.branch = branch, step.images = images;
        }
        return ends;
    };
    std::int64_t first = 0;  // image
    for (int round = 0; round < static_cast<int>(rounds.size()); ++round) {
        const Round& own = rounds[static_cast<std::size_t>(round)];
        if (own.images < 1 || own.images > batch - first) throw std::logic_error("a backend's rounds are not a batch");
        const int branches = static_cast<int>(std::clamp<std::int64_t>(own.branches, 1, own.images));
        const std::size_t first_step = program->steps.size();
        MemoryEnds ends;
        for (int branch = 0; branch < branches; ++branch) {
            const std::int64_t images = own.images / branches + (branch < own.images % branches ? 1 : 0);
            if (images == batch) {
                ends = lower_images(whole, round, branch, images, ends);
            } else {
                LoweringImpl some = lowering_of({first, images, branches == 1});
                ends = lower_images(some, round, branch, images, ends);
            }
            first += images;
        }
        if (branches > 1) take_turns(*program, first_step);
        program->peak = std::max(program->peak, ends.peak);
        program->lower_bound = std::max(program->lower_bound, ends.lower_bound);
    }
    if (first != batch) throw std::logic_error("a backend's rounds are not a batch");
    program->steps.shrink_to_fit();
    program->buffers.shrink_to_fit();
    return program;
}

}  // namespace vimrt
