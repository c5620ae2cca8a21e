# The CUDA backend, a shared object of its own that libvimrt loads when it is asked for a CUDA device.
if(VIMRT_CUDA STREQUAL "OFF")
    message(STATUS "vimrt: CUDA: off (VIMRT_CUDA=OFF); this build runs on the CPU")
    return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
    message(STATUS "vimrt: CUDA: ${CMAKE_CUDA_COMPILER}; libvimrt_cuda.so is built and used where a GPU and its driver are found")
    add_subdirectory(cuda)
elseif(VIMRT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "vimrt: VIMRT_CUDA=ON, but no CUDA compiler was found. Install a CUDA toolkit, put nvcc on PATH or "
                        "set CUDACXX, or build with VIMRT_CUDA=AUTO or OFF")
else()
    message(STATUS "vimrt: CUDA: no compiler (nvcc) found; this build runs on the CPU. Put nvcc on PATH to add the GPU")
endif()
