#include "cublaslt.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include "library_search.h"
#include "vimrt/error.h"

namespace vimrt::cuda {

namespace {

// Of the toolkit that this library is built with; cuBLAS and the CUDA runtime share their major versions.
constexpr int major_version = CUDART_VERSION / 1000;

std::string soname() {
    return "libcublasLt.so." + std::to_string(major_version);
}

// What pip installs it from.
std::string package() {
    return "nvidia-cublas>=" + std::to_string(major_version) + ",<" + std::to_string(major_version + 1);
}

template <typename F>
void find(void* library, const char* name, F& function) {
    function = reinterpret_cast<F>(::dlsym(library, name));
    if (function == nullptr)
        throw DeviceError(soname() + " has no function " + name + "; install a newer one: pip install -U \"" +
                          package() + "\"");
}

}  // namespace

CublasLt::CublasLt(const std::vector<std::string>& folders) {
    void* library = open_library(soname(), cublaslt_folders(major_version, folders, own_folder()), package());
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
