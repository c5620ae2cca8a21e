#include "library_search.h"

#include <dirent.h>
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "vimrt/error.h"

namespace vimrt::cuda {

namespace {

constexpr const char* chosen_folder = "VIMRT_CUBLASLT_PATH";

std::string parent_of(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

void* open_file(const std::string& file, const std::string& package) {
    if (void* library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    const char* reason = ::dlerror();
    throw DeviceError(file + " cannot be loaded: " + (reason != nullptr ? reason : "no reason is known") +
                      "; install it again: pip install --force-reinstall \"" + package + "\"");
}

}  // namespace

std::string own_folder() {
    Dl_info info{};
    if (::dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return ".";
    const std::unique_ptr<char, void (*)(void*)> file(::realpath(info.dli_fname, nullptr), &std::free);
    return parent_of(file != nullptr ? file.get() : info.dli_fname);
}

std::vector<std::string> wheel_folders(const std::string& packages) {
    const std::string nvidia = packages + "/nvidia";
    std::vector<std::string> found;
    const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(nvidia.c_str()), &::closedir);
    while (const dirent* entry = folder != nullptr ? ::readdir(folder.get()) : nullptr) {
        const std::string name = entry->d_name;
        if (name.front() != '.') found.push_back(nvidia + "/" + name + "/lib");
    }
    std::sort(found.rbegin(), found.rend());
    return found;
}

std::vector<std::string> cublaslt_folders(int major, const std::vector<std::string>& given, const std::string& own) {
    std::vector<std::string> folders;
    if (const char* chosen = std::getenv(chosen_folder)) folders.emplace_back(chosen);
    folders.insert(folders.end(), given.begin(), given.end());
    for (const std::string& folder : wheel_folders(parent_of(own))) folders.push_back(folder);
    for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
        if (const char* toolkit = std::getenv(variable)) folders.push_back(std::string(toolkit) + "/lib64");
    }
    folders.emplace_back("/usr/local/cuda/lib64");
    folders.emplace_back("/usr/local/cuda-" + std::to_string(major) + "/lib64");
    folders.emplace_back("/opt/cuda/lib64");
    return folders;
}

void* open_library(const std::string& soname, const std::vector<std::string>& folders, const std::string& package) {
    const char* chosen = std::getenv(chosen_folder);
    const std::string chosen_file = chosen != nullptr ? std::string(chosen) + "/" + soname : "";
    if (!chosen_file.empty() && ::access(chosen_file.c_str(), F_OK) == 0) return open_file(chosen_file, package);
    if (void* library = ::dlopen(soname.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD)) return library;
    std::string searched;
    for (const std::string& folder : folders) {
        const std::string file = folder + "/" + soname;
        if (::access(file.c_str(), F_OK) == 0) return open_file(file, package);
        searched += (searched.empty() ? "" : ", ") + folder;
    }
    if (void* library = ::dlopen(soname.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    throw DeviceError(soname + ", which the CUDA backend needs, was not found: looked in " + searched +
                      " and on the loader's path; install it: pip install \"" + package +
                      "\", name its folder in VIMRT_CUBLASLT_PATH, or use device=\"cpu\"");
}

}  // namespace vimrt::cuda
