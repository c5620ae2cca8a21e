"""Where and with what a measurement was made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from .nvml import open_card

_PACKAGES = ("vimrt", "numpy", "torch", "timm", "triton")


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, system, versions, the source tree's commit if in one, UTC time."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "versions": _versions(),
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def describe_gpu(index: int) -> dict[str, Any]:
    """The card `index` as PyTorch numbers it: name, memory, multiprocessors, highest clocks, driver, CUDA and cuDNN."""
    import torch

    card = torch.cuda.get_device_properties(index)
    nvml = open_card(index)
    sm_clock, memory_clock = (None, None) if nvml is None else nvml.max_clocks()
    return {
        "name": card.name,
        "memory_bytes": card.total_memory,
        "multiprocessors": card.multi_processor_count,
        "compute_capability": f"{card.major}.{card.minor}",
        "max_sm_mhz": sm_clock,
        "max_memory_mhz": memory_clock,
        "driver": None if nvml is None else nvml.driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        module = sys.modules.get(package)
        if module is not None:
            version = getattr(module, "__version__", None)
            versions[package] = str(version) if version else metadata.version(package)
    return versions


def _commit() -> str | None:
    """The commit of vimrt's source tree around the working directory, with "-dirty" where files differ from it."""
    try:
        top = _git("rev-parse", "--show-toplevel")
        if not (Path(top) / "python" / "vimrt").is_dir():
            return None
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return _git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
