#include "backend_registry.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "vimrt/error.h"

namespace vimrt {

namespace {

// The folder that holds libvimrt itself, where its backends lie too.
std::filesystem::path library_folder() {
    Dl_info info{};
    if (::dladdr(reinterpret_cast<const void*>(&create_backend), &info) == 0 || info.dli_fname == nullptr) return ".";
    return std::filesystem::absolute(info.dli_fname).parent_path();
}

// Loads libvimrt_<name>.so once; it stays loaded, as its objects live anywhere in the process.
const BackendEntry& load_backend(const std::string& name) {
    const char* folder = std::getenv("VIMRT_BACKEND_PATH");
    const std::filesystem::path path =
        (folder != nullptr ? std::filesystem::path(folder) : library_folder()) / ("libvimrt_" + name + ".so");
    std::error_code unreadable;
    if (!std::filesystem::exists(path, unreadable)) {
        throw DeviceError(
            "the device \"" + name + "\" needs " + path.string() +
            ", which this build of vimrt does not have; build with -DVIMRT_CUDA=ON, or use device=\"cpu\"");
    }
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw DeviceError("the backend " + path.string() + " cannot be loaded: " + ::dlerror());
    const auto* entry = static_cast<const BackendEntry*>(::dlsym(library, "vimrt_backend_entry"));
    if (entry == nullptr || entry->abi_version != backend_abi_version) {
        throw DeviceError("the backend " + path.string() +
                          " belongs to another version of vimrt; install both from one build");
    }
    return *entry;
}

// "cuda" -> 0, "cuda:3" -> 3; -1 for anything else.
int cuda_index(const std::string& device) {
    if (device == "cuda") return 0;
    const std::string prefix = "cuda:";
    if (device.rfind(prefix, 0) != 0) return -1;
    const std::string digits = device.substr(prefix.size());
    if (digits.empty() || digits.size() > 3 ||
        !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; })) {
        return -1;
    }
    return std::stoi(digits);
}

}  // namespace

std::unique_ptr<Backend> create_backend(const std::string& device, BackendOptions options) {
    if (device == "cpu") return cpu::create_backend(options);
    if (device == "auto") {
        try {
            return load_backend("cuda").create(options);
        } catch (const DeviceError&) {
            return cpu::create_backend(options);
        }
    }
    options.device_index = cuda_index(device);
    if (options.device_index < 0) {
        throw InvalidArgument("the device \"" + device.substr(0, 100) +
                              "\" is unknown; use \"auto\", \"cpu\", \"cuda\" or \"cuda:N\"");
    }
    return load_backend("cuda").create(options);
}

}  // namespace vimrt
