// plan_memory(), memory_lower_bound() and validate_memory_plan() of the core, on sequences of (size, begin, end).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "vimrt/planner.h"

namespace py = pybind11;

namespace {

using Lifetimes = std::vector<std::array<std::int64_t, 3>>;  // size in bytes, begin, end

std::vector<vimrt::BufferLifetime> to_buffers(const Lifetimes& lifetimes) {
    std::vector<vimrt::BufferLifetime> buffers;
    buffers.reserve(lifetimes.size());
    for (const auto& [size, begin, end] : lifetimes) buffers.push_back({size, begin, end});
    return buffers;
}

vimrt::MemoryPlan plan_memory(const Lifetimes& lifetimes, std::int64_t alignment, double time_budget) {
    const py::gil_scoped_release release;
    return vimrt::plan_memory(to_buffers(lifetimes), {alignment, time_budget});
}

std::int64_t memory_lower_bound(const Lifetimes& lifetimes, std::int64_t alignment) {
    const py::gil_scoped_release release;
    return vimrt::memory_lower_bound(to_buffers(lifetimes), alignment);
}

std::int64_t validate_memory_plan(const Lifetimes& lifetimes, const std::vector<std::int64_t>& offsets,
                                  std::int64_t alignment) {
    const py::gil_scoped_release release;
    return vimrt::validate_memory_plan(to_buffers(lifetimes), offsets, alignment);
}

std::string describe(const vimrt::MemoryPlan& plan) {
    return "MemoryPlan(buffers=" + std::to_string(plan.offsets.size()) + ", peak=" + std::to_string(plan.peak) +
           ", lower_bound=" + std::to_string(plan.lower_bound) + ", optimal=" + (plan.optimal ? "True" : "False") + ")";
}

}  // namespace

void bind_planner(py::module_& m) {
    py::class_<vimrt::MemoryPlan>(m, "MemoryPlan", "Where each buffer goes in one arena. Made by plan_memory().")
        .def_readonly("offsets", &vimrt::MemoryPlan::offsets, "Bytes from the arena's start, one for each buffer.")
        .def_readonly("peak", &vimrt::MemoryPlan::peak, "Bytes the arena must have.")
        .def_readonly("lower_bound", &vimrt::MemoryPlan::lower_bound,
                      "The largest sum of bytes alive at one step: no plan can have a smaller peak.")
        .def_readonly("optimal", &vimrt::MemoryPlan::optimal, "Whether the peak is proven to be the smallest possible.")
        .def("__repr__", &describe);

    m.def("plan_memory", &plan_memory, py::arg("buffers"), py::arg("alignment") = 64, py::arg("time_budget") = 0.5,
          R"(Place buffers in one arena so that those alive at the same time share no byte.

buffers: sequence of (size, begin, end): bytes, and the half-open interval of steps [begin, end) during which the
    buffer holds data.
alignment: every offset is a multiple of this many bytes, a power of two; sizes are rounded up to it.
time_budget: seconds to go on searching where first fit leaves the peak above the lower bound.

Raises ValueError on a negative size, an empty interval, an alignment that is no power of two, a negative budget, and
sizes that sum to 2**62 bytes or more.)");
    m.def("memory_lower_bound", &memory_lower_bound, py::arg("buffers"), py::arg("alignment") = 64,
          "The largest sum over steps of the bytes alive at that step, sizes rounded up to the alignment.");
    m.def("validate_memory_plan", &validate_memory_plan, py::arg("buffers"), py::arg("offsets"),
          py::arg("alignment") = 64,
          "Check a plan, whoever made it, and return its peak in bytes.\n\nRaises ValueError naming two buffers that "
          "share bytes at the same time, or an offset that is misaligned, negative or missing.");
}
