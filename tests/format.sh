#!/usr/bin/env bash
# Formats all C++ and CUDA sources with clang-format; with --check only says what it would change, and fails if anything.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=-i
[ "${1:-}" = "--check" ] && mode="--dry-run --Werror"
# shellcheck disable=SC2086
git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs clang-format $mode
