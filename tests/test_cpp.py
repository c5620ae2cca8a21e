"""The C++ side as a C++ user meets it: configure, build with warnings as errors, test, install, embed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vimrt

REPOSITORY = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A plain CMake build, tests included."""
    folder = tmp_path_factory.mktemp("cmake")
    configured = run(
        "cmake", "-S", REPOSITORY, "-B", folder, "-G", "Ninja",
        "-DVIMRT_TESTS=ON", "-DVIMRT_WERROR=ON", f"-DPython3_EXECUTABLE={sys.executable}",
    )  # fmt: skip
    (folder / "configure.log").write_text(configured)
    run("cmake", "--build", folder, "-j", str(os.cpu_count() or 1))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def installed(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", build, "--prefix", prefix)
    return prefix


def test_configure_says_what_it_took(build: Path) -> None:
    log = (build / "configure.log").read_text()
    assert "vimrt: JSON: nlohmann-json" in log
    assert "vimrt: CUDA: " in log


def test_unit_tests_pass(build: Path) -> None:
    run("ctest", "--test-dir", build, "--output-on-failure")


def test_public_headers_stand_alone(installed: Path, tmp_path: Path) -> None:
    """Each header compiles by itself against the installed ones alone: no CUDA, JSON or BLAS header is needed."""
    headers = sorted((installed / "include" / "vimrt").glob("*.h"))
    assert headers
    for header in headers:
        source = tmp_path / "alone.cpp"
        source.write_text(f"#include <vimrt/{header.name}>\n")
        run("g++", "-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only",
            "-I", installed / "include", source)  # fmt: skip


def test_embedding_application_agrees_with_python(
    installed: Path, tiny_model: Path, images: Path, tmp_path: Path
) -> None:
    """examples/embed finds the installed package, and its output is Python's to the printed digit."""
    run(
        "cmake", "-S", REPOSITORY / "examples" / "embed", "-B", tmp_path / "build",
        f"-DCMAKE_PREFIX_PATH={installed}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Werror",
    )  # fmt: skip
    run("cmake", "--build", tmp_path / "build")
    photograph = vimrt.load_image(images / "b.png")
    rows, columns, _ = photograph.shape
    (tmp_path / "photo.ppm").write_bytes(f"P6 {columns} {rows} 255\n".encode() + photograph.tobytes())
    printed = run(tmp_path / "build" / "embed", tiny_model, tmp_path / "photo.ppm")
    expected = vimrt.Engine(tiny_model, device="cpu").classify(photograph)
    for line, prediction in zip(printed.splitlines(), expected, strict=True):
        label, probability = line.rsplit(maxsplit=1)
        assert label == prediction.label
        assert probability == f"{prediction.probability:.4f}"


def test_cuda_can_be_left_out(tmp_path: Path) -> None:
    configured = run(
        "cmake", "-S", REPOSITORY, "-B", tmp_path, "-DVIMRT_CUDA=OFF", f"-DPython3_EXECUTABLE={sys.executable}"
    )
    assert "vimrt: CUDA: off" in configured
