#include "cublaslt.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "vimrt/error.h"

namespace vimrt::cuda {

namespace {

namespace fs = std::filesystem;

// Of the toolkit that this library is built with; cuBLAS and the CUDA runtime share their major versions.
constexpr int major_version = CUDART_VERSION / 1000;
const std::string soname = "libcublasLt.so." + std::to_string(major_version);

// The folder of this shared object: site-packages/vimrt in a wheel.
fs::path own_folder() {
    Dl_info info{};
    if (::dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return ".";
    return fs::absolute(info.dli_fname).parent_path();
}

// nvidia/<package>/lib below `packages`, a folder of Python packages, newest first.
void add_wheel_folders(const fs::path& packages, std::vector<fs::path>& folders) {
    std::error_code ignored;
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(packages / "nvidia", ignored))
        found.push_back(entry.path() / "lib");
    std::sort(found.rbegin(), found.rend());
    folders.insert(folders.end(), found.begin(), found.end());
}

// Where the library may be besides the loader's own path, in the order in which they are tried.
std::vector<fs::path> folders_to_search() {
    std::vector<fs::path> folders;
    if (const char* chosen = std::getenv("VIMRT_CUBLASLT_PATH")) folders.emplace_back(chosen);
    add_wheel_folders(own_folder().parent_path(), folders);
    for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
        if (const char* toolkit = std::getenv(variable)) folders.push_back(fs::path(toolkit) / "lib64");
    }
    const std::string version = std::to_string(major_version);
    folders.emplace_back("/usr/local/cuda/lib64");
    folders.emplace_back("/usr/local/cuda-" + version + "/lib64");
    folders.emplace_back("/opt/cuda/lib64");
    return folders;
}

// One that the process has loaded already, or that the loader finds by itself, comes first: two copies in one process
// would hold their memory twice.
void* open_library() {
    if (void* library = ::dlopen(soname.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD)) return library;
    std::string searched;
    for (const fs::path& folder : folders_to_search()) {
        const fs::path file = folder / soname;
        searched += (searched.empty() ? "" : ", ") + folder.string();
        std::error_code ignored;
        if (!fs::exists(file, ignored)) continue;
        if (void* library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
        throw DeviceError(file.string() + " cannot be loaded: " + ::dlerror() +
                          "; install it again: pip install --force-reinstall nvidia-cublas");
    }
    if (void* library = ::dlopen(soname.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    throw DeviceError(
        soname + " (cuBLASLt), which the CUDA backend needs, was not found: looked in " + searched +
        " and on the loader's path; install it: pip install \"nvidia-cublas==" + std::to_string(major_version) +
        ".*\", name its folder in VIMRT_CUBLASLT_PATH, or use device=\"cpu\"");
}

template <typename F>
void find(void* library, const char* name, F& function) {
    function = reinterpret_cast<F>(::dlsym(library, name));
    if (function == nullptr)
        throw DeviceError(soname + " has no function " + name + "; install a newer one: pip install -U nvidia-cublas");
}

}  // namespace

CublasLt::CublasLt() {
    void* library = open_library();
    find(library, "cublasLtMatmul", matmul);
    find(library, "cublasLtMatmulAlgoGetHeuristic", find_algorithms);
    find(library, "cublasLtMatmulDescCreate", desc_create);
    find(library, "cublasLtMatmulDescDestroy", desc_destroy);
    find(library, "cublasLtMatmulDescSetAttribute", desc_set);
    find(library, "cublasLtMatrixLayoutCreate", layout_create);
    find(library, "cublasLtMatrixLayoutDestroy", layout_destroy);
    find(library, "cublasLtMatrixLayoutSetAttribute", layout_set);
    find(library, "cublasLtMatmulPreferenceCreate", preference_create);
    find(library, "cublasLtMatmulPreferenceDestroy", preference_destroy);
    find(library, "cublasLtMatmulPreferenceSetAttribute", preference_set);
    find(library, "cublasLtGetVersion", get_version_);
    find(library, "cublasLtGetStatusString", status_string_);
    find(library, "cublasLtDestroy", destroy_);
    lt::Create create = nullptr;
    find(library, "cublasLtCreate", create);
    check(create(&handle), "cuBLASLt cannot be started");
}

// The library itself stays loaded: its own threads and caches do not expect to be unloaded.
CublasLt::~CublasLt() {
    destroy_(handle);
}

void CublasLt::check(lt::Status status, const char* what) const {
    if (status != lt::success) throw DeviceError(std::string(what) + ": " + status_string_(status));
}

std::string CublasLt::version() const {
    const std::size_t number = get_version_();
    return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
           std::to_string(number % 100);
}

}  // namespace vimrt::cuda
