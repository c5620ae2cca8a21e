"""Resident memory of a run, seen by the kernel in a process that does nothing else.

    python -m vimrt.bench.resident MODEL BATCH ROWS COLUMNS DEVICE THREADS

prints it as JSON. It is a process of its own because memory that earlier work has touched would hide what a run needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import Engine

_RUNS = 3


def measure_resident(
    model: str, batch: int, image_size: tuple[int, int], device: str = "cpu", threads: int | None = None
) -> dict[str, int]:
    """Resident bytes of running `batch` images of (rows, columns), measured in a new process.

    Returns:
        "growth": what loading and running added to the process beyond input, output and packed weights;
        "planned": bytes of activations in arenas; "program": bytes of the loaded graph and its program; "constants":
        bytes of packed weights and tables.

    Raises:
        RuntimeError: the process failed; the message is the last line it printed.
    """
    arguments = [model, str(batch), *map(str, image_size), device, str(threads or 0)]
    command = [sys.executable, "-m", __name__, *arguments]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        reason = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise RuntimeError(f"measuring resident memory failed: {reason[-1]}")
    result: dict[str, int] = json.loads(process.stdout)
    return result


def _anonymous_bytes() -> int:
    """Resident bytes of this process that no file backs: heap, arenas and stacks."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def _measure(model: str, batch: int, image_size: tuple[int, int], device: str, threads: int) -> dict[str, Any]:
    pixels = np.random.default_rng(0).standard_normal((batch, 3, *image_size), dtype=np.float32)
    before = _anonymous_bytes()
    engine = Engine(model, device=device, threads=threads or None)
    for _ in range(_RUNS):
        logits = engine.run(pixels)
    after = _anonymous_bytes()
    memory = engine.memory
    return {
        "growth": after - before - memory["constants"] - logits.nbytes,
        "planned": memory["activations"],
        "program": memory["program"],
        "constants": memory["constants"],
    }


if __name__ == "__main__":
    path, images, rows, columns, where, team = sys.argv[1:]
    print(json.dumps(_measure(path, int(images), (int(rows), int(columns)), where, int(team))))
