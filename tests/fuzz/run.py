#!/usr/bin/env python3
"""Fuzzes the loader and the engine under AddressSanitizer and UndefinedBehaviorSanitizer.

    tests/fuzz/run.py [--cases N] [--seed S] [--build FOLDER]

Builds fuzz_loader with the sanitizers, exports small models of every variant as seeds, and runs N damaged files through
the engine. Exits 1 where one of them crashed, hung, leaked or broke another promise of fuzz_loader.cpp; its file is
kept. Needs the packages that vimrt's tests need.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vimrt.export import VimConfig, export_checkpoint
from vimrt.export.reference import random_state_dict

REPOSITORY = Path(__file__).resolve().parents[2]

TINY = VimConfig(
    d_model=16, depth=2, d_inner=32, d_state=4, dt_rank=2, patch_size=(8, 8), stride=8, grid=(4, 4), classes=5
)
NO_CLASS_TOKEN = replace(TINY, class_token="none", pool="mean")

# Every operator with every choice it has: configuration, options of the export.
SEEDS: dict[str, tuple[VimConfig, dict[str, Any]]] = {
    "middle": (TINY, {"labels": ["a", "b", "c", "d", "e"]}),
    "fp16": (TINY, {"dtype": "fp16"}),
    "bf16": (TINY, {"dtype": "bf16"}),
    "head": (replace(TINY, class_token="head", norm="layer"), {"class_token": "head"}),
    "tail": (replace(TINY, class_token="tail", layer_scale=True), {"class_token": "tail"}),
    "ends": (replace(TINY, class_token="ends"), {"image_size": (40, 24)}),
    "first-entry": (replace(TINY, first_entry=True), {"first_entry": True, "image_size": 56}),
    "rope": (replace(NO_CLASS_TOKEN, rope=True), {"pool": "mean", "image_size": (24, 48)}),
    "pool-max": (replace(NO_CLASS_TOKEN, pool="max"), {"pool": "max"}),
    "pool-last": (replace(NO_CLASS_TOKEN, pool="last"), {}),
    "v1": (replace(TINY, mixer="v1", merge="sum"), {}),
    "forward-only": (replace(TINY, mixer="none", merge="sum", d_conv=3, d_state=5, dt_rank=3), {}),
    "overlapping-patches": (replace(TINY, stride=4, grid=(7, 7)), {"stride": 4}),
}

SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:max_allocation_size_mb=1024:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def build_fuzzer(folder: Path) -> Path:
    """The executable, made in `folder` by CMake."""
    configure = ["cmake", "-S", REPOSITORY, "-B", folder, "-G", "Ninja", f"-DPython3_EXECUTABLE={sys.executable}"]
    configure += ["-DVIMRT_TESTS=ON", "-DVIMRT_CUDA=OFF", "-DVIMRT_SANITIZE=address,undefined"]
    for command in (configure, ["cmake", "--build", folder, "--target", "fuzz_loader"]):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{done.stdout[-4000:]}{done.stderr[-4000:]}\nthe fuzzer could not be built")
    return folder / "tests" / "cpp" / "fuzz" / "fuzz_loader"


def make_seeds(folder: Path) -> list[Path]:
    """One small .vimrt file for each variant."""
    folder.mkdir()
    paths = []
    for seed, (name, (config, options)) in enumerate(SEEDS.items()):
        checkpoint, path = folder / f"{name}.pth", folder / f"{name}.vimrt"
        torch.save(random_state_dict(config, seed), checkpoint)
        export_checkpoint(checkpoint, path, **options)
        paths.append(path)
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="damaged files to try (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another number, other damage (default: %(default)s)")
    parser.add_argument("--build", type=Path, help="build folder to use and keep; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vimrt-fuzz-") as temporary:
        folder = Path(temporary)
        fuzzer = build_fuzzer(options.build.resolve() if options.build else folder / "build")
        seeds = make_seeds(folder / "seeds")
        command = [fuzzer, "--cases", options.cases, "--seed", options.seed, "--folder", folder, *seeds]
        start = time.monotonic()
        environment = os.environ | SANITIZER_OPTIONS
        code = subprocess.run([str(part) for part in command], env=environment, check=False).returncode
        seconds = time.monotonic() - start
        print(f"{seconds:.0f} s under AddressSanitizer and UndefinedBehaviorSanitizer, exit status {code}")
        for path in [*folder.glob("case.vimrt"), *folder.glob("failure-*.vimrt")]:
            kept = shutil.copy(path, Path.cwd() / f"fuzz-{path.name}")
            print(f"kept {kept}; try it again with: fuzz_loader --replay {kept}")
    return 0 if code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
