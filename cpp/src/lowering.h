// Lowering turns the graph, at one (batch, height, width), into a Program: a list of steps over buffers.
//
// The engine walks the nodes in order and asks the backend to lower node `i`; the backend looks at the nodes from
// `i` on, emits the steps that compute one or several of them (that is where fusion happens) and returns how many it
// took. Values become buffers through read(), write(), in_place() and view(); buffers become offsets in one arena
// when the planner has seen between which steps each of them lives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>

#include "graph.h"
#include "vimrt/export.h"

namespace vimrt {

inline std::int64_t round_up(std::int64_t count, std::int64_t step) {
    return (count + step - 1) / step * step;
}

// A part of a program's batch: so many images, in so many branches of about as many each.
struct Round {
    std::int64_t images = 0;
    int branches = 1;
};

using BufferId = std::int32_t;

// The two tokens whose mean a select_tokens node takes; the same one twice selects it.
struct SelectedTokens {
    std::int64_t first = 0;
    std::int64_t second = 0;
};

// Of so many tokens.
VIMRT_API SelectedTokens selected_tokens(const Node& select, std::int64_t tokens);

// Where a value's data are: a matrix of rows (all leading axes) by columns (the last axis). `offset` and `row_stride`
// count elements. A dense value has row_stride == its last dimension.
struct Operand {
    BufferId buffer = -1;
    DType dtype = DType::F32;
    std::int64_t offset = 0;
    std::int64_t row_stride = 0;
};

// What a step sees when it runs. On the CPU every thread of the team calls the step with its own `thread`;
// on CUDA it is called once, by one thread, and enqueues on a stream.
struct Frame {
    void* const* buffers = nullptr;  // by BufferId
    int thread = 0;
    int threads = 1;
    void* backend = nullptr;  // the backend's own: the thread team, the stream

    template <typename T>
    T* at(const Operand& operand) const {
        return static_cast<T*>(buffers[operand.buffer]) + operand.offset;
    }
};

using StepFunction = void (*)(const void* parameters, const Frame& frame);

class LoweringImpl;

class VIMRT_API Lowering {
public:
    explicit Lowering(LoweringImpl& impl) : impl_(impl) {}

    int node_count() const;
    const Node& node(int index) const;
    const ValueInfo& value(ValueId value) const;
    DType input_dtype() const;        // of the graph's input: F32 (NCHW, normalised) or U8 (NHWC, by the recipe)
    const float* input_mean() const;  // 3 floats, for U8
    const float* input_std() const;
    int threads() const;  // of the engine
    bool alone() const;   // no other steps of the program run beside these

    // True when `value` is read by node `node` + 1 alone, that node's operator is `op`, and nobody asked for the value
    // as an output: the two nodes may be computed together, and `value` need not exist.
    bool feeds_next(int node, ValueId value, const char* op) const;
    // Where select_tokens of one token is all that reads `value`, (batch, tokens, width), and follows node `node`:
    // which token. Nobody needs the others. -1 elsewhere.
    std::int64_t token_selected_next(int node, ValueId value) const;
    // True when no node after `index` reads `value`: its storage may be overwritten. If it was asked for, it has been
    // copied by then, unless the node that computes it is lowered together with `index`.
    bool last_read_at(ValueId value, int index) const;

    Operand read(ValueId value);  // the data of a value that exists
    // New dense storage, with room for `room` more elements behind the value's own.
    Operand write(ValueId value, DType dtype = DType::F32, std::int64_t room = 0);
    // `result` takes over `source`'s storage; `source` is gone afterwards. Call only where last_read_at() holds.
    Operand in_place(ValueId result, ValueId source);
    // `part` is columns [column, column + its width) of `whole`, without a copy.
    void view(ValueId part, ValueId whole, std::int64_t column);
    // Where select_tokens node `node` selects one token and nobody needs the others any more, makes its result a view
    // of that token of each image; false elsewhere.
    bool view_selected_token(int node);
    // Bytes that only the next step uses.
    Operand scratch(std::size_t bytes);

    // Constants made once and kept: by the engine (packed weights; `key` names the weight and layout) or by this
    // program alone (what depends on the grid). `fill` writes `bytes` bytes; memory is 64-byte aligned, on the device.
    const void* engine_constant(const char* key, std::size_t bytes, void (*fill)(void* out, const void* context),
                                const void* context);
    const void* program_constant(const char* key, std::size_t bytes, void (*fill)(void* out, const void* context),
                                 const void* context);

    // Appends a step. `reads` and `writes` list every operand that `parameters` refers to; scratch() belongs to
    // `writes`. `parameters` is copied as bytes.
    template <typename P>
    void step(const char* name, StepFunction function, const P& parameters, std::initializer_list<Operand> reads,
              std::initializer_list<Operand> writes) {
        static_assert(std::is_trivially_copyable_v<P>);
        add_step(name, function, &parameters, sizeof(P), reads.begin(), static_cast<int>(reads.size()), writes.begin(),
                 static_cast<int>(writes.size()));
    }

    // Throws InvalidArgument: "<node name>: <what>".
    [[noreturn]] void fail(int node, const char* what) const;

private:
    void add_step(const char* name, StepFunction function, const void* parameters, std::size_t bytes,
                  const Operand* reads, int read_count, const Operand* writes, int write_count);

    LoweringImpl& impl_;
};

}  // namespace vimrt
