// What a run that is not waited for holds until it is done.
#pragma once

#include <memory>
#include <vector>

#include "backend.h"
#include "vimrt/engine.h"

namespace vimrt {

struct Pending::State {
    State() = default;
    ~State();
    State(const State&) = delete;
    State& operator=(const State&) = delete;

    std::shared_ptr<Backend> backend;
    std::shared_ptr<Fence> fence;  // behind the run's last work, once it is `fenced`
    bool fenced = false;
    void* stream = nullptr;         // of the run
    std::shared_ptr<void> staging;  // an input of the host's, on its way to the device
    std::vector<Tensor> results;
};

}  // namespace vimrt
