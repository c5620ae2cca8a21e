// Feeds damaged .vimrt files to the engine: each must be refused with a proper message, or load and run.
//
//     fuzz_loader [--cases N] [--seed S] [--first I] [--folder F] [SEED.vimrt ...]
//     fuzz_loader --replay FILE
//
// Case i depends on S, i and the seed files alone. What must hold for every file:
//   - nothing but FormatError, InvalidArgument, OutOfMemory and DeviceError comes out; no crash, and no case takes
//   longer
//     than `seconds_per_case` (build with -DVIMRT_SANITIZE=address,undefined to see more than crashes);
//   - a refusal names the file and is one line of valid UTF-8 of reasonable length;
//   - a file that loads has a valid memory plan, and two runs on the same input give the same bits, whatever was in the
//     memory of the results before.
// The damaged file of the case under way is F/case.vimrt, so it is there after a crash.
//
// Compiled with VIMRT_LIBFUZZER, it is a libFuzzer target with the same checks.
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <sstream>

#include "mutate.h"
#include "vimrt/vimrt.h"

namespace {

constexpr unsigned seconds_per_case = 60;  // beside other work, under sanitizers
constexpr std::int64_t max_memory = std::int64_t{64} << 20;
constexpr std::int64_t largest_side = 64;  // pixels; larger images only take longer

// A property that does not hold. Not derived from std::exception, so that no handler takes it for a refusal.
struct Violation {
    std::string what;
};

void require(bool holds, const std::string& otherwise) {
    if (!holds) throw Violation{otherwise};
}

bool is_utf8(const std::string& text) {
    try {
        static_cast<void>(fuzz::Json(text).dump());
        return true;
    } catch (const fuzz::Json::type_error&) {
        return false;
    }
}

void check_message(const std::string& message, const std::string& path) {
    require(message.find(path) != std::string::npos, "the message does not name the file: " + message);
    require(message.size() < 3000, "the message has " + std::to_string(message.size()) + " characters");
    require(message.find('\n') == std::string::npos, "the message has several lines: " + message);
    require(is_utf8(message), "the message is no UTF-8");
}

// Which layer of the file a message complains of.
std::string layer_of(const std::string& message, const std::string& path) {
    const std::string what = message.substr(message.find(path) + path.size());
    const auto begins = [&](const char* text) { return what.rfind(text, 0) == 0; };
    if (begins(": has ") || begins(": the header") || begins(": header")) return "the header";
    if (begins(": tensor \"") || begins(": the tensors")) return "a tensor's entry";
    if (begins(": preprocessing")) return "the preprocessing";
    if (begins(": labels") || begins(": there are")) return "the labels";
    if (begins(": graph")) return "the graph";
    if (begins(", node") || begins(": the shape")) return "the shapes";
    if (what.find("metadata") != std::string::npos || what.find("format") != std::string::npos) return "the metadata";
    throw Violation{"a message of no known layer: " + message};
}

void check_plan(const vimrt::Engine& engine, std::int64_t height, std::int64_t width,
                const std::vector<std::string>& outputs) {
    const vimrt::ProgramInfo program = engine.program(1, height, width, outputs);
    std::vector<vimrt::BufferLifetime> lifetimes;
    std::vector<std::int64_t> offsets;
    for (const vimrt::ProgramBuffer& buffer : program.buffers) {
        if (buffer.offset < 0) continue;
        lifetimes.push_back({buffer.size, buffer.begin, buffer.end});
        offsets.push_back(buffer.offset);
    }
    try {
        require(vimrt::validate_memory_plan(lifetimes, offsets, 64) <= program.peak, "the plan passes its own peak");
    } catch (const vimrt::InvalidArgument& error) {
        throw Violation{std::string("the memory plan is wrong: ") + error.what()};
    }
}

std::vector<vimrt::Tensor> run_into(const vimrt::Engine& engine, const vimrt::Tensor& input,
                                    const std::vector<std::string>& outputs, int before) {
    std::vector<vimrt::Tensor> results;
    for (const vimrt::Shape& shape : engine.output_shapes(input, outputs)) {
        results.push_back(vimrt::Tensor::empty(shape));
        std::memset(results.back().raw(), before, results.back().bytes());
    }
    engine.run(input, outputs, results);
    return results;
}

void check_runs(const vimrt::Engine& engine, std::int64_t height, std::int64_t width,
                const std::vector<std::string>& outputs) {
    vimrt::Tensor input = vimrt::Tensor::empty({2, 3, height, width});
    for (std::int64_t i = 0; i < input.shape().elements(); ++i) {
        input.data<float>()[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
    }
    const auto first = run_into(engine, input, outputs, 0x00);
    const auto second = run_into(engine, input, outputs, 0xFF);
    for (std::size_t i = 0; i < first.size(); ++i) {
        require(std::memcmp(first[i].raw(), second[i].raw(), first[i].bytes()) == 0,
                "two runs give different bits for the output " + outputs[i]);
    }
}

// Every value that the graph's nodes compute: asking for all of them turns off whatever fuses several nodes.
std::vector<std::string> all_values(const vimrt::ModelInfo& info) {
    std::vector<std::string> names;
    for (const vimrt::NodeInfo& node : info.nodes) names.insert(names.end(), node.outputs.begin(), node.outputs.end());
    return names;
}

// Loads the file, and runs it where that works; returns what came of it. Throws Violation.
std::string outcome_of(const std::string& path) {
    std::optional<vimrt::Engine> engine;
    try {
        engine.emplace(path, vimrt::EngineOptions{"cpu", {}, 1, max_memory});
    } catch (const vimrt::FormatError& error) {
        check_message(error.what(), path);
        return "refused by " + layer_of(error.what(), path);
    }
    const auto [rows, columns] = engine->info().preprocessing.image_size;
    const std::int64_t height = std::min(rows, largest_side);
    const std::int64_t width = std::min(columns, largest_side);
    try {
        for (const auto& outputs : {engine->info().outputs, all_values(engine->info())}) {
            check_plan(*engine, height, width, outputs);
            check_runs(*engine, height, width, outputs);
        }
        return "loaded and run";
    } catch (const vimrt::InvalidArgument& error) {
        check_message(error.what(), path);
        return "loaded, but not for this image size";
    } catch (const vimrt::OutOfMemory&) {
        return "loaded, but too large for the memory limit";
    }
}

// The outcome, or what went wrong: an exception that users are not promised, or a violated property.
bool passes(const std::string& path, std::map<std::string, std::size_t>& outcomes) {
    try {
        ++outcomes[outcome_of(path)];
        return true;
    } catch (const Violation& violation) {
        std::cerr << path << ": " << violation.what << '\n';
    } catch (const std::exception& error) {
        std::cerr << path << ": an unexpected exception: " << error.what() << '\n';
    }
    return false;
}

void write_file(const std::string& path, const std::string& bytes) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << bytes;
    if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

}  // namespace

#ifdef VIMRT_LIBFUZZER

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::string path = "/tmp/vimrt-fuzz-" + std::to_string(::getpid());
    static std::map<std::string, std::size_t> outcomes;
    write_file(path, std::string(reinterpret_cast<const char*>(data), size));
    if (!passes(path, outcomes)) std::abort();
    return 0;
}

#else

namespace {

struct Options {
    std::size_t cases = 1000;
    std::size_t first = 0;
    std::uint64_t seed = 1;
    std::string folder = ".";
    std::string replay;
    std::vector<std::string> files;
};

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (name.rfind("--", 0) != 0) {
            options.files.push_back(name);
            continue;
        }
        if (i + 1 == argc) throw std::runtime_error(name + " needs a value");
        const std::string value = argv[++i];
        if (name == "--cases") {
            options.cases = std::stoul(value);
        } else if (name == "--first") {
            options.first = std::stoul(value);
        } else if (name == "--seed") {
            options.seed = std::stoull(value);
        } else if (name == "--folder") {
            options.folder = value;
        } else if (name == "--replay") {
            options.replay = value;
        } else {
            throw std::runtime_error(name + " is no option; use --cases, --first, --seed, --folder or --replay");
        }
    }
    return options;
}

std::vector<fuzz::Seed> read_seeds(const std::vector<std::string>& files) {
    std::vector<fuzz::Seed> seeds;
    tiny::Model model = tiny::vim();
    model.metadata["labels"] = R"(["a","b","c","d","e"])";
    seeds.push_back(fuzz::take_apart(model.bytes()));
    for (const std::string& path : files) {
        std::ifstream file(path, std::ios::binary);
        std::ostringstream bytes;
        bytes << file.rdbuf();
        if (!file) throw std::runtime_error("cannot read the seed " + path);
        seeds.push_back(fuzz::take_apart(bytes.str()));
    }
    return seeds;
}

// The undamaged seeds must run: otherwise nothing below says anything.
bool seeds_run(const std::vector<fuzz::Seed>& seeds, const std::string& path) {
    std::map<std::string, std::size_t> outcomes;
    for (const fuzz::Seed& seed : seeds) {
        write_file(path, seed.bytes);
        if (!passes(path, outcomes)) return false;
    }
    if (outcomes["loaded and run"] == seeds.size()) return true;
    for (const auto& [outcome, count] : outcomes)
        std::cerr << "of the undamaged seeds " << count << ' ' << outcome << '\n';
    return false;
}

extern "C" void report_hang(int) {
    constexpr char text[] = "a case takes too long; its file is case.vimrt\n";
    static_cast<void>(!::write(STDERR_FILENO, text, sizeof(text) - 1));
    std::abort();
}

int fuzz_cases(const Options& options) {
    const std::string path = options.folder + "/case.vimrt";
    const std::vector<fuzz::Seed> seeds = read_seeds(options.files);
    if (!seeds_run(seeds, path)) return 1;
    ::signal(SIGALRM, report_hang);
    std::map<std::string, std::size_t> outcomes;
    std::size_t failures = 0;
    for (std::size_t i = options.first; i < options.first + options.cases; ++i) {
        fuzz::Random random(options.seed * 1'000'003 + i);
        const fuzz::Seed& seed = seeds[random.below(seeds.size())];
        write_file(path, fuzz::mutate(seed, seeds[random.below(seeds.size())], random));
        ::alarm(seconds_per_case);
        if (!passes(path, outcomes)) {
            ++failures;
            const std::string kept = options.folder + "/failure-" + std::to_string(i) + ".vimrt";
            ::rename(path.c_str(), kept.c_str());
            std::cerr << "kept as " << kept << '\n';
        }
        ::alarm(0);
    }
    std::cout << options.cases << " damaged files of " << seeds.size() << " seeds:\n";
    for (const auto& [outcome, count] : outcomes) std::cout << "  " << count << ' ' << outcome << '\n';
    std::cout << "  " << failures << " failures, 0 crashes\n";
    ::unlink(path.c_str());
    return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) try {
    const Options options = parse(argc, argv);
    if (options.replay.empty()) return fuzz_cases(options);
    std::map<std::string, std::size_t> outcomes;
    if (!passes(options.replay, outcomes)) return 1;
    std::cout << options.replay << ": " << outcomes.begin()->first << '\n';
    return 0;
} catch (const std::exception& error) {
    std::cerr << "fuzz_loader: " << error.what() << '\n';
    return 2;
}

#endif
