// A Program: the steps that compute a graph at one (batch, height, width), and where in one arena their buffers lie.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend.h"
#include "graph.h"
#include "vimrt/engine.h"
#include "vimrt/preprocess.h"

namespace vimrt {

// Device memory filled once and read ever after: packed weights, resampled tables.
class ConstantStore {
public:
    explicit ConstantStore(Backend& backend) : backend_(backend) {}
    ~ConstantStore();
    ConstantStore(const ConstantStore&) = delete;
    ConstantStore& operator=(const ConstantStore&) = delete;

    // The memory under `key`; made by `fill` the first time.
    const void* get(const std::string& key, std::size_t bytes, void (*fill)(void* out, const void* context),
                    const void* context);
    std::int64_t bytes() const { return bytes_; }  // from any thread

    friend std::int64_t heap_bytes(const ConstantStore& store);

private:
    struct Block {
        void* memory = nullptr;
        std::size_t bytes = 0;
    };
    Backend& backend_;
    std::map<std::string, Block, std::less<>> blocks_;
    std::atomic<std::int64_t> bytes_ = 0;
};

struct ProgramKey {
    std::int64_t batch = 0;
    std::int64_t height = 0;
    std::int64_t width = 0;
    DType input_dtype = DType::F32;
    std::vector<ValueId> outputs;

    friend bool operator==(const ProgramKey&, const ProgramKey&) = default;
};

struct ProgramBufferRecord {
    enum class Kind : std::uint8_t { Arena, Input, Output };
    std::string name;
    Kind kind = Kind::Arena;
    int output = -1;         // for Kind::Output: which of ProgramKey::outputs
    std::int64_t first = 0;  // for Kind::Input and Output: the images that it holds, of the program's batch
    std::int64_t images = 0;
    std::int64_t size = 0;    // bytes
    std::int64_t begin = -1;  // lives in steps [begin, end)
    std::int64_t end = -1;
    std::int64_t offset = -1;  // in the arena
};

class Program {
public:
    Program(Backend& backend, ProgramKey key) : key(std::move(key)), constants(backend) {}

    ProgramInfo describe() const;

    ProgramKey key;
    std::vector<Step> steps;
    std::vector<ProgramBufferRecord> buffers;
    std::vector<Shape> output_shapes;
    std::int64_t peak = 0;
    std::int64_t lower_bound = 0;
    ConstantStore constants;  // of this size alone
};

// Lowers the graph for `key` and plans its memory. Throws InvalidArgument where the size does not fit the graph.
// `place` begins messages: the file's path. `engine_constants` outlives the program.
std::unique_ptr<Program> lower_program(const Graph& graph, const Preprocessing& recipe, Backend& backend,
                                       ConstantStore& engine_constants, ProgramKey key, const std::string& place);

}  // namespace vimrt
