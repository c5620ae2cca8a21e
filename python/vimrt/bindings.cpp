// The module vimrt._vimrt: the public C++ API, with NumPy arrays in and out. What is convenient is in engine.py.
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "arrays.h"

void bind_device(py::module_& m);
void bind_planner(py::module_& m);
void bind_preprocess(py::module_& m);

namespace {

vimrt::ImageView view_of(const ByteArray& image) {
    if (image.ndim() != 3 || image.shape(2) != 3) {
        throw vimrt::InvalidArgument("an image has the shape " + shape_of(image).to_string() +
                                     "; (H, W, 3) was expected");
    }
    return {image.data(), image.shape(0), image.shape(1), image.shape(1) * 3};
}

std::vector<vimrt::ImageView> views_of(const std::vector<ByteArray>& images) {
    std::vector<vimrt::ImageView> views;
    views.reserve(images.size());
    for (const ByteArray& image : images) views.push_back(view_of(image));
    return views;
}

std::optional<vimrt::DType> parse_dtype(const std::optional<std::string>& name) {
    if (!name) return std::nullopt;
    if (*name == "fp32" || *name == "float32") return vimrt::DType::F32;
    if (*name == "fp16" || *name == "float16") return vimrt::DType::F16;
    if (*name == "bf16" || *name == "bfloat16") return vimrt::DType::BF16;
    throw vimrt::InvalidArgument("the dtype \"" + name->substr(0, 100) +
                                 "\" is unknown; use \"fp32\", \"fp16\" or \"bf16\"");
}

py::dict describe(const vimrt::ModelInfo& info) {
    py::list weights;
    for (const auto& weight : info.weights) {
        weights.append(
            py::dict(py::arg("name") = weight.name, py::arg("dtype") = std::string(vimrt::name_of(weight.dtype)),
                     py::arg("shape") =
                         py::tuple(py::cast(std::vector<std::int64_t>(weight.shape.begin(), weight.shape.end())))));
    }
    py::list nodes;
    for (const auto& node : info.nodes) {
        nodes.append(py::dict(py::arg("op") = node.op, py::arg("name") = node.name, py::arg("inputs") = node.inputs,
                              py::arg("outputs") = node.outputs));
    }
    const vimrt::Preprocessing& recipe = info.preprocessing;
    py::dict result;
    result["path"] = py::reinterpret_steal<py::str>(
        PyUnicode_DecodeFSDefaultAndSize(info.path.data(), static_cast<py::ssize_t>(info.path.size())));
    result["format_version"] = info.format_version;
    result["metadata"] = info.metadata;
    result["preprocessing"] =
        py::dict(py::arg("image_size") = py::tuple(py::cast(recipe.image_size)), py::arg("crop") = recipe.crop,
                 py::arg("mean") = recipe.mean, py::arg("std") = recipe.std);
    result["labels"] = info.labels;
    result["outputs"] = info.outputs;
    result["weights"] = weights;
    result["nodes"] = nodes;
    result["parameters"] = info.parameters;
    result["weight_bytes"] = info.weight_bytes;
    return result;
}

py::dict describe(const vimrt::ProgramInfo& program) {
    py::list steps;
    for (const auto& step : program.steps) {
        steps.append(py::dict(py::arg("name") = step.name, py::arg("reads") = step.reads,
                              py::arg("writes") = step.writes, py::arg("round") = step.round,
                              py::arg("branch") = step.branch, py::arg("images") = step.images));
    }
    py::list buffers;
    for (const auto& buffer : program.buffers) {
        buffers.append(py::dict(py::arg("name") = buffer.name, py::arg("size") = buffer.size,
                                py::arg("begin") = buffer.begin, py::arg("end") = buffer.end,
                                py::arg("offset") = buffer.offset));
    }
    return py::dict(py::arg("steps") = steps, py::arg("buffers") = buffers, py::arg("peak") = program.peak,
                    py::arg("lower_bound") = program.lower_bound);
}

void bind_errors(py::module_& m) {
    const auto define = [&](const char* name, const py::object& also) {
        const py::object base = m.attr("Error");
        const std::string full = std::string("vimrt.") + name;
        const py::object type = py::reinterpret_steal<py::object>(
            PyErr_NewException(full.c_str(), py::make_tuple(base, also).ptr(), nullptr));
        m.attr(name) = type;
    };
    m.attr("Error") = py::reinterpret_steal<py::object>(PyErr_NewException("vimrt.Error", PyExc_Exception, nullptr));
    define("FormatError", py::reinterpret_borrow<py::object>(PyExc_ValueError));
    define("InvalidArgument", py::reinterpret_borrow<py::object>(PyExc_ValueError));
    define("OutOfMemory", py::reinterpret_borrow<py::object>(PyExc_MemoryError));
    define("DeviceError", py::reinterpret_borrow<py::object>(PyExc_RuntimeError));

    static PyObject* module = m.ptr();
    // pybind11's signature. NOLINTNEXTLINE(performance-unnecessary-value-param)
    py::register_exception_translator([](std::exception_ptr pending) {
        const auto set = [](const char* name, const std::exception& error) {
            // A path of any bytes may stand in the message.
            const py::object message = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
                error.what(), static_cast<py::ssize_t>(std::strlen(error.what())), "surrogateescape"));
            PyErr_SetObject(py::handle(module).attr(name).ptr(), message.ptr());
        };
        try {
            if (pending) std::rethrow_exception(pending);
        } catch (const vimrt::FormatError& error) {
            set("FormatError", error);
        } catch (const vimrt::InvalidArgument& error) {
            set("InvalidArgument", error);
        } catch (const vimrt::OutOfMemory& error) {
            set("OutOfMemory", error);
        } catch (const vimrt::DeviceError& error) {
            set("DeviceError", error);
        } catch (const vimrt::Error& error) {
            set("Error", error);
        }
    });
}

void bind_engine(py::module_& m) {
    using vimrt::Engine;
    py::class_<Engine>(m, "Engine")
        .def(py::init([](const std::string& path, const std::string& device, const std::optional<std::string>& dtype,
                         int threads, std::int64_t max_memory, std::vector<std::string> library_folders) {
                 const vimrt::EngineOptions options{device, parse_dtype(dtype), threads, max_memory,
                                                    std::move(library_folders)};
                 return without_gil([&] { return std::make_unique<Engine>(path, options); });
             }),
             py::arg("path"), py::arg("device"), py::arg("dtype"), py::arg("threads"), py::arg("max_memory"),
             py::arg("library_folders"))
        .def("info", [](const Engine& engine) { return describe(engine.info()); })
        .def_property_readonly("device", [](const Engine& engine) { return engine.device().to_string(); })
        .def_property_readonly("device_index", [](const Engine& engine) { return engine.device().index; })
        .def_property_readonly("backend", &Engine::backend)
        .def_property_readonly("dtype",
                               [](const Engine& engine) { return std::string(vimrt::name_of(engine.dtype())); })
        .def_property_readonly("threads", &Engine::threads)
        .def_property_readonly("warning", &Engine::warning)
        .def_property_readonly("arena_bytes", &Engine::arena_bytes)
        .def_property_readonly("constant_bytes", &Engine::constant_bytes)
        .def_property_readonly("program_bytes", &Engine::program_bytes)
        .def_property_readonly("labels", &Engine::labels)
        .def_property_readonly("outputs", &Engine::outputs)
        .def_property_readonly("image_size", [](const Engine& engine) { return engine.preprocessing().image_size; })
        .def(
            "run",
            [](const Engine& engine, const FloatArray& pixels, const std::vector<std::string>& outputs) {
                const vimrt::Tensor input = vimrt::Tensor::view(pixels.data(), shape_of(pixels));
                return to_arrays(without_gil([&] { return engine.run(input, outputs); }));
            },
            py::arg("pixels").noconvert(), py::arg("outputs"))
        .def(
            "run_into",
            [](const Engine& engine, const FloatArray& pixels, const std::vector<std::string>& outputs,
               std::vector<FloatArray> results) {
                const vimrt::Tensor input = vimrt::Tensor::view(pixels.data(), shape_of(pixels));
                std::vector<vimrt::Tensor> tensors;
                tensors.reserve(results.size());
                for (FloatArray& result : results) {
                    tensors.push_back(vimrt::Tensor::view(result.mutable_data(), shape_of(result)));
                }
                without_gil([&] {
                    engine.run(input, outputs, tensors);
                    return true;
                });
            },
            py::arg("pixels").noconvert(), py::arg("outputs"), py::arg("results").noconvert())
        .def(
            "run_tensors",
            [](const Engine& engine, const vimrt::Tensor& input, const std::vector<std::string>& outputs,
               std::vector<vimrt::Tensor> results, std::uintptr_t stream) {
                without_gil([&] {
                    engine.run(input, outputs, results, {stream_of(stream)});
                    return true;
                });
            },
            py::arg("input"), py::arg("outputs"), py::arg("results"), py::arg("stream"))
        .def(
            "start",
            [](const Engine& engine, const vimrt::Tensor& input, const std::vector<std::string>& outputs,
               std::uintptr_t stream) {
                return without_gil([&] { return engine.start(input, outputs, {stream_of(stream)}); });
            },
            py::arg("input"), py::arg("outputs"), py::arg("stream"))
        .def(
            "start_images",
            [](const Engine& engine, const std::vector<ByteArray>& images, const std::vector<std::string>& outputs,
               const ImageSize& image_size) {
                const std::vector<vimrt::ImageView> views = views_of(images);
                return without_gil([&] { return engine.start_images(views, outputs, image_size); });
            },
            py::arg("images"), py::arg("outputs"), py::arg("image_size"))
        .def(
            "order",
            [](const Engine& engine, std::uintptr_t stream, std::uintptr_t after) {
                engine.order(stream_of(stream), stream_of(after));
            },
            py::arg("stream"), py::arg("after"))
        .def(
            "run_images",
            [](const Engine& engine, const std::vector<ByteArray>& images, const std::vector<std::string>& outputs,
               const ImageSize& image_size) {
                const std::vector<vimrt::ImageView> views = views_of(images);
                return to_arrays(without_gil([&] { return engine.run_images(views, outputs, image_size); }));
            },
            py::arg("images"), py::arg("outputs"), py::arg("image_size"))
        .def(
            "preprocess",
            [](const Engine& engine, const std::vector<ByteArray>& images, const ImageSize& image_size) {
                const std::vector<vimrt::ImageView> views = views_of(images);
                return to_array(without_gil([&] { return engine.preprocess(views, image_size); }));
            },
            py::arg("images"), py::arg("image_size"))
        .def(
            "top",
            [](const Engine& engine, const FloatArray& logits, int top_k) {
                py::list list;
                const std::span<const float> values(logits.data(), static_cast<std::size_t>(logits.size()));
                for (const auto& p : engine.top(values, top_k))
                    list.append(py::make_tuple(p.label, p.probability, p.index));
                return list;
            },
            py::arg("logits"), py::arg("top_k"))
        .def(
            "program",
            [](const Engine& engine, std::int64_t batch, std::int64_t height, std::int64_t width,
               const std::vector<std::string>& outputs) {
                return describe(without_gil([&] { return engine.program(batch, height, width, outputs); }));
            },
            py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("outputs"))
        .def(
            "profile",
            [](const Engine& engine, const FloatArray& pixels, int repetitions) {
                const vimrt::Tensor input = vimrt::Tensor::view(pixels.data(), shape_of(pixels));
                const vimrt::Profile profile = without_gil([&] { return engine.profile(input, repetitions); });
                py::list steps;
                for (const auto& step : profile.steps) steps.append(py::make_tuple(step.name, step.seconds));
                return py::make_tuple(profile.images, steps);
            },
            py::arg("pixels").noconvert(), py::arg("repetitions"));
}

}  // namespace

PYBIND11_MODULE(_vimrt, m) {
    m.doc() = "The C++ engine of vimrt; use it through the package vimrt.";
    m.attr("__version__") = vimrt::version();
    bind_errors(m);
    bind_device(m);
    bind_engine(m);
    bind_planner(m);
    bind_preprocess(m);
    m.def(
        "cpu_rates",
        [](int threads) {
            vimrt::CpuRates rates;
            {
                const py::gil_scoped_release release;
                rates = vimrt::measure_cpu_rates(threads);
            }
            return py::dict(py::arg("exp_per_second") = rates.exp_per_second,
                            py::arg("fma_flops_per_second") = rates.fma_flops_per_second);
        },
        py::arg("threads") = 0);
}
