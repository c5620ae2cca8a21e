#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds and installs vimrt with its CUDA backend into the running Python, then
# kernel tests, parity on every variant, compute-sanitizer, the scan alone, and the engine's times.
#
#     tests/cuda/device_check.sh [OUTPUT_FOLDER]     # logs and tables; default: device_check
#     STAGES="build kernels parity" tests/cuda/device_check.sh
set -uo pipefail
cd "$(dirname "$0")/../.."
out=$(mkdir -p "${1:-device_check}" && cd "${1:-device_check}" && pwd)
stages=${STAGES:-build kernels sanitizer scan engine parity}
build=${BUILD:-/tmp/vimrt-cuda-build}
failed=0

wanted() { [[ " $stages " == *" $1 "* ]]; }
stage() {  # NAME COMMAND...: runs the command with its output in NAME.log, says how it went, and fails if it failed
    local name=$1 begin=$SECONDS
    shift
    if "$@" >"$out/$name.log" 2>&1; then echo "ok      $name ($((SECONDS - begin)) s)"; else
        echo "FAILED  $name ($((SECONDS - begin)) s)"
        tail -n 25 "$out/$name.log"
        failed=1
        return 1
    fi
}

nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader

if wanted build; then
    stage build python3 -m pip install --no-build-isolation --no-deps -v . -C build-dir="$build" \
        -C cmake.define.VIMRT_CUDA=ON -C cmake.define.VIMRT_CUDA_TESTS=ON \
        -C cmake.define.VIMRT_CUDA_ARCHITECTURES="${ARCHITECTURES:-native}" ${CMAKE_DEFINES:-}
    [ $failed = 0 ] || exit 1
fi
if wanted kernels; then
    stage kernels "$build/tests/cuda/kernels_test"
    stage scan_test "$build/tests/cuda/scan_test"
fi
if wanted sanitizer; then
    running=()
    # A relay has up to 12 barriers for each block.
    for tool in memcheck racecheck initcheck "synccheck --num-cuda-barriers 100000"; do
        sanitized() {
            # shellcheck disable=SC2086
            stage "${tool%% *}-$1" timeout 200 compute-sanitizer --tool $tool --error-exitcode 1 "${@:2}" &
            running+=($!)
        }
        sanitized norms "$build/tests/cuda/kernels_test" add_norm
        sanitized parts "$build/tests/cuda/kernels_test" parts_of_operands
        sanitized between-scans "$build/tests/cuda/kernels_test" between_scans
        sanitized before-scan "$build/tests/cuda/kernels_test" before_scan
        sanitized convolution "$build/tests/cuda/kernels_test" convolution_and_projection
        sanitized scan-rows "$build/tests/cuda/scan_test" one_direction
        # One form in a process: racecheck takes a barrier of one kernel and plain memory of the next for a race.
        VIMRT_SCAN_FORM=octets sanitized scan-octets "$build/tests/cuda/scan_test" octets_order
        VIMRT_SCAN_FORM=strips sanitized scan-strips "$build/tests/cuda/scan_test" octets_order
        VIMRT_SCAN_FORM=trios sanitized scan-trios "$build/tests/cuda/scan_test" octets_order
        VIMRT_SCAN_FORM=relay sanitized scan-relay "$build/tests/cuda/scan_test" octets_order
        VIMRT_SCAN_FORM=halves sanitized scan-halves "$build/tests/cuda/scan_test" octets_order
    done
    for process in "${running[@]}"; do wait "$process" || failed=1; done
fi
if wanted scan; then
    stage registers "$build/tests/cuda/register_bench" && cat "$out/registers.log"
    stage scan "$build/tests/cuda/scan_bench" && cat "$out/scan.log"
fi
if wanted engine; then
    stage models python3 tests/cuda/random_models.py "$out/models"
    stage allocation "$build/tests/cuda/device_allocation_test" "$out/models/tiny.vimrt"
    while read -r model dtype batch size; do
        "$build/tests/cuda/engine_bench" "$out/models/$model.vimrt" "$dtype" "$batch" "$size" "$size" 2>&1
    done <<'ROWS' | tee "$out/engine.txt"
tiny fp16 1 224
tiny fp16 128 224
small fp16 1 224
small fp16 128 224
base fp16 1 224
base fp16 128 224
tiny fp16 32 512
tiny fp16 8 1024
tiny fp16 1 1248
tiny fp16 8 1248
small fp16 1 1248
small fp16 8 1248
base fp16 1 1248
base fp16 8 1248
tiny fp16 4 2048
tiny fp16 1 4096
ROWS
    rm -rf "$out/models"
fi
if wanted parity; then
    rm -f "$out/parity.txt"
    VIMRT_PARITY_TABLE=$out/parity.txt stage parity timeout "${PARITY_SECONDS:-300}" \
        python3 -m pytest -q -x --maxfail=8 -p no:cacheprovider ${PYTEST_OPTIONS:-} tests/test_cuda.py
    sort "$out/parity.txt"
fi
exit $failed
