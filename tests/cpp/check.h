// A test executable in one header: CHECK expressions, CHECK_THROWS exceptions, and a runner.
//
//     #include "check.h"
//
//     TEST(empty_input_needs_no_memory) {
//         CHECK(vimrt::plan_memory({}).peak == 0);
//         CHECK_EQ(vimrt::plan_memory({}).peak, 0);
//         CHECK_THROWS(vimrt::Engine("missing.vimrt"), vimrt::Error, "missing.vimrt");
//     }
//
// The header brings main(): include it in exactly one file per executable. Every test runs; a failed check prints its
// expression and place and the test goes on, so use REQUIRE where going on makes no sense. The executable exits 1
// when a check failed, when a test threw, or when no check ran at all. An argument runs only the tests whose names
// contain it.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace check {

struct Test {
    const char* name;
    void (*body)();
};

struct State {
    std::vector<Test> tests;
    std::size_t checks = 0;
    std::size_t failures = 0;
};

inline State& state() {
    static State instance;
    return instance;
}

struct Registration {
    Registration(const char* name, void (*body)()) { state().tests.push_back({name, body}); }
};

// Ends one test; the runner has counted and printed the failure already.
struct RequirementFailed : std::exception {};

inline bool record(bool passed, const char* file, int line, const std::string& failure) {
    ++state().checks;
    if (!passed) {
        ++state().failures;
        std::cerr << file << ':' << line << ": failed: " << failure << '\n';
    }
    return passed;
}

template <typename T>
std::string describe(const T& value) {
    if constexpr (requires(std::ostream & stream) { stream << value; }) {
        std::ostringstream text;
        text.precision(17);
        text << value;
        return text.str();
    } else {
        return "(a value that does not print)";
    }
}

// Integers of different signedness compare by value; everything else by its own operator.
template <typename A, typename B>
bool equal(const A& a, const B& b) {
    if constexpr (std::integral<A> && std::integral<B> && !std::same_as<A, bool> && !std::same_as<B, bool> &&
                  !std::same_as<A, char> && !std::same_as<B, char>) {
        return std::cmp_equal(a, b);
    } else {
        return a == b;
    }
}

template <typename A, typename B>
void record_equal(const A& a, const B& b, const char* expression, const char* file, int line) {
    const bool passed = equal(a, b);
    record(passed, file, line,
           passed ? std::string() : std::string(expression) + "; left is " + describe(a) + ", right is " + describe(b));
}

// What the exception being handled says. To be called from a catch block.
inline std::string describe_current_exception() {
    try {
        throw;
    } catch (const std::exception& error) {
        return std::string("threw \"") + error.what() + "\"";
    } catch (...) {
        return "threw something that is no std::exception";
    }
}

// Runs `body` and records whether it threw an `Expected` whose message contains `part`.
template <typename Expected, typename Body>
void record_throw(Body&& body, std::string_view part, const char* expression, const char* file, int line) {
    std::string outcome = "threw nothing";
    try {
        std::forward<Body>(body)();
    } catch (const Expected& error) {
        const std::string message = error.what();
        if (message.find(part) != std::string::npos) {
            record(true, file, line, {});
            return;
        }
        outcome = "threw \"" + message + "\", which lacks \"" + std::string(part) + "\"";
    } catch (...) {
        outcome = describe_current_exception();
    }
    record(false, file, line, std::string(expression) + "; it " + outcome);
}

inline int run(std::string_view filter) {
    std::size_t ran = 0;
    for (const Test& test : state().tests) {
        if (std::string_view(test.name).find(filter) == std::string_view::npos) continue;
        ++ran;
        const std::size_t failures_before = state().failures;
        try {
            test.body();
        } catch (const RequirementFailed&) {
        } catch (...) {
            ++state().failures;
            std::cerr << test.name << ": " << describe_current_exception() << '\n';
        }
        if (state().failures != failures_before) std::cerr << "FAILED " << test.name << '\n';
    }
    std::cout << ran << " tests, " << state().checks << " checks, " << state().failures << " failures\n";
    if (state().checks == 0) std::cerr << "failed: no check ran\n";
    return state().failures == 0 && state().checks > 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                        \
    static void test_##name();                                            \
    static const check::Registration register_##name(#name, test_##name); \
    static void test_##name()

#define CHECK(...) check::record(static_cast<bool>(__VA_ARGS__), __FILE__, __LINE__, #__VA_ARGS__)

// Like CHECK, but ends the test on failure.
#define REQUIRE(...)                                               \
    do {                                                           \
        if (!CHECK(__VA_ARGS__)) throw check::RequirementFailed(); \
    } while (false)

// Like CHECK(a == b), and prints both sides on failure.
#define CHECK_EQ(a, b) check::record_equal((a), (b), #a " == " #b, __FILE__, __LINE__)

// `expression` must throw a `type` (or one derived from it) whose what() contains `part`; "" allows any message.
#define CHECK_THROWS(expression, type, part) \
    check::record_throw<type>([&] { static_cast<void>(expression); }, part, #expression, __FILE__, __LINE__)

int main(int argc, char** argv) {
    return check::run(argc > 1 ? argv[1] : "");
}
