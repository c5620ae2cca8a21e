#!/usr/bin/env bash
# Runs clang-tidy over the core, the CPU backend's runtime and the Python bindings, with the checks of .clang-tidy; fails
# if it finds anything. Two to four minutes on two cores. The kernels and operators of cpp/cpu are left out: each would
# be read once for every instruction set, and their intrinsics alone take minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cmake -S . -B "$build" -G Ninja -DVIMRT_CUDA=OFF -DVIMRT_PYTHON=ON -DCMAKE_EXPORT_COMPILE_COMMANDS=ON \
    -DPython3_EXECUTABLE="$(command -v python3)" -Dpybind11_DIR="$(python3 -m pybind11 --cmakedir)" > "$build/configure.log" ||
    { cat "$build/configure.log"; exit 1; }

git ls-files 'cpp/src/*.cpp' 'cpp/cpu/runtime/*.cpp' 'python/vimrt/*.cpp' |
    xargs -P "$(nproc)" -n 1 clang-tidy -p "$build" --quiet
