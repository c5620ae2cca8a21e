// The thread team: everyone takes part, barriers hold, oversubscription and concurrent callers included.
#include "runtime/thread_team.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "check.h"
#include "vimrt/error.h"

using vimrt::cpu::ThreadTeam;

namespace {

struct Rounds {
    ThreadTeam& team;
    std::vector<int> values;  // by thread
    std::atomic<int> wrong{0};

    // Every round each thread writes its own value and reads all others' after the barrier.
    static void run(void* argument, int thread) {
        auto& self = *static_cast<Rounds*>(argument);
        const int threads = self.team.threads();
        for (int round = 1; round <= 200; ++round) {
            self.values[static_cast<std::size_t>(thread)] = round;
            self.team.wait(0, threads);
            for (const int value : self.values) self.wrong += value != round ? 1 : 0;
            self.team.wait(0, threads);
        }
    }
};

}  // namespace

TEST(barriers_hold_for_any_team_even_larger_than_the_machine) {
    for (const int threads : {1, 2, 3, 4, 8, 17}) {
        ThreadTeam team(threads);
        CHECK_EQ(team.threads(), threads);
        Rounds rounds{team, std::vector<int>(static_cast<std::size_t>(threads))};
        for (int run = 0; run < 3; ++run) team.run(Rounds::run, &rounds);
        CHECK_EQ(rounds.wrong.load(), 0);
    }
}

TEST(every_thread_runs_once_and_thread_0_is_the_caller) {
    ThreadTeam team(5);
    struct Calls {
        std::atomic<int> of[5]{};
        std::thread::id first;
    } calls;
    team.run(
        [](void* argument, int thread) {
            auto& c = *static_cast<Calls*>(argument);
            ++c.of[thread];
            if (thread == 0) c.first = std::this_thread::get_id();
        },
        &calls);
    for (const auto& count : calls.of) CHECK_EQ(count.load(), 1);
    CHECK(calls.first == std::this_thread::get_id());
}

TEST(parts_of_a_team_meet_at_barriers_of_their_own) {
    ThreadTeam team(4);
    struct Pairs {
        ThreadTeam& team;
        int values[4]{};
        std::atomic<int> wrong{0};
    } pairs{team};
    team.run(
        [](void* argument, int thread) {
            auto& p = *static_cast<Pairs*>(argument);
            for (int round = 1; round <= 500; ++round) {
                p.values[thread] = round;
                p.team.wait(1 + thread / 2, 2);
                p.wrong += p.values[thread ^ 1] != round ? 1 : 0;
                p.team.wait(1 + thread / 2, 2);
            }
        },
        &pairs);
    CHECK_EQ(pairs.wrong.load(), 0);
}

TEST(concurrent_callers_take_turns) {
    ThreadTeam team(2);
    struct Counter {
        std::atomic<int> inside{0};
        std::atomic<int> most{0};
        std::atomic<int> runs{0};
    } counter;
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) {
        callers.emplace_back([&] {
            for (int run = 0; run < 50; ++run) {
                team.run(
                    [](void* argument, int) {
                        auto& c = *static_cast<Counter*>(argument);
                        const int now = ++c.inside;
                        if (now > c.most) c.most = now;
                        ++c.runs;
                        --c.inside;
                    },
                    &counter);
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(counter.most <= 2);
    CHECK_EQ(counter.runs.load(), 4 * 50 * 2);
}

TEST(denormals_count_as_zero_during_a_run_and_not_after) {
    ThreadTeam team(2);
    struct Products {
        volatile float tiny = 1e-30F;
        volatile float of[2]{1, 1};
    } products;
    team.run(
        [](void* argument, int thread) {
            auto& p = *static_cast<Products*>(argument);
            p.of[thread] = p.tiny * 1e-10F;
        },
        &products);
    CHECK_EQ(products.of[0], 0.0F);
    CHECK_EQ(products.of[1], 0.0F);
    CHECK(products.tiny * 1e-10F > 0.0F);
}

TEST(a_forked_child_is_told_instead_of_waiting_forever) {
    ThreadTeam team(2);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        int status = 1;
        try {
            team.run([](void*, int) {}, nullptr);
        } catch (const vimrt::DeviceError&) {
            status = 0;
        }
        _exit(status);
    }
    int status = -1;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

TEST(at_least_one_thread_is_available) {
    CHECK(vimrt::cpu::available_threads() >= 1);
}
