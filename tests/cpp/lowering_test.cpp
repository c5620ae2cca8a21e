// Programs whose batch is split into branches, by the CPU's kernels.
#include "lowering.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "file.h"
#include "program.h"
#include "tiny_model.h"
#include "vimrt/planner.h"

namespace {

using Kind = vimrt::ProgramBufferRecord::Kind;

// The CPU backend, for programs of so many branches.
class BranchingBackend final : public vimrt::Backend {
public:
    explicit BranchingBackend(int branches) : branches_(branches) {}

    vimrt::Device device() const override { return cpu_->device(); }
    std::string description() const override { return cpu_->description(); }
    vimrt::DType dtype() const override { return cpu_->dtype(); }
    int threads() const override { return cpu_->threads(); }
    std::size_t alignment() const override { return cpu_->alignment(); }
    std::int64_t preferred_slice(std::int64_t batch, const std::function<std::int64_t()>&) const override {
        return batch;
    }
    void* allocate(std::size_t bytes) override { return cpu_->allocate(bytes); }
    void deallocate(void* memory, std::size_t bytes) noexcept override { cpu_->deallocate(memory, bytes); }
    void copy(void* to, const void* from, std::size_t bytes, void* stream) override {
        cpu_->copy(to, from, bytes, stream);
    }
    void synchronize(void* stream) override { cpu_->synchronize(stream); }
    bool host_accessible() const override { return true; }
    bool supports(const std::string& op) const override { return cpu_->supports(op); }
    int preferred_branches(const vimrt::Lowering& lowering) const override {
        CHECK_EQ(lowering.value(0).shape[0], 5);  // asked of the whole batch
        return branches_;
    }
    int lower(vimrt::Lowering& lowering, int node) override { return cpu_->lower(lowering, node); }
    void lower_copy(vimrt::Lowering& lowering, const vimrt::Operand& source, const vimrt::Operand& destination,
                    std::int64_t rows, std::int64_t columns) override {
        cpu_->lower_copy(lowering, source, destination, rows, columns);
    }
    std::unique_ptr<vimrt::Execution> prepare(const std::vector<vimrt::Step>& steps) override {
        return cpu_->prepare(steps);
    }

private:
    const int branches_;
    const std::unique_ptr<vimrt::Backend> cpu_ = vimrt::cpu::create_backend({});
};

// A program for five images of the tiny model, and what it computes.
struct Run {
    explicit Run(int branches) : backend(branches), constants(backend) {
        const vimrt::ValueId logits = model.graph.find_value("logits"), hidden = model.graph.find_value("layers.0.z");
        program = vimrt::lower_program(model.graph, model.preprocessing, backend, constants,
                                       {batch, 32, 32, vimrt::DType::F32, {logits, hidden}}, model.path);
    }

    std::vector<std::vector<float>> results() {
        std::vector<float> pixels(static_cast<std::size_t>(batch * image));
        for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
        std::vector<std::vector<float>> results;
        for (const vimrt::Shape& shape : program->output_shapes)
            results.emplace_back(static_cast<std::size_t>(shape.elements()), -1e30F);
        void* const arena = backend.allocate(static_cast<std::size_t>(program->peak));
        std::memset(arena, 0xFF, static_cast<std::size_t>(program->peak));
        std::vector<void*> buffers;
        for (const vimrt::ProgramBufferRecord& buffer : program->buffers) {
            const std::int64_t per_image = buffer.kind == Kind::Arena ? 0 : buffer.size / 4 / buffer.images;
            if (buffer.kind == Kind::Arena) buffers.push_back(static_cast<std::byte*>(arena) + buffer.offset);
            if (buffer.kind == Kind::Input) buffers.push_back(pixels.data() + buffer.first * per_image);
            if (buffer.kind == Kind::Output)
                buffers.push_back(results[static_cast<std::size_t>(buffer.output)].data() + buffer.first * per_image);
        }
        backend.prepare(program->steps)->run(buffers.data(), nullptr);
        backend.deallocate(arena, static_cast<std::size_t>(program->peak));
        return results;
    }

    static constexpr std::int64_t batch = 5, image = 3 * 32 * 32;
    const tiny::File file{tiny::vim().bytes()};
    const vimrt::ModelFile model{file.path()};
    BranchingBackend backend;
    vimrt::ConstantStore constants;
    std::unique_ptr<vimrt::Program> program;
};

std::int64_t branches_of(const vimrt::Program& program) {
    std::int64_t branches = 0;
    for (const vimrt::Step& step : program.steps) branches = std::max<std::int64_t>(branches, step.branch + 1);
    return branches;
}

}  // namespace

TEST(branches_compute_what_a_batch_does) {
    const auto whole = Run(1).results();
    for (const int branches : {2, 3, 5, 9}) {
        Run run(branches);
        CHECK_EQ(branches_of(*run.program), std::min(branches, 5));
        CHECK_EQ(run.program->output_shapes[0][0], 5);
        const auto results = run.results();
        REQUIRE(results.size() == whole.size());
        for (std::size_t i = 0; i < whole.size(); ++i) {
            REQUIRE(results[i].size() == whole[i].size());
            for (std::size_t k = 0; k < whole[i].size(); ++k) CHECK(std::abs(results[i][k] - whole[i][k]) <= 1e-5F);
        }
    }
}

TEST(branches_share_the_images_and_nothing_else) {
    Run run(3);
    std::vector<std::int64_t> inputs(5), outputs(5);
    for (const vimrt::ProgramBufferRecord& buffer : run.program->buffers) {
        for (std::int64_t i = buffer.first; i < buffer.first + buffer.images; ++i) {
            if (buffer.kind == Kind::Input) ++inputs.at(static_cast<std::size_t>(i));
            if (buffer.kind == Kind::Output) ++outputs.at(static_cast<std::size_t>(i));
        }
    }
    CHECK(inputs == std::vector<std::int64_t>(5, 1));
    CHECK(outputs == std::vector<std::int64_t>(5, 2));
    std::vector<int> owner(run.program->buffers.size(), -1);
    for (const vimrt::Step& step : run.program->steps) {
        for (const auto* list : {&step.reads, &step.writes}) {
            for (const vimrt::BufferId buffer : *list) {
                int& branch = owner[static_cast<std::size_t>(buffer)];
                CHECK(branch == -1 || branch == step.branch);
                branch = step.branch;
            }
        }
    }
    // No two of different branches lie in the same place, whenever they live.
    const auto& buffers = run.program->buffers;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
        for (std::size_t k = 0; k < i; ++k) {
            if (buffers[i].kind != Kind::Arena || buffers[k].kind != Kind::Arena || owner[i] == owner[k]) continue;
            CHECK(buffers[i].offset + buffers[i].size <= buffers[k].offset ||
                  buffers[k].offset + buffers[k].size <= buffers[i].offset);
        }
    }
}

TEST(steps_of_branches_come_in_turn) {
    const Run run(2), whole(1);
    REQUIRE(run.program->steps.size() == 2 * whole.program->steps.size());
    std::vector<vimrt::BufferLifetime> lifetimes;
    std::vector<std::int64_t> offsets;
    for (std::size_t i = 0; i < run.program->steps.size(); ++i) {
        CHECK_EQ(run.program->steps[i].branch, i % 2);
        CHECK_EQ(run.program->steps[i].images, i % 2 == 0 ? 3 : 2);
        CHECK_EQ(run.program->steps[i].name, whole.program->steps[i / 2].name);
    }
    for (const vimrt::ProgramBufferRecord& buffer : run.program->buffers) {
        if (buffer.kind != Kind::Arena) continue;
        lifetimes.push_back({buffer.size, buffer.begin, buffer.end});
        offsets.push_back(buffer.offset);
    }
    for (std::size_t i = 0; i < run.program->steps.size(); ++i) {
        const vimrt::Step& step = run.program->steps[i];
        for (const auto* list : {&step.reads, &step.writes}) {
            for (const vimrt::BufferId id : *list) {
                const auto& buffer = run.program->buffers[static_cast<std::size_t>(id)];
                CHECK(buffer.begin <= static_cast<std::int64_t>(i) && static_cast<std::int64_t>(i) < buffer.end);
            }
        }
    }
    const auto alignment = static_cast<std::int64_t>(vimrt::cpu::create_backend({})->alignment());
    CHECK(vimrt::validate_memory_plan(lifetimes, offsets, alignment) <= run.program->peak);
    CHECK(run.program->lower_bound <= run.program->peak);
}
