#include "pending.h"

namespace vimrt {

// Memory of the host that copies are under way from or to must not serve anyone else yet. Where the run was enqueued in
// part, before an error, the fence is not behind it.
Pending::State::~State() {
    if (!staging) return;
    try {
        if (!fenced) fence->record(stream);
        fence->wait();
    } catch (...) {
        // Work that failed is over as well.
    }
}

Pending::Pending(std::unique_ptr<State> state) : state_(std::move(state)) {}
Pending::Pending(Pending&&) noexcept = default;
Pending& Pending::operator=(Pending&&) noexcept = default;
Pending::~Pending() = default;

bool Pending::done() const {
    return state_->fence->done();
}

void Pending::wait() const {
    state_->fence->wait();
}

void Pending::hold(void* stream) const {
    const bool same = stream == state_->stream && stream != state_->backend->own_stream();
    if (!same) state_->fence->hold(stream);
}

void* Pending::stream() const {
    return state_->stream;
}

const std::vector<Tensor>& Pending::results() const {
    wait();
    return state_->results;
}

const std::vector<Tensor>& Pending::unfinished() const {
    return state_->results;
}

Tensor Pending::to_host(const Tensor& result) const {
    wait();
    Tensor copy = Tensor::empty(result.shape(), result.dtype());
    Backend& backend = *state_->backend;
    backend.copy(copy.raw(), result.raw(), result.bytes(), backend.own_stream());
    backend.synchronize(backend.own_stream());
    return copy;
}

}  // namespace vimrt
