// cuBLASLt, loaded at run time, so that this library needs neither LD_LIBRARY_PATH nor cuBLAS to load.
#pragma once

#include <string>
#include <vector>

#include "cublaslt_api.h"

namespace vimrt::cuda {

// The functions of libcublasLt that vimrt uses, and a handle for the device that is current when it is made.
class CublasLt {
public:
    // Looks in `folders` too. Throws DeviceError where the library is not found: what was looked for, where, and which
    // command installs it.
    explicit CublasLt(const std::vector<std::string>& folders = {});
    ~CublasLt();
    CublasLt(const CublasLt&) = delete;
    CublasLt& operator=(const CublasLt&) = delete;

    // Throws DeviceError where `status` is an error.
    void check(lt::Status status, const char* what) const;
    std::string version() const;  // "13.0.2"

    lt::Handle handle = nullptr;
    lt::Matmul matmul = nullptr;
    lt::GetHeuristic find_algorithms = nullptr;
    lt::DescCreate desc_create = nullptr;
    lt::DescDestroy desc_destroy = nullptr;
    lt::DescSet desc_set = nullptr;
    lt::LayoutCreate layout_create = nullptr;
    lt::LayoutDestroy layout_destroy = nullptr;
    lt::LayoutSet layout_set = nullptr;
    lt::PreferenceCreate preference_create = nullptr;
    lt::PreferenceDestroy preference_destroy = nullptr;
    lt::PreferenceSet preference_set = nullptr;

private:
    lt::Destroy destroy_ = nullptr;
    lt::GetVersion get_version_ = nullptr;
    lt::StatusString status_string_ = nullptr;
};

}  // namespace vimrt::cuda
