#include "backend_registry.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "vimrt/error.h"

namespace vimrt {

namespace {

// The folder that holds libvimrt itself, where its backends lie too.
std::string library_folder() {
    Dl_info info{};
    if (::dladdr(reinterpret_cast<const void*>(&create_backend), &info) == 0 || info.dli_fname == nullptr) return ".";
    const std::unique_ptr<char, void (*)(void*)> absolute(::realpath(info.dli_fname, nullptr), &std::free);
    const std::string file = absolute != nullptr ? absolute.get() : info.dli_fname;
    return file.substr(0, file.rfind('/'));
}

// VIMRT_BACKEND_PATH names another folder for them.
std::string backend_path(const std::string& name) {
    const char* folder = std::getenv("VIMRT_BACKEND_PATH");
    return (folder != nullptr ? std::string(folder) : library_folder()) + "/libvimrt_" + name + ".so";
}

// True where there is, or was meant to be, an NVIDIA GPU: under Linux, or under Windows' own Linux.
bool has_nvidia_driver() {
    for (const char* trace : {"/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"}) {
        if (::access(trace, F_OK) == 0) return true;
    }
    return false;
}

// Loads libvimrt_<name>.so once; it stays loaded, as its objects live anywhere in the process.
const BackendEntry& load_backend(const std::string& name) {
    const std::string path = backend_path(name);
    if (::access(path.c_str(), F_OK) != 0) {
        throw DeviceError(
            "the device \"" + name + "\" needs " + path +
            ", which this build of vimrt does not have; build with -DVIMRT_CUDA=ON, or use device=\"cpu\"");
    }
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw DeviceError("the backend " + path + " cannot be loaded: " + ::dlerror());
    const auto* entry = static_cast<const BackendEntry*>(::dlsym(library, "vimrt_backend_entry"));
    if (entry == nullptr || entry->abi_version != backend_abi_version) {
        throw DeviceError("the backend " + path + " belongs to another version of vimrt; install both from one build");
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

std::unique_ptr<Backend> create_backend(const std::string& device, BackendOptions options, std::string& warning) {
    if (device == "cpu") return cpu::create_backend(options);
    if (device == "auto") {
        const std::string path = backend_path("cuda");
        if (::access(path.c_str(), F_OK) != 0) return cpu::create_backend(options);
        try {
            return load_backend("cuda").create(options);
        } catch (const DeviceError& error) {
            if (has_nvidia_driver()) warning = std::string("the CPU is used, as CUDA is not usable: ") + error.what();
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
