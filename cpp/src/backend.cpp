#include "backend.h"

namespace vimrt {

Execution::~Execution() = default;
Fence::~Fence() = default;
Backend::~Backend() = default;

namespace {

// Of a device whose work is done when a call returns.
class PastFence final : public Fence {
public:
    void record(void* /*stream*/) override {}
    void hold(void* /*stream*/) override {}
    bool done() override { return true; }
    void wait() override {}
};

std::shared_ptr<void> share_host_memory(std::size_t bytes) {
    const auto count = static_cast<std::int64_t>(bytes);
    const auto tensor = std::make_shared<Tensor>(Tensor::empty({count}, DType::U8));
    return {tensor, tensor->raw()};
}

}  // namespace

std::vector<Round> Backend::preferred_rounds(const Lowering& /*lowering*/) const {
    return {};
}

bool Backend::is_capturing(void* /*stream*/) {
    return false;
}

std::unique_ptr<Fence> Backend::make_fence() {
    return std::make_unique<PastFence>();
}

Device Backend::device_of(const void* /*memory*/) {
    return device();
}

// A device keeps the fence.
// NOLINTNEXTLINE(performance-unnecessary-value-param)
std::shared_ptr<void> Backend::allocate_result(std::size_t bytes, void* /*stream*/, std::shared_ptr<Fence> /*last*/) {
    return share_host_memory(bytes);
}

std::shared_ptr<void> Backend::allocate_staging(std::size_t bytes) {
    return share_host_memory(bytes);
}

}  // namespace vimrt
