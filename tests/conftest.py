"""A small model that many tests share, and the command line as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vimrt.export import VimConfig, export_checkpoint

#: 28x28 images in 7x7 patches: small enough to run in a millisecond, with every part of a Vim.
TINY = VimConfig.of_width(32, depth=2, classes=10, patch_size=(4, 4), stride=4, grid=(7, 7))
LABELS = ["t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]

Vimrt = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the model TINY, in the layout of the published ones."""
    import torch

    from vimrt.export.reference import random_state_dict

    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    torch.save({"model": random_state_dict(TINY, seed=0)}, path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> Path:
    """tiny_checkpoint as a .vimrt file, with LABELS."""
    path = tiny_checkpoint.with_suffix(".vimrt")
    export_checkpoint(tiny_checkpoint, path, labels=LABELS)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images, one of them in a folder inside, and a text file."""
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    for seed, name in enumerate(("b.png", "a.jpg", "inner/[c].PNG")):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def command(*arguments: object) -> list[str]:
    """The command line that starts vimrt, whether or not its script is on the PATH."""
    return [sys.executable, "-m", "vimrt.cli", *map(str, arguments)]


def start_interruptible(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """vimrt as a process that SIGINT reaches, even where the tests themselves ignore it."""
    return subprocess.Popen(
        command(*arguments), text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options
    )


@pytest.fixture
def vimrt() -> Vimrt:
    """Runs the command and returns its exit code and output. Options: cwd, and environment variables by name."""

    def run(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), capture_output=True, text=True, timeout=300, cwd=cwd, env=os.environ | environment
        )

    return run
