// Programs whose batch is split into rounds and branches, by the CPU's kernels.
#include "lowering.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "file.h"
#include "program.h"
#include "tiny_model.h"
#include "vimrt/planner.h"

namespace {

using Kind = vimrt::ProgramBufferRecord::Kind;

using Rounds = std::vector<vimrt::Round>;

// The CPU backend, for programs of such rounds.
class SplittingBackend final : public vimrt::Backend {
public:
    explicit SplittingBackend(Rounds rounds) : rounds_(std::move(rounds)) {}

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
    Rounds preferred_rounds(const vimrt::Lowering& lowering) const override {
        CHECK_EQ(lowering.value(0).shape[0], 5);  // asked of the whole batch
        return rounds_;
    }
    int lower(vimrt::Lowering& lowering, int node) override {
        if (node == 0) alone.push_back(lowering.alone());
        return cpu_->lower(lowering, node);
    }
    void lower_copy(vimrt::Lowering& lowering, const vimrt::Operand& source, const vimrt::Operand& destination,
                    std::int64_t rows, std::int64_t columns) override {
        cpu_->lower_copy(lowering, source, destination, rows, columns);
    }
    std::unique_ptr<vimrt::Execution> prepare(const std::vector<vimrt::Step>& steps) override {
        return cpu_->prepare(steps);
    }

    std::vector<bool> alone;  // what the lowering of each part said

private:
    const Rounds rounds_;
    const std::unique_ptr<vimrt::Backend> cpu_ = vimrt::cpu::create_backend({});
};

// A program for five images of the tiny model, and what it computes.
struct Run {
    explicit Run(Rounds rounds) : backend(std::move(rounds)), constants(backend) {
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
    SplittingBackend backend;
    vimrt::ConstantStore constants;
    std::unique_ptr<vimrt::Program> program;
};

// Which part of the batch a step has.
std::pair<int, int> part_of(const vimrt::Step& step) {
    return {step.round, step.branch};
}

}  // namespace

TEST(rounds_and_branches_compute_what_a_batch_does) {
    const auto whole = Run({}).results();
    const Rounds splits[] = {
        {{5, 1}}, {{5, 2}}, {{5, 3}}, {{5, 9}}, {{3}, {2}}, {{1, 4}, {4, 2}}, {{2, 2}, {1}, {2, 2}}};
    for (const Rounds& rounds : splits) {
        Run run(rounds);
        std::set<std::pair<int, int>> parts, expected;
        for (const vimrt::Step& step : run.program->steps) parts.insert(part_of(step));
        for (std::size_t i = 0; i < rounds.size(); ++i) {
            for (int k = 0; k < std::min<std::int64_t>(rounds[i].branches, rounds[i].images); ++k)
                expected.insert({static_cast<int>(i), k});
        }
        CHECK(parts == expected);
        CHECK_EQ(run.program->output_shapes[0][0], 5);
        const auto results = run.results();
        REQUIRE(results.size() == whole.size());
        for (std::size_t i = 0; i < whole.size(); ++i) {
            REQUIRE(results[i].size() == whole[i].size());
            for (std::size_t k = 0; k < whole[i].size(); ++k) CHECK(std::abs(results[i][k] - whole[i][k]) <= 1e-5F);
        }
    }
}

TEST(steps_are_alone_where_a_round_has_one_branch) {
    CHECK(Run({}).backend.alone == std::vector<bool>{true});
    CHECK(Run({{3}, {2}}).backend.alone == (std::vector<bool>{true, true}));
    CHECK(Run({{2, 2}, {1}, {2, 5}}).backend.alone == (std::vector<bool>{false, false, true, false, false}));
}

TEST(rounds_take_turns_in_the_same_memory) {
    // Three images and then two need what three do, in either order; side by side they need more.
    const Run apart({{3}, {2}}), turned({{2}, {3}}), beside({{5, 2}});
    CHECK_EQ(apart.program->peak, turned.program->peak);
    CHECK(apart.program->peak * 4 <= beside.program->peak * 3);
    CHECK(apart.program->lower_bound <= apart.program->peak);
    CHECK(std::is_sorted(apart.program->steps.begin(), apart.program->steps.end(),
                         [](const auto& a, const auto& b) { return a.round < b.round; }));
}

TEST(a_split_must_be_the_batch) {
    for (const Rounds& rounds : {Rounds{{4}}, Rounds{{5}, {1}}, Rounds{{0}, {5}}, Rounds{{6}}}) {
        bool refused = false;
        try {
            Run run(rounds);
        } catch (const std::logic_error&) {
            refused = true;
        }
        CHECK(refused);
    }
}

TEST(branches_share_the_images_and_nothing_else) {
    for (const Rounds& rounds : {Rounds{{5, 3}}, Rounds{{3, 2}, {2, 2}}}) {
        Run run(rounds);
        std::vector<std::int64_t> inputs(5), outputs(5);
        for (const vimrt::ProgramBufferRecord& buffer : run.program->buffers) {
            for (std::int64_t i = buffer.first; i < buffer.first + buffer.images; ++i) {
                if (buffer.kind == Kind::Input) ++inputs.at(static_cast<std::size_t>(i));
                if (buffer.kind == Kind::Output) ++outputs.at(static_cast<std::size_t>(i));
            }
        }
        CHECK(inputs == std::vector<std::int64_t>(5, 1));
        CHECK(outputs == std::vector<std::int64_t>(5, 2));
        const std::pair<int, int> nobody{-1, -1};
        std::vector<std::pair<int, int>> owner(run.program->buffers.size(), nobody);
        for (const vimrt::Step& step : run.program->steps) {
            for (const auto* list : {&step.reads, &step.writes}) {
                for (const vimrt::BufferId buffer : *list) {
                    auto& part = owner[static_cast<std::size_t>(buffer)];
                    CHECK(part == nobody || part == part_of(step));
                    part = part_of(step);
                }
            }
        }
        // No two of a round's different branches lie in the same place, whenever they live.
        const auto& buffers = run.program->buffers;
        for (std::size_t i = 0; i < buffers.size(); ++i) {
            for (std::size_t k = 0; k < i; ++k) {
                if (buffers[i].kind != Kind::Arena || buffers[k].kind != Kind::Arena) continue;
                if (owner[i].first != owner[k].first || owner[i] == owner[k]) continue;
                CHECK(buffers[i].offset + buffers[i].size <= buffers[k].offset ||
                      buffers[k].offset + buffers[k].size <= buffers[i].offset);
            }
        }
    }
}

TEST(steps_of_branches_come_in_turn) {
    const Run run({{5, 2}}), whole({});
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
