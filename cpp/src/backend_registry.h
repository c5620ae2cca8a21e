// From the name of a device to a backend.
#pragma once

#include <memory>
#include <string>

#include "backend.h"

namespace vimrt {

// "auto" takes the CUDA backend where it is installed and its device works, and the CPU otherwise. "cpu", "cuda" and
// "cuda:N" take that one. Where "auto" takes the CPU on a machine with an NVIDIA driver, `warning` says why. Throws
// DeviceError saying what is missing, InvalidArgument for any other name.
std::unique_ptr<Backend> create_backend(const std::string& device, BackendOptions options, std::string& warning);

}  // namespace vimrt
