// Finds a shared library that is not on the loader's path, such as one of NVIDIA's wheels.
//
// Plain strings and system calls: std::filesystem is left out of what is loaded into other people's processes, as its
// symbols are among those that libraries built with older compilers export with another layout.
#pragma once

#include <string>
#include <vector>

namespace vimrt::cuda {

// The folder of this shared object: site-packages/vimrt in a wheel.
std::string own_folder();

// <packages>/nvidia/*/lib, where NVIDIA's wheels keep their libraries, newest name first.
std::vector<std::string> wheel_folders(const std::string& packages);

// Where cuBLASLt of CUDA `major` may lie, in the order in which the folders are tried: the folder that
// VIMRT_CUBLASLT_PATH names, `given`, wheels beside `own`, CUDA_HOME and CUDA_PATH, toolkits where they usually are.
std::vector<std::string> cublaslt_folders(int major, const std::vector<std::string>& given, const std::string& own);

// Opens `soname`: the one in the folder that VIMRT_CUBLASLT_PATH names, else one that the process has loaded already,
// as two copies would hold their memory twice, else the first in `folders`, else the loader's own. Throws DeviceError:
// what cannot be loaded and why, or where it was looked for, and what installs it.
void* open_library(const std::string& soname, const std::vector<std::string>& folders, const std::string& package);

}  // namespace vimrt::cuda
